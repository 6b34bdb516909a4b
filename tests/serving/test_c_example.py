"""examples/serve_in_c.c, compiled as its comment says, gives the model's text without Python."""

import shutil
import subprocess
from pathlib import Path

import pytest
import tensorflow as tf
from oracles.serving import model_answer

SOURCE = Path(__file__).parents[2] / "examples" / "serve_in_c.c"


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The compiled program."""
    compiler, tensorflow = shutil.which("gcc"), Path(tf.__file__).parent
    if not compiler:
        pytest.skip("gcc is not installed")
    if not (tensorflow / "libtensorflow_cc.so.2").exists():
        pytest.skip("TensorFlow's libraries for C have other names on this platform")
    program = tmp_path_factory.mktemp("c") / "serve_in_c"
    libraries = ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    flags = [f"-I{tensorflow}/include", f"-L{tensorflow}", f"-Wl,-rpath,{tensorflow}", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, SOURCE, "-o", program, *flags, *libraries], check=True, timeout=120)
    return program


@pytest.mark.slow
def test_the_c_program_gives_the_models_text(program, exported, lively, enc):
    for text in ("them", "", "\N{BALLOON} x"):
        ran = subprocess.run([program, exported, text], capture_output=True, timeout=120)
        assert ran.returncode == 0, ran.stderr[-2000:]
        assert ran.stdout.decode() == model_answer(lively, enc, text, length=6, seed=0)[0] + "\n"


@pytest.mark.slow
def test_the_c_program_reports_errors_and_wrong_usage(program, exported, tmp_path):
    ran = subprocess.run([program, tmp_path, "them"], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1 and "error: cannot load the export: Could not find SavedModel" in ran.stderr
    ran = subprocess.run([program, exported, "x" * 33], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1 and "text must have at most 32 tokens" in ran.stderr
    ran = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2 and "usage: " in ran.stderr
