"""What `gpt2-tf evaluate` prints: the results of a task, and everything that is needed to repeat them."""

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from encoder import Encoder
from gpt2_tf.evaluation.examples import read_examples
from gpt2_tf.evaluation.lambada import lambada
from gpt2_tf.evaluation.multiple_choice import choice
from gpt2_tf.evaluation.perplexity import perplexity, resolve_window
from gpt2_tf.files.journal import Journal
from gpt2_tf.generation.engine import Engine, as_engine
from gpt2_tf.pretrained.load import sha256

if TYPE_CHECKING:
    from gpt2_tf.model.gpt2 import GPT2

# The libraries that the numbers depend on.
LIBRARIES = ("gpt2-tf", "tensorflow", "keras", "ai-edge-litert", "numpy", "tiktoken")


def report(
    model: "GPT2 | Engine",
    enc: Encoder,
    task: str,
    text: str,
    name: str,
    settings: Mapping[str, Any],
    journal: Journal | None = None,
) -> dict[str, dict[str, Any] | str] | None:
    """Evaluate a model on a file's text, with a progress bar on stderr.

    Args:
        model: the model to evaluate, a GPT2 or an Engine.
        enc: its encoder.
        task: "perplexity", "lambada" or "choice".
        text: the file's content.
        name: the file's name, for the report and for error messages.
        settings: keyword arguments of the task's function, such as `batch_size`.
        journal: keeps the scores, so that a killed run resumes.

    Returns:
        The results, with the settings, the model, the file and the versions. None when other shards of the journal
        have not finished.

    Raises:
        ValueError: the text or a setting does not fit the task.

    Example:
        >>> found = report(model, enc, "perplexity", "my lord", "book.txt", {"batch_size": 1})
        >>> found["task"], found["file"]["name"], found["settings"]
        ('perplexity', 'book.txt', {'batch_size': 1, 'window': 256, 'stride': 128})
    """
    if task == "perplexity":
        if not text:
            raise ValueError(f"{name} is empty, so there is nothing to score; give a file with text")
        results = perplexity(model, enc, text, **settings, bar=True, journal=journal)
        window, stride = resolve_window(model.hparams.n_ctx, settings.get("window"), settings.get("stride"))
        settings = {**settings, "window": window, "stride": stride}
    else:
        evaluate = {"lambada": lambada, "choice": choice}[task]
        examples = read_examples(text, name, task)
        results = evaluate(model, enc, examples, **settings, bar=True, journal=journal, name=name)
    if results is None:
        return None
    content = text.encode()
    return {
        "task": task,
        "results": results,
        "settings": dict(settings),
        "model": {**model.hparams.to_dict(), **_engine(model)},
        "file": {"name": name, "bytes": len(content), "digest": sha256(content)},
        "versions": installed_versions(),
    }


def _engine(model: "GPT2 | Engine") -> dict[str, str]:
    """What runs the model, and the type of its weights."""
    engine = as_engine(model)
    return {"engine": getattr(engine, "name", type(engine).__name__), "dtype": getattr(engine, "dtype", "float32")}


def installed_versions() -> dict[str, str]:
    """The versions of Python and of the installed libraries, and the machine's architecture.

    gpt2-tf itself is missing where it runs from a checkout without being installed.

    Example:
        >>> sorted(installed_versions())[-2:]
        ['tensorflow', 'tiktoken']
    """
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
