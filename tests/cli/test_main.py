"""`gpt2-tf`: what each command prints and where, and one line for each mistake of the user's.

Most tests call `main` in this process; what only a process can show runs as one.
"""

import contextlib
import http.server
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

import gpt2_tf
from gpt2_tf import GPT2, HParams, __version__, evaluation
from gpt2_tf.cli.main import BUNDLED_NOTICE, BUNDLED_VOCABULARY_NOTICE, main
from gpt2_tf.pretrained import download as download_model
from gpt2_tf.weights.tensor_bundle import read_index

folder = importlib.import_module("gpt2_tf.pretrained.load")

TEXT = "The quick brown fox jumps over the lazy dog.\r\n\nnaïve 色\n".encode() * 2
DATA = "model.ckpt.data-00000-of-00001"


class Ran(NamedTuple):
    status: int
    out: bytes
    err: str


@pytest.fixture
def cli(capsysbinary, monkeypatch):
    """Runs a command in this process, with bytes for stdin."""

    def run(*argv, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        capsysbinary.readouterr()
        try:
            status = main([str(argument) for argument in argv])
        except SystemExit as end:
            status = end.code
        out, err = capsysbinary.readouterr()
        return Ran(status, out, err.decode())

    return run


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """A shell's environment: what importing gpt2_tf set in this process is left out."""
    left_out = ("TF_CPP_MIN_LOG_LEVEL", "KERAS_BACKEND", "PYTHONUNBUFFERED")
    return {name: value for name, value in os.environ.items() if name not in left_out}


@pytest.fixture
def process(environment, tmp_path):
    """Runs a command as a process, in an empty folder."""

    def run(*argv, env=(), **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "gpt2_tf", *argv],
            cwd=tmp_path,
            env={**environment, **dict(env)},
            stderr=subprocess.PIPE,
            timeout=120,
            **{"stdout": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options},
        )

    return run


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    """The tiny model and its encoder."""
    return gpt2_tf.load(tiny_folder)


@pytest.fixture
def loaded(tiny, tiny_folder, monkeypatch):
    """Has the tiny model loaded before the command asks for it, which takes seconds; gives it and its encoder."""
    load = folder.load
    monkeypatch.setattr(
        folder, "load", lambda model, *rest: tiny if str(model) == str(tiny_folder) else load(model, *rest)
    )
    return tiny


