"""`import gpt2_tf` is quick, and finds its public names at their first use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpt2_tf

PUBLIC = ["Completion", "GPT2", "HParams", "SamplingParams", "beam_search", "from_keras_nlp", "generate", "load"]
PUBLIC += ["sample_sequence", "score", "stream", "to_keras_nlp"]


def python(script: str, **env: str) -> subprocess.CompletedProcess:
    """Run a script in a new Python process, without the environment variables that gpt2_tf has set in this one."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("TF_CPP_MIN_LOG_LEVEL", "KERAS_BACKEND")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script], env=inherited | env, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    "script", ["import gpt2_tf", "import gpt2_tf; dir(gpt2_tf)", "from gpt2_tf import HParams, SamplingParams"]
)
def test_import_is_quick(script):
    heavy = "{'tensorflow', 'keras', 'numpy', 'tiktoken', 'requests'}"
    ran = python(f"import sys; {script}; assert not {heavy} & set(sys.modules), set(sys.modules)")
    assert (ran.returncode, ran.stderr) == (0, "")


def test_public_names():
    assert gpt2_tf.__all__ == PUBLIC
    assert set(dir(gpt2_tf)) >= {*PUBLIC, "__version__"}
    for name in PUBLIC:
        assert getattr(gpt2_tf, name).__name__ == name
    namespace = {}
    exec("from gpt2_tf import *", namespace)
    assert set(namespace) >= set(PUBLIC)


@pytest.mark.parametrize("name", ["frobnicate", "__path_to_nowhere__", "Generate"])
def test_an_unknown_name_is_an_error(name):
    with pytest.raises(AttributeError, match=f"module 'gpt2_tf' has no attribute '{name}'"):
        getattr(gpt2_tf, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}' from 'gpt2_tf'"):
        exec(f"from gpt2_tf import {name}")


def test_another_keras_backend_is_a_one_line_error():
    ran = python("from gpt2_tf import HParams, GPT2", KERAS_BACKEND="jax")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == (
        "ImportError: gpt2_tf needs Keras on TensorFlow: KERAS_BACKEND is 'jax', set it to tensorflow"
    )


@pytest.mark.slow
def test_a_keras_on_another_backend_that_is_imported_already_is_an_error(tmp_path):
    # This module stands for a Keras on jax, which is not installed here.
    (tmp_path / "keras.py").write_text(
        "from types import SimpleNamespace\nVariable = None\nbackend = SimpleNamespace(backend=lambda: 'jax')\n"
    )
    ran = python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import keras; from gpt2_tf import GPT2")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith(
        "ImportError: gpt2_tf needs Keras on TensorFlow, but its backend here is 'jax'; set the environment variable"
    )


@pytest.mark.slow
def test_tensorflow_is_silent_also_in_child_processes(tiny_folder):
    script = f"import gpt2_tf; gpt2_tf.load({str(tiny_folder)!r})"
    child = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {script!r}]).returncode)"
    ran = python(f"{script}; {child}")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("env", "noise"), [({}, False), ({"TF_CPP_MIN_LOG_LEVEL": "0"}, True)], ids=["default", "asked for"]
)
def test_tensorflows_output_is_discarded_and_errors_are_raised(tmp_path, env, noise):
    (tmp_path / "tensorflow.py").write_text("import os\nos.write(2, b'noise\\n')\nraise RuntimeError('broken')\n")
    ran = python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import gpt2_tf; gpt2_tf.GPT2", **env)
    assert ran.returncode == 1
    assert "RuntimeError: broken" in ran.stderr
    assert ("noise" in ran.stderr.splitlines()) == noise


def test_the_version_is_written_in_one_file():
    root = Path(__file__).parents[1]
    files = [*root.glob("*.py"), root / "pyproject.toml", *root.glob("encoder/*.py"), *root.glob("gpt2_tf/*.py")]
    holders = [path.name for path in files if f'"{gpt2_tf.__version__}"' in path.read_text("utf-8")]
    assert holders == ["__init__.py"]
