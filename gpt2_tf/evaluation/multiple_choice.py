"""Multiple choice: which of several continuations a model finds most likely."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from encoder import Encoder
from gpt2_tf.evaluation.examples import FORMATS, is_question
from gpt2_tf.evaluation.scoring import check_row, continuation_row, score_rows
from gpt2_tf.files.journal import Journal
from gpt2_tf.generation.engine import Engine, Likelihood, Row, as_engine
from gpt2_tf.generation.generate import check_vocabulary
from gpt2_tf.generation.likelihood import BATCH_SIZE

if TYPE_CHECKING:
    from gpt2_tf.model.gpt2 import GPT2

WAYS = ("full", "per_byte", "partial")  # the ways to compare choices


def choice(
    model: "GPT2 | Engine",
    enc: Encoder,
    questions: Sequence[Mapping[str, Any]],
    *,
    batch_size: int = BATCH_SIZE,
    bar: bool = False,
    journal: Journal | None = None,
    name: str = "questions",
) -> dict[str, Any] | None:
    """Measure how often a model finds the right one of several continuations most likely.

    The choices of a question are compared in three ways:

    - `full`: by log p(choice + ending | context), as the GPT-2 paper did for the Children's Book Test.
    - `per_byte`: by the same, divided by the number of bytes of choice + ending.
    - `partial`: by log p(ending | context + choice), as the paper did for Winograd's schemas, after "A Simple Method
      for Commonsense Reasoning" (Trinh and Le, 2018). Only when all questions have an ending.

    The first of equally likely choices is chosen.

    Args:
        model: the model to evaluate, a GPT2 or an Engine.
        enc: its encoder, of the same vocabulary.
        questions: mappings with `context`, a string; `choices`, at least two strings; `answer`, the index of the right
            choice, from 0; and optionally `ending`, a string that follows every choice. The strings are joined without
            adding spaces. An empty context becomes `<|endoftext|>`. At most n_ctx + 1 tokens per choice.
        batch_size: choices per batch, at least 1; affects speed and memory only. Default: 8.
        bar: whether to show a progress bar on stderr.
        journal: keeps each choice's scores, so that a killed run resumes and several processes share a run.
        name: what error messages call the questions, such as the name of their file.

    Returns:
        `questions`: how many. `accuracy`: way -> 0 to 1, or None where the way does not apply. `chosen`: way -> the
        index of the chosen choice, per question. The result is None when other shards of the journal have not finished.

    Raises:
        ValueError: a question has another form or too many tokens, with its number; or `questions` is empty.

    Source: "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019), sections 3.2 and 3.4.

    Example:
        >>> from gpt2_tf import evaluation
        >>> question = {"context": "God save the", "choices": [" king", " zebra"], "answer": 0}
        >>> result = evaluation.choice(model, enc, [question])
        >>> result["accuracy"]
        {'full': 1.0, 'per_byte': 1.0, 'partial': None}
    """
    engine = as_engine(model)
    check_vocabulary(engine, enc)
    rows = []
    for number, question in enumerate(questions, start=1):
        rows += _question_rows(enc, question, engine.hparams.n_ctx, f"{name}: question {number}")
    if not rows:
        raise ValueError(f"{name} is empty, so there is nothing to score; give at least one question")
    scores = score_rows(engine, rows, batch_size=batch_size, bar=bar, journal=journal)
    if scores is None:
        return None
    chosen = {way: [] for way in WAYS}
    end = 0
    for question in questions:
        begin, end = end, end + len(question["choices"])
        for way, index in _choose(enc, question, scores[begin:end]).items():
            chosen[way].append(index)
    answers = [question["answer"] for question in questions]
    chosen = {way: indices for way, indices in chosen.items() if len(indices) == len(answers)}
    accuracy = {way: float(np.mean(np.equal(indices, answers))) for way, indices in chosen.items()}
    return {
        "questions": len(answers),
        "accuracy": {way: accuracy.get(way) for way in WAYS},
        "chosen": chosen,
    }


def _question_rows(enc: Encoder, question: Mapping[str, Any], n_ctx: int, where: str) -> list[Row]:
    """Return one row per choice. The choice and the ending are scored."""
    if not is_question(question):
        raise ValueError(f"{where} must be {FORMATS['choice']}")
    rows = []
    for text in question["choices"]:
        row = continuation_row(enc, question["context"], text + question.get("ending", ""))
        check_row(row, n_ctx, where)
        rows.append(row)
    return rows


def _choose(enc: Encoder, question: Mapping[str, Any], scores: Sequence[Likelihood]) -> dict[str, int]:
    """The index of the most likely choice in each way that applies, from the scores of each choice."""
    ending = question.get("ending", "")
    logprobs = [score.logprobs.astype(np.float64) for score in scores]
    full = [values.sum() for values in logprobs]
    n_bytes = [len((text + ending).encode()) for text in question["choices"]]
    chosen = {"full": int(np.argmax(full)), "per_byte": int(np.argmax(np.divide(full, n_bytes)))}
    if ending:
        n_ending = [continuation_row(enc, question["context"] + text, ending).count for text in question["choices"]]
        partial = [values[len(values) - n :].sum() for values, n in zip(logprobs, n_ending, strict=True)]
        chosen["partial"] = int(np.argmax(partial))
    return chosen