@pytest.fixture
def copy(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def assert_error(ran: Ran, status: int, *parts: str, notice: bool | str = False) -> None:
    """One line on stderr with all the parts, after the notice of the bundled model where it answers."""
    assert ran.status == status
    assert ran.out == b""
    lines = ran.err.splitlines()
    assert lines[:-1] == ([notice] if isinstance(notice, str) else [BUNDLED_NOTICE] * notice)
    assert ran.err.endswith("\n") and lines[-1].startswith("gpt2-tf: error: ")
    for part in parts:
        assert part in lines[-1]


def text_of(ran: Ran) -> str:
    """What a command that went well wrote, without the newline at its end."""
    assert (ran.status, ran.err) == (0, "")
    text = ran.out.decode()
    assert text.endswith("\n")
    return text[:-1]


# generate


def test_generate_writes_the_prompt_and_what_follows(cli, tiny_folder, loaded):
    model, enc = loaded
    context = enc.encode("The quick")
    ids = gpt2_tf.sample_sequence(model, length=7, context=context, temperature=0).numpy()[0].tolist()
    ran = cli("generate", "--model", tiny_folder, "The quick", "--length", 7, "--temperature", 0)
    assert enc.end_of_text not in ids
    assert text_of(ran) == "The quick" + enc.decode(ids[len(context) :])


def test_generate_reads_stdin_to_the_last_byte(cli, tiny_folder, loaded):
    prompt = "naïve\r\n\n 色 \n"
    options = ("--model", tiny_folder, "--length", 5, "--seed", 3)
    ran = cli("generate", "-", *options, stdin=prompt.encode())
    assert text_of(ran).startswith(prompt)
    assert ran == cli("generate", prompt, *options)


def test_generate_without_a_prompt_starts_from_end_of_text(cli, tiny_folder, loaded):
    model, enc = loaded
    ids = gpt2_tf.sample_sequence(model, length=8, start_token=enc.end_of_text, seed=1).numpy()[0, 1:].tolist()
    assert enc.end_of_text not in ids
    assert text_of(cli("generate", "--model", tiny_folder, "--length", 8, "--seed", 1)) == enc.decode(ids)


def test_generate_takes_its_settings(cli, tiny_folder, loaded):
    def text(*settings):
        return text_of(cli("generate", "The", "--model", tiny_folder, "--length", 12, *settings))

    greedy = text("--temperature", 0, "--seed", 1)
    assert greedy == text("--top-k", 1, "--seed", 2) == text("--top-p", 1e-6, "--seed", 3)
    assert len({greedy, text("--seed", 1), text("--seed", 2)}) == 3
    assert text("--seed", 1) == text("--seed", 1)
    assert text() != text()


def test_generate_writes_several_samples_apart(cli, tiny_folder, loaded):
    options = ("generate", "The", "--model", tiny_folder, "--length", 9, "--seed", 5)
    three = text_of(cli(*options, "--nsamples", 3))
    samples = three.split("======== SAMPLE ")
    assert samples.pop(0) == ""
    numbers, texts = zip(*(sample.split(" ========\n") for sample in samples), strict=True)
    assert numbers == ("1", "2", "3")
    assert len(set(texts)) == 3
    assert texts[0] == text_of(cli(*options)) + "\n"
    for batch_size in (1, 2):
        assert text_of(cli(*options, "--nsamples", 3, "--batch-size", batch_size)) == three


def test_generate_passes_every_setting_on(cli, tiny_folder, loaded):
    settings = {
        "length": 25,
        "temperature": 0.9,
        "top_k": 50,
        "top_p": 0.95,
        "min_p": 0.01,
        "repetition_penalty": 1.3,
        "no_repeat_ngram": 2,
        "min_length": 4,
        "seed": 3,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    (whole,) = gpt2_tf.generate(*loaded, "The", **settings)
    for name, other in {"min_p": 1, "repetition_penalty": 1, "top_k": 1, "temperature": 0.1, "length": 20}.items():
        # It matters, so a flag that goes astray is seen.
        assert gpt2_tf.generate(*loaded, "The", **settings | {name: other})[0].text != whole.text
    assert text_of(cli("generate", "The", "--model", tiny_folder, *flags)) == "The" + whole.text


def test_generate_stops_where_it_is_told(cli, tiny_folder, loaded):
    options = ("generate", "The", "--model", tiny_folder, "--length", 28, "--seed", 4)
    text = text_of(cli(*options, "--stop", "")).removeprefix("The")
    pairs = [text[i : i + 2] for i in range(2, len(text)) if text[i : i + 2].isascii()]  # whole characters alone
    first, second = pairs[0], pairs[-1]
    for stops in ([first], [second], [second, first]):
        flags = [part for stop in stops for part in ("--stop", stop.replace("\\", r"\\").replace("\n", r"\n"))]
        end = min(text.index(stop) for stop in stops)
        assert text_of(cli(*options, *flags)) == "The" + text[:end]
    assert len(text_of(cli(*options, "--stop", first, "--min-length", 28))) > len("The" + text[: text.index(first)])


def test_generate_stops_at_a_newline_as_a_shell_gives_it(cli):
    options = ("generate", "ROMEO:\nNay", "--model", "shakespeare", "--length", 40, "--seed", 1)
    text = text_of(cli(*options)).removeprefix("ROMEO:\nNay")
    assert "\n" in text
    assert text_of(cli(*options, "--stop", r"\n")) == "ROMEO:\nNay" + text[: text.index("\n")]


def test_generate_past_the_window(cli, tiny_folder, loaded):
    options = ("generate", "The", "--model", tiny_folder, "--length", 50, "--seed", 1, "--stop", "")
    assert_error(cli(*options), 1, "length is 50")
    ran = cli(*options, "--window", "--json")
    assert len(json.loads(ran.out)["ids"]) == 50


@pytest.mark.parametrize("draft", ["lookup", "TINY"])
def test_generate_with_a_draft(cli, tiny_folder, loaded, draft, monkeypatch):
    seen = []
    generate = gpt2_tf.text.stream
    monkeypatch.setattr(gpt2_tf.text, "stream", lambda *args, **kw: seen.append(kw["draft"]) or generate(*args, **kw))
    options = ("generate", "The", "--model", tiny_folder, "--length", 20, "--temperature", 0)
    text = text_of(cli(*options))
    assert text_of(cli(*options, "--draft-model", tiny_folder if draft == "TINY" else draft)) == text
    assert seen[0] is None
    assert seen[1] == draft or isinstance(seen[1], GPT2)


def test_generate_json(cli, tiny_folder, loaded):
    options = ("generate", "naïve 色", "--model", tiny_folder, "--length", 6, "--seed", 2, "--json")
    expected = gpt2_tf.generate(*loaded, "naïve 色", length=6, seed=2, num_samples=3)
    lines = text_of(cli(*options, "--nsamples", 3)).split("\n")
    assert [json.loads(line) for line in lines] == [completion._asdict() for completion in expected]
    assert json.loads(text_of(cli(*options)))["ids"] == expected[0].ids


def test_generate_from_a_file(cli, tiny_folder, loaded, tmp_path):
    prompts = ["The quick brown fox", "x", "naïve 色", "The"]
    (tmp_path / "prompts.txt").write_bytes("\r\n".join(prompts).encode())
    options = ("generate", "--model", tiny_folder, "--length", 6, "--seed", 2, "--nsamples", 2, "--batch-size", 3)
    expected = gpt2_tf.generate(*loaded, prompts, length=6, seed=2, num_samples=2)
    ran = cli(*options, "--file", tmp_path / "prompts.txt", "--json")
    assert ran.status == 0
    found = [json.loads(line) for line in ran.out.splitlines()]
    assert [(c["prompt"], c["text"], c["ids"]) for c in found] == [c[:3] for c in expected]
    assert "8/8" in ran.err and "sample/s" in ran.err
    plain = cli(*options, "--file", "-", stdin="\n".join(prompts).encode() + b"\n").out.decode()
    samples = [f"======== SAMPLE {i} ========\n{c.prompt}{c.text}\n" for i, c in enumerate(expected, start=1)]
    assert plain == "".join(samples)
    out = tmp_path / "out.txt"
    ran = cli(*options, "--file", tmp_path / "prompts.txt", "--out", out)
    assert (ran.status, ran.out, out.read_bytes().decode()) == (0, b"", plain)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.txt", "prompts.txt"]
    ran = cli(*options, "--file", tmp_path / "prompts.txt", "--out", out)
    assert_error(ran, 1, f"{out} exists already", "choose another --out, or remove it")


def test_generate_in_shards(cli, tiny_folder, loaded, tmp_path):
    prompts = b"The quick brown fox\nx\nna\xc3\xafve\nThe\nThe lazy dog\n"
    options = ("generate", "--model", tiny_folder, "--file", "-", "--length", 6, "--seed", 2, "--batch-size", 2)
    whole = cli(*options, "--json", stdin=prompts).out
    out = tmp_path / "out"
    for number in (2, 0, 1):
        assert not out.exists()
        ran = cli(*options, "--json", "--out", out, "--shard", f"{number}/3", stdin=prompts)
        assert (ran.status, ran.out) == (0, b"")
        notice = f"gpt2-tf: shard {number}/3 is done; {out} comes with the last of them\n"
        assert ran.err.endswith(notice) == (number != 1)
        assert {0: "2/2", 1: "2/2", 2: "1/1"}[number] in ran.err
    assert out.read_bytes() == whole
    assert os.listdir(tmp_path) == ["out"]


def test_a_record_is_of_one_batch_size_and_draft(cli, tiny_folder, loaded, tmp_path):
    """Both change the last bits of log-probabilities, and could a token."""
    out = tmp_path / "out"
    options = ("generate", "The", "--model", tiny_folder, "--length", 6, "--seed", 2, "--nsamples", 2, "--out", out)
    options += ("--batch-size", 1, "--shard")
    assert cli(*options, "0/2").status == 0
    other = f"{out} was begun with "
    assert_error(cli(*options, "1/2", "--batch-size", 2), 1, other + "batch_size 1, not 2")
    assert_error(cli(*options, "1/2", "--draft-model", "lookup"), 1, other + "draft None, not lookup")
    ran = cli(*options, "1/2", "--draft-model", tiny_folder)
    assert_error(ran, 1, other + f"draft None, not {folder.fingerprint(tiny_folder)}")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "interrupted"),
        (["--file", "-"], "interrupted; what was done but waited for a sample before it is lost, which --out keeps"),
        (["--file", "-", "--out", "o"], "interrupted; run it again and it resumes"),
    ],
)
def test_ctrl_c_says_what_is_left(cli, tiny_folder, loaded, tmp_path, monkeypatch, argv, says):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    for name in ("gpt2_tf.cli.batch.write", "gpt2_tf.generation.generate.stream"):
        monkeypatch.setattr(name, interrupted)
    ran = cli("generate", "--model", tiny_folder, *argv, stdin=b"a\nb\n")
    assert (ran.status, ran.err) == (130, f"gpt2-tf: {says}\n")


