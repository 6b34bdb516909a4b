"""Where a text ends: at an id, or at a string that may begin and end anywhere in a token.

A table tells the compiled loop, token by token, how much of a stop string the text ends with, so that the loop ends
with the text. It is the automaton of Aho and Corasick (1975) over bytes, read a whole token at a time.
"""

from collections.abc import Collection, Sequence

import numpy as np

from encoder.bpe import Encoder
from gpt2_tf.hparams import is_whole

STOPPED = -1
MAX_BYTES = 256  # of all stop strings: the table has a row of n_vocab numbers for each


def parse(enc: Encoder, stop: str | int | Collection[str | int] | None) -> tuple[set[int], list[bytes]]:
    """The ids and the strings, as bytes, that end a text; the name of a special token is its id.

    Raises:
        ValueError: an id out of range, an empty string, or more than 256 bytes of strings.
    """
    ids, strings = set(), set()
    for item in [stop] if isinstance(stop, str | int) else stop or ():
        if isinstance(item, str):
            if not item:
                raise ValueError("a stop string is empty; leave it out")
            if item in enc.special_tokens:
                ids.add(enc.special_tokens[item])
            else:
                strings.add(item.encode())
        elif is_whole(item, 0, enc.n_vocab - 1):
            ids.add(int(item))
        else:
            raise ValueError(f"stop is {item!r}, but must be strings, or ids from 0 to {enc.n_vocab - 1}")
    if (size := sum(map(len, strings))) > MAX_BYTES:
        raise ValueError(f"the stop strings have {size} bytes, but may have {MAX_BYTES} together")
    return ids, sorted(strings)


def table(tokens: Sequence[bytes], ids: Collection[int], strings: Collection[bytes]) -> np.ndarray:
    """int32 [states, n_vocab]: the state after a token, or STOPPED; a text begins in state 0.

    A state is how the text ends: with which beginning of a stop string, the longest.
    """
    states = sorted({string[:n] for string in strings for n in range(len(string))} | {b""}, key=len)
    number = {state: i for i, state in enumerate(states)}
    stopped = len(states)  # as a row of its own, which nothing leaves

    def after(text: bytes) -> int:
        if any(text.endswith(string) for string in strings):
            return stopped
        return next(number[text[i:]] for i in range(len(text) + 1) if text[i:] in number)

    step = np.full([stopped + 1, 256], stopped)
    step[:stopped] = [[after(state + bytes([byte])) for byte in range(256)] for state in states]

    result = np.tile(np.arange(stopped)[:, None], len(tokens))
    if strings:
        lengths = np.array([len(token) for token in tokens])
        for i in range(lengths.max()):
            longer = np.flatnonzero(lengths > i)
            result[:, longer] = step[result[:, longer], [tokens[token][i] for token in longer]]
    result[result == stopped] = STOPPED
    result[:, list(ids)] = STOPPED
    return result.astype(np.int32)


def find(text: bytes, strings: Collection[bytes]) -> int:
    """Where in the text the first stop string begins, or the text's length."""
    return min((at for string in strings if (at := text.find(string)) >= 0), default=len(text))


def held_back(text: bytes, strings: Collection[bytes]) -> int:
    """How many bytes at the text's end may be a stop string's beginning."""
    return max((n for string in strings for n in range(len(string)) if text.endswith(string[:n])), default=0)
