"""The progress bar of a long command, on stderr."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def bar(work: Iterable[Any] | None = None, **options) -> "tqdm":
    """Return tqdm's progress bar.

    The bar is redrawn every 0.1 s on a terminal, and every 10 s elsewhere, because a log keeps every line.

    Args:
        work: what to iterate over; None for a bar that is moved by its `update` method.
        options: tqdm's own, such as `desc`, `total` and `unit`.

    Example:
        >>> list(bar(range(3), disable=True))
        [0, 1, 2]
    """
    from tqdm import tqdm

    return tqdm(work, mininterval=0.1 if sys.stderr.isatty() else 10, **options)
