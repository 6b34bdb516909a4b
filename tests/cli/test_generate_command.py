"""`gpt2-tf generate`: prompts in, samples out, and what Ctrl-C says."""

import json
import os

import pytest
from oracles.command_line import assert_error, text_of

import gpt2_tf
from gpt2_tf.cli.flags import BUNDLED_NOTICE
from gpt2_tf.generation.engine import as_engine
from gpt2_tf.pretrained.load import fingerprint


def test_output_is_the_prompt_and_its_continuation(cli, tiny_folder, loaded):
    model, enc = loaded
    context = enc.encode("The quick")
    ids = gpt2_tf.sample_sequence(model, length=7, context=context, temperature=0).numpy()[0].tolist()
    ran = cli("generate", "--model", tiny_folder, "The quick", "--length", 7, "--temperature", 0)
    assert enc.end_of_text not in ids
    assert text_of(ran) == "The quick" + enc.decode(ids[len(context) :])


def test_stdin_is_read_to_the_last_byte(cli, tiny_folder, loaded):
    prompt = "naïve\r\n\n 色 \n"
    options = ("--model", tiny_folder, "--length", 5, "--seed", 3)
    ran = cli("generate", "-", *options, stdin=prompt.encode())
    assert text_of(ran).startswith(prompt)
    assert ran == cli("generate", prompt, *options)


def test_no_prompt_starts_from_end_of_text(cli, tiny_folder, loaded):
    model, enc = loaded
    ids = gpt2_tf.sample_sequence(model, length=8, start_token=enc.end_of_text, seed=1).numpy()[0, 1:].tolist()
    assert enc.end_of_text not in ids
    assert text_of(cli("generate", "--model", tiny_folder, "--length", 8, "--seed", 1)) == enc.decode(ids)


def test_greedy_and_seeded_sampling(cli, tiny_folder, loaded):
    def text(*settings):
        return text_of(cli("generate", "The", "--model", tiny_folder, "--length", 12, *settings))

    greedy = text("--temperature", 0, "--seed", 1)
    assert greedy == text("--top-k", 1, "--seed", 2) == text("--top-p", 1e-6, "--seed", 3)
    assert len({greedy, text("--seed", 1), text("--seed", 2)}) == 3
    assert text("--seed", 1) == text("--seed", 1)
    assert text() != text()


def test_several_samples_have_banners(cli, tiny_folder, loaded):
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


def test_every_sampling_flag_reaches_generate(cli, tiny_folder, loaded):
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
        # Each of these changes the text, so a flag that is dropped would be noticed.
        assert gpt2_tf.generate(*loaded, "The", **settings | {name: other})[0].text != whole.text
    assert text_of(cli("generate", "The", "--model", tiny_folder, *flags)) == "The" + whole.text


def test_stop_strings_end_the_text(cli, tiny_folder, loaded):
    options = ("generate", "The", "--model", tiny_folder, "--length", 28, "--seed", 4)
    text = text_of(cli(*options, "--stop", "")).removeprefix("The")
    pairs = [text[i : i + 2] for i in range(2, len(text)) if text[i : i + 2].isascii()]  # two whole characters
    first, second = pairs[0], pairs[-1]
    for stops in ([first], [second], [second, first]):
        flags = [part for stop in stops for part in ("--stop", stop.replace("\\", r"\\").replace("\n", r"\n"))]
        end = min(text.index(stop) for stop in stops)
        assert text_of(cli(*options, *flags)) == "The" + text[:end]
    assert len(text_of(cli(*options, "--stop", first, "--min-length", 28))) > len("The" + text[: text.index(first)])


@pytest.mark.slow
def test_stop_takes_an_escaped_newline(cli):
    options = ("generate", "ROMEO:\nNay", "--model", "shakespeare", "--length", 40, "--seed", 1)
    text = text_of(cli(*options)).removeprefix("ROMEO:\nNay")
    assert "\n" in text
    assert text_of(cli(*options, "--stop", r"\n")) == "ROMEO:\nNay" + text[: text.index("\n")]


def test_window_flag_allows_more_tokens_than_the_window(cli, tiny_folder, loaded):
    options = ("generate", "The", "--model", tiny_folder, "--length", 50, "--seed", 1, "--stop", "")
    assert_error(cli(*options), 1, "length is 50")
    ran = cli(*options, "--window", "--json")
    assert len(json.loads(ran.out)["ids"]) == 50


@pytest.mark.parametrize(
    ("engine", "draft"),
    [("tensorflow", "lookup"), ("tensorflow", "TINY"), ("litert", "lookup"), ("litert", "TINY"), ("litert", "int8")],
)
def test_a_draft_leaves_the_text_unchanged(cli, tiny_folder, loaded, engine, draft, monkeypatch):
    seen = []
    stream = gpt2_tf.stream
    monkeypatch.setattr(gpt2_tf, "stream", lambda *args, **kw: seen.append(kw["draft"]) or stream(*args, **kw))
    options = ("generate", "The", "--model", tiny_folder, "--length", 20, "--temperature", 0)
    options = (*options, "--engine", engine)
    text = text_of(cli(*options))
    assert text_of(cli(*options, "--draft", tiny_folder if draft == "TINY" else draft)) == text
    assert seen[0] is None
    assert seen[1] == draft or as_engine(seen[1]).name == engine


