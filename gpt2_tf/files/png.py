"""Write figures as PNG files."""

import io
import os
import warnings
from typing import TYPE_CHECKING

from gpt2_tf.files.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_png(figure: "Figure", path: str | os.PathLike) -> None:
    """Write a matplotlib figure as a PNG, whole or not at all.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> from matplotlib.figure import Figure
        >>> write_png(Figure(), "empty.png")
        >>> os.listdir(".")
        ['empty.png']
    """
    image = io.BytesIO()
    with warnings.catch_warnings():
        # A token may have characters that matplotlib's fonts lack. They are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(image, format="png", dpi=120)
    atomic_write(path, image.getvalue())
