"""A file imports from lower floors only. The table says who lives where; a new file must be given its floor."""

import ast
from importlib.util import resolve_name
from pathlib import Path

import pytest

import gpt2_tf

ROOT = Path(__file__).parents[1]
FLOORS = {
    "encoder.bpe": 0,
    "gpt2_tf.hparams": 0,
    "gpt2_tf.bundle": 0,
    "gpt2_tf.interrupt": 0,
    "gpt2_tf.optimizer": 0,
    "gpt2_tf.progress": 0,
    "gpt2_tf.safetensors": 0,
    "gpt2_tf.settings": 0,
    "gpt2_tf.shard": 0,
    "encoder": 1,
    "encoder.graph": 1,
    "encoder.train": 1,
    "download_model": 1,
    "gpt2_tf.logits": 1,
    "gpt2_tf.cache": 1,
    "gpt2_tf.loss": 1,
    "gpt2_tf.replicas": 1,
    "gpt2_tf.corpus": 1,
    "gpt2_tf.dataset": 1,
    "gpt2_tf.checkpoint": 1,
    "gpt2_tf.huggingface": 1,
    "gpt2_tf.record": 1,
    "gpt2_tf.stops": 1,
    "gpt2_tf.choice": 2,
    "gpt2_tf.model": 2,
    "gpt2_tf.prepare": 2,
    "gpt2_tf.keras_nlp": 3,
    "gpt2_tf.sample": 3,
    "gpt2_tf.guess": 4,
    "gpt2_tf.likelihood": 4,
    "gpt2_tf.folder": 4,
    "gpt2_tf.convert": 5,
    "gpt2_tf.text": 5,
    "gpt2_tf.beam": 6,
    "gpt2_tf.export": 6,
    "gpt2_tf.interactive": 6,
    "gpt2_tf.callbacks": 6,
    "gpt2_tf.prompts": 6,
    "gpt2_tf.evaluate": 6,
    "gpt2_tf.train": 7,
    "gpt2_tf": 8,
    "gpt2_tf.cli": 9,
    "gpt2_tf.lm_eval": 9,
    "gpt2_tf.__main__": 10,
}
FILES = [ROOT / "download_model.py", *sorted(ROOT.glob("encoder/**/*.py")), *sorted(ROOT.glob("gpt2_tf/**/*.py"))]


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(source: str, package: str) -> set[str]:
    """The house's modules that a source imports, wherever in it; `package` is what its relative imports start from."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            # `from gpt2_tf import cache` is the module of that name, `from gpt2_tf import load` the package.
            names |= {f"{base}.{a.name}" if f"{base}.{a.name}" in FLOORS else base for a in node.names}
    house = {"encoder", "gpt2_tf", "download_model", "tests", "examples"}
    return {name for name in names if name.partition(".")[0] in house}


def violations(name: str, imports: set[str]) -> list[str]:
    """What `name` imports that doesn't live below it."""
    return [
        f"{name} (floor {FLOORS[name]}) imports {other} (floor {FLOORS.get(other, 'none')})"
        for other in sorted(imports)
        if FLOORS.get(other, 99) >= FLOORS[name]
    ]


def test_every_file_has_a_floor():
    assert {module(path) for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_run_down_only(path):
    name = module(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    assert violations(name, imported(path.read_text("utf-8"), package)) == []


def test_the_lazy_names_of_gpt2_tf_live_below_it():
    assert violations("gpt2_tf", set(gpt2_tf._HOMES.values())) == []


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("gpt2_tf.model", "from gpt2_tf.sample import generate", "gpt2_tf.sample"),
        ("gpt2_tf.model", "def f():\n    if x:\n        import gpt2_tf.cli", "gpt2_tf.cli"),
        ("gpt2_tf.model", "from gpt2_tf import folder", "gpt2_tf.folder"),
        ("gpt2_tf.model", "from . import folder", "gpt2_tf.folder"),
        ("gpt2_tf.model", "from .folder import load", "gpt2_tf.folder"),
        ("gpt2_tf.folder", "from gpt2_tf import load", "gpt2_tf"),
        ("gpt2_tf.cache", "from gpt2_tf import checkpoint", "gpt2_tf.checkpoint"),
        ("gpt2_tf.model", "import encoder, gpt2_tf.unheard_of", "gpt2_tf.unheard_of"),
        ("gpt2_tf.cli", "from tests.reference import forward", "tests.reference"),
    ],
)
def test_a_violation_is_seen(name, source, found):
    (line,) = violations(name, imported(source, "gpt2_tf"))
    assert f"imports {found} (" in line


def test_no_drawer_for_odds_and_ends():
    names = {path.stem for path in FILES}
    assert not names & {"utils", "util", "common", "helpers", "misc"}
