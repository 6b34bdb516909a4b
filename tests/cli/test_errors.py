"""Wrong input and damaged models: one line that names what is wrong and what to do."""

import json
import os
from pathlib import Path

import pytest
from oracles.command_line import assert_error

from gpt2_tf.weights.tensor_bundle import read_index

DATA = "model.ckpt.data-00000-of-00001"


# Each case: the command line before `--model TINY`, stdin, and parts of the error.
ASKED = {
    "empty prompt": (["generate", ""], b"", ["prompt is empty", "leave it out to start from <|endoftext|>"]),
    "empty stdin": (["generate", "-"], b"", ["prompt is empty"]),
    "prompt of 100,000 characters": (
        ["generate", "-"],
        b"#" * 100_000,
        ["the prompt has 100,000 tokens", "at most 32", "shorten it"],
    ),
    "prompt not UTF-8": (
        ["generate", "-"],
        b"caf\xe9",
        ["stdin is not UTF-8", "byte 0xe9 at offset 3", "convert it to UTF-8 first"],
    ),
    "text not UTF-8": (["encode", "-"], b"\xc3\xa9\xff", ["stdin is not UTF-8", "byte 0xff at offset 2"]),
    "ids not UTF-8": (["decode", "-"], b"12 \xff", ["stdin is not UTF-8", "byte 0xff at offset 3"]),
    "argument not UTF-8": (["encode", os.fsdecode(b"a\xff")], b"", ["the text is not UTF-8", "byte 0xff at offset 1"]),
    "empty file": (["generate", "--file", "-"], b"", ["stdin is empty; expected one prompt per line"]),
    "empty line": (["generate", "--file", "-"], b"a\n\nb\n", ["stdin: line 2 is empty", "remove it"]),
    "file not UTF-8": (["generate", "--file", "-"], b"a\n\xff\n", ["stdin is not UTF-8: byte 0xff at offset 2"]),
    "missing file": (["generate", "--file", "/nowhere/p.txt"], b"", ["/nowhere/p.txt: No such file or directory"]),
    "folder for a file": (["generate", "--file", "/"], b"", ["/ is a folder; expected a file of text"]),
    "folder for a text": (["evaluate", "perplexity", "/"], b"", ["/ is a folder; expected a file of text"]),
    "escape sequence in a name": (
        ["generate", "--file", "\x1b[31mred\r\n"],
        b"",
        [r"\x1b[31mred\r\n: No such file or directory"],
    ),
    "long line": (
        ["generate", "--file", "-"],
        b"a\n" + b"#" * 40 + b"\n",
        ["prompt 2: the prompt has 40 tokens", "at most 32", "shorten it"],
    ),
    "no such draft": (["generate", "x", "--draft-model", "nope"], b"", ["there is no model 'nope': expected a size"]),
    "out of nowhere": (["generate", "x", "--out", "/nowhere/o"], b"", ["/nowhere/o: No such file or directory"]),
    "stops too long": (
        ["generate", "x", "--stop", "s" * 257],
        b"",
        ["the stop strings have 257 bytes", "may have at most 256"],
    ),
    "top_k over the vocabulary": (["generate", "x", "--top-k", "301", "--length", "2"], b"", ["301", "300"]),
    "length over the window": (
        ["generate", "##", "--length", "32"],
        b"",
        ["length is 32", "1 to 31", "window is 32 tokens", "the prompt has 2", "--window on the command line"],
    ),
    "id too large": (["decode", "5", "99999999"], b"", ["99999999 at position 1", "from 0 to 299"]),
    "id one too large": (["decode", "300"], b"", ["300 at position 0", "from 0 to 299"]),
    "id negative": (["decode", "-1"], b"", ["-1 at position 0", "from 0 to 299"]),
    "id a word": (["decode", "5", "x"], b"", ["'x' is not a token id", "`gpt2-tf encode`"]),
    "id a fraction": (["decode", "1.5"], b"", ["'1.5' is not a token id"]),
    "id with two signs": (["decode", "-"], b"7 --5", ["'--5' is not a token id"]),
    "id of 5,000 digits": (["decode", "-"], b"9" * 5000, ["is not a token id"]),
    "evaluate an empty text": (["evaluate", "perplexity", "-"], b"", ["stdin is empty"]),
    "evaluate no text": (["evaluate", "perplexity", "-"], b"\xff", ["stdin is not UTF-8: byte 0xff at offset 0"]),
    "evaluate a missing file": (["evaluate", "choice", "/nowhere/f"], b"", ["/nowhere/f: No such file or directory"]),
    "evaluate too wide": (
        ["evaluate", "perplexity", "-", "--window", "33"],
        b"x",
        ["window is 33", "from 1 to 32, the model's n_ctx"],
    ),
    "evaluate no JSON": (
        ["evaluate", "lambada", "-"],
        b'{"text": "a b"}\nThe quick\n',
        ["stdin: line 2 is not JSON", 'expected {"text": "..."}'],
    ),
    "evaluate without an answer": (
        ["evaluate", "choice", "-"],
        b'{"context": "a", "choices": ["b", "c"]}',
        ["stdin: line 1 is", 'must be {"context"', '"answer": 0'],
    ),
    "evaluate a long line": (
        ["evaluate", "lambada", "-"],
        b'{"text": "a b"}\n{"text": "' + b"#" * 40 + b' b"}\n',
        ["stdin: passage 2 has 42 tokens", "at most 33", "remove text from its beginning"],
    ),
    "evaluate lines of nothing": (["evaluate", "lambada", "-"], b"\n \n", ["stdin is empty"]),
    "prompts in another format": (
        ["generate", "--file", "prompts.jsonl"],
        b"",
        ["prompts.jsonl is a .jsonl file, but plain text is expected", "pass it on stdin: - < prompts.jsonl"],
    ),
    "a text in another format": (
        ["evaluate", "perplexity", "a.CSV.gz"],
        b"",
        ["a.CSV.gz is a .csv file, but plain text is expected", "pass it on stdin"],
    ),
    "ids in commas": (["decode", "1,2"], b"", ["'1,2' is not a token id"]),
}