# the bundled model


def test_bundled_model_answers_where_none_is_named(cli):
    options = ("generate", "ROMEO:", "--seed", 1, "--length", 20)
    ran = cli(*options)
    text = ran.out.decode()
    assert ran.status == 0
    assert text.startswith("ROMEO:") and len(text) > len("ROMEO:\n") + 20
    assert ran.err == BUNDLED_NOTICE + "\n"
    assert "--model 124M" in BUNDLED_NOTICE and "498 MB" in BUNDLED_NOTICE
    assert text == text_of(cli(*options, "--model", "shakespeare")) + "\n"


def test_bundled_model_writes_without_a_prompt(cli):
    text = text_of(cli("generate", "--model", "shakespeare", "--seed", 1, "--length", 60))
    assert len(text.split()) > 10
    assert "<|endoftext|>" not in text


def test_bundled_model_described(cli):
    ran = cli("info")
    assert (ran.status, ran.err) == (0, "")
    described = dict(line.split(maxsplit=1) for line in ran.out.decode().splitlines())
    assert described["model"] == "shakespeare"
    hparams = HParams.from_json(Path(described["folder"], "hparams.json"))
    assert described["parameters"] == f"{hparams.n_params:,}"


# encode, decode, info, download


def test_encode_then_decode_is_the_very_text(cli, tiny_folder):
    text = "The quick\r\n\n\n naïve\0 色は 👍\ttail\n".encode() + bytes(range(1, 128))
    ran = cli("encode", "--model", tiny_folder, "-", stdin=text)
    ids = text_of(ran).split(" ")
    assert len(ids) < len(text)
    assert cli("decode", "--model", tiny_folder, "-", stdin=ran.out) == (0, text, "")
    assert cli("decode", "--model", tiny_folder, *ids) == (0, text, "")
    assert cli("encode", "--model", tiny_folder, text.decode()) == ran


def test_decode_writes_part_of_a_character_as_it_is(cli, tiny_folder):
    first, *_ = text_of(cli("encode", "--model", tiny_folder, "\u0101")).split()
    assert cli("decode", "--model", tiny_folder, first) == (0, b"\xc4", "")


def test_ids_in_one_argument_are_ids_too(cli, tiny_folder):
    ids = text_of(cli("encode", "The quick", "--model", tiny_folder))
    assert cli("decode", ids, "--model", tiny_folder).out == cli("decode", *ids.split(), "--model", tiny_folder).out


def test_whose_ids_they_are_is_said(cli):
    ran = cli("encode", "The quick")
    assert ran.err == BUNDLED_VOCABULARY_NOTICE + "\n" and "the ids are those of" in ran.err
    assert cli("decode", *ran.out.decode().split()).err == BUNDLED_VOCABULARY_NOTICE + "\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(environment, tiny_folder, closed):
    """As a daemon has them: no traceback, and what is left open has what it should."""
    command = f"{sys.executable} -m gpt2_tf encode 'The quick' --model {tiny_folder} {closed}"
    ran = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert bool(ran.stdout) == (">&-" not in closed.replace("2>&-", ""))
    command = f"{sys.executable} -m gpt2_tf encode - --model {tiny_folder} {closed}"
    ran = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_encode_and_decode_nothing(cli, tiny_folder):
    assert cli("encode", "--model", tiny_folder, "") == (0, b"\n", "")
    assert cli("decode", "--model", tiny_folder, "-", stdin=b" \n") == (0, b"", "")


def test_info_of_a_folder(cli, tiny_folder):
    lines = text_of(cli("info", "--model", tiny_folder)).splitlines()
    described = dict(line.split(maxsplit=1) for line in lines)
    size = (tiny_folder / DATA).stat().st_size
    assert described == {
        "model": str(tiny_folder),
        "folder": str(tiny_folder),
        "n_vocab": "300",
        "n_ctx": "32",
        "n_embd": "16",
        "n_head": "2",
        "n_layer": "2",
        "parameters": f"{size // 4:,}",
        "weights": f"28 tensors, {size:,} bytes in model.ckpt",
    }


