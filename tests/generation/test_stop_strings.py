"""The stop table against a search in the text, token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_tf.generation.stop_strings import STOPPED, build_stop_table, count_held_back, find_stop, parse_stops

TOKENS = [b"a", b"b", b"ab", b"ba", b"aab", b"abab", b"c", b"", b"\xe2\x82", b"\xac", b"a\xe2"]
strings = st.lists(
    st.sampled_from([b"ab", b"aab", b"abab", b"ba", b"cab", b"\xe2\x82\xac", b"a\xe2\x82", b"b"]), max_size=4
)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(strings=strings, ids=st.sets(st.integers(0, 10), max_size=2), written=st.lists(st.integers(0, 10), max_size=12))
def test_the_table_stops_where_a_search_finds_a_stop(strings, ids, written):
    stops = build_stop_table(TOKENS, ids, strings)
    assert stops.dtype == np.int32 and stops.shape[1] == len(TOKENS)
    state, text = 0, b""
    for token in written:
        state, text = stops[state, token], text + TOKENS[token]
        assert (state == STOPPED) == (token in ids or any(string in text for string in strings))
        if state == STOPPED:
            break
        held = max((n for n in range(len(text) + 1) for s in strings if n < len(s) and text.endswith(s[:n])), default=0)
        assert count_held_back(text, strings) == held


def test_find_stop_returns_the_first_that_begins():
    assert find_stop(b"xxaby", [b"by", b"ab"]) == 2
    assert find_stop(b"xx", [b"by"]) == find_stop(b"xx", []) == 2


def test_without_strings_there_is_one_state():
    assert build_stop_table(TOKENS, [], []).tolist() == [[0] * 11]
    assert build_stop_table(TOKENS, [3], []).tolist() == [[0, 0, 0, STOPPED, 0, 0, 0, 0, 0, 0, 0]]


def test_parse_stops_splits_ids_from_strings(enc):
    end = enc.end_of_text
    assert parse_stops(enc, "<|endoftext|>") == ({end}, [])
    assert parse_stops(enc, ("<|endoftext|>", "\n\n", 5, np.int64(6))) == ({end, 5, 6}, [b"\n\n"])
    assert parse_stops(enc, 5) == ({5}, [])
    assert parse_stops(enc, "<|endof") == (set(), [b"<|endof"])
    assert parse_stops(enc, ()) == (set(), [])


@pytest.mark.parametrize(
    "stop, message",
    [
        ("", "a stop string is empty; leave it out"),
        (260, "stop is 260, but must be strings, or ids from 0 to 259"),
        ([-1], "stop is -1"),
        ([1.5], "stop is 1.5"),
        ("a\ud800", r"the stop string 'a.ud800' has an unpaired surrogate"),
        ([None], "stop is None"),
        (["x" * 200, "é" * 100], "the stop strings have 400 bytes together, but may have at most 256"),
    ],
)
def test_wrong_stops_say_what_fits(enc, stop, message):
    with pytest.raises(ValueError, match=message):
        parse_stops(enc, stop)
