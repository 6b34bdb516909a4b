"""What `gpt2-tf evaluate` prints: the results, and all that is needed to repeat them."""

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from encoder import Encoder
from gpt2_tf.evaluation.examples import read_examples
from gpt2_tf.evaluation.lambada import lambada
from gpt2_tf.evaluation.multiple_choice import choice
from gpt2_tf.evaluation.perplexity import perplexity, window_and_stride
from gpt2_tf.files.journal import Journal
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.pretrained.load import sha256


def report(
    model: GPT2,
    enc: Encoder,
    task: str,
    text: str,
    name: str,
    settings: Mapping[str, Any],
    record: Journal | None = None,
) -> dict[str, dict[str, Any] | str] | None:
    """What `gpt2-tf evaluate` prints of a file's text: the results, with a bar on stderr, and what repeats them.

    None where other shards of the record aren't done yet.
    """
    if task == "perplexity":
        if not text:
            raise ValueError(f"{name} is empty, so there is nothing to score")
        results = perplexity(model, enc, text, **settings, bar=True, record=record)
        window, stride = window_and_stride(model.hparams.n_ctx, settings.get("window"), settings.get("stride"))
        settings = {**settings, "window": window, "stride": stride}
    else:
        run = {"lambada": lambada, "choice": choice}[task]
        results = run(model, enc, read_examples(text, name, task), **settings, bar=True, record=record, name=name)
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