def test_info_of_a_size_fetches_nothing(cli, tmp_path):
    out = text_of(cli("info", "--model", "117M", "--models-dir", tmp_path))
    assert "124,439,808" in out
    assert f"not in {tmp_path / '124M'}; `gpt2-tf download 124M --models-dir {tmp_path}` fetches them" in out
    assert list(tmp_path.iterdir()) == []


# prepare


def test_prepare_in_a_models_ids(cli, tiny_folder, tmp_path):
    from encoder import Encoder
    from gpt2_tf.data import prepare

    enc = Encoder.from_folder(tiny_folder)
    (tmp_path / "a.csv").write_text("who,said\nI,the fox\n")
    (tmp_path / "b.jsonl").write_text('{"body": "the dog"}\n')
    (tmp_path / "c.txt").write_text("the")
    out = tmp_path / "out"
    files = [tmp_path / "a.csv", tmp_path / "*.jsonl", "--val-file", tmp_path / "c.txt"]
    flags = ["--out", out, "--model", tiny_folder, "--column", "said", "--field", "body"]
    train = [*enc.encode("the fox"), enc.end_of_text, *enc.encode("the dog"), enc.end_of_text]
    val = [*enc.encode("the"), enc.end_of_text]
    summary = f"{out}: {len(train)} tokens to train and {len(val)} to validate, of a vocabulary of 300"
    assert text_of(cli("prepare", *files, *flags)) == summary
    prepared = prepare.load(out)
    assert (prepared.train.tolist(), prepared.val.tolist()) == (train, val)


@pytest.mark.parametrize("size, n_vocab", [("chars", 7), ("260", 260)])
def test_prepare_a_new_vocabulary(cli, tmp_path, size, n_vocab):
    from gpt2_tf.data import prepare

    (tmp_path / "a.txt").write_text("the then them " * 9)
    out = tmp_path / "out"
    ran = cli("prepare", tmp_path / "a.txt", "--out", out, "--vocab-size", size, "--val-fraction", "0.1")
    train, val, enc = prepare.load(out)
    summary = f"{len(train)} tokens to train and {len(val)} to validate, of a vocabulary of {n_vocab}"
    assert text_of(ran) == f"{out}: {summary}"
    assert enc.n_vocab == n_vocab


CHARS = ["a.txt", "--out", "out", "--vocab-size", "chars"]


@pytest.mark.parametrize(
    "argv, status, parts",
    [
        (["a.txt", "--out", "out"], 2, ["one of the arguments --model --vocab-size is required"]),
        (["a.txt", "--vocab-size", "chars"], 2, ["--out"]),
        (["--out", "out", "--vocab-size", "chars"], 2, ["FILES"]),
        (["a.txt", "--out", "out", "--vocab-size", "256"], 2, ["'256' is given", "at least 257, or chars"]),
        ([*CHARS, "--model", "124M"], 2, ["not allowed with"]),
        ([*CHARS, "--val-fraction", "2"], 2, ["at least 0 and at most 1"]),
        ([*CHARS, "--val-fraction", ".1", "--val-file", "a.txt"], 2, ["not allowed with"]),
        (["none.txt", *CHARS[1:]], 1, ["none.txt: no such file; expected a file, a folder"]),
        (CHARS, 1, ["a.txt is not UTF-8: byte 0xe9 at offset 5; convert"]),
        (["a.txt", "--out", "a.txt", "--vocab-size", "chars"], 1, ["a.txt: File exists"]),
        (["a.txt", "--out", "out", "--model", "nope"], 1, ["there is no model 'nope': expected a size"]),
    ],
)
def test_wrong_prepare(cli, tmp_path, monkeypatch, argv, status, parts):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_bytes("é caf".encode()[:5] + b"\xe9")
    assert_error(cli("prepare", *argv), status, *parts)
    assert not Path("out/train.bin").exists()


def test_prepare_leaves_tensorflow_alone_and_shows_how_far_it_is(environment, tmp_path):
    (tmp_path / "a.txt").write_text("the then them " * 400_000)
    code = """
import sys, tqdm
real = tqdm.tqdm
tqdm.tqdm = lambda *args, **settings: real(*args, **{**settings, "delay": 0, "mininterval": 0})
from gpt2_tf.cli import main
status = main(sys.argv[1:])
assert "tensorflow" not in sys.modules
sys.exit(status)
"""
    command = [sys.executable, "-c", code, "prepare", *CHARS]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and ran.stdout == "out: 5,600,001 tokens to train, of a vocabulary of 7\n"
    assert "tokenising train: " in ran.stderr and "M/5.60M" in ran.stderr


@pytest.fixture
def mirror(tiny_folder, tmp_path, monkeypatch):
    """A server on loopback whose 124M is the tiny model, and the environment that names it; gives its address."""
    shutil.copytree(tiny_folder, tmp_path / "server" / "124M")
    # A saved model has no graph beside it; this one is empty.
    (tmp_path / "server" / "124M" / download_model.META).write_bytes(b"\x12\x00")
    monkeypatch.setattr(download_model, "SHA256", {})

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path / "server")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("GPT2_TF_BASE_URL", url)
        yield url
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("asked", ["124M", "117M"])
def test_download_prints_the_folder(cli, mirror, tiny_folder, tmp_path, asked):
    place = tmp_path / "models" / "124M"
    ran = cli("download", asked, "--models-dir", tmp_path / "models")
    assert (ran.status, ran.out.decode()) == (0, f"{place}\n")
    assert DATA in ran.err
    assert (place / DATA).read_bytes() == (tiny_folder / DATA).read_bytes()


def test_download_from_a_mirror(cli, mirror, monkeypatch, tmp_path):
    monkeypatch.setenv("GPT2_TF_BASE_URL", "http://127.0.0.1:9/nobody")
    ran = cli("download", "124M", "--models-dir", tmp_path / "models", "--base-url", mirror)
    assert ran.status == 0


