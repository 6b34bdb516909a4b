"""How far a long work is, on stderr."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def bar(work: Iterable[Any] | None = None, **options) -> "tqdm":
    """tqdm's bar of the work, or one to be told; `options` are tqdm's. A log, which keeps each line, gets few."""
    from tqdm import tqdm

    return tqdm(work, mininterval=0.1 if sys.stderr.isatty() else 10, **options)
