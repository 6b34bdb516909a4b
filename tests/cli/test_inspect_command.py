"""`gpt2-tf inspect`: the numbers are those of the functions in `gpt2_tf.inside`."""

import json

import numpy as np
import pytest
from oracles.command_line import assert_error, text_of

from gpt2_tf.inside import figures, logit_lens, surprise

TEXT = "The quick\nfox"


@pytest.fixture(autouse=True)
def quickly(loaded, tiny_folder, monkeypatch):
    """The command passes `models_dir`, which a folder does not need."""
    import gpt2_tf

    quick = gpt2_tf.load
    monkeypatch.setattr(gpt2_tf, "load", lambda model, models_dir, step: quick(model, step=step))


@pytest.fixture
def inspect(cli, tiny_folder):
    return lambda *argv, **options: cli("inspect", *argv, "--model", tiny_folder, **options)


@pytest.mark.parametrize("flags", [[], ["--surprise"]], ids=str)
def test_surprise(inspect, tiny, flags):
    model, enc = tiny
    expected = surprise(model, enc, TEXT)
    found = json.loads(text_of(inspect(TEXT, *flags, "--json")))
    assert "".join(found["tokens"]) == "The quick\\nfox" and found["ids"] == expected.ids.tolist()
    assert found["ranks"] == expected.ranks.tolist() and found["nats"] == expected.nats.tolist()
    header, *lines = text_of(inspect("-", *flags, stdin=TEXT.encode())).splitlines()
    assert header.split() == ["nats", "rank", "token"]
    for line, nats, rank, token in zip(lines, expected.nats, expected.ranks, found["tokens"], strict=True):
        assert line.split()[:2] == [f"{nats:.2f}", str(rank)] and line.endswith(f"  {token}")


def test_lens(inspect, tiny):
    model, enc = tiny
    lens = logit_lens(model, enc.encode(TEXT), 5)
    found = json.loads(text_of(inspect(TEXT, "--lens", "--json")))
    assert found["layers"] == ["embed", "h0", "h1"] and found["top_ids"] == lens.ids.tolist()
    np.testing.assert_array_equal(np.float32(found["probabilities"]), lens.probabilities)
    assert found["top_tokens"][2][0] == figures.token_labels(enc, lens.ids[2, 0])
    header, *lines = text_of(inspect(TEXT, "--lens")).splitlines()
    assert header.split() == ["token", "embed", "h0", "h1"] and len(lines) == len(enc.encode(TEXT))
    assert lines[0].endswith(figures.token_labels(enc, lens.ids[2, 0])[0])


def test_attention(inspect, tiny):
    model, enc = tiny
    ids = enc.encode(TEXT)
    weights = model.inspect([ids], "attentions").attentions[1, 0, 0]
    found = json.loads(text_of(inspect(TEXT, "--attention", "1.0", "--json")))
    assert (found["layer"], found["head"], found["ids"]) == (1, 0, ids)
    np.testing.assert_array_equal(np.float32(found["weights"]), weights)
    _, first, *rest = text_of(inspect(TEXT, "--attention", "1.0")).splitlines()
    assert first.endswith("(0) 1.00") and len(rest) == len(ids) - 1
    most = weights[-1].argmax()
    assert f"({most}) {weights[-1, most]:.2f}" in rest[-1].split(", ")[0]


@pytest.mark.parametrize("view", [["--surprise"], ["--lens"], ["--attention", "0.1"]], ids=str)
def test_png(inspect, tmp_path, view):
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra [plot]")
    ran = inspect(TEXT, *view, "--png", tmp_path / "view.png")
    assert (ran.status, ran.out, ran.err) == (0, b"", "")
    assert [path.name for path in tmp_path.iterdir()] == ["view.png"]
    assert (tmp_path / "view.png").read_bytes()[1:4] == b"PNG"


def test_allow_special(inspect, tiny):
    _, enc = tiny
    found = json.loads(text_of(inspect("<|endoftext|>", "--allow-special", "--json")))
    assert found["ids"] == [enc.end_of_text]


@pytest.mark.parametrize(
    ("argv", "status", "parts"),
    [
        ([], 2, ["TEXT is missing"]),
        ([""], 1, ["the text is empty"]),
        (["#" * 40], 1, ["have 41 tokens together, but must have at most 33", "shorten"]),
        (["#" * 40, "--lens"], 1, ["40 tokens, more than the model's window, 32"]),
        (["x", "--attention", "2.0"], 1, ["--attention is 2.0, but the model has the blocks 0 to 1, and in each the"]),
        (["x", "--attention", "0.2"], 1, ["heads 0 to 1"]),
        (["x", "--attention", "1"], 2, ["--attention is '1', but must be LAYER.HEAD, two numbers from 0, such as 2.1"]),
        (["x", "--attention=-1.0"], 2, ["--attention is '-1.0', but must be LAYER.HEAD"]),
        (["x", "--lens", "--surprise"], 2, ["give --lens or --surprise, not both"]),
        (["x", "--json", "--png", "a.png"], 2, ["give --json or --png, not both"]),
        (["x", "--png", "/nowhere/a.png"], 1, ["/nowhere/a.png: No such file or directory"]),
    ],
)
def test_bad_input_is_one_line(inspect, argv, status, parts):
    assert_error(inspect(*argv), status, *parts)


def test_without_matplotlib(inspect, monkeypatch):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    assert_error(inspect("x", "--png", "a.png"), 1, "figures need matplotlib: pip install 'gpt2-tf[plot]'")
