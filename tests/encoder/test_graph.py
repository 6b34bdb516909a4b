"""encoder/graph.py must give the ids of encoder/bpe.py, on texts and bytes of all kinds."""

import itertools
import json
import os
import random
import string
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder import Encoder
from encoder.bpe import BYTES
from encoder.graph import GraphEncoder

ROOT = Path(__file__).parents[2]
EOT = "<|endoftext|>"
examples = partial(settings, deadline=None, derandomize=True, database=None)


class Both:
    """An Encoder and its GraphEncoder."""

    def __init__(self, enc: Encoder):
        self.enc, self.graph = enc, GraphEncoder(enc)

    def check(self, texts: list[bytes], batch: int = 2000):
        """Check that both give the same ids, and the same text from these ids."""
        wrong = []
        for n in range(0, len(texts), batch):
            some = texts[n : n + batch]
            read = [text.decode("utf-8", "replace") for text in some]
            ids = self.graph.encode(tf.constant(some, tf.string))
            back = self.graph.decode(ids).numpy().tolist()
            for text, ours, theirs, ours_back, theirs_back in zip(
                some, ids.to_list(), map(self.enc.encode, read), back, map(str.encode, read), strict=True
            ):
                if ours != theirs or ours_back != theirs_back:
                    wrong.append((text[:80], ours[:40], theirs[:40], ours_back[:80]))  # a text may have megabytes
        assert wrong[:3] == []


@pytest.fixture(scope="module")
def bundled():
    return Both(Encoder.from_folder(ROOT / "gpt2_tf" / "bundled" / "shakespeare"))


@pytest.fixture(scope="module")
def official(shared):
    return Both(Encoder.from_folder(shared / "data" / "official-117M"))


@pytest.fixture(scope="module", params=["official", "bundled", "seams"])
def both(request):
    return request.getfixturevalue(request.param)


def vocabulary(merges: list[tuple[str, str]], first=(), last=(EOT,)) -> Encoder:
    """A vocabulary of special tokens, the bytes, merges of printable characters, and more special tokens."""
    tokens = [*first, *BYTES, *map("".join, merges), *last]
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    return Encoder(json.dumps({token: i for i, token in enumerate(tokens)}).encode(), "\n".join(lines).encode())


@pytest.fixture(scope="module")
def seams():
    """A vocabulary with a token for any two bytes, so that a cut in the wrong place changes the ids."""
    pairs = list(itertools.product(BYTES, repeat=2))
    random.Random(0).shuffle(pairs)
    pairs.sort(key=lambda pair: min(map(BYTES.get, pair)) > 127)
    return Both(vocabulary(pairs))


# Texts

CONTRACTIONS = [
    "'s",
    "'t",
    "'re",
    "'ve",
    "'m",
    "'ll",
    "'d",
    "'S",
    "'r",
    "'l",
    "'v",
    "'rs",
    "'le",
    "'",
    "''",
    "\u2019s",
    EOT,
]
SPACES = [*" \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u180e\u2000\u200b\u2028\u202f\u3000\ufeff", "  ", "   \n", "\n\n"]
LETTERS = [*"astmdrevlZéßЖאไ한漢か𐍈𐐀ǅʰªº", "the", "e\u0301"]
OTHERS = [*"0٣४²Ⅷ㊿𑁦!.-=", "\x00", "\x1b", "\u200d", "\ufffd", "\ufffe", "12", "...", "👩‍👩‍👧‍👦", "🇳🇱"]
BROKEN = [b"\xff", b"\x80", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"]


def generated(n: int, tokens: list[bytes], seed: int) -> list[bytes]:
    """Return n texts of hard pieces for the pattern, tokens, any characters and any bytes; some are cut anywhere."""
    rng = random.Random(seed)
    pieces = [piece.encode() for piece in (*CONTRACTIONS, *SPACES, *LETTERS, *OTHERS)]
    spaces = [space.encode() for space in SPACES]
    kinds = [
        lambda: rng.choice(pieces),
        lambda: rng.choice(pieces),
        lambda: rng.choice(spaces) * rng.randrange(4),
        lambda: rng.choice(tokens),
        lambda: chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])).encode(),
        lambda: "".join(rng.choices(string.ascii_letters, k=rng.randrange(12))).encode(),
        lambda: rng.choice(BROKEN),
        lambda: rng.randbytes(rng.randrange(4)),
    ]
    texts = []
    for _ in range(n):
        some = rng.sample(kinds, 3)  # few kinds per text, so that each occurs in runs
        text = b"".join(rng.choice(some)() for _ in range(rng.randrange(14)))
        texts.append(text[: rng.randrange(len(text) + 1)] if rng.random() < 0.2 else text)
    return texts


ADDED = ["<speaker1>", "[PAD]", "<a.*b|c>"]