def test_a_size_that_is_missing_is_fetched_as_far_as_it_is_needed(cli, mirror, tmp_path):
    options = ("--model", "117M", "--models-dir", tmp_path / "models")
    encoded = cli("encode", "The quick", *options)
    assert encoded.status == 0
    assert encoded.out.replace(b" ", b"").strip().isdigit()
    fetched = {path.name for path in (tmp_path / "models" / "124M").iterdir() if not path.name.startswith(".")}
    assert fetched == {"encoder.json", "vocab.bpe"}
    generated = cli("generate", "The quick", "--length", 2, *options)
    assert (generated.status, generated.out[:9]) == (0, b"The quick")
    assert DATA in generated.err
    assert text_of(cli("encode", "The quick", *options)) == encoded.out.decode().strip()


def test_download_of_what_the_server_lacks(cli, mirror, tmp_path):
    ran = cli("download", "355M", "--models-dir", tmp_path / "models")
    assert_error(ran, 1, f"{mirror}/355M/", "HTTP 404", "check --base-url")


def test_download_from_nobody(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(download_model, "BACKOFF", 0.0)
    with contextlib.closing(http.server.HTTPServer(("127.0.0.1", 0), None).socket) as taken:
        port = taken.getsockname()[1]
    ran = cli("download", "124M", "--models-dir", tmp_path, "--base-url", f"http://127.0.0.1:{port}")
    *notes, error = ran.err.splitlines()
    assert (ran.status, ran.out) == (1, b"")
    assert error.startswith(f"gpt2-tf: error: http://127.0.0.1:{port}/124M/checkpoint: ")
    assert "Connection refused" in error and "run again later" in error
    assert all(note.endswith("trying again in 0 s") for note in notes)


def test_download_where_nothing_may_be_written(cli, unwritable):
    ran = cli("download", "124M", "--models-dir", unwritable)
    assert_error(ran, 1, f"can't write {unwritable / '124M'}: Permission denied", "choose another --models-dir")


# evaluate


def results_of(ran: Ran) -> dict:
    """What `evaluate` wrote to stdout, with nothing but a bar on stderr."""
    assert ran.status == 0 and "row/s" in ran.err and "error" not in ran.err
    return json.loads(ran.out)


def test_evaluate_perplexity(cli, tiny_folder, loaded, tmp_path):
    (tmp_path / "text").write_bytes(TEXT)
    options = ("--model", tiny_folder, "--window", 16, "--stride", 4, "--batch-size", 2)
    report = results_of(cli("evaluate", "perplexity", tmp_path / "text", *options))
    assert report["results"] == evaluation.perplexity(*loaded, TEXT.decode(), window=16, stride=4, batch_size=2)
    assert report["settings"] == {"window": 16, "stride": 4, "batch_size": 2}
    assert report["file"]["name"] == str(tmp_path / "text") and report["file"]["bytes"] == len(TEXT)
    assert (report["model"]["name"], report["model"]["digest"]) == (str(tiny_folder), folder.fingerprint(tiny_folder))
    again = results_of(cli("evaluate", "perplexity", "-", *options, stdin=TEXT))
    assert again == {**report, "file": {**report["file"], "name": "stdin"}}


def test_evaluate_lambada_and_choice(cli, tiny_folder, loaded):
    texts = ["The quick brown fox", "over the lazy dog"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    report = results_of(cli("evaluate", "lambada", "-", "--model", tiny_folder, stdin=lines))
    assert report["task"] == "lambada" and report["results"] == evaluation.lambada(*loaded, texts)
    question = {"context": "The quick", "choices": [" brown", " dog"], "answer": 0, "ending": " fox"}
    report = results_of(cli("evaluate", "choice", "-", "--model", tiny_folder, stdin=json.dumps(question).encode()))
    assert report["task"] == "choice" and report["results"] == evaluation.choice(*loaded, [question])


@pytest.mark.parametrize("task", ["perplexity", "lambada", "choice"])
def test_evaluate_in_shards(cli, tiny_folder, loaded, tmp_path, task):
    texts = [" ".join(TEXT.decode().split()[:n]) for n in (2, 3, 5, 6, 7)]
    lines = {
        "perplexity": TEXT.decode() * 3,
        "lambada": "\n".join(json.dumps({"text": text}) for text in texts),
        "choice": "\n".join(json.dumps({"context": t, "choices": ["n", " dog", "x"], "answer": 0}) for t in texts),
    }[task].encode()
    options = ("evaluate", task, "-", "--model", tiny_folder, "--batch-size", 2)
    whole = cli(*options, stdin=lines).out
    out = tmp_path / "out"
    for number in (0, 2, 1):
        assert not out.exists()
        ran = cli(*options, "--out", out, "--shard", f"{number}/3", stdin=lines)
        assert (ran.status, ran.out) == (0, b"")
        assert ran.err.endswith("comes with the last of them\n") == (number != 1)
    assert out.read_bytes() == whole and json.loads(whole)["results"]
    assert os.listdir(tmp_path) == ["out"]


def test_evaluate_to_a_file_is_of_one_run(cli, tiny_folder, loaded, tmp_path):
    out = tmp_path / "out"
    options = ("evaluate", "perplexity", "-", "--model", tiny_folder, "--out", out, "--batch-size", 1)
    assert cli(*options, "--shard", "0/2", stdin=TEXT).status == 0
    for flag, name in (("--window", "window None"), ("--batch-size", "batch_size 1")):
        ran = cli(*options, "--shard", "1/2", flag, 8, stdin=TEXT)
        assert_error(ran, 1, f"{out} was begun with {name}, not 8")
    assert_error(cli(*options, "--shard", "1/2", stdin=TEXT * 2), 1, f"{out} was begun with text SHA-256")
    assert cli(*options, "--shard", "1/2", stdin=TEXT).status == 0
    assert_error(cli(*options, stdin=TEXT), 1, f"{out} exists already")


# export


def test_export_passes_what_is_given_on(cli, tiny_folder, loaded, monkeypatch, tmp_path):
    from gpt2_tf.serving import saved_model

    asked = []
    monkeypatch.setattr(saved_model, "export", lambda *args, **kwargs: asked.append((args, kwargs)) or tmp_path / "1")
    settings = {"length": 3, "max_length": 9, "max_batch": 2, "temperature": 0.5, "top_k": 4, "top_p": 0.5, "seed": -1}
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    ran = cli("export", "--model", tiny_folder, tmp_path, *flags, "--dtype", "bfloat16", "--check")
    assert (ran.status, text_of(ran), ran.err) == (0, str(tmp_path / "1"), "")
    cli("export", "--model", tiny_folder, tmp_path)
    assert asked == [
        ((*loaded, str(tmp_path)), {**settings, "dtype": "bfloat16", "check": True}),
        ((*loaded, str(tmp_path)), {"check": False}),
    ]


@pytest.mark.slow
def test_export_writes_what_tensorflow_runs(cli, tiny_folder, loaded, tmp_path):
    import tensorflow as tf

    ran = cli("export", "--model", tiny_folder, tmp_path / "out", "--length", 5, "--temperature", 0, "--check")
    assert (ran.status, text_of(ran)) == (0, str(tmp_path / "out" / "1"))
    (completion,) = gpt2_tf.generate(*loaded, "The quick", length=5, temperature=0)
    (text,) = (
        tf.saved_model.load(tmp_path / "out" / "1")
        .signatures["serving_default"](tf.constant(["The quick"]))["text"]
        .numpy()
    )
    assert text.decode() == completion.text


def test_export_of_too_long_a_length(cli, tiny_folder, loaded, tmp_path):
    ran = cli("export", "--model", tiny_folder, tmp_path / "out", "--max-length", 33)
    assert_error(ran, 1, "max_length is 33, but must be 1 to 32")
    assert not (tmp_path / "out").exists()


# mistakes

USAGE = {
    "no command": ([], ["required: COMMAND", "`gpt2-tf --help`"]),
    "unknown command": (
        ["compose"],
        [
            "'compose'",
            "'generate', 'interactive', 'download', 'encode', 'decode', 'prepare', 'train', 'evaluate', 'info', "
            "'convert', 'export'",
        ],
    ),
    "unknown flag": (["generate", "--tempo", "3"], ["unrecognized arguments: --tempo"]),
    "flag without its value": (["generate", "--length"], ["--length", "expected one argument"]),
    "second prompt": (["generate", "To", "be"], ["unrecognized arguments: be"]),
    "encode nothing": (["encode"], ["required: TEXT", "`gpt2-tf encode --help`"]),
    "decode nothing": (["decode"], ["required: ID"]),
    "negative temperature": (["generate", "--temperature", "-1"], ["--temperature: '-1'", "a number at least 0"]),
    "temperature nan": (["generate", "--temperature", "nan"], ["--temperature: 'nan'", "a number at least 0"]),
    "temperature inf": (["generate", "--temperature", "inf"], ["--temperature: 'inf'", "a number at least 0"]),
    "temperature word": (["generate", "--temperature", "hot"], ["--temperature: 'hot'", "a number at least 0"]),
    "top_p 0": (["generate", "--top-p", "0"], ["--top-p: '0'", "a number above 0 and at most 1"]),
    "top_p 1.5": (["generate", "--top-p", "1.5"], ["--top-p: '1.5'", "a number above 0 and at most 1"]),
    "top_p nan": (["generate", "--top-p", "nan"], ["--top-p: 'nan'", "a number above 0 and at most 1"]),
    "negative top_k": (["generate", "--top-k", "-1"], ["--top-k: '-1'", "a whole number at least 0"]),
    "top_k half": (["generate", "--top-k", "2.5"], ["--top-k: '2.5'", "a whole number at least 0"]),
    "length 0": (["generate", "--length", "0"], ["--length: '0'", "a whole number at least 1"]),
    "nsamples 0": (["generate", "--nsamples", "0"], ["--nsamples: '0'", "a whole number at least 1"]),
    "batch_size 0": (["generate", "--batch-size", "0"], ["--batch-size: '0'", "a whole number at least 1"]),
    "min_p 2": (["generate", "--min-p", "2"], ["--min-p: '2'", "a number at least 0 and at most 1"]),
    "penalty 0": (["generate", "--repetition-penalty", "0"], ["--repetition-penalty: '0'", "a number above 0"]),
    "ngram half": (["generate", "--no-repeat-ngram", ".5"], ["--no-repeat-ngram: '.5'", "a whole number at least 0"]),
    "min_length -1": (["generate", "--min-length", "-1"], ["--min-length: '-1'", "a whole number at least 0"]),
    "stop escape": (["generate", "--stop", r"a\d"], [r"--stop: \d in a\d has no meaning", r"\n, \r, \t, or \\"]),
    "stop not UTF-8": (["generate", "--stop", "a\udcff"], [r"--stop: 'a\udcff' is not UTF-8", "convert it first"]),
    "export to nowhere": (["export"], ["required: OUT", "`gpt2-tf export --help`"]),
    "export max_length 0": (["export", "x", "--max-length", "0"], ["--max-length: '0'", "a whole number at least 1"]),
    "export in halves": (["export", "x", "--dtype", "float16"], ["--dtype: invalid choice: 'float16'", "bfloat16"]),
    "prompt and file": (["generate", "x", "--file", "f"], ["--file: not allowed with argument PROMPT"]),
    "shard of nothing": (["generate", "--shard", "4/4"], ["--shard: '4/4'", "0/4 to 3/4 for four"]),
    "shard of stdout": (["generate", "--shard", "0/4", "--seed", "1"], ["--shard needs --out FILE, the same for all"]),
    "shard without a seed": (
        ["generate", "--shard", "0/4", "--out", "o"],
        ["--shard needs --seed N, the same for all"],
    ),
    "evaluate a shard": (
        ["evaluate", "lambada", "f", "--shard", "0/4"],
        ["--shard needs --out FILE, the same for all"],
    ),
    "evaluate nothing": (["evaluate"], ["required: TASK", "`gpt2-tf evaluate --help`"]),
    "unknown task": (["evaluate", "taste", "f"], ["'taste'", "'perplexity', 'lambada', 'choice'"]),
    "evaluate no file": (["evaluate", "lambada"], ["required: FILE", "`gpt2-tf evaluate lambada --help`"]),
    "window 0": (["evaluate", "perplexity", "f", "--window", "0"], ["--window: '0'", "a whole number at least 1"]),
    "stride of lambada": (["evaluate", "lambada", "f", "--stride", "1"], ["unrecognized arguments: --stride"]),
    "interactive prompt": (["interactive", "x"], ["unrecognized arguments: x", "`gpt2-tf interactive --help`"]),
    "seed word": (["generate", "--seed", "x"], ["--seed: 'x'", "a whole number"]),
    "seed over 64 bits": (["generate", "--seed", str(2**63)], [f"'{2**63}'", f"at most {2**63 - 1}"]),
}


@pytest.mark.parametrize(("argv", "parts"), USAGE.values(), ids=USAGE)
def test_wrong_usage(cli, argv, parts):
    assert_error(cli(*argv), 2, *parts, "--help` shows the usage")


# For each: the arguments after --model TINY, stdin, and what the line says.
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
        ["stdin is not UTF-8", "byte 0xe9 at offset 3", "convert it first"],
    ),
    "text not UTF-8": (["encode", "-"], b"\xc3\xa9\xff", ["stdin is not UTF-8", "byte 0xff at offset 2"]),
    "ids not UTF-8": (["decode", "-"], b"12 \xff", ["stdin is not UTF-8", "byte 0xff at offset 3"]),
    "argument not UTF-8": (["encode", os.fsdecode(b"a\xff")], b"", ["the text is not UTF-8", "byte 0xff at offset 1"]),
    "empty file": (["generate", "--file", "-"], b"", ["stdin is empty, but must have a prompt a line"]),
    "empty line": (["generate", "--file", "-"], b"a\n\nb\n", ["stdin: line 2 is empty", "remove it"]),
    "file not UTF-8": (["generate", "--file", "-"], b"a\n\xff\n", ["stdin is not UTF-8: byte 0xff at offset 2"]),
    "missing file": (["generate", "--file", "/nowhere/p.txt"], b"", ["/nowhere/p.txt: No such file or directory"]),
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
        ["the stop strings have 257 bytes", "may have 256"],
    ),
    "top_k over the vocabulary": (["generate", "x", "--top-k", "301", "--length", "2"], b"", ["301", "300"]),
    "length over the window": (
        ["generate", "##", "--length", "32"],
        b"",
        ["length is 32", "1 to 31", "window is 32 tokens", "the prompt has 2"],
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
        ["window is 33", "1 to the model's n_ctx, 32"],
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
        ["stdin: line 2 has 42 tokens", "at most 32", "shorten its beginning"],
    ),
    "ids in commas": (["decode", "1,2"], b"", ["'1,2' is not a token id"]),
}


