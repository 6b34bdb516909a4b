"""Stops: the token ids and strings that end a text. A stop string may begin and end in the middle of a token.

A decode loop sees token ids only, so `build_stop_table` turns the stop strings into a state machine over tokens. The
loop can then end as soon as the text does. The machine is the one of Aho and Corasick ("Efficient String Matching",
1975) over bytes, read one whole token at a time.
"""

from collections.abc import Collection, Sequence

import numpy as np

from encoder.bpe import Encoder
from gpt2_tf.hparams import is_whole

STOPPED = -1  # the state of a text that has ended
MAX_STOP_BYTES = 256  # in all stop strings together: each byte takes one row of n_vocab numbers in the table


def parse_stops(enc: Encoder, stop: str | int | Collection[str | int] | None) -> tuple[set[int], list[bytes]]:
    """Split stops into token ids and strings of bytes. The name of a special token becomes its id.

    Raises:
        ValueError: an id outside the vocabulary, an empty string, or more than 256 bytes of strings.

    Example:
        >>> parse_stops(enc, ["<|endoftext|>", "THE END", 5]) == ({enc.end_of_text, 5}, [b"THE END"])
        True
    """
    ids, strings = set(), set()
    for item in [stop] if isinstance(stop, str | int) else stop or ():
        if isinstance(item, str):
            if not item:
                raise ValueError("a stop string is empty; leave it out")
            if item in enc.special_tokens:
                ids.add(enc.special_tokens[item])
            else:
                strings.add(_encode_stop(item))
        elif is_whole(item, 0, enc.n_vocab - 1):
            ids.add(int(item))
        else:
            raise ValueError(f"stop is {item!r}, but must be strings, or ids from 0 to {enc.n_vocab - 1}")
    if (size := sum(map(len, strings))) > MAX_STOP_BYTES:
        raise ValueError(f"the stop strings have {size} bytes together, but may have at most {MAX_STOP_BYTES}")
    return ids, sorted(strings)


def _encode_stop(string: str) -> bytes:
    try:
        return string.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"the stop string {string!a} has an unpaired surrogate, which no text has; remove it"
        ) from None


def build_stop_table(tokens: Sequence[bytes], ids: Collection[int], strings: Collection[bytes]) -> np.ndarray:
    """Build the state machine that tells, token by token, whether a text has ended.

    A state stands for the longest beginning of a stop string with which the text ends now. A text starts in state 0.

    Args:
        tokens: the bytes of each token, by id.
        ids: token ids that end a text.
        strings: byte strings that end a text.

    Returns:
        int32 [states, n_vocab]: the next state after each token, or STOPPED.

    Example:
        >>> build_stop_table([b"a", b"b", b"ab"], ids=[], strings=[b"ab"]).tolist()  # state 1: the text ends with "a"
        [[1, 0, -1], [1, -1, -1]]
    """
    states = sorted({string[:n] for string in strings for n in range(len(string))} | {b""}, key=len)
    number = {state: i for i, state in enumerate(states)}
    stopped = len(states)  # an extra state that no byte leaves

    def next_state(text: bytes) -> int:
        if any(text.endswith(string) for string in strings):
            return stopped
        return next(number[text[i:]] for i in range(len(text) + 1) if text[i:] in number)

    by_byte = np.full([stopped + 1, 256], stopped)
    by_byte[:stopped] = [[next_state(state + bytes([byte])) for byte in range(256)] for state in states]

    table = np.tile(np.arange(stopped)[:, None], len(tokens))
    if strings:
        lengths = np.array([len(token) for token in tokens])
        for i in range(lengths.max()):
            longer = np.flatnonzero(lengths > i)
            table[:, longer] = by_byte[table[:, longer], [tokens[token][i] for token in longer]]
    table[table == stopped] = STOPPED
    table[:, list(ids)] = STOPPED
    return table.astype(np.int32)


def find_stop(text: bytes, strings: Collection[bytes]) -> int:
    """Return where the first stop string begins in the text, in bytes, or the text's length if it has none.

    Example:
        >>> find_stop(b"Exit, pursued by a bear. THE END", [b"THE END", b"bear"])
        19
    """
    return min((at for string in strings if (at := text.find(string)) >= 0), default=len(text))


def count_held_back(text: bytes, strings: Collection[bytes]) -> int:
    """Count the bytes at the end of the text that may turn out to begin a stop string.

    Example:
        >>> count_held_back(b"Exit. TH", [b"THE END"])
        2
    """
    return max((n for string in strings for n in range(len(string)) if text.endswith(string[:n])), default=0)
