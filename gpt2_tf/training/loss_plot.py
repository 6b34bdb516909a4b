"""The plot of a run's losses, `loss.png`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2_tf.files.png import write_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_figure(rows: Sequence[Mapping[str, str]]) -> "Figure":
    """The training loss and the validation loss over the steps, as a matplotlib figure.

    Args:
        rows: the rows of `log.csv`. An empty or missing loss is left out.

    Raises:
        ImportError: matplotlib, the extra `plot`, is not installed.

    Example:
        >>> figure = loss_figure([{"step": "5", "loss": "3.2", "val_loss": "3.4"}])
        >>> len(figure.axes[0].lines)
        2
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
    for name in ("loss", "val_loss"):
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, marker=".")
    axes.legend()
    return figure


def draw_losses(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Write the plot of the losses as a PNG; without matplotlib, write nothing.

    Args:
        rows: the rows of `log.csv`.
        path: where the PNG goes.

    Example:
        >>> draw_losses([{"step": "5", "loss": "3.2", "val_loss": "3.4"}], Path("loss.png"))
    """
    try:
        figure = loss_figure(rows)
    except ImportError:
        return
    write_png(figure, path)