@pytest.mark.parametrize(("argv", "stdin", "parts"), ASKED.values(), ids=ASKED)
def test_wrong_input(cli, tiny_folder, loaded, argv, stdin, parts):
    assert_error(cli(*argv, "--model", tiny_folder, stdin=stdin), 1, *parts)


def test_wrong_input_to_the_bundled_model(cli):
    assert_error(cli("generate", ""), 1, "prompt is empty", notice=True)


NAMED = {
    "no such model": ("nope", ["'nope'", "124M, 355M, 774M, 1558M", "'shakespeare'", "or a folder"]),
    "no name at all": ("", ["there is no model ''", "or a folder"]),
    "a file": (__file__, [f"{__file__} is not a folder", "hparams.json, model.ckpt.*"]),
}


@pytest.mark.parametrize("command", [["generate", "x"], ["encode", "x"], ["decode", "1"]], ids=lambda argv: argv[0])
@pytest.mark.parametrize(("model", "parts"), NAMED.values(), ids=NAMED)
def test_not_a_model(cli, tmp_path, monkeypatch, command, model, parts):
    monkeypatch.chdir(tmp_path)
    assert_error(cli(*command, "--model", model), 1, *parts)


def test_empty_folder(cli, tmp_path):
    wanted = ["expected a model's folder", "encoder.json", "`gpt2-tf download` fetches OpenAI's"]
    assert_error(cli("generate", "x", "--model", tmp_path), 1, str(tmp_path), *wanted)
    assert_error(cli("encode", "x", "--model", tmp_path), 1, str(tmp_path), *wanted)
    assert_error(cli("info", "--model", tmp_path), 1, f"{tmp_path / 'hparams.json'} is missing", "`gpt2-tf download`")


