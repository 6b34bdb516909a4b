"""The plot of the losses: its lines are the log's columns."""

import sys

import numpy as np
import pytest

from gpt2_tf.training.loss_plot import draw_losses, loss_figure

ROWS = [
    {"step": "5", "loss": "3.5", "val_loss": "3.75"},
    {"step": "10", "loss": "3.25", "val_loss": ""},  # stopped before the evaluation
    {"step": "15", "loss": "3", "val_loss": "3.5"},
]


def test_the_figure_has_a_line_for_each_loss():
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra [plot]")
    (axes,) = loss_figure(ROWS).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {"loss": [[5, 3.5], [10, 3.25], [15, 3]], "val_loss": [[5, 3.75], [15, 3.5]]}
    assert [entry.get_text() for entry in axes.get_legend().get_texts()] == ["loss", "val_loss"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss (nats per token)")


def test_the_png_shows_the_figure(tmp_path):
    """Its picture with the losses differs from the picture without them."""
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra [plot]")
    from matplotlib.image import imread

    draw_losses(ROWS, tmp_path / "loss.png")
    draw_losses([{**row, "loss": ""} for row in ROWS], tmp_path / "val.png")
    with_loss, without = imread(tmp_path / "loss.png"), imread(tmp_path / "val.png")
    assert with_loss.shape == without.shape == (480, 840, 4)
    assert np.any(with_loss != without, axis=-1).sum() > 500


def test_without_matplotlib_nothing_is_drawn(tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    draw_losses(ROWS, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
