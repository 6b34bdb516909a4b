"""The table of stops against a search in the text, token after token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_tf.generation.stop_strings import STOPPED, find, held_back, parse, table

TOKENS = [b"a", b"b", b"ab", b"ba", b"aab", b"abab", b"c", b"", b"\xe2\x82", b"\xac", b"a\xe2"]
strings = st.lists(
    st.sampled_from([b"ab", b"aab", b"abab", b"ba", b"cab", b"\xe2\x82\xac", b"a\xe2\x82", b"b"]), max_size=4
)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(strings=strings, ids=st.sets(st.integers(0, 10), max_size=2), written=st.lists(st.integers(0, 10), max_size=12))
def test_the_table_stops_where_a_search_finds_something(strings, ids, written):
    stops = table(TOKENS, ids, strings)
    assert stops.dtype == np.int32 and stops.shape[1] == len(TOKENS)
    state, text = 0, b""
    for token in written:
        state, text = stops[state, token], text + TOKENS[token]
        assert (state == STOPPED) == (token in ids or any(string in text for string in strings))
        if state == STOPPED:
            break
        held = max((n for n in range(len(text) + 1) for s in strings if n < len(s) and text.endswith(s[:n])), default=0)
        assert held_back(text, strings) == held


def test_find_is_the_first_that_begins():
    assert find(b"xxaby", [b"by", b"ab"]) == 2
    assert find(b"xx", [b"by"]) == find(b"xx", []) == 2


def test_without_strings_there_is_one_state():
    assert table(TOKENS, [], []).tolist() == [[0] * 11]
    assert table(TOKENS, [3], []).tolist() == [[0, 0, 0, STOPPED, 0, 0, 0, 0, 0, 0, 0]]


def test_parse(enc):
    end = enc.end_of_text
    assert parse(enc, "<|endoftext|>") == ({end}, [])
    assert parse(enc, ("<|endoftext|>", "\n\n", 5, np.int64(6))) == ({end, 5, 6}, [b"\n\n"])
    assert parse(enc, 5) == ({5}, [])
    assert parse(enc, "<|endof") == (set(), [b"<|endof"])
    assert parse(enc, ()) == (set(), [])


@pytest.mark.parametrize(
    "stop, message",
    [
        ("", "a stop string is empty; leave it out"),
        (260, "stop is 260, but must be strings, or ids from 0 to 259"),
        ([-1], "stop is -1"),
        ([1.5], "stop is 1.5"),
        ([None], "stop is None"),
        (["x" * 200, "é" * 100], "the stop strings have 400 bytes, but may have 256 together"),
    ],
)
def test_wrong_stops_say_what_fits(enc, stop, message):
    with pytest.raises(ValueError, match=message):
        parse(enc, stop)
