"""encoder/bpe.py against a slow byte-level BPE that follows the paper's rule, on many texts and vocabularies."""

import json
import pickle
import random
import subprocess
import sys
import time
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder import Encoder, get_encoder
from encoder.bpe import PATTERN

ROOT = Path(__file__).resolve().parents[2]
OFFICIAL = ROOT.parent / "shared" / "data" / "official-117M"
EOT = "<|endoftext|>"
JSON, BPE = "encoder.json", "vocab.bpe"

needs_official = pytest.mark.skipif(not OFFICIAL.exists(), reason=f"needs OpenAI's vocabulary in {OFFICIAL}")
examples = partial(settings, deadline=None, derandomize=True, database=None)


# The reference: OpenAI's rule on pairs of tokens, with one character per byte and without tiktoken.

OPENAI_PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def byte_characters():
    """GPT-2's printable character of each byte: 188 bytes stand for themselves, the others follow from U+0100."""
    characters, following = [], 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            characters.append(chr(byte))
        else:
            characters.append(chr(following))
            following += 1
    return characters


def merged(symbols, rank):
    """While any pair has a rank, merge every occurrence of the lowest-ranked pair, from the left."""
    symbols = list(symbols)
    while ranked := [pair for pair in pairwise(symbols) if pair in rank]:
        best = min(ranked, key=rank.get)
        n = 0
        while n < len(symbols) - 1:
            if (symbols[n], symbols[n + 1]) == best:
                symbols[n : n + 2] = ["".join(best)]
            n += 1
    return symbols


class Reference:
    def __init__(self, encoder_json, vocab_bpe):
        self.ids = json.loads(encoder_json)
        self.rank = {tuple(line.split()): n for n, line in enumerate(vocab_bpe.decode().split("\n")[1:-1])}
        self.characters = byte_characters()

    def encode(self, text):
        ids = []
        for piece in OPENAI_PATTERN.findall(without_surrogates(text)):
            ids += [self.ids[token] for token in merged([self.characters[b] for b in piece.encode()], self.rank)]
        return ids


def without_surrogates(text):
    """The rule: a high surrogate and the low one after it are one character, any other surrogate is U+FFFD."""
    out = regex.sub(
        "([\ud800-\udbff])([\udc00-\udfff])",
        lambda m: chr(0x10000 + (ord(m[1]) - 0xD800) * 0x400 + ord(m[2]) - 0xDC00),
        text,
    )
    return regex.sub("[\ud800-\udfff]", "\ufffd", out)


def files_of(merges, extra=(EOT,)):
    """The two files of a vocabulary whose ids are the bytes, then the merges, then `extra`."""
    characters = sorted(byte_characters())  # the order of OpenAI's ids
    tokens = [*characters, *(a + b for a, b in merges), *extra]
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    return json.dumps({t: n for n, t in enumerate(tokens)}).encode(), "".join(f"{x}\n" for x in lines).encode()


SMALL = [
    ("h", "e"),
    ("l", "l"),
    ("Ġ", "he"),
    ("ll", "o"),
    ("he", "llo"),
    ("Ċ", "Ċ"),
    ("Ġ", "Ġ"),
    ("Ã", "©"),
    ("1", "2"),
]


@pytest.fixture(scope="module")
def official():
    return Encoder.from_folder(OFFICIAL)


@pytest.fixture(scope="module")
def official_reference():
    return Reference((OFFICIAL / "encoder.json").read_bytes(), (OFFICIAL / "vocab.bpe").read_bytes())


@pytest.fixture(scope="module")
def small():
    return Encoder(*files_of(SMALL))


@pytest.fixture
def folder(tmp_path):
    """A folder with a small valid vocabulary, which tests damage."""
    encoder_json, vocab_bpe = files_of(SMALL)
    (tmp_path / "encoder.json").write_bytes(encoder_json)
    (tmp_path / "vocab.bpe").write_bytes(vocab_bpe)
    return tmp_path


# Texts


@cache
def every_character():
    return "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)


def rust_matches(pattern):
    """The characters that a class holds in tiktoken's regex engine."""
    spans = tiktoken.Encoding(
        "bytes", pat_str=pattern, mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={}
    )
    return set(bytes(spans.encode(every_character(), disallowed_special=())).decode())