def test_added_tokens_are_recognized_as_by_the_encoder():
    encoder = vocabulary([("h", "i")], last=(EOT, *ADDED, "<|unused261|>"))
    rng = random.Random(0)
    pieces = [*ADDED, *ADDED, EOT, "<|unused261|>", "hi", " ", "\n", "é", "<", ">", "x'll", "12", "色", "\ufffd"]
    texts = ["", *ADDED, "".join(ADDED)] + ["".join(rng.choices(pieces, k=rng.randrange(12))) for _ in range(200)]
    expected = [encoder.encode(text) for text in texts]
    assert any(encoder.added_tokens["[PAD]"] in ids for ids in expected)
    assert GraphEncoder(encoder).encode(tf.constant(texts)).to_list() == expected
    broken = b"\xff[PAD]\xff<speaker1>\xc3"
    assert GraphEncoder(encoder).encode(tf.constant([broken])).to_list() == [
        encoder.encode(broken.decode("utf-8", "replace"))
    ]


def test_ids_equal_the_encoder_on_generated_texts(both):
    both.check(generated(4000, both.enc.tokens, seed=0))


@pytest.mark.slow
def test_ids_equal_the_encoder_on_a_hundred_thousand_generated_texts(both):
    texts = list(set(generated(125_000, both.enc.tokens, seed=1)))
    distinct = len(texts)
    assert distinct >= 100_000
    both.check(texts)


def test_ids_equal_the_encoder_on_a_book(both, shared):
    book = (shared / "data" / "text" / "tinyshakespeare.txt").read_bytes()
    both.check([book, *book.splitlines(keepends=True), book[1000:3000], book.replace(b"\n", b"\r\n")[:10_000]])


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [b""],
        [b"", b"", b""],
        [b"a", b"", b"", b" a", b""],
        [b" ", b" ", b"a", b" a"],
        [b"'", b"s", b"'s", b"'r", b"e", b"'l", b"l'", b"s'"],
        [b"a'", b"re", b" '", b"re", b"!", b"'re", b" ", b"'re"],
        [b"\xe2", b"\x82", b"\xac", b"\xe2\x82\xac"],
        [b"\x00", b"\x00\x00", b"a\x00b", b" \x00"],
        ["עברית, ואחריה English".encode(), "‏שלום‎".encode(), "مرحبا ١٢٣".encode()],
        [b" " * n for n in range(70)],
        [b"\xef\xbb\xbf", b"\xef\xbb\xbfa", b"\xff\xfea\x00"],
        [EOT.encode(), f"a {EOT}{EOT}".encode()],
    ],
)
def test_empty_rows_and_the_ends_of_texts(seams, texts):
    seams.check(texts)


def test_openais_ids(official):
    ids = official.graph.encode(["Hello\n\nWorld", "", "Hello world", b"caf\xc3", EOT])
    assert ids.dtype == tf.int32 and ids.row_splits.dtype == tf.int64 and ids.shape.as_list() == [5, None]
    known = [[15496, 198, 198, 10603], [], [15496, 995], [66, 1878, 4210], [27, 91, 437, 1659, 5239, 91, 29]]
    assert ids.to_list() == known


def test_all_combinations_of_characters_that_the_pattern_distinguishes(seams):
    characters = "'selrv !1\n"
    texts = ["".join(some) for some in itertools.product(characters, repeat=4)]
    rng = random.Random(0)
    texts += ["".join(rng.choices(characters, k=rng.randrange(5, 10))) for _ in range(20_000)]
    rng.shuffle(texts)  # so that any text may be in the row after any other
    seams.check([text.encode() for text in texts], batch=10_000)


def in_contexts(characters):
    return "".join(f"a{c} {c}1{c}!{c}'s{c}'{c}\n{c} {c}{c} \n{c}a " for c in characters).encode()


@pytest.mark.slow
def test_every_character_before_and_after_each_kind(seams):
    points = [*range(0xD800), *range(0xE000, 0x110000)]
    seams.check([in_contexts(map(chr, points[n : n + 500])) for n in range(0, len(points), 500)], batch=200)


def test_characters_up_to_the_surrogates(seams):
    seams.check([in_contexts(map(chr, range(n, n + 512))) for n in range(0, 0xD800, 512)])


# Bytes that are not UTF-8

EDGES = bytes.fromhex("00 41 7f 80 8f 90 9f a0 bb bf c0 c1 c2 df e0 e1 ed ee ef f0 f1 f4 f5 f7 f8 ff")


def test_invalid_utf8_is_replaced_as_python_replaces_it(bundled):
    texts = [bytes(some) for n in (1, 2) for some in itertools.product(range(256), repeat=n)]
    texts += [bytes(some) for some in itertools.product(EDGES, repeat=3)]
    rng = random.Random(0)
    texts += [bytes(rng.choices(EDGES, k=rng.randrange(4, 9))) for _ in range(20_000)]
    texts += [b"a" + text + b" b" for text in texts[::7]]
    bundled.check(texts, batch=30_000)


@examples(max_examples=300)
@given(st.lists(st.binary(max_size=30) | st.text(max_size=20).map(str.encode), max_size=8))
def test_any_bytes(bundled, texts):
    bundled.check(texts)


