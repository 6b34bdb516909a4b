"""The wheel, built from a clean copy and installed into a new environment, works outside the checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import gpt2_tf
from gpt2_tf.cli.flags import BUNDLED_NOTICE

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*command, **options) -> subprocess.CompletedProcess:
    """Runs a command in an environment without variables that point to the checkout."""
    left_out = ("PYTHONPATH", "TF_CPP_MIN_LOG_LEVEL", "KERAS_BACKEND")
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("wheel")
    leave = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "models")
    shutil.copytree(ROOT, work / "copy", ignore=leave)
    # There may be no network, so the build uses this environment's setuptools, which TensorFlow needs too.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    ran = run(*pip, "--wheel-dir", work, work / "copy")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (wheel,) = work.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The scripts folder of a new environment that has the wheel, and TensorFlow from this environment."""
    venv = tmp_path_factory.mktemp("venv")
    made = run(sys.executable, "-m", "venv", "--without-pip", venv)
    assert made.returncode == 0, made.stderr
    paths = sysconfig.get_paths("venv", vars={"base": str(venv), "platbase": str(venv)})
    scripts = Path(paths["scripts"])
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", scripts / "python"]
    ran = run(*pip, "install", "--no-deps", "--no-index", wheel)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    # Written after the install, since pip would otherwise find the checkout's own installation there. Folders that a
    # .pth file adds come last in sys.path, and their own .pth files, such as an editable install's, are not read.
    Path(paths["purelib"], "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def test_files_of_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"gpt2_tf-{gpt2_tf.__version__}.dist-info/"
    sources = {str(path.relative_to(ROOT)) for name in ("encoder", "gpt2_tf") for path in ROOT.glob(f"{name}/**/*.py")}
    model = {"checkpoint", "encoder.json", "hparams.json", "vocab.bpe", "model.ckpt.index"}
    model |= {"model.ckpt.data-00000-of-00001"}
    assert {name for name in names if not name.startswith(info)} >= (
        sources | {"download_model.py"} | {f"gpt2_tf/bundled/shakespeare/{name}" for name in model}
    )
    assert {name.split("/")[0] for name in names} == {"encoder", "gpt2_tf", "download_model.py", info[:-1]}
    assert not [name for name in names if "__pycache__" in name or ".part" in name]


def test_metadata_of_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Name"] == "gpt2-tf"
    assert metadata["Version"] == gpt2_tf.__version__
    assert set(metadata["Requires-Python"].split(",")) == {">=3.11", "<3.14"}
    for_users = {"tokenizers", "hf", "keras-nlp", "lm-eval", "plot", "serving", "tensorboard", "wandb", "cuda"}
    assert set(metadata.get_all("Provides-Extra")) == {*for_users, "notebook", "test", "peers"}
    requirements = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {re.match(r"[\w-]+", line)[0] for line in requirements} == {
        *("tensorflow", "keras", "numpy", "ml_dtypes", "google-crc32c"),
        *("requests", "tiktoken", "tqdm", "filelock", "ai-edge-litert"),
    }
    assert metadata.get_payload() == (ROOT / "README.md").read_text("utf-8")


def test_modules_are_imported_from_the_wheel(installed, tmp_path):
    script = "import encoder, gpt2_tf, download_model\nfor m in encoder, gpt2_tf, download_model: print(m.__file__)"
    ran = run(installed / "python", "-c", script, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert all(Path(line).is_relative_to(installed.parent) for line in ran.stdout.splitlines())


def test_the_command_generates(installed, tmp_path):
    ran = run(installed / "gpt2-tf", "generate", "ROMEO:", "--seed", "1", "--length", "20", cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, f"gpt2-tf: {BUNDLED_NOTICE}\n")
    assert ran.stdout.startswith("ROMEO:") and len(ran.stdout) > 25
    assert list(tmp_path.iterdir()) == []


def test_the_downloader_runs(installed, tmp_path):
    ran = run(installed / "python", "-m", "download_model", "125M", cwd=tmp_path)
    assert ran.returncode == 2
    assert "'125M'" in ran.stderr
