"""Many prompts in, their samples out: to stdout, or to a file whose finished samples survive a kill."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpt2_tf.cli.terminal import escape_for_terminal
from gpt2_tf.files import progress
from gpt2_tf.files.journal import Journal
from gpt2_tf.files.shard import UNSHARDED, Shard
from gpt2_tf.pretrained.load import fingerprint, sha256

if TYPE_CHECKING:
    from encoder import Encoder
    from gpt2_tf.generation.generate import Completion
    from gpt2_tf.model.gpt2 import GPT2


def parse_prompts(text: str, name: str) -> list[str]:
    """The prompts in a text, one per line.

    Args:
        text: the lines, which may end with a newline or with a carriage return and a newline.
        name: what errors call the text, such as the file's name.

    Raises:
        ValueError: the text or one of its lines is empty.

    Example:
        >>> parse_prompts("ROMEO:\\nJULIET:\\n", "prompts.txt")
        ['ROMEO:', 'JULIET:']
    """
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if lines == [""]:
        raise ValueError(f"{name} is empty; expected one prompt per line")
    if "" in lines:
        raise ValueError(f"{name}: line {lines.index('') + 1} is empty; expected one prompt per line, so remove it")
    return lines


def open_journal(
    out: str | os.PathLike,
    prompts: Sequence[str | None],
    model_dir: str | os.PathLike,
    settings: Mapping[str, Any],
    shard: Shard = UNSHARDED,
    step: int | None = None,
) -> Journal:
    """The journal of these samples; it holds the samples that an interrupted run has finished.

    Args:
        out: the file that will hold all samples.
        prompts: as `write_samples` takes them.
        model_dir: the model's folder. A journal of another model, or of changed files, is refused.
        settings: `generate`'s keyword arguments. A journal of other settings is refused.
        shard: which share of the samples this process computes. Default: all.
        step: the checkpoint of the folder, as for `load`.

    Raises:
        OSError, ValueError: as the journal's.
    """
    work = {
        "prompts": f"{len(prompts)} ({sha256(json.dumps(prompts).encode())})",
        "model": fingerprint(model_dir, step),
        **settings,
    }
    seed = work.pop("seed")
    return Journal(out, work, seed, shard)


def write_samples(
    model: "GPT2",
    enc: "Encoder",
    prompts: Sequence[str | None],
    settings: Mapping[str, Any],
    *,
    journal: Journal | None = None,
    as_json: bool = False,
    show_progress: bool = False,
) -> None:
    """Write all samples in order: to stdout as soon as possible, or to the journal's file once all are there.

    Args:
        prompts: texts to continue; None starts a text without a prompt.
        settings: `generate`'s keyword arguments, with `num_samples` and `batch_size`.
        journal: keeps this shard's samples; its seed replaces that of `settings`. The last shard writes the file.
            Default: write to stdout.
        as_json: write each sample as one line of JSON. Default: as plain text.
        show_progress: show a progress bar on stderr. Default: none.

    Example:
        >>> settings = {"length": 1, "num_samples": 1, "batch_size": 2, "seed": 1}
        >>> write_samples(model, enc, ["ROMEO:", "JULIET:"], settings)
        ======== SAMPLE 1 ========
        ROMEO:
        ...
    """
    from gpt2_tf.generation.generate import completions

    total = len(prompts) * settings["num_samples"]
    done, shard = frozenset(), UNSHARDED
    if journal is not None:
        settings = {**settings, "seed": journal.seed}
        done, shard = frozenset(journal.results), journal.shard
    numbered = completions(model, enc, prompts, done=done, shard=shard, **settings)
    if show_progress:
        own = shard.n_rows(total, settings["batch_size"])
        numbered = progress.bar(numbered, initial=len(done), total=own, unit="sample")
    if journal is None:
        for number, completion in in_order(numbered):
            print_sample(format_sample(completion._asdict(), number, total, as_json=as_json), show_progress)
        return
    for number, completion in numbered:
        journal.add(number, completion._asdict())
    if (samples := journal.collect(total)) is not None:
        journal.finish(format_sample(samples[number], number, total, as_json=as_json) for number in range(total))


def format_sample(fields: Mapping[str, Any], number: int, total: int, *, as_json: bool = False) -> str:
    """One sample as it is written.

    Args:
        fields: those of a `Completion`.
        number: the sample's number, from 0.
        total: how many samples there are. Several have a banner above each.
        as_json: as one line of JSON. Default: as plain text.

    Example:
        >>> print(format_sample({"prompt": "To be", "text": ", or not"}, 0, 2))
        ======== SAMPLE 1 ========
        To be, or not
    """
    if as_json:
        return json.dumps(fields)
    banner = f"======== SAMPLE {number + 1} ========\n" if total > 1 else ""
    return banner + fields["prompt"] + fields["text"]


def in_order(numbered: Iterable[tuple[int, "Completion"]]) -> Iterator[tuple[int, "Completion"]]:
    """Yield numbered samples from 0 upwards, each as soon as all samples before it have come.

    Example:
        >>> list(in_order([(1, "b"), (0, "a"), (2, "c")]))
        [(0, 'a'), (1, 'b'), (2, 'c')]
    """
    waiting, number = {}, 0
    for other, completion in numbered:
        waiting[other] = completion
        while number in waiting:
            yield number, waiting.pop(number)
            number += 1


def print_sample(text: str, show_progress: bool) -> None:
    """Print a sample, above the progress bar where both are on the same terminal."""
    text = escape_for_terminal(text)
    if show_progress and sys.stdout.isatty() and sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(text)
    else:
        print(text)
    sys.stdout.flush()
