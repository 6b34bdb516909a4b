"""`gpt2_tf.hparams`: OpenAI's sizes, the number of weights, `hparams.json`, and invalid values."""

import dataclasses
import json
import math

import pytest

from gpt2_tf.hparams import OLDER_NAMES, SIZES, HParams, canonical_size

TINY = {"n_vocab": 300, "n_ctx": 32, "n_embd": 16, "n_head": 2, "n_layer": 3}


@pytest.mark.parametrize(
    ("name", "older", "shape", "n_params"),
    [
        ("124M", "117M", (768, 12, 12), 124_439_808),
        ("355M", "345M", (1024, 16, 24), 354_823_168),
        ("774M", "762M", (1280, 20, 36), 774_030_080),
        ("1558M", "1542M", (1600, 25, 48), 1_557_611_200),
    ],
)
def test_sizes_have_openais_hyperparameters(name, older, shape, n_params):
    hparams = HParams.from_size(name)
    assert (hparams.n_vocab, hparams.n_ctx, hparams.dropout) == (50257, 1024, 0)
    assert (hparams.n_embd, hparams.n_head, hparams.n_layer) == shape
    assert hparams.head_dim == 64
    assert hparams.n_params == n_params
    assert HParams.from_size(older) == hparams
    assert (canonical_size(older), canonical_size(name)) == (name, name)


def test_there_are_four_sizes():
    assert list(SIZES) == list(OLDER_NAMES.values()) == ["124M", "355M", "774M", "1558M"]


@pytest.mark.parametrize("name", ["125M", "124m", "", "gpt2"])
def test_an_unknown_size_is_an_error(name):
    with pytest.raises(ValueError, match=rf"no GPT-2 size is named '{name}'; .*OpenAI's sizes are 124M \(or 117M\)"):
        HParams.from_size(name)


def test_n_params_equals_the_number_of_the_models_weights():
    from gpt2_tf import GPT2

    hparams = HParams(**TINY)
    assert hparams.n_params == sum(variable.value.shape.num_elements() for variable in GPT2(hparams).weights)


def test_openais_hparams_json_is_read(shared):
    path = shared / "data" / "official-117M" / "hparams.json"
    assert HParams.from_json(path) == HParams.from_size("124M")
    assert HParams.from_size("124M").to_dict() == json.loads(path.read_text())


@pytest.mark.parametrize("dropout", [0, 0.0, 0.1])
def test_to_json_and_from_json_are_inverse(tmp_path, dropout):
    path = tmp_path / "hparams.json"
    hparams = HParams(**TINY, dropout=dropout)
    hparams.to_json(path)
    assert HParams.from_json(path) == hparams
    # OpenAI's own code accepts only its own five keys.
    assert json.loads(path.read_text()) == (TINY | {"dropout": dropout} if dropout else TINY)
    assert list(tmp_path.iterdir()) == [path]
    HParams(**TINY | {"n_ctx": 8}).to_json(path)
    assert HParams.from_json(path).n_ctx == 8


def test_hparams_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        HParams(**TINY).n_ctx = 64


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_vocab": 0}, "n_vocab is 0, but must be a whole number of at least 1"),
        ({"n_ctx": -1}, "n_ctx is -1, but must be a whole number"),
        ({"n_embd": 16.0}, "n_embd is 16.0, but must be a whole number"),
        ({"n_head": "2"}, "n_head is '2', but must be a whole number"),
        ({"n_layer": True}, "n_layer is True, but must be a whole number"),
        ({"n_layer": None}, "n_layer is None, but must be a whole number"),
        ({"n_head": 3}, "n_embd 16 can't be divided among n_head 3 heads"),
        ({"n_head": 32}, "n_embd 16 can't be divided among n_head 32 heads"),
        ({"dropout": 1}, "dropout is 1, but must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout is -0.1, but must be at least 0"),
        ({"dropout": float("nan")}, "dropout is nan, but must be at least 0"),
        ({"dropout": "0.1"}, "dropout is '0.1', but must be at least 0"),
        ({"dropout": False}, "dropout is False, but must be at least 0"),
    ],
    ids=str,
)
def test_invalid_values_are_errors(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        HParams(**TINY | changed)
    path = tmp_path / "hparams.json"
    path.write_text(json.dumps(TINY | changed))
    with pytest.raises(ValueError, match=f"{path}: {message}"):
        HParams.from_json(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, but must hold a JSON object"),
        (b" \n", "is empty"),
        (b"{", "is not JSON: .*line 1 column 2"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[1]", "holds a JSON list, but must hold an object"),
        (b"null", "holds a JSON NoneType, but must hold an object"),
        (b"{}", "missing: n_ctx, n_embd, n_head, n_layer, n_vocab; they are dropout, n_ctx"),
        (json.dumps(TINY | {"n_heads": 2, "bias": 1}).encode(), "hyperparameters unknown: bias, n_heads; they are"),
        (b'{"n_hed": 2, "n_vocab": 1, "n_ctx": 1, "n_embd": 1, "n_layer": 1}', "unknown: n_hed; missing: n_head"),
    ],
)
def test_invalid_files_are_errors(tmp_path, content, message):
    path = tmp_path / "hparams.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        HParams.from_json(path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"hparams.json is missing; .*`gpt2-tf download` fetches OpenAI's files"
    ):
        HParams.from_json(tmp_path / "hparams.json")


def test_a_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "hparams.json"
    HParams(**TINY).to_json(path)
    monkeypatch.setattr(json, "dumps", lambda *arguments, **options: "\ud800")  # cannot be written as UTF-8
    with pytest.raises(UnicodeEncodeError):
        HParams(**TINY | {"n_ctx": 8}).to_json(path)
    assert HParams.from_json(path) == HParams(**TINY)


@pytest.mark.parametrize("hparams", [HParams(300, 32, 24, 2, 12), HParams.from_size("124M")], ids=["small", "124M"])
def test_shapes_cover_all_weights_in_order_of_name(hparams):
    shapes = hparams.shapes
    assert list(shapes) == sorted(shapes)
    assert sum(math.prod(shape) for shape in shapes.values()) == hparams.n_params


def test_shapes_are_those_of_the_model():
    from gpt2_tf import GPT2

    hparams = HParams(n_vocab=300, n_ctx=32, n_embd=24, n_head=2, n_layer=2)
    assert {v.path: tuple(v.shape) for v in GPT2(hparams).weights} == hparams.shapes