@cache
def known_to_both():
    """All characters that are assigned both in tiktoken's version of Unicode and in that of `regex`."""
    return set(every_character()) - rust_matches(r"\p{Cn}+") - set(regex.findall(r"\p{Cn}", every_character()))


scripts = "aZéßñЖяΩאبकाไทยกี한글漢字かな𐍈𐐀ǅʰªº"
digits = "0123456789٣४๕²½Ⅷ㊿𑁦"
spaces = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2009\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
controls = "\x00\x01\x07\x1b\x7f\x80\x9f\u200d\u200e\ufe0f"
words = [
    "'s",
    "'t",
    "'re",
    "'ve",
    "'m",
    "'ll",
    "'d",
    "'S",
    "'RE",
    "'LL",
    "\u2019s",
    "''",
    "don't",
    "DON'T",
    "hello",
    " the",
    "  ",
    "\n\n",
    "\r\n",
    "   \n",
    "👩‍👩‍👧‍👦",
    "🇳🇱",
    "👍🏽",
    "e\u0301",
    "<|endoftext|>",
    "http://",
    "...",
    "1234",
    " 12,5",
    "\ufffd",
]
text = st.lists(
    st.one_of(
        st.sampled_from(words),
        st.text(st.sampled_from(scripts), max_size=4),
        st.text(st.sampled_from(digits), max_size=3),
        st.text(st.sampled_from(spaces), max_size=4),
        st.text(st.sampled_from(controls), max_size=2),
        st.text(st.characters(exclude_categories=["Cs", "Cn"]).filter(lambda c: c in known_to_both()), max_size=5),
        st.text(st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF), max_size=3),
    ),
    max_size=8,
).map("".join)


@pytest.mark.slow
@pytest.mark.parametrize("name", [r"\p{L}", r"\p{N}", r"\s"])
def test_character_classes_are_those_of_the_regex_module(name):
    rust, python = rust_matches(f"{name}+"), set(regex.findall(name, every_character()))
    assert rust & known_to_both() == python & known_to_both()
    assert len(known_to_both()) > 200_000


