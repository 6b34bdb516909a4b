"""Every public function and class has an example in its docstring, and every example runs, on the bundled model."""

import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import encoder
import gpt2_tf

# lm-eval is an extra, and importing it takes 10 seconds.
WITHOUT_EXAMPLES = ("gpt2_tf.evaluation.lm_eval", "gpt2_tf.__main__")
SLOW = ("gpt2_tf.serving.saved_model", "gpt2_tf.serving.generate_graph", "gpt2_tf.model.persistence")
MODULES = sorted(
    {
        *(name for _, name, _ in pkgutil.walk_packages(gpt2_tf.__path__, "gpt2_tf.")),
        *(name for _, name, _ in pkgutil.iter_modules(encoder.__path__, "encoder.")),
    }.difference(WITHOUT_EXAMPLES)
)


def public_objects(module: ModuleType) -> dict[str, object]:
    """The functions and classes that a module defines, by their whole names."""
    objects = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {
        f"{module.__name__}.{name}": value
        for name, value in objects.items()
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__
    }


# The commands have their examples in their help and in docs/, where they run too.
PUBLIC = {
    name: value
    for module in MODULES
    if not module.startswith("gpt2_tf.cli.")
    for name, value in public_objects(importlib.import_module(module)).items()
}


@pytest.fixture(scope="module")
def names():
    """What an example may use without importing it."""
    model, enc = gpt2_tf.load("shakespeare")
    engine, _ = gpt2_tf.load("shakespeare", engine="litert")
    return {"model": model, "enc": enc, "engine": engine}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_function_or_class_has_an_example(name):
    """A class may have its examples in the docstrings of its methods."""
    tests = doctest.DocTestFinder(exclude_empty=True).find(PUBLIC[name], name, globs={})
    assert any(test.examples for test in tests), f"{name} has no example (>>>) in its docstring"


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODULES])
def test_the_examples_run(name, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=names) if test.examples]
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said = []
    for test in tests:
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