@pytest.mark.parametrize(
    ("argv", "status", "parts"),
    [
        (["125M"], 2, ["'125M'", "124M (or 117M)", "1558M (or 1542M)"]),
        (["124M", "--base-url", "ftp://example.org"], 1, ["'ftp://example.org'", "begin with http:// or https://"]),
        (["124M", "--models-dir", __file__], 1, [f"{__file__} is a file", "choose another --models-dir"]),
    ],
    ids=["size", "base-url", "models-dir"],
)
def test_wrong_download(cli, tmp_path, monkeypatch, argv, status, parts):
    monkeypatch.chdir(tmp_path)
    assert_error(cli("download", *argv), status, *parts)


def hparams(**changed):
    """A change of hparams.json; None takes a key out."""

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
    "index flipped": (flipped("model.ckpt.index", 100), ["model.ckpt.index is not a whole checkpoint index"]),
    "index empty": (content("model.ckpt.index", b""), ["model.ckpt.index is not a whole checkpoint index", "0 bytes"]),
    "encoder missing": (removed("encoder.json"), ["no encoder.json", "`gpt2-tf download`"]),
    "merges missing": (removed("vocab.bpe"), ["no vocab.bpe", "`gpt2-tf download`"]),
    "encoder empty": (content("encoder.json", b""), ["encoder.json: it is empty", "expected a JSON object"]),
    "another vocabulary": (another_vocabulary, ["encoder.json has 260 tokens", "hparams.json says n_vocab 300"]),
}


