"""How well a model knows texts: perplexity, LAMBADA's last words, and which of several continuations is likeliest."""

import json
import math
import platform
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from encoder import Encoder
from gpt2_tf.files import progress
from gpt2_tf.files.journal import Record
from gpt2_tf.files.shard import WHOLE
from gpt2_tf.generation.generate import check_vocabulary
from gpt2_tf.generation.likelihood import BATCH_SIZE, Likelihood, Row, likelihoods
from gpt2_tf.hparams import is_whole
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.pretrained.load import sha256

# The English list of NLTK's stopwords corpus, as it was in 2019, but for the ends of contractions.
STOP_WORDS = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its
itself they them their theirs themselves what which who whom this that these those am is are was were be been being have
has had having do does did doing a an the and but if or because as until while of at by for with about against between
into through during before after above below to from up down in out on off over under again further then once here there
when where why how all any both each few more most other some such no nor not only own same so than too very can will
just don should now
"""


def perplexity(
    model: GPT2,
    enc: Encoder,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = BATCH_SIZE,
    bar: bool = False,
    record: Record | None = None,
) -> dict[str, float | None] | None:
    """How unlikely a text is after `<|endoftext|>`, each of its tokens scored once.

    `nats` is its negative log-likelihood; perplexity is exp(nats / count) per token, per word (what is between white
    space) and per byte of UTF-8, or None where a float can't hold it or the count is 0. The paper doesn't say how its
    windows overlap; `stride` = `window` is the harness's rolling likelihood.

    Args:
        window: tokens read at a time; None takes n_ctx.
        stride: how far the window moves: a token is predicted from at least `window` - `stride` tokens before it, or
            from all there are; None takes half of the window.
        batch_size: windows computed at a time.
        bar: show on stderr how far it is.
        record: keeps each window's scores as they come, so that a run that was killed goes on, and processes share one
            by its shards; where theirs aren't done yet, None comes back.

    Raises:
        ValueError: an argument out of its range, or an empty text.
    """
    check_vocabulary(model, enc)
    window, stride = _window(model.hparams.n_ctx, window, stride)
    if not text:
        raise ValueError("the text is empty, so there is nothing to score")
    rows = windows([enc.end_of_text, *enc.encode(text)], window, stride)
    scores = _scores(model, rows, batch_size, bar, record)
    if scores is None:
        return None
    nats = -sum(float(score.logprobs.sum(dtype=np.float64)) for score in scores)
    counts = {"token": sum(row.count for row in rows), "word": len(text.split()), "byte": len(text.encode())}
    return {
        "nats": nats,
        **{f"{unit}s": count for unit, count in counts.items()},
        **{f"{unit}_perplexity": _exp(nats, count) for unit, count in counts.items()},
        "bits_per_byte": nats / math.log(2) / counts["byte"],
    }


def _window(n_ctx: int, window: int | None, stride: int | None) -> tuple[int, int]:
    """Both, where they are None by default; ValueError where one is out of its range."""
    window = n_ctx if window is None else window
    if not is_whole(window, 1, n_ctx):
        raise ValueError(f"window is {window!r}, but must be a whole number, 1 to the model's n_ctx, {n_ctx}")
    stride = max(1, window // 2) if stride is None else stride
    if not is_whole(stride, 1, window):
        raise ValueError(f"stride is {stride!r}, but must be a whole number, 1 to window, {window}")
    return window, stride


def windows(ids: Sequence[int], window: int, stride: int) -> list[Row]:
    """Rows that score all ids but the first once: a whole window's, then `stride` at a time, after all that fits."""
    ids = np.asarray(ids, np.int32)
    ends = [*range(window + 1, len(ids), stride), len(ids)] if len(ids) > 1 else []
    begins = [1, *ends[:-1]]
    return [Row(ids[max(0, end - window - 1) : end], end - begin) for begin, end in zip(begins, ends, strict=True)]