@pytest.mark.parametrize(("argv", "stdin", "parts"), ASKED.values(), ids=ASKED)
def test_wrong_input(cli, tiny_folder, loaded, argv, stdin, parts):
    assert_error(cli(*argv, "--model", tiny_folder, stdin=stdin), 1, *parts)


def test_wrong_input_to_the_bundled_model_comes_after_the_notice(cli):
    assert_error(cli("generate", ""), 1, "prompt is empty", notice=True)


NAMED = {
    "no such model": ("nope", ["'nope'", "124M, 355M, 774M, 1558M", "'shakespeare'", "or a folder"]),
    "no name at all": ("", ["there is no model ''", "or a folder"]),
    "a file": (__file__, [f"{__file__} is not a folder", "hparams.json, model.ckpt.*"]),
}


@pytest.mark.parametrize("command", [["generate", "x"], ["encode", "x"], ["decode", "1"]], ids=lambda argv: argv[0])
@pytest.mark.parametrize(("model", "parts"), NAMED.values(), ids=NAMED)
def test_model_that_does_not_exist(cli, tmp_path, monkeypatch, command, model, parts):
    monkeypatch.chdir(tmp_path)
    assert_error(cli(*command, "--model", model), 1, *parts)


def test_empty_model_folder(cli, tmp_path):
    wanted = ["expected a model's folder", "encoder.json", "`gpt2-tf download` fetches OpenAI's"]
    assert_error(cli("generate", "x", "--model", tmp_path), 1, str(tmp_path), *wanted)
    assert_error(cli("encode", "x", "--model", tmp_path), 1, str(tmp_path), *wanted)
    assert_error(cli("info", "--model", tmp_path), 1, f"{tmp_path / 'hparams.json'} is missing", "`gpt2-tf download`")


def hparams(**changed):
    """Changes values in hparams.json; None removes a key."""

    def damage(place: Path) -> None:
        path = place / "hparams.json"
        values = json.loads(path.read_text()) | changed
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return damage


def content(name: str, new: bytes):
    return lambda place: (place / name).write_bytes(new)


def removed(name: str):
    return lambda place: (place / name).unlink()


def cut_short(place: Path) -> None:
    os.truncate(place / DATA, (place / DATA).stat().st_size - 100)


def flipped(name: str, at: int):
    def damage(place: Path) -> None:
        data = bytearray((place / name).read_bytes())
        data[at] ^= 0x10
        (place / name).write_bytes(data)

    return damage


