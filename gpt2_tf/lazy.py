"""Public names that are imported at their first use, so that `import gpt2_tf` stays quick and TensorFlow comes late."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType

# Child processes inherit the 3 that is set here, and it asks for silence there too.
_noise_wanted = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") != "3"
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
WITHOUT_TENSORFLOW = ("HParams", "SamplingParams", "main")


class Package(ModuleType):
    """A package whose public names are imported at their first use; `public_names` makes a package one."""

    def __getattr__(self, name: str):
        homes = self.__dict__["_homes"]
        if name not in homes:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        backend = os.environ.get("KERAS_BACKEND")
        # Keras itself would only say that it cannot import jax. `gpt2_tf.model.gpt2` checks a Keras imported earlier.
        if backend != "tensorflow" and "keras" not in sys.modules and name not in WITHOUT_TENSORFLOW:
            raise ImportError(f"gpt2_tf needs Keras on TensorFlow: KERAS_BACKEND is {backend!r}, set it to tensorflow")
        module, _, attribute = homes[name].partition(":")
        with without_tensorflow_noise():
            value = importlib.import_module(module)
            value = getattr(value, attribute) if attribute else value
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        # Python binds `generate.py` to its package's `generate` once it is imported; the public function has that name.
        if not (isinstance(value, ModuleType) and name in self.__dict__.get("_homes", ())):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self.__all__})


def public_names(package: str, homes: Mapping[str, str]) -> None:
    """Gives a package its public names, each imported at its first use.

    Args:
        package: the package's `__name__`.
        homes: public name -> "module:attribute", or "module" for the module itself.

    Example:
        public_names(__name__, {"GPT2": "gpt2_tf.model.gpt2:GPT2"})
    """
    module = sys.modules[package]
    module.__dict__["_homes"] = dict(homes)
    module.__dict__["__all__"] = sorted(name for name, home in homes.items() if ":" in home)
    module.__class__ = Package


@contextlib.contextmanager
def without_tensorflow_noise() -> Iterator[None]:
    """Drops what TensorFlow prints while it is imported, before it reads TF_CPP_MIN_LOG_LEVEL; errors are raised."""
    if _noise_wanted or "tensorflow" in sys.modules or sys.__stderr__ is None:
        yield
        return
    sys.__stderr__.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
