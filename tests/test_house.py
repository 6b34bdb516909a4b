"""The rooms of the house: a package imports from the packages below it only."""

import ast
from importlib.util import resolve_name
from pathlib import Path

import pytest

import gpt2_tf

ROOT = Path(__file__).parents[1]
# From the bottom up; those of one floor don't import each other.
FLOORS = [
    {"gpt2_tf.lazy", "gpt2_tf.former_names", "gpt2_tf.keras_objects"},
    {"gpt2_tf.files"},
    {"encoder", "gpt2_tf.hparams"},
    {"gpt2_tf.data", "gpt2_tf.weights"},
    {"gpt2_tf.model"},
    {"gpt2_tf.generation"},
    {"gpt2_tf.litert"},
    {"gpt2_tf.pretrained"},
    {"gpt2_tf.training", "gpt2_tf.evaluation", "gpt2_tf.serving", "gpt2_tf.inside"},
    {"gpt2_tf"},  # the public names
    {"gpt2_tf.cli"},
    {"gpt2_tf.__main__", "download_model"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = [ROOT / "download_model.py", *sorted(ROOT.glob("encoder/**/*.py")), *sorted(ROOT.glob("gpt2_tf/**/*.py"))]


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(name: str) -> str:
    """The room of a module: "gpt2_tf.files" of "gpt2_tf.files.journal", "encoder" of "encoder.bpe"."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "gpt2_tf" else parts[0]


def imported(source: str, package: str) -> set[str]:
    """The house's modules that a source imports, wherever in it; `package` is what its relative imports start from."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            # `from gpt2_tf import files` is the room of that name, `from gpt2_tf import load` the package.
            names |= {
                f"{base}.{a.name}" if base == "gpt2_tf" and f"{base}.{a.name}" in FLOOR else base for a in node.names
            }
    house = {"encoder", "gpt2_tf", "download_model", "tests", "examples"}
    return {name for name in names if name.partition(".")[0] in house}


def violations(name: str, imports: set[str]) -> list[str]:
    """The imports of a module that are neither of its own room nor of one below."""
    own = room(name)
    return [
        f"{name} (floor {FLOOR[own]}) imports {other} (floor {FLOOR.get(room(other), 'none')})"
        for other in sorted(imports)
        if room(other) != own and FLOOR.get(room(other), 99) >= FLOOR[own]
    ]


def test_every_room_has_a_floor():
    assert {room(module(path)) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_run_down_only(path):
    name = module(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    assert violations(name, imported(path.read_text("utf-8"), package)) == []


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("gpt2_tf.model.gpt2", "from gpt2_tf.generation import generate", "gpt2_tf.generation"),
        ("gpt2_tf.model.gpt2", "def f():\n    if x:\n        import gpt2_tf.cli.main", "gpt2_tf.cli.main"),
        ("gpt2_tf.model.gpt2", "from gpt2_tf import pretrained", "gpt2_tf.pretrained"),
        ("gpt2_tf.model.gpt2", "from ..pretrained.load import load", "gpt2_tf.pretrained.load"),
        ("gpt2_tf.pretrained.load", "from gpt2_tf import load", "gpt2_tf"),
        ("gpt2_tf.data.corpus", "from gpt2_tf.weights import checkpoint", "gpt2_tf.weights"),
        ("gpt2_tf.model.gpt2", "import encoder, gpt2_tf.unheard_of", "gpt2_tf.unheard_of"),
        ("gpt2_tf.cli.main", "from tests.oracles.reference import forward", "tests.oracles.reference"),
    ],
)
def test_a_violation_is_seen(name, source, found):
    (line,) = violations(name, imported(source, name.rpartition(".")[0]))
    assert f"imports {found} (" in line


def test_public_names_live_in_the_rooms():
    assert {room(home.partition(":")[0]) for home in gpt2_tf._homes.values()} <= set(FLOOR) - {"gpt2_tf"}


def test_no_drawer_for_odds_and_ends():
    names = {part for path in FILES for part in module(path).split(".")}
    assert not names & {"utils", "util", "common", "helpers", "misc"}