def test_decoding_any_ids_equals_the_encoder(both):
    rng = random.Random(0)
    rows = [rng.choices(range(both.enc.n_vocab), k=rng.randrange(12)) for _ in range(3000)]
    rows += [[i] for i in range(both.enc.n_vocab)]
    texts = both.graph.decode(tf.ragged.constant(rows, tf.int32)).numpy().tolist()
    assert texts == [both.enc.decode(row).encode() for row in rows]
    assert both.graph.tokens.numpy().tolist() == both.enc.tokens


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_decode_names_an_invalid_id(bundled, bad):
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"= {bad} is not in \[0, {bundled.enc.n_vocab}\)"):
        bundled.graph.decode(tf.ragged.constant([[5, bad]], tf.int32))


def test_ids_in_another_order_than_openais():
    both = Both(vocabulary([("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "hell")], first=[EOT, "<|a|>"], last=["<|z|>"]))
    both.check([b"hello hell", EOT.encode(), b"<|a|><|z|>", bytes(range(256))])
    assert both.graph.decode(tf.ragged.constant([[0, 1, both.enc.n_vocab - 1]])) == f"{EOT}<|a|><|z|>".encode()


# Merges: doing several per step must give the result of doing them one by one


def random_vocabulary(rng: random.Random) -> Encoder:
    """Return a vocabulary with up to 60 random merges of one to three letters. Each merge can be used."""
    merges, enc = [], vocabulary([])
    tokens = list(rng.choice(["a", "ab", "abc"]))
    for _ in range(rng.randrange(60)):
        pair = rng.choice(tokens), rng.choice(tokens)
        try:
            enc = vocabulary([*merges, pair])
        except ValueError:
            continue  # the token exists already, or earlier merges prevent this merge
        merges.append(pair)
        tokens.append("".join(pair))
    return enc


def check_merges(seed: int):
    rng = random.Random(seed)
    both = Both(random_vocabulary(rng))
    texts = ["".join(rng.choices("abc", weights=[4, 3, 2], k=rng.randrange(60))) for _ in range(150)]
    texts += [letter * n for letter in "abc" for n in range(20)]
    texts += ["".join(rng.choices(["a", "b"], k=6)) * rng.randrange(12) for _ in range(50)]
    both.check([text.encode() for text in texts])


@pytest.mark.parametrize("seed", range(8))
def test_merges_of_random_vocabularies(seed):
    check_merges(seed)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_depth_changes_no_ids(monkeypatch, depth):
    monkeypatch.setattr("encoder.graph.DEPTH", depth)
    check_merges(seed=depth)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 150))
def test_merges_of_many_random_vocabularies(seed):
    check_merges(seed)


# In tf.data and in a SavedModel


def test_in_tf_data(bundled):
    lines = [b"To be, or not", b"", b"to be: that's\n", b"the \xff question", b"Whether 'tis"]
    data = tf.data.Dataset.from_tensor_slices(lines).batch(2).map(bundled.graph.encode).unbatch()
    assert [ids.numpy().tolist() for ids in data] == [
        bundled.enc.encode(line.decode("utf-8", "replace")) for line in lines
    ]


@pytest.mark.slow
def test_a_saved_encoder_takes_a_million_bytes_in_bounded_memory(official, tmp_path):
    """The process that loads the SavedModel has TensorFlow but not this package."""
    rng = random.Random(0)
    letters = "".join(rng.choices(string.ascii_lowercase, k=10**6))
    texts = {
        "letters": letters,
        "one letter": "a" * 10**6,
        "mixed": "".join(rng.choices(string.printable, k=10**6)),
        "spaces": " " * 10**6,
        "NUL": "\x00" * 10**6,
        "han": "".join(rng.choices("漢字仮名交文日本語", k=333_333)),
        "marks": "".join(rng.choices("-=_*.", k=10**6)),
        "ties": "".join(letter * 2000 for letter in letters[:500]),
    }
    contents = {name: text.encode() for name, text in texts.items()}
    contents["no UTF-8"] = b"\xff" * 10**6
    contents["among short rows"] = b"|||".join([letters.encode(), *(b"%d" % n for n in range(20_000))])
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    tf.saved_model.save(official.graph, tmp_path / "saved")
    script = """
import json, resource, sys, time
import tensorflow as tf
loaded = tf.saved_model.load("saved")
loaded.decode(loaded.encode(tf.constant(["warm", "up"])))
for name in sys.argv[1:]:
    rows = open(name, "rb").read().split(b"|||")
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    ids = loaded.encode(tf.constant(rows))
    took, grown = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([name, took, grown, ids.to_list(), [*map(bytes.decode, loaded.decode(ids).numpy())]]))
assert not {"encoder", "gpt2_tf", "tiktoken"} & set(sys.modules), "more than TensorFlow"
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", script, *contents]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, check=True, timeout=300)
    for line in ran.stdout.splitlines():
        name, took, grown, *found = json.loads(line)
        rows = contents[name].decode("utf-8", "replace").split("|||")
        same = found == [[official.enc.encode(row) for row in rows], rows]
        assert same, name
        assert took < 20, name  # half a second on an idle core
        assert grown < 400_000, name  # kB