def lambada(
    model: GPT2,
    enc: Encoder,
    texts: Sequence[str],
    *,
    batch_size: int = BATCH_SIZE,
    bar: bool = False,
    record: Record | None = None,
    name: str = "texts",
) -> dict[str, Any] | None:
    """How well the last word of each text is predicted, in the ways that have been published.

    `last_word` is the harness's `lambada_openai`: right where each token of the word is the likeliest after the true
    ones before it; its perplexity is exp of the mean over texts of -log p(word). `last_word_filtered` is right where it
    is so once the tokens that are a stop word are left out for the word's first; the paper says of its accuracies that
    such a filter helped ("Language Models are Unsupervised Multitask Learners", 3.3). OpenAI published neither code
    nor list; this list is NLTK's. `last_token` scores the text's last token alone, which others found to come near the
    paper's accuracies (openai/gpt-2 issue 131, EleutherAI/lm-evaluation-harness issue 356).

    Raises:
        ValueError: a text without two words, or longer than n_ctx + 1 tokens; `name` and its number are in it.
    """
    check_vocabulary(model, enc)
    rows = []
    for number, text in enumerate(texts, start=1):
        context, _, word = text.rpartition(" ")
        if not context.strip() or not word.strip():
            raise ValueError(f"{name}: line {number} must end in a space and a word, but ends in {text[-40:]!r}")
        rows.append(_checked(model, _row(enc, context, f" {word}"), f"{name}: line {number}"))
    if not rows:
        raise ValueError(f"{name} is empty, so there is nothing to score")
    never = {ids[0] for word in STOP_WORDS.split() if len(ids := enc.encode(f" {word}")) == 1}
    scores = _scores(model, rows, batch_size, bar, record, never)
    if scores is None:
        return None
    sums = [score.logprobs.sum(dtype=np.float64) for score in scores]
    right = [score.filtered[0] and score.greedy[1:].all() for score in scores]
    return {
        "texts": len(rows),
        "last_word": {
            "accuracy": float(np.mean([score.greedy.all() for score in scores])),
            "perplexity": _exp(-sum(sums), len(rows)),
        },
        "last_word_filtered": {"accuracy": float(np.mean(right))},
        "last_token": {
            "accuracy": float(np.mean([score.greedy[-1] for score in scores])),
            "perplexity": _exp(-sum(float(score.logprobs[-1]) for score in scores), len(rows)),
        },
    }


