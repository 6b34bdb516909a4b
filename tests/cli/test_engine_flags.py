"""`--engine`, `--weights`, `--threads`, and what the quick engine leaves out: TensorFlow, and messages of its own."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from oracles.command_line import Ran, assert_error, text_of

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert, which has no wheel for this machine")


def test_the_engines_write_the_same_text_and_int8_another(cli, tiny_folder):
    command = ["generate", "The", "--model", tiny_folder, "--length", "9", "--seed", "1"]
    text = text_of(cli(*command, "--engine", "litert", "--threads", "1"))
    assert text_of(cli(*command, "--engine", "tensorflow")) == text
    assert text_of(cli(*command, "--weights", "int8")) != text


@pytest.mark.parametrize("name", ["generate", "evaluate", "interactive"])
def test_the_quick_engine_imports_no_tensorflow(name, environment, tiny_folder, tmp_path):
    """Nor does anything of the runtime's chatter reach the terminal."""
    (tmp_path / "text").write_text("The quick brown fox jumps over the lazy dog.")
    arguments = {
        "generate": ["generate", "The", "--length", "3", "--nsamples", "2", "--top-k", "5"],
        "evaluate": ["evaluate", "perplexity", "text"],
        "interactive": ["interactive", "--length", "3"],
    }[name]
    code = "import sys\nfrom gpt2_tf.cli.main import main\nmain(sys.argv[1:])\n"
    code += "print(sorted({'tensorflow', 'keras', 'torch', 'jax'} & sys.modules.keys()))"
    command = [sys.executable, "-c", code, *arguments, "--model", tiny_folder, "--engine", "litert"]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, input="The\n", capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0
    bar = r"\n.*0/1.*\n.*1/1 .*row/s\]\n" if name == "evaluate" else ""  # universal newlines read its "\r" so
    assert re.fullmatch(bar, ran.stderr)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_evaluate_gives_tensorflows_numbers(cli, tiny_folder, tmp_path):
    (tmp_path / "text").write_text("The quick brown fox jumps over the lazy dog.")
    command = ["evaluate", "perplexity", tmp_path / "text", "--model", tiny_folder]
    found, expected = (
        json.loads(cli(*command, "--engine", engine).out)["results"] for engine in ("litert", "tensorflow")
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_wrong_flags_are_one_line(cli, tiny_folder):
    assert_error(cli("generate", "--model", tiny_folder, "--engine", "jax"), 2, "--engine")
    assert_error(cli("generate", "--model", tiny_folder, "--threads", "0"), 2, "--threads", "at least 1")
    ran = cli("generate", "--model", tiny_folder, "--engine", "tensorflow", "--weights", "int8")
    assert_error(ran, 1, "the engine tensorflow has float32 only")


def test_a_journal_of_other_weights_is_refused(cli, tiny_folder, tmp_path):
    command = ["generate", "The", "--model", tiny_folder, "--length", "3", "--out", tmp_path / "out", "--seed", "1"]
    assert cli(*command).status == 0
    done = (tmp_path / "out").read_bytes()
    (tmp_path / "out").unlink()
    assert cli(*command, "--weights", "int8").status == 0
    assert (tmp_path / "out").read_bytes() != done


def test_info_lists_and_removes_the_files(cli, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model", ignore=shutil.ignore_patterns("litert"))
    assert "litert " not in text_of(cli("info", "--model", tmp_path / "model"))
    cli("generate", "The", "--model", tmp_path / "model", "--length", "1", "--engine", "litert")
    line = text_of(cli("info", "--model", tmp_path / "model")).splitlines()[-1]
    assert line.startswith("litert      float32, ") and line.endswith(f"in {tmp_path / 'model' / 'litert'}")
    assert "litert " not in text_of(cli("info", "--model", tmp_path / "model", "--clear-litert"))
    assert not (tmp_path / "model" / "litert").exists()


def test_a_full_disk_leaves_nothing_half_written(environment, tiny_folder, tmp_path):
    resource = pytest.importorskip("resource")
    shutil.copytree(tiny_folder, tmp_path / "model", ignore=shutil.ignore_patterns("litert"))
    command = [sys.executable, "-m", "gpt2_tf", "generate", "The", "--model", "model", "--engine", "litert"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # noqa: E731
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, preexec_fn=limit, capture_output=True, text=True, timeout=120
    )
    assert_error(
        Ran(ran.returncode, ran.stdout.encode(), ran.stderr),
        1,
        "the files of the engine litert can't be written there (File too large)",
    )
    assert [name for _, _, names in os.walk(tmp_path / "model" / "litert") for name in names] == []
