"""The notebook `examples/finetune.ipynb` runs from top to bottom, and its stored outputs are small."""

import ast
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "finetune.ipynb"


def printed(notebook) -> list[str]:
    """What each code cell has printed, in order."""
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return ["".join(output.text for output in cell.outputs if output.name == "stdout") for cell in cells]


def test_stored_outputs_are_small_and_there():
    nbformat = pytest.importorskip("nbformat")
    assert NOTEBOOK.stat().st_size < 20_000
    assert all(printed(nbformat.read(NOTEBOOK, as_version=4)))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Jupyter's packages aren't ours
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = printed(notebook)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    before, _, losses, after, loaded = printed(notebook)
    losses = ast.literal_eval(losses.partition(": ")[2])
    assert losses[-1] < losses[0] / 4
    assert before == stored[0]  # a seed gives the same text
    assert after != before and after == loaded
    assert "Jabberwock" in after
