"""Multiple choice: which of several continuations a model finds most likely."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from encoder import Encoder
from gpt2_tf.evaluation.examples import FORMS, is_question
from gpt2_tf.evaluation.scoring import checked_row, continuation_row, score_rows
from gpt2_tf.files.journal import Journal
from gpt2_tf.generation.generate import check_vocabulary
from gpt2_tf.generation.likelihood import BATCH_SIZE
from gpt2_tf.model.gpt2 import GPT2


def choice(
    model: GPT2,
    enc: Encoder,
    questions: Sequence[Mapping[str, Any]],
    *,
    batch_size: int = BATCH_SIZE,
    bar: bool = False,
    record: Journal | None = None,
    name: str = "questions",
) -> dict[str, Any] | None:
    """How often the right one of several continuations is the likeliest.

    A question has `context`, `choices`, the number of the right one from 0, `answer`, and perhaps an `ending`, the same
    after each choice. They are joined as they are, spaces and all; an empty context is `<|endoftext|>`. Accuracies:

    - `full`: by log p(choice + ending | context), as the paper did the Children's Book Test;
    - `per_byte`: by that over the bytes of choice and ending;
    - `partial`: by log p(ending | context + choice), as the paper did Winograd's schemas, after "A Simple Method for
      Commonsense Reasoning" (Trinh and Le, 2018); None unless all questions have endings.

    Among equals, the first is chosen. `chosen` is what each of them chose, question by question.

    Raises:
        ValueError: a question that isn't as above, or is longer than n_ctx + 1 tokens; `name` and its number are in it.
    """
    check_vocabulary(model, enc)
    rows, endings = [], []
    for number, question in enumerate(questions, start=1):
        where = f"{name}: line {number}"
        if not is_question(question):
            raise ValueError(f"{where} isn't {FORMS['choice']}")
        context, choices, ending = question["context"], question["choices"], question.get("ending", "")
        for text in choices:
            row = checked_row(model, continuation_row(enc, context, text + ending), where)
            rows.append(row)
            endings.append(continuation_row(enc, context + text, ending).count if ending else 0)
    if not rows:
        raise ValueError(f"{name} is empty, so there is nothing to score")
    scores = score_rows(model, rows, batch_size, bar, record)
    if scores is None:
        return None
    by = {name: [] for name in ("full", "per_byte", "partial")}
    last = 0
    for question in questions:
        first, last = last, last + len(question["choices"])
        logprobs = [score.logprobs.astype(np.float64) for score in scores[first:last]]
        full = [values.sum() for values in logprobs]
        sizes = [len((text + question.get("ending", "")).encode()) for text in question["choices"]]
        by["full"].append(int(np.argmax(full)))
        by["per_byte"].append(int(np.argmax(np.divide(full, sizes))))
        if question.get("ending"):
            partial = [values[len(values) - n :].sum() for values, n in zip(logprobs, endings[first:last], strict=True)]
            by["partial"].append(int(np.argmax(partial)))
    answers = [question["answer"] for question in questions]
    chosen = {name: numbers for name, numbers in by.items() if len(numbers) == len(answers)}
    accuracies = {name: float(np.mean(np.equal(numbers, answers))) for name, numbers in chosen.items()}
    return {
        "questions": len(answers),
        "accuracy": {name: accuracies.get(name) for name in by},
        "chosen": chosen,
    }