def test_the_pattern_equals_openais_on_runs_of_spaces_longer_than_a_block():
    for n in [*range(1, 6), *range(254, 261), *range(510, 520), 1024, 1025]:
        for space in (" ", "\n", " \n", "\u3000"):
            for end in ("", "x", "'s", "!", "7"):
                whole = "a" + space * n + end
                pieces = OPENAI_PATTERN.findall(whole)
                # A vocabulary with each piece as one token shows where the pattern cuts.
                ranks = {bytes([b]): b for b in range(256)}
                for piece in pieces:
                    ranks.setdefault(piece.encode(), len(ranks))
                spans = tiktoken.Encoding("pieces", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
                assert spans.encode(whole) == [ranks[piece.encode()] for piece in pieces]


# Ids


@needs_official
@pytest.mark.parametrize(
    "string, ids",
    [
        ("Hello\n\nWorld", [15496, 198, 198, 10603]),
        ("Hello world", [15496, 995]),
        ("\n\n", [628]),
        ("", []),
        (EOT, [27, 91, 437, 1659, 5239, 91, 29]),
    ],
)
def test_known_ids(official, string, ids):
    assert official.encode(string) == ids
    assert official.decode(ids) == string


@needs_official
def test_the_attributes_of_openais_vocabulary(official):
    assert (official.n_vocab, official.end_of_text, official.special_tokens) == (50257, 50256, {EOT: 50256})
    assert (
        official.tokens[220] == b" " and official.tokens[15496] == b"Hello" and official.tokens[50256] == EOT.encode()
    )
    assert len(official.merges) == 50000 and next(iter(official.merges.items())) == ((220, 83), 256)
    assert get_encoder("official-117M", OFFICIAL.parent).encode("Hello") == [15496]


@pytest.mark.slow
@needs_official
@examples(max_examples=3000)
@given(text)
def test_official_ids_equal_the_reference(official, official_reference, string):
    assert official.encode(string) == official_reference.encode(string)


@needs_official
def test_official_ids_of_a_story_equal_the_reference(official, official_reference):
    story = (OFFICIAL.parent / "text" / "the-verdict.txt").read_text(encoding="utf-8")
    assert official.encode(story) == official_reference.encode(story)


@examples(max_examples=500)
@given(text)
def test_small_vocabulary_equals_the_reference(small, string):
    assert small.encode(string) == Reference(*files_of(SMALL)).encode(string)


@st.composite
def merge_lists(draw):
    tokens, merges = list("ab"), []
    for _ in range(draw(st.integers(1, 7))):
        pair = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if "".join(pair) not in tokens:
            tokens.append("".join(pair))
            merges.append(pair)
    return merges


@pytest.mark.slow
@examples(max_examples=400)
@given(merge_lists(), st.lists(st.text("ab", max_size=20), min_size=5, max_size=5))
def test_any_merges_are_refused_or_give_the_ids_of_the_reference(merges, strings):
    files = files_of(merges)
    reference = Reference(*files)
    unreachable = [a + b for a, b in merges if len(reference.encode(a + b)) > 1]
    if unreachable:
        with pytest.raises(ValueError, match="can never be used"):
            Encoder(*files)
    else:
        encoder = Encoder(*files)
        for string in strings:
            assert encoder.encode(string) == reference.encode(string)


def test_encoder_json_decides_the_ids():
    """Other trainers put `<|endoftext|>` first and the bytes in another order."""
    characters = byte_characters()
    tokens = [EOT, *characters, *(a + b for a, b in SMALL), "<|pad|>"]
    encoder_json = json.dumps({t: n for n, t in enumerate(tokens)}).encode()
    encoder = Encoder(encoder_json, files_of(SMALL)[1])
    assert (encoder.end_of_text, encoder.n_vocab) == (0, 256 + len(SMALL) + 2)
    assert encoder.special_tokens == {EOT: 0, "<|pad|>": encoder.n_vocab - 1}
    assert encoder.added_tokens == {"<|pad|>": encoder.n_vocab - 1}
    string = "hello hello\n\n12é\x00"
    assert encoder.encode(string) == Reference(encoder_json, files_of(SMALL)[1]).encode(string)
    assert encoder.decode(range(encoder.n_vocab)).startswith(EOT)


# Special tokens


def test_end_of_text_is_plain_text_unless_allowed(small):
    string = f"hello{EOT}12"
    hello, twelve = small.encode("hello"), small.encode("12")
    assert small.encode(string) == hello + small.encode(EOT) + twelve
    assert small.end_of_text not in small.encode(string)
    for allowed in ({EOT}, [EOT], EOT, "all"):
        assert small.encode(string, allowed_special=allowed) == [*hello, small.end_of_text, *twelve]
    assert small.end_of_text == 256 + len(SMALL)
    assert small.decode([small.end_of_text]) == EOT


def with_tokens(*names: str) -> Encoder:
    """The vocabulary `small` with more tokens behind `<|endoftext|>`."""
    encoder_json, vocab_bpe = files_of(SMALL)
    ids = json.loads(encoder_json)
    return Encoder(json.dumps(ids | {name: len(ids) + n for n, name in enumerate(names)}).encode(), vocab_bpe)


def test_added_tokens_are_recognized_and_names_of_unused_ids_are_plain_text(small):
    first = small.n_vocab
    unused = f"<|unused{first + 2}|>"
    encoder = with_tokens("<speaker1>", "[PAD]", unused)
    assert encoder.added_tokens == {"<speaker1>": first, "[PAD]": first + 1}
    string = f"<speaker1>hello[PAD][PAD]{unused}{EOT}"
    plain = small.encode(unused + EOT)
    assert encoder.encode(string) == [first, *small.encode("hello"), first + 1, first + 1, *plain]
    assert encoder.encode_batch([string]) == [encoder.encode(string)]
    assert encoder.encode(string, allowed_special=EOT)[-1] == small.end_of_text
    assert encoder.decode(encoder.encode(string)) == string


def test_a_token_that_begins_another_is_an_error():
    """Both would match at the same place of a text."""
    with pytest.raises(ValueError, match="its token <a> begins <a>b>; expected no token that begins another"):
        with_tokens("<a>", "<b>", "<a>b>")


def test_unknown_special_token_is_an_error(small):
    message = r"'<\|pad\|>' is not a special token of this vocabulary; expected <\|endoftext\|>"
    with pytest.raises(ValueError, match=message):
        small.encode("x", allowed_special=[EOT, "<|pad|>"])
    with pytest.raises(ValueError, match=message):
        small.encode_batch(["x"], allowed_special=["<|pad|>"])


# Surrogates, batches, round trips


def test_surrogates_pair_up_or_become_the_replacement_character(small):
    pair, lone = "\ud83d\ude00", "a\ud800b\udc00"
    assert small.encode(pair) == small.encode("😀")
    assert small.encode(lone) == small.encode("a\ufffdb\ufffd")
    assert small.encode("\ude00\ud83d") == small.encode("\ufffd\ufffd")
    assert small.encode_batch([pair, lone]) == [small.encode("😀"), small.encode("a\ufffdb\ufffd")]
    assert small.encode(lone + EOT, allowed_special={EOT})[-1] == small.end_of_text


@examples(max_examples=100)
@given(st.lists(text, max_size=6), st.booleans())
def test_encode_batch_equals_encode(small, strings, special):
    allowed = {EOT} if special else ()
    assert small.encode_batch(strings, allowed, num_threads=2) == [small.encode(string, allowed) for string in strings]


def test_encode_refuses_bytes_and_encode_batch_a_single_text(small):
    with pytest.raises(TypeError):
        small.encode(b"bytes")
    with pytest.raises(TypeError, match="list of texts"):
        small.encode_batch("one text")


@needs_official
@examples(max_examples=500)
@given(text)
def test_decode_gives_the_text_back(official, string):
    assert official.decode(official.encode(string), errors="strict") == without_surrogates(string)
    assert official.decode(official.encode(string, allowed_special="all")) == without_surrogates(string)


@needs_official
@examples(max_examples=200)
@given(st.data())
def test_decode_of_any_ids_never_fails(official, data):
    ids = data.draw(st.lists(st.integers(0, official.n_vocab - 1), max_size=20))
    assert official.decode_bytes(ids) == b"".join(official.tokens[i] for i in ids)
    assert official.decode(ids) == official.decode_bytes(ids).decode("utf-8", "replace")


def test_decode_takes_arrays_and_error_handlers(small):
    ids = small.encode("é hello")
    for dtype in (np.int32, np.int64, np.uint16):
        assert small.decode(np.array(ids, dtype)) == "é hello"
    assert small.decode([np.int32(i) for i in ids]) == small.decode(iter(ids)) == "é hello"
    half = small.encode("漢")[:1]
    assert small.decode(half) == "\ufffd"
    assert small.decode(half, errors="ignore") == ""
    with pytest.raises(UnicodeDecodeError):
        small.decode(half, errors="strict")


@pytest.mark.parametrize("bad", [-1, 266, 10**30, 1.5, "1", None, np.float32(1.5), np.int64(-1)])
def test_decode_names_an_invalid_id(small, bad):
    with pytest.raises(ValueError, match=r" at position 1 is not a token id; expected integers from 0 to 265") as error:
        small.decode([5, bad])
    assert str(error.value).startswith(repr(bad))


def test_decode_names_an_invalid_id_in_an_array(small):
    for array, bad in [(np.array([5, -1]), "-1"), (np.array([5, 266], np.uint16), "266"), (np.array([5, 1.5]), "5.0")]:
        with pytest.raises(
            ValueError, match=rf"^{bad} at position . is not a token id; expected integers from 0 to 265"
        ):
            small.decode_bytes(array)


def test_decode_refuses_a_scalar_and_nested_ids(small):
    for ids in (5, np.int32(5)):
        with pytest.raises(ValueError, match="5 is not a sequence of token ids; expected integers from 0 to 265"):
            small.decode(ids)
    with pytest.raises(ValueError, match=r"\[1, 2\] at position 0 is not a token id"):
        small.decode(np.array([[1, 2], [3, 4]]))


@needs_official
@pytest.mark.parametrize(
    "string",
    ["a" * 200_000, " " * 200_000 + "x", "\n" * 1_500_000 + "x", "ab c" * 100_000, "漢" * 100_000, "!" * 200_000],
    ids=["letters", "spaces", "newlines", "words", "han", "marks"],
)
def test_long_texts_are_quick(official, string):
    start = time.perf_counter()
    ids = official.encode(string)
    assert time.perf_counter() - start < 5
    assert official.decode(ids) == string


@needs_official
def test_loading_and_importing_are_quick(official):
    start = time.perf_counter()
    Encoder.from_folder(OFFICIAL)
    assert time.perf_counter() - start < 2  # 0.2 s on an idle core
    code = "import sys, encoder; print([m for m in ('tensorflow', 'keras', 'tokenizers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Files


def test_save_writes_the_same_bytes(folder, tmp_path):
    encoder = Encoder.from_folder(folder)
    encoder.save(tmp_path / "a" / "b")
    for name in ("encoder.json", "vocab.bpe"):
        assert (tmp_path / "a" / "b" / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["encoder.json", "vocab.bpe"]
    encoder.save(folder)
    assert Encoder.from_folder(folder).encode("hello") == encoder.encode("hello")


def test_a_failed_save_leaves_the_old_file_and_no_other(folder, monkeypatch):
    encoder = Encoder(*files_of([("x", "y")]))
    before = (folder / "encoder.json").read_bytes()

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        encoder.save(folder)
    assert (folder / "encoder.json").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["encoder.json", "vocab.bpe"]


def test_an_encoder_pickles(small):
    assert pickle.loads(pickle.dumps(small)).encode("hello 12") == small.encode("hello 12")


def test_windows_line_ends_are_accepted(folder):
    path = folder / "vocab.bpe"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Encoder.from_folder(folder).encode("hello") == [256 + 4]


@pytest.mark.parametrize("name", ["encoder.json", "vocab.bpe"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        get_encoder(folder.name, folder.parent)
    assert_one_line(error, f"no {name} in", str(folder), "gpt2-tf download")


def assert_one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    for part in parts:
        assert part in message


def rewrite(name, change):
    """A damage: the bytes of file `name` go through `change`."""

    def damage(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def edit_ids(change):
    """A damage: the dict of encoder.json goes through `change`, in place."""

    def damage(content):
        ids = json.loads(content)
        change(ids)
        return json.dumps(ids).encode()

    return rewrite("encoder.json", damage)


def edit_lines(change):
    """A damage: the list of lines of vocab.bpe goes through `change`, in place."""

    def damage(content):
        lines = content.decode().split("\n")
        change(lines)
        return "\n".join(lines).encode()

    return rewrite("vocab.bpe", damage)


def swap(folder):
    (folder / "encoder.json").rename(folder / "x")
    (folder / "vocab.bpe").rename(folder / "encoder.json")
    (folder / "x").rename(folder / "vocab.bpe")


def renumber(folder):
    """Swap the ids of two merged tokens: every id is there, but not in the order of the merges."""
    edit_ids(lambda ids: ids.update({"he": 257, "ll": 256}))(folder)


DAMAGES = {
    "empty ids": (rewrite(JSON, lambda b: b""), JSON, "it is empty", "JSON object"),
    "cut ids": (rewrite(JSON, lambda b: b[:1000]), JSON, "cut short after 1000 bytes", "JSON object"),
    "not JSON": (rewrite(JSON, lambda b: b"<html>"), JSON, "not JSON", "JSON object"),
    "a list": (rewrite(JSON, lambda b: b"[]"), JSON, "a JSON list", "JSON object"),
    "a huge id": (rewrite(JSON, lambda b: b'{"!": ' + b"1" * 5000 + b"}"), JSON, "not JSON", "JSON object"),
    "half a character": (edit_ids(lambda d: d.update({"<|\ud800|>": 266})), JSON, "1 of its 267 tokens, first"),
    "ids not UTF-8": (rewrite(JSON, lambda b: b"{\xff}"), JSON, "byte 1 of 3 is not UTF-8"),
    "swapped": (swap, JSON, "it holds merges", "swapped"),
    "an id twice": (edit_ids(lambda d: d.update({"he": 257})), JSON, "no token has id 256", "0 to 265", "266"),
    "a gap": (edit_ids(lambda d: d.update({EOT: 300})), JSON, "no token has id 265", "0 to 265"),
    "a text for id": (edit_ids(lambda d: d.update({"he": "256"})), JSON, "id of 'he' is '256'", "integers"),
    "a true id": (edit_ids(lambda d: d.update({'"': True})), JSON, "is True", "integers"),
    "no byte": (edit_ids(lambda d: d.update({"qq": d.pop("!")})), JSON, "first 'qq'", "255 bytes, 9 merges"),
    "no end": (edit_ids(lambda d: d.update({"<|pad|>": d.pop(EOT)})), JSON, f"it has no {EOT}"),
    "odd token": (edit_ids(lambda d: d.update(zz=266)), JSON, "1 of its 267 tokens, first 'zz'", "9 merges"),
    "empty merges": (rewrite(BPE, lambda b: b""), BPE, "it is empty", "#version: 0.2"),
    "JSON merges": (rewrite(BPE, lambda b: b'{"!": 0}'), BPE, """first line is '{"!": 0}'""", "#version"),
    "no version": (edit_lines(lambda x: x.pop(0)), BPE, "its first line is 'h e'", "#version: 0.2"),
    "merges not UTF-8": (rewrite(BPE, lambda b: b + b"\xff"), BPE, "is not UTF-8"),
    "merges cut in a line": (rewrite(BPE, lambda b: b[:-1]), BPE, "line, 10, has no line end", "cut short"),
    "merges cut at a line": (edit_lines(lambda x: x.pop(-2)), JSON, "1 of its 266 tokens, first '12'", "8 merges"),
    "only a version": (edit_lines(lambda x: x.__delitem__(slice(1, -1))), JSON, "9 of its 266 tokens", " 0 merges"),
    "three parts": (edit_lines(lambda x: x.insert(3, "a b c")), BPE, "line 4, 'a b c', is not a merge", "two tokens"),
    "an empty line": (edit_lines(lambda x: x.insert(3, "")), BPE, "line 4, '', is not a merge", "two tokens"),
    "unknown result": (edit_lines(lambda x: x.insert(3, "x y")), BPE, "line 4, 'x y', makes 'xy'", "in encoder.json"),
    "unknown part": (edit_lines(lambda x: x.insert(1, x.pop(3))), BPE, "line 2, 'Ġ he', merges 'he'", "lines above"),
    "a merge twice": (edit_lines(lambda x: x.insert(3, "h e")), BPE, "line 4, 'h e', makes 'he' a second time"),
    "another order": (renumber, BPE, "line 3, 'l l', makes id 256 after id 257", "ids that increase"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_file_is_named_in_one_line(folder, case):
    damage, name, *parts = DAMAGES[case]
    damage(folder)
    with pytest.raises(ValueError) as error:
        Encoder.from_folder(folder)
    assert str(error.value).startswith(f"{folder / name}: ")
    assert_one_line(
        error, "; expected ", "use an encoder.json and a vocab.bpe that were made together", "gpt2-tf download", *parts
    )


@pytest.mark.parametrize("seed", range(4))
def test_any_damage_gives_a_vocabulary_or_an_error_with_the_files_name(folder, seed):
    """A vocabulary can survive damage, such as another byte in a token's name. Then its ids must decode."""
    rng = random.Random(seed)
    files = {name: (folder / name).read_bytes() for name in (JSON, BPE)}
    refused = 0
    for _ in range(250):
        name = rng.choice([JSON, BPE])
        content = bytearray(files[name])
        at = rng.randrange(len(content))
        damage = rng.randrange(4)
        if damage == 0:
            content[at] = rng.randrange(256)
        elif damage == 1:
            del content[at : at + rng.randrange(1, 40)]
        elif damage == 2:
            content[at:at] = content[: rng.randrange(1, 40)]
        else:
            content[at:at] = rng.choice([b"[" * 5000, b"9" * 5000, b"\x00", b"\\ud800", b"\n", b'"', b"-1", b"1e999"])
        (folder / name).write_bytes(content)
        try:
            enc = Encoder.from_folder(folder)
        except ValueError as error:
            assert str(error).startswith((f"{folder / JSON}: ", f"{folder / BPE}: ")) and "\n" not in str(error)
            refused += 1
        else:
            assert enc.decode_bytes(enc.encode("hello 12")) == b"hello 12"
        (folder / name).write_bytes(files[name])
    assert refused > 150


def test_two_merges_to_one_token_are_an_error():
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]
    encoder_json = files_of(merges[:3])[0]
    with pytest.raises(ValueError, match="line 5, 'a bc', makes 'abc' a second time; expected one merge per token"):
        Encoder(encoder_json, files_of(merges)[1])


def test_a_merge_that_can_never_be_used_is_an_error():
    """'abc' is ('a', 'bc'), but 'ab' comes first; tiktoken would merge ('ab', 'c') where OpenAI's rule does not."""
    with pytest.raises(ValueError, match="line 4, 'a bc', can never be used: earlier merges take its parts; expected"):
        Encoder(*files_of([("a", "b"), ("b", "c"), ("a", "bc")]))
