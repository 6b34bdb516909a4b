"""Every public function and class has an example in its docstring, and every example runs, on the bundled model."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import encoder
import gpt2_tf

ROOMS = [name for _, name, is_package in pkgutil.iter_modules(gpt2_tf.__path__, "gpt2_tf.") if is_package]
MODULES = sorted(
    {
        *(name for _, name, _ in pkgutil.walk_packages(gpt2_tf.__path__, "gpt2_tf.") if not name.endswith("__main__")),
        *(name for _, name, _ in pkgutil.iter_modules(encoder.__path__, "encoder.")),
    }
)
# lm-eval is an extra, and importing it takes 10 seconds.
MODULES.remove("gpt2_tf.evaluation.lm_eval")
PUBLIC = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in map(importlib.import_module, ("encoder", "gpt2_tf", *ROOMS))
    for name in getattr(package, "__all__", ())
}


@pytest.fixture(scope="module")
def names():
    """What an example may use without importing it."""
    model, enc = gpt2_tf.load("shakespeare")
    return {"model": model, "enc": enc}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_it_has_an_example(name):
    doc = inspect.getdoc(PUBLIC[name]) or ""
    assert doctest.DocTestParser().get_examples(doc), f"{name} has no example (>>>) in its docstring"


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=names) if test.examples]
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said = []
    for test in tests:
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
