"""Prompts in, as from a file of them; their samples out, to stdout or to a file that a killed run goes on with."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpt2_tf.files import progress
from gpt2_tf.files.journal import Journal
from gpt2_tf.files.shard import UNSHARDED, Shard
from gpt2_tf.pretrained.load import fingerprint, sha256

if TYPE_CHECKING:
    from encoder import Encoder
    from gpt2_tf.generation.generate import Completion
    from gpt2_tf.model.gpt2 import GPT2


def read(text: str, name: str) -> list[str]:
    """The prompts in a text, a line each; `name` is for the error. ValueError where it is empty, or a line is."""
    lines = [line.removesuffix("\r") for line in text.removeprefix("\ufeff").removesuffix("\n").split("\n")]
    if lines == [""]:
        raise ValueError(f"{name} is empty, but must have a prompt a line")
    if "" in lines:
        raise ValueError(f"{name}: line {lines.index('') + 1} is empty, but each must be a prompt; remove it")
    return lines


def begin(
    out: str | os.PathLike,
    prompts: Sequence[str | None],
    folder: str | os.PathLike,
    settings: Mapping[str, Any],
    shard: Shard = UNSHARDED,
) -> Journal:
    """The record of these samples, or of those that are done of them; `folder` is the model's. Errors as Journal's."""
    run = {
        "prompts": f"{len(prompts)} ({sha256(json.dumps(prompts).encode())})",
        "model": fingerprint(folder),
        **settings,
    }
    seed = run.pop("seed")
    return Journal(out, run, seed, shard)


def write(
    model: "GPT2",
    enc: "Encoder",
    prompts: Sequence[str | None],
    settings: Mapping[str, Any],
    *,
    record: Journal | None = None,
    as_json: bool = False,
    bar: bool = False,
) -> None:
    """Writes all samples in order: to stdout, each as soon as those before it are there, or as the record's file.

    A record of a shard gets its samples, and its file is written by the last of them.

    Args:
        settings: `generate`'s, with the batch size; the seed is the record's, where there is one.
        as_json: a line of JSON for each.
        bar: show on stderr how far it is.
    """
    from gpt2_tf.generation.generate import completions

    of = len(prompts) * settings["num_samples"]
    done, shard = frozenset(), UNSHARDED
    if record is not None:
        settings = {**settings, "seed": record.seed}
        done, shard = frozenset(record.results), record.shard
    numbered = completions(model, enc, prompts, done=done, shard=shard, **settings)
    if bar:
        numbered = progress.bar(
            numbered, initial=len(done), total=shard.n_rows(of, settings["batch_size"]), unit="sample"
        )
    if record is None:
        for number, completion in in_order(numbered):
            _print(line(completion._asdict(), number, of, as_json=as_json), bar)
        return
    for number, completion in numbered:
        record.add(number, completion._asdict())
    if (samples := record.collect(of)) is not None:
        record.finish(line(samples[number], number, of, as_json=as_json) for number in range(of))


def line(fields: Mapping[str, Any], number: int, of: int, *, as_json: bool = False) -> str:
    """What is written of sample `number`, from 0; `fields` are a Completion's."""
    if as_json:
        return json.dumps(fields)
    banner = f"======== SAMPLE {number + 1} ========\n" if of > 1 else ""
    return banner + fields["prompt"] + fields["text"]


def in_order(numbered: Iterable[tuple[int, "Completion"]]) -> Iterator[tuple[int, "Completion"]]:
    """Each as soon as all before it were there."""
    waiting, number = {}, 0
    for other, completion in numbered:
        waiting[other] = completion
        while number in waiting:
            yield number, waiting.pop(number)
            number += 1


def _print(text: str, bar: bool) -> None:
    if bar and sys.stdout.isatty() and sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(text)  # above the bar, which is on the same terminal
    else:
        print(text)
    sys.stdout.flush()