def test_json_has_a_line_per_sample(cli, tiny_folder, loaded):
    options = ("generate", "naïve 色", "--model", tiny_folder, "--length", 6, "--seed", 2, "--json")
    expected = gpt2_tf.generate(*loaded, "naïve 色", length=6, seed=2, num_samples=3)
    lines = text_of(cli(*options, "--nsamples", 3)).split("\n")
    assert [json.loads(line) for line in lines] == [completion._asdict() for completion in expected]
    assert json.loads(text_of(cli(*options)))["ids"] == expected[0].ids


def test_allow_special_reads_end_of_text_in_a_prompt_as_the_special_token(cli, tiny_folder, loaded):
    model, enc = loaded
    prompt = "The quick<|endoftext|>brown"
    ids = [*enc.encode("The quick"), enc.end_of_text, *enc.encode("brown")]
    for flags, context in ((["--allow-special"], ids), ([], enc.encode(prompt))):
        options = ("--model", tiny_folder, "--length", 4, "--temperature", 0, "--stop", "", "--json")
        found = json.loads(text_of(cli("generate", prompt, *flags, *options)))
        expected = gpt2_tf.sample_sequence(model, length=4, context=context, temperature=0)
        assert found["ids"] == expected.numpy()[0, len(context) :].tolist()


def test_file_of_prompts(cli, tiny_folder, loaded, tmp_path):
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


def test_shards_write_the_file_of_a_single_process(cli, tiny_folder, loaded, tmp_path):
    prompts = b"The quick brown fox\nx\nna\xc3\xafve\nThe\nThe lazy dog\n"
    options = ("generate", "--model", tiny_folder, "--file", "-", "--length", 6, "--seed", 2, "--batch-size", 2)
    whole = cli(*options, "--json", stdin=prompts).out
    out = tmp_path / "out"
    for number in (2, 0, 1):
        assert not out.exists()
        ran = cli(*options, "--json", "--out", out, "--shard", f"{number}/3", stdin=prompts)
        assert (ran.status, ran.out) == (0, b"")
        notice = f"gpt2-tf: shard {number}/3 is done; the last shard to finish writes {out}\n"
        assert ran.err.endswith(notice) == (number != 1)
        assert {0: "2/2", 1: "2/2", 2: "1/1"}[number] in ran.err
    assert out.read_bytes() == whole
    assert os.listdir(tmp_path) == ["out"]


def test_a_journal_of_another_batch_size_or_draft_is_refused(cli, tiny_folder, loaded, tmp_path):
    """Both can change the last bits of log-probabilities, and with them a token."""
    out = tmp_path / "out"
    options = ("generate", "The", "--model", tiny_folder, "--length", 6, "--seed", 2, "--nsamples", 2, "--out", out)
    options += ("--batch-size", 1, "--shard")
    assert cli(*options, "0/2").status == 0
    other = f"{out} was begun with "
    assert_error(cli(*options, "1/2", "--batch-size", 2), 1, other + "batch_size 1, not 2")
    assert_error(cli(*options, "1/2", "--draft-model", "lookup"), 1, other + "draft None, not lookup")
    ran = cli(*options, "1/2", "--draft-model", tiny_folder)
    assert_error(ran, 1, other + f"draft None, not {fingerprint(tiny_folder)}")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "interrupted"),
        (
            ["--file", "-"],
            "interrupted; finished samples that waited for an earlier sample are lost; with --out FILE they are kept",
        ),
        (["--file", "-", "--out", "o"], "interrupted; run the same command again to resume"),
    ],
)
def test_ctrl_c_says_how_to_resume(cli, tiny_folder, loaded, tmp_path, monkeypatch, argv, says):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpt2_tf, "load", interrupted)
    ran = cli("generate", "--model", tiny_folder, *argv, stdin=b"a\nb\n")
    assert (ran.status, ran.err) == (130, f"gpt2-tf: {says}\n")


def test_bundled_model_is_the_default(cli):
    options = ("generate", "ROMEO:", "--seed", 1, "--length", 20)
    ran = cli(*options)
    text = ran.out.decode()
    assert ran.status == 0
    assert text.startswith("ROMEO:") and len(text) > len("ROMEO:\n") + 20
    assert ran.err == f"gpt2-tf: {BUNDLED_NOTICE}\n"
    assert "--model 124M" in BUNDLED_NOTICE and "498 MB" in BUNDLED_NOTICE
    assert text == text_of(cli(*options, "--model", "shakespeare")) + "\n"


@pytest.mark.slow
def test_bundled_model_without_a_prompt(cli):
    text = text_of(cli("generate", "--model", "shakespeare", "--seed", 1, "--length", 60))
    assert len(text.split()) > 10
    assert "<|endoftext|>" not in text


def test_pieces_for_a_terminal_are_the_whole_text_for_a_terminal(monkeypatch):
    """A line end of Windows may be cut between two pieces."""
    from gpt2_tf.cli import terminal

    monkeypatch.setattr(terminal.sys.stdout, "isatty", lambda: True, raising=False)
    for text in ("a\r\nb", "a\rb\x1b[31m", "\r\n\r\n", "a\r", ""):
        expected = terminal.escape_for_terminal(text)
        for cut in range(len(text) + 1):
            assert "".join(terminal.pieces_for_terminal([text[:cut], text[cut:]])) == expected
        assert "".join(terminal.pieces_for_terminal(text)) == expected
    assert terminal.escape_for_terminal("a\r\nb\x1b") == "a\r\nb\\x1b"