@pytest.mark.parametrize(("damage", "parts"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_folder(cli, copy, damage, parts):
    damage(copy)
    assert_error(cli("generate", "x", "--length", 2, "--model", copy), 1, str(copy), *parts)


# what only a process shows


def test_debug_shows_the_traceback(process):
    argv = ("encode", "x", "--model", "nope")
    plain, debug, before = process(*argv), process(*argv, "--debug"), process("--debug", *argv)
    assert (plain.returncode, debug.returncode) == (1, 1)
    assert before.stderr == debug.stderr
    assert b"Traceback" not in plain.stderr
    assert b"Traceback (most recent call last)" in debug.stderr
    assert b"FileNotFoundError: there is no model 'nope'" in debug.stderr


@pytest.mark.parametrize(
    "argv", [["--help"], ["generate", "--help"], ["interactive", "--help"], ["download", "--help"]], ids=" ".join
)
def test_help(cli, argv):
    ran = cli(*argv)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(b"usage: gpt2-tf")


def test_version(process):
    ran = process("--version")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"gpt2-tf {__version__}\n".encode(), b"")


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["generate", "--help"],
        ["interactive", "--help"],
        ["download", "--help"],
        ["encode", "--model", "TINY", "x"],
        ["decode", "--model", "TINY", "1"],
        ["info", "--model", "TINY"],
        ["convert", "--help"],
    ],
    ids=" ".join,
)
def test_quick_commands_leave_tensorflow_alone(environment, tiny_folder, argv):
    argv = [str(tiny_folder) if argument == "TINY" else argument for argument in argv]
    script = (
        "import sys; from gpt2_tf.cli import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        "assert status == 0, status\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules), 'imported'"
    )
    ran = subprocess.run([sys.executable, "-c", script, *argv], env=environment, capture_output=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout


def test_tensorflow_is_silent(environment, tiny_folder, tmp_path):
    script = Path(sysconfig.get_path("scripts"), "gpt2-tf")
    ran = subprocess.run(
        [script, "generate", "--model", tiny_folder, "x", "--length", "3", "--seed", "1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout.startswith(b"x")


@pytest.mark.slow
def test_tensorflow_speaks_where_it_is_asked_to(process, tiny_folder):
    ran = process(
        "generate", "--model", tiny_folder, "x", "--length", "3", "--seed", "1", env={"TF_CPP_MIN_LOG_LEVEL": "0"}
    )
    assert ran.returncode == 0
    assert ran.stdout.startswith(b"x")
    assert ran.stderr


def test_a_prompt_that_is_not_utf8(process, tiny_folder):
    ran = process("encode", "--model", tiny_folder, b"caf\xe9")
    assert_error(
        Ran(ran.returncode, ran.stdout, ran.stderr.decode()), 1, "the text is not UTF-8: byte 0xe9 at offset 3"
    )


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["generate", "x", "--length", "9"], marks=pytest.mark.slow),
        ["encode", "x"],
        ["decode", "1"],
    ],
    ids=lambda argv: argv[0],
)
def test_broken_pipe_is_quiet(process, tiny_folder, argv):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as broken:
        ran = process(*argv, "--model", tiny_folder, stdout=broken)
    assert (ran.returncode, ran.stderr) == (1, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_full_disk_is_one_line(process, tiny_folder):
    with open("/dev/full", "wb") as full:
        ran = process("encode", "--model", tiny_folder, "x", stdout=full)
    assert_error(Ran(ran.returncode, b"", ran.stderr.decode()), 1, "No space left on device")


ENDLESS = [sys.executable, "-m", "gpt2_tf", "generate", "The", "--length", "99999", "--stop", ""]


@pytest.fixture
def long(copy):
    """The tiny model with a window that takes minutes to fill."""
    GPT2(HParams(n_vocab=300, n_ctx=100_000, n_embd=16, n_head=2, n_layer=2)).save_checkpoint(copy)
    return copy


@pytest.mark.slow
def test_ctrl_c_ends_a_stream_with_the_text_so_far(environment, long):
    command = [*ENDLESS, "--model", long]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            begun = os.read(process.stdout.fileno(), 3)
            while len(begun) < 10:  # the text itself, and not as it ends
                begun += os.read(process.stdout.fileno(), 100)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
            seconds = time.monotonic() - start
        finally:
            process.kill()
    assert (process.returncode, err) == (130, b"gpt2-tf: interrupted\n")
    assert begun.startswith(b"The") and (begun + out).endswith(b"\n")
    assert seconds < 3


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_ctrl_c_ends_a_batch(environment, long):
    command = [*ENDLESS, "--model", long, "--nsamples", "2"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            maps = Path(f"/proc/{process.pid}/maps")
            wait_until(lambda: "tensorflow" in maps.read_text())
            time.sleep(8)  # past the import and the tracing, into the loop
            assert process.poll() is None
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
            seconds = time.monotonic() - start
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, b"", b"gpt2-tf: interrupted\n")
    assert seconds < 3


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_ctrl_c_while_tensorflow_is_imported(environment, tiny_folder):
    command = [sys.executable, "-m", "gpt2_tf", "generate", "x", "--model", tiny_folder]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            maps = Path(f"/proc/{process.pid}/maps")
            wait_until(lambda: "tensorflow" in maps.read_text())
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, b"", b"gpt2-tf: interrupted\n")
