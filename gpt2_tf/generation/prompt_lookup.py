"""Proposals for the next tokens that need no model: what followed the text's newest tokens before."""

from collections.abc import Sequence

MAX_LOOKUP_TOKENS = 8


def prompt_lookup(text: Sequence[int], n_new: int, n: int) -> list[int]:
    """Propose up to n tokens: those that followed the last occurrence of the text's newest three tokens.

    Where the newest three tokens occur only once, the newest two are looked up, and then the newest one.

    Source: "Prompt Lookup Decoding" (Saxena, 2023).

    Example:
        >>> prompt_lookup([1, 2, 3, 4, 1, 2], n_new=0, n=2)
        [3, 4]
    """
    for size in (3, 2, 1):
        newest = text[len(text) - size :]
        for first in range(len(text) - size - 1, -1, -1):
            if text[first : first + size] == newest:
                return list(text[first + size : first + size + min(n, MAX_LOOKUP_TOKENS)])
    return []
