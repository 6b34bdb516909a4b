"""Draws the pictures of the README and of `docs/`: `python docs/draw_figures.py`.

    figures/loss.png    from figures/training.csv: step, loss and val_loss of the log of a run, in nats per character
    figures/speed.png   from figures/speed.json, as `python examples/benchmark.py generate --json FILE` writes it

Needs matplotlib (`pip install '.[plot]'`). The pictures have a white background, so they can be read on a dark page.
"""

import csv
import json
from pathlib import Path

from matplotlib.figure import Figure

FIGURES = Path(__file__).parent / "figures"
OURS, OTHERS = "#ff7f0e", "#7f7f7f"


def draw_loss(table: Path, picture: Path) -> None:
    """Draw the training and the validation loss over the steps."""
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss, nats per character", title="Training on tinyshakespeare")
    steps = [int(row["step"]) for row in rows]
    for name, label in (("loss", "training"), ("val_loss", "validation")):
        axes.plot(steps, [float(row[name]) for row in rows], marker=".", label=label)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=100)


def draw_speed(table: Path, picture: Path) -> None:
    """Draw the tokens per second of each library as bars, one panel for each batch size."""
    measured = json.loads(table.read_text("utf-8"))
    figure = Figure(figsize=(7, 3), layout="constrained")
    figure.suptitle(f"Sampling from {measured['size']}, {measured['device']}: tokens per second")
    panels = figure.subplots(1, 2)
    for axes, batch in zip(panels, (1, 8), strict=True):
        rates = {row["library"]: row["tokens_per_second"] for row in measured["greedy"] if row["batch"] == batch}
        names = sorted(rates, key=rates.get)
        bars = axes.barh(
            names, [rates[name] for name in names], color=[OURS if name == "gpt2_tf" else OTHERS for name in names]
        )
        axes.bar_label(bars, fmt="%.0f", padding=3)
        axes.set_title(f"batch {batch}", fontsize="medium")
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    draw_loss(FIGURES / "training.csv", FIGURES / "loss.png")
    draw_speed(FIGURES / "speed.json", FIGURES / "speed.png")
