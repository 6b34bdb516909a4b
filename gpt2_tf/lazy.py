"""Imports public names at their first use, so that `import gpt2_tf` is quick and does not import TensorFlow."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType

# TensorFlow logs nothing below a fatal error at level 3. Child processes inherit the variable, and are silent too.
_noise_wanted = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") != "3"
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
WITHOUT_TENSORFLOW = ("HParams", "SamplingParams", "main")


class Package(ModuleType):
    """A package whose public names are imported at their first use. `public_names` turns a package into a `Package`.

    Example:
        >>> import gpt2_tf
        >>> isinstance(gpt2_tf, Package)
        True
    """

    def __getattr__(self, name: str):
        homes = self.__dict__["_homes"]
        if name not in homes:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        backend = os.environ.get("KERAS_BACKEND")
        # Keras's own error would only say that jax cannot be imported. If Keras is imported already, its backend is
        # checked by `gpt2_tf.model.backend`.
        if backend != "tensorflow" and "keras" not in sys.modules and name not in WITHOUT_TENSORFLOW:
            raise ImportError(f"gpt2_tf needs Keras on TensorFlow: KERAS_BACKEND is {backend!r}, set it to tensorflow")
        module, _, attribute = homes[name].partition(":")
        with without_tensorflow_noise():
            try:
                value = importlib.import_module(module)
            except AttributeError as error:  # Python would take it to say that this package lacks the name
                raise ImportError(f"cannot import {module}: {error}") from error
            value = getattr(value, attribute) if attribute else value
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        # When Python imports `generate.py`, it sets the package's attribute `generate` to the module. The public
        # function has the same name, so the assignment is ignored.
        if not (isinstance(value, ModuleType) and name in self.__dict__.get("_homes", ())):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self.__all__})


def public_names(package: str, homes: Mapping[str, str]) -> None:
    """Give a package its public names, each imported at its first use.

    Args:
        package: the package's `__name__`.
        homes: maps each public name to "module:attribute", or to "module" for a module.

    Example:
        A package's `__init__.py` calls `public_names(__name__, {"GPT2": "gpt2_tf.model.gpt2:GPT2"})`. Then its name
        is imported at its first use:

        >>> import gpt2_tf.model
        >>> gpt2_tf.model.GPT2.__module__
        'gpt2_tf.model.gpt2'
    """
    module = sys.modules[package]
    module.__dict__["_homes"] = dict(homes)
    module.__dict__["__all__"] = sorted(name for name, home in homes.items() if ":" in home)
    module.__class__ = Package


@contextlib.contextmanager
def without_tensorflow_noise() -> Iterator[None]:
    """Discard what TensorFlow prints while it is imported, before it reads TF_CPP_MIN_LOG_LEVEL.

    Exceptions are raised as usual. If the user has set TF_CPP_MIN_LOG_LEVEL to another value than 3, nothing is
    discarded.

    Example:
        >>> with without_tensorflow_noise():
        ...     import tensorflow
    """
    if _noise_wanted or "tensorflow" in sys.modules or sys.__stderr__ is None:
        yield
        return
    sys.__stderr__.flush()
    with without_stderr():
        yield


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Discard what the process writes to stderr, its C++ code included. Exceptions are raised as usual.

    Example:
        >>> with without_stderr():
        ...     _ = os.write(2, b"INFO: ...")
    """
    stderr = os.dup(2)
    discard_stderr()
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def discard_stderr() -> None:
    """Discard what the process writes to stderr from now on.

    Example:
        >>> with without_stderr():  # which ends it
        ...     discard_stderr()
    """
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), 2)