def choice(
    model: GPT2,
    enc: Encoder,
    questions: Sequence[Mapping[str, Any]],
    *,
    batch_size: int = BATCH_SIZE,
    bar: bool = False,
    record: Record | None = None,
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
        if not _CHECKS["choice"](question):
            raise ValueError(f"{where} isn't {FORMS['choice']}")
        context, choices, ending = question["context"], question["choices"], question.get("ending", "")
        for text in choices:
            row = _checked(model, _row(enc, context, text + ending), where)
            rows.append(row)
            endings.append(_row(enc, context + text, ending).count if ending else 0)
    if not rows:
        raise ValueError(f"{name} is empty, so there is nothing to score")
    scores = _scores(model, rows, batch_size, bar, record)
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


def report(
    model: GPT2,
    enc: Encoder,
    task: str,
    text: str,
    name: str,
    settings: Mapping[str, Any],
    record: Record | None = None,
) -> dict[str, dict[str, Any] | str] | None:
    """What `gpt2-tf evaluate` prints of a file's text: the results, with a bar on stderr, and what repeats them.

    None where other shards of the record aren't done yet.
    """
    if task == "perplexity":
        if not text:
            raise ValueError(f"{name} is empty, so there is nothing to score")
        results = perplexity(model, enc, text, **settings, bar=True, record=record)
        window, stride = _window(model.hparams.n_ctx, settings.get("window"), settings.get("stride"))
        settings = {**settings, "window": window, "stride": stride}
    else:
        run = {"lambada": lambada, "choice": choice}[task]
        results = run(model, enc, read(text, name, task), **settings, bar=True, record=record, name=name)
    if results is None:
        return None
    content = text.encode()
    return {
        "task": task,
        "results": results,
        "settings": dict(settings),
        "model": {**model.hparams.to_dict(), "dtype": model.dtype_policy.name},
        "file": {"name": name, "bytes": len(content), "digest": sha256(content)},
        "versions": versions(),
    }


def read(text: str, name: str, task: str) -> list[Any]:
    """The examples of LAMBADA ("lambada") or of `choice` in a file's text, an object of JSON a line.

    Raises:
        ValueError: the text is empty, or a line isn't such an object; the error has its number.
    """
    lines = text.removeprefix("\ufeff").removesuffix("\n").split("\n")
    if lines == [""]:
        raise ValueError(f"{name} is empty, but must have an object of JSON a line: {FORMS[task]}")
    examples = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: line {number} is not JSON ({error}); expected {FORMS[task]}") from None
        if not isinstance(values, dict) or not _CHECKS[task](values):
            raise ValueError(f"{name}: line {number} is {line[:60]!r}, but must be {FORMS[task]}")
        examples.append(values["text"] if task == "lambada" else values)
    return examples


FORMS = {
    "lambada": '{"text": "..."}',
    "choice": '{"context": "...", "choices": ["...", "..."], "answer": 0}, and maybe "ending": "..."',
}
_CHECKS = {
    "lambada": lambda values: isinstance(values.get("text"), str),
    "choice": lambda values: (
        isinstance(values.get("context"), str)
        and isinstance(values.get("ending", ""), str)
        and isinstance(values.get("choices"), list)
        and len(values["choices"]) > 1
        and all(isinstance(text, str) and text for text in values["choices"])
        and is_whole(values.get("answer"), 0, len(values["choices"]) - 1)
    ),
}


def versions() -> dict[str, str]:
    """Of all that the numbers depend on."""
    names = ("gpt2-tf", "tensorflow", "keras", "numpy", "tiktoken")
    found = {name: metadata.version(name) for name in names if _installed(name)}
    return {"python": platform.python_version(), "machine": platform.machine(), **found}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:  # run from a checkout
        return False
    return True


def _row(enc: Encoder, context: str, continuation: str) -> Row:
    """Both together, the continuation scored; white space between them is its, as the harness has it."""
    ids = enc.encode(context + continuation)
    before = enc.encode(context.rstrip())
    if not before:
        return Row([enc.end_of_text, *ids], len(ids))
    return Row(ids, len(ids) - len(before))


def _checked(model: GPT2, row: Row, where: str) -> Row:
    n_ctx = model.hparams.n_ctx
    if len(row.ids) > n_ctx + 1:
        raise ValueError(
            f"{where} has {len(row.ids):,} tokens, but the model reads at most {n_ctx:,}, and the last is not read; "
            "shorten its beginning"
        )
    if row.count < 1:
        raise ValueError(f"{where} has a continuation without a token of its own; put the space before it, not after")
    return row


def _scores(
    model: GPT2,
    rows: Sequence[Row],
    batch_size: int,
    bar: bool,
    record: Record | None,
    never: Collection[int] = (),
) -> list[Likelihood] | None:
    """Of each row, with those in the record; None where other shards of it aren't done yet."""
    if not is_whole(batch_size, 1, 2**31 - 1):
        raise ValueError(f"batch_size is {batch_size!r}, but must be a whole number, at least 1")
    done, shard = (frozenset(), WHOLE) if record is None else (frozenset(record.done), record.shard)
    numbered = likelihoods(model, rows, batch_size, never, done, shard)
    if bar:
        numbered = progress.bar(numbered, initial=len(done), total=shard.count(len(rows), batch_size), unit="row")
    if record is None:
        found = dict(numbered)
    else:
        for number, score in numbered:
            record.add(number, {name: values.tolist() for name, values in score._asdict().items()})
        if (kept := record.gather(len(rows))) is None:
            return None
        found = {number: _score(**fields) for number, fields in kept.items()}
    return [found[number] for number in range(len(rows))]


def _score(logprobs: list[float], greedy: list[bool], filtered: list[bool]) -> Likelihood:
    """From a record, to the last bit."""
    return Likelihood(np.array(logprobs, np.float32), np.array(greedy), np.array(filtered))


def _exp(nats: float, count: int) -> float | None:
    """Perplexity; None where a float has no number for it."""
    return math.exp(nats / count) if count and nats / count < 700 else None
