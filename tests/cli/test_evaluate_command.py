"""`gpt2-tf evaluate`: its report, to stdout or to a file."""

import json
import os

import pytest
from oracles.command_line import Ran, assert_error

from gpt2_tf import evaluation
from gpt2_tf.pretrained.load import fingerprint

TEXT = "The quick brown fox jumps over the lazy dog.\r\n\nnaïve 色\n".encode() * 2


def results_of(ran: Ran) -> dict:
    """The report on stdout, after a run that printed only a progress bar on stderr."""
    assert ran.status == 0 and "row/s" in ran.err and "error" not in ran.err
    return json.loads(ran.out)


def test_evaluate_perplexity(cli, tiny_folder, loaded, tmp_path):
    (tmp_path / "text").write_bytes(TEXT)
    options = ("--model", tiny_folder, "--window", 16, "--stride", 4, "--batch-size", 2)
    report = results_of(cli("evaluate", "perplexity", tmp_path / "text", *options))
    assert report["results"] == evaluation.perplexity(*loaded, TEXT.decode(), window=16, stride=4, batch_size=2)
    assert report["settings"] == {"window": 16, "stride": 4, "batch_size": 2}
    assert report["file"]["name"] == str(tmp_path / "text") and report["file"]["bytes"] == len(TEXT)
    assert (report["model"]["name"], report["model"]["digest"]) == (str(tiny_folder), fingerprint(tiny_folder))
    again = results_of(cli("evaluate", "perplexity", "-", *options, stdin=TEXT))
    assert again == {**report, "file": {**report["file"], "name": "stdin"}}


@pytest.mark.slow
def test_a_byte_order_mark_is_no_text_in_any_command(cli, tiny_folder, tmp_path):
    question = {"context": "The quick", "choices": [" brown", " dog"], "answer": 0}
    texts = {
        ("evaluate", "perplexity"): "The quick brown fox",
        ("evaluate", "lambada"): json.dumps({"text": "The quick brown fox"}),
        ("evaluate", "choice"): json.dumps(question),
        ("generate", "--length", 3, "--seed", 1, "--file"): "The quick\nThe lazy\n",
    }
    for command, text in texts.items():
        outputs = set()
        for mark in ("", "\ufeff"):
            (tmp_path / "text").write_bytes((mark + text).encode())
            ran = cli(*command, tmp_path / "text", "--model", tiny_folder)
            assert ran.status == 0
            outputs.add(ran.out)
        assert len(outputs) == 1, command
    plain, marked = (cli("encode", "-", "--model", tiny_folder, stdin=(m + "The").encode()) for m in ("", "\ufeff"))
    assert plain.out == marked.out != b""


def test_allow_special_counts_end_of_text_as_one_token(cli, tiny_folder, loaded, tmp_path):
    _, enc = loaded
    text = "The quick<|endoftext|>brown"
    (tmp_path / "text").write_text(text)
    options = ("evaluate", "perplexity", tmp_path / "text", "--model", tiny_folder, "--window", 4, "--batch-size", 1)
    tokens = []
    for flags in ([], ["--allow-special"]):
        report = results_of(cli(*options, *flags))
        assert report["settings"].get("allow_special", False) == bool(flags)
        tokens.append(report["results"]["tokens"])
    assert tokens == [len(enc.encode(text)), len(enc.encode("The quick")) + 1 + len(enc.encode("brown"))]
    out = tmp_path / "out"
    assert cli(*options, "--out", out, "--shard", "0/2").status == 0
    assert_error(cli(*options, "--out", out, "--shard", "1/2", "--allow-special"), 1, f"{out} was begun with")


def test_windows_line_ends_are_said_in_one_line(cli, tiny_folder, tmp_path):
    (tmp_path / "text").write_bytes(b"The quick\r\nbrown fox")
    ran = cli("evaluate", "perplexity", tmp_path / "text", "--model", tiny_folder)
    assert ran.err.startswith(
        f"gpt2-tf: {tmp_path / 'text'} has line ends of Windows (\\r\\n), which stay in the text;"
    )


def test_evaluate_lambada_and_choice(cli, tiny_folder, loaded):
    texts = ["The quick brown fox", "over the lazy dog"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    report = results_of(cli("evaluate", "lambada", "-", "--model", tiny_folder, stdin=lines))
    assert report["task"] == "lambada" and report["results"] == evaluation.lambada(*loaded, texts)
    question = {"context": "The quick", "choices": [" brown", " dog"], "answer": 0, "ending": " fox"}
    report = results_of(cli("evaluate", "choice", "-", "--model", tiny_folder, stdin=json.dumps(question).encode()))
    assert report["task"] == "choice" and report["results"] == evaluation.choice(*loaded, [question])


@pytest.mark.parametrize("task", ["perplexity", "lambada", "choice"])
def test_shards_write_the_report_of_a_single_process(cli, tiny_folder, loaded, tmp_path, task):
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
        assert ran.err.endswith(f"the last shard to finish writes {out}\n") == (number != 1)
    assert out.read_bytes() == whole and json.loads(whole)["results"]
    assert os.listdir(tmp_path) == ["out"]


def test_a_journal_of_other_settings_or_text_is_refused(cli, tiny_folder, loaded, tmp_path):
    out = tmp_path / "out"
    options = ("evaluate", "perplexity", "-", "--model", tiny_folder, "--out", out, "--batch-size", 1)
    assert cli(*options, "--shard", "0/2", stdin=TEXT).status == 0
    for flag, name in (("--window", "window None"), ("--batch-size", "batch_size 1")):
        ran = cli(*options, "--shard", "1/2", flag, 8, stdin=TEXT)
        assert_error(ran, 1, f"{out} was begun with {name}, not 8")
    assert_error(cli(*options, "--shard", "1/2", stdin=TEXT * 2), 1, f"{out} was begun with text SHA-256")
    assert cli(*options, "--shard", "1/2", stdin=TEXT).status == 0
    assert_error(cli(*options, stdin=TEXT), 1, f"{out} exists already")