def flipped_tensor(place: Path) -> None:
    entry = read_index(place / "model.ckpt.index")["model/h1/mlp/c_fc/w"]
    flipped(DATA, entry.offset + entry.size // 2)(place)


def another_vocabulary(place: Path) -> None:
    from encoder.train import train

    (place / "text.txt").write_text("to be, or not to be, that is the question. " * 3)
    train([place / "text.txt"], 260, place)


DAMAGED = {
    "hparams empty": (content("hparams.json", b""), ["hparams.json is empty", "must hold a JSON object"]),
    "hparams not JSON": (content("hparams.json", b'{"n_vocab": 300,'), ["hparams.json is not JSON", "line 1 column"]),
    "hparams not UTF-8": (content("hparams.json", b'{"\xff": 1}'), ["hparams.json is not JSON"]),
    "hparams a list": (content("hparams.json", b"[1, 2]"), ["hparams.json holds a JSON list", "must hold an object"]),
    "hparams unknown key": (hparams(n_hed=2), ["hparams.json", "unknown: n_hed", "they are", "n_head"]),
    "hparams missing key": (hparams(n_ctx=None, n_head=None), ["hparams.json", "missing: n_ctx, n_head"]),
    "hparams heads": (hparams(n_head=3), ["hparams.json", "n_embd 16 can't be divided among n_head 3 heads"]),
    "hparams no number": (hparams(n_layer="2"), ["hparams.json", "n_layer is '2'", "a whole number of at least 1"]),
    "hparams missing": (removed("hparams.json"), ["hparams.json is missing", "`gpt2-tf download`"]),
    "another window": (
        hparams(n_ctx=64),
        ["doesn't fit the hyperparameters in hparams.json", "model/wpe is float32 [32, 16], expected float32 [64, 16]"],
    ),
    "fewer layers": (hparams(n_layer=1), ["model/h1/attn/c_attn/b isn't of this model", "model/h1/mlp/c_proj/w"]),
    "more layers": (hparams(n_layer=3), ["model/h2/attn/c_attn/b is missing", "model/h2/mlp/c_proj/w is missing"]),
    "another width": (
        hparams(n_embd=32),
        [
            "model/wte is float32 [300, 16], expected float32 [300, 32]",
            "model/h0/attn/c_attn/w is float32 [1, 16, 48], expected float32 [1, 32, 96]",
            "model/h1/mlp/c_fc/b is float32 [64], expected float32 [128]",
            "model/ln_f/g is float32 [16], expected float32 [32]",
        ],
    ),
    "data cut short": (cut_short, [f"{DATA} has 47,516 bytes", "says 47,616", "fetch the file again"]),
    "data flipped": (flipped_tensor, ["model/h1/mlp/c_fc/w is damaged", "fetch the file again"]),
    "data missing": (removed(DATA), [f"{DATA} is missing"]),
    "index missing": (removed("model.ckpt.index"), ["model.ckpt.index"]),
    "index flipped": (flipped("model.ckpt.index", 100), ["model.ckpt.index is not a", "checkpoint index"]),
    "index empty": (content("model.ckpt.index", b""), ["model.ckpt.index is not a", "checkpoint index", "0 bytes"]),
    "encoder missing": (removed("encoder.json"), ["no encoder.json", "`gpt2-tf download`"]),
    "merges missing": (removed("vocab.bpe"), ["no vocab.bpe", "`gpt2-tf download`"]),
    "encoder empty": (content("encoder.json", b""), ["encoder.json: it is empty", "expected a JSON object"]),
    "another vocabulary": (another_vocabulary, ["encoder.json has 260 tokens", "hparams.json says n_vocab 300"]),
}


@pytest.mark.parametrize(("damage", "parts"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_model_folder(cli, copy, damage, parts):
    damage(copy)
    assert_error(cli("generate", "x", "--length", 2, "--model", copy), 1, str(copy), *parts)


@pytest.mark.parametrize(
    "command",
    [
        ["train", "text.txt", "--out", "runs/new", "--init-from", "nope"],
        ["train", "text.txt", "--out", "runs/new", "--init-from", "TINY", "--window", "33"],
        ["train", "broken.txt", "--out", "runs/new", "--init-from", "TINY", "--window", "8"],
        ["prepare", "broken.txt", "--out", "data/new", "--model", "TINY"],
        ["convert", "copy", "forms/new"],
    ],
    ids=" ".join,
)
def test_a_command_that_fails_leaves_no_empty_folder(cli, tiny_folder, copy, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("a text " * 99)
    Path("broken.txt").write_bytes(b"a text\xff")
    content = bytearray((copy / DATA).read_bytes())
    content[0] ^= 1
    (copy / DATA).write_bytes(content)
    assert cli(*(tiny_folder if word == "TINY" else word for word in command)).status == 1
    assert sorted(os.listdir()) == ["broken.txt", "copy", "text.txt"]
