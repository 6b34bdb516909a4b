"""Lets Keras find `GPT2` and `AdamW` when it loads a `.keras` file that holds them.

Keras finds a class by its registered name, and a class is registered when its module is imported. `import gpt2_tf`
must stay quick, so it imports neither TensorFlow nor the model. A user who has imported both `keras` and `gpt2_tf`
expects `keras.models.load_model` to work. So the classes are registered as soon as both packages are imported.
"""

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

MODULES = ("gpt2_tf.model.gpt2", "gpt2_tf.training.optimizer")


def register() -> None:
    """Import the modules that register their classes with Keras. A Keras on another backend is left alone.

    Example:
        >>> register()
    """
    if sys.modules["keras"].backend.backend() == "tensorflow":
        for module in MODULES:
            importlib.import_module(module)


class KerasImport(MetaPathFinder):
    """Calls `register` after Python has imported `keras`.

    Example:
        >>> KerasImport().find_spec("numpy") is None  # it acts for `keras` alone
        True
    """

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "keras":
            return None
        sys.meta_path.remove(self)  # The search below must not find this object again.
        spec = find_spec(fullname)
        if spec and spec.loader:
            exec_module = spec.loader.exec_module

            def exec_and_register(module):
                exec_module(module)
                register()

            spec.loader.exec_module = exec_and_register
        return spec


def install() -> None:
    """Register the classes now if `keras` is imported already, and otherwise when it is.

    Example:
        >>> install()
    """
    if "keras" in sys.modules:
        register()
    elif not any(isinstance(finder, KerasImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, KerasImport())
