"""`inspect` shows what the forward pass computes. tests/model/test_peers.py compares its arrays with transformers'."""

import numpy as np
import pytest
import tensorflow as tf
from oracles.random_model import HPARAMS, random_model, reference_outputs

from gpt2_tf import HParams
from gpt2_tf.model.inspection import OUTPUTS, inspection_shapes

# float32 in another order, on values of about 1
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def inside(model, tokens):
    return model.inspect(tokens)


def test_the_logits_are_those_of_the_reference(model, tokens, inside):
    np.testing.assert_allclose(inside.logits, reference_outputs(model, tokens)[0], rtol=0, atol=TOLERANCE)


def test_the_blocks_add_up_to_the_stream(model, tokens, inside):
    embeddings = tf.gather(model.wte, tokens) + model.wpe
    np.testing.assert_array_equal(inside.hidden_states[0], embeddings)
    added = inside.hidden_states[:-1] + inside.attn_out + inside.mlp_out
    np.testing.assert_allclose(inside.hidden_states[1:], added, rtol=0, atol=TOLERANCE)


def test_the_heads_read_what_they_attend_to(model, tokens, inside):
    """The attentions times the values, which OpenAI's `present` holds, are the outputs of the heads."""
    values = model.forward(tokens)["present"][:, :, 1]  # [batch, n_layer, n_head, seq, head_dim]
    expected = inside.attentions @ np.moveaxis(values.numpy(), 1, 0)
    np.testing.assert_allclose(inside.head_out, expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(inside.attentions.sum(-1), 1, rtol=0, atol=TOLERANCE)
    assert not np.triu(inside.attentions, 1).any()


@pytest.mark.parametrize("names", [["attentions"], ["logits"], ["hidden_states", "mlp_out"], []], ids=str)
def test_only_what_is_asked_for_is_there(model, tokens, inside, names):
    asked = model.inspect(tokens, *names)
    shapes = inspection_shapes(HPARAMS, *tokens.shape)
    for name in OUTPUTS:
        array = getattr(asked, name)
        if name in (names or OUTPUTS):
            assert array.shape == shapes[name] and array.dtype == np.float32
            np.testing.assert_array_equal(array, getattr(inside, name))
        else:
            assert array is None


@pytest.mark.parametrize("ragged", [list, tf.ragged.constant], ids=["lists", "RaggedTensor"])
def test_rows_of_different_lengths(model, tokens, ragged):
    rows = [tokens[0, :5].tolist(), tokens[1].tolist(), tokens[2, :1].tolist()]
    inside = model.inspect(ragged(rows))
    assert inside.lengths.tolist() == [5, HPARAMS.n_ctx, 1]
    for i, row in enumerate(rows):
        alone, n = model.inspect([row]), len(row)
        for name in OUTPUTS:
            together, expected = getattr(inside, name), getattr(alone, name)
            together, expected = (x if name != "logits" else x[None] for x in (together, expected))
            values = together[:, i]
            if name == "attentions":
                assert not values[..., n:].any()
                values = values[..., :n]
            np.testing.assert_allclose(values[..., :n, :], expected[:, 0], rtol=0, atol=TOLERANCE, err_msg=name)
            assert not values[..., n:, :].any(), name


def test_the_memory_is_said_before_it_is_taken(model, tokens, monkeypatch):
    monkeypatch.setattr(type(model), "hidden_states", None)  # the model does not run
    # 3 layers, 4 rows, 5 heads, 48 x 48 positions, 4 bytes
    with pytest.raises(ValueError, match=r"0\.00 GB, more .* attentions: 3 x 4 x 5 x 48 x 48 x 4 bytes; ask for fewer"):
        model.inspect(tokens, "attentions", max_bytes=3 * 4 * 5 * 48 * 48 * 4 - 1)
    with pytest.raises(TypeError):  # now it would run
        model.inspect(tokens, "attentions", max_bytes=3 * 4 * 5 * 48 * 48 * 4)
    shapes = inspection_shapes(HParams.from_size("124M"), 1, 1024)
    assert shapes["attentions"] == (12, 1, 12, 1024, 1024)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "there are no tokens"),
        ("text", "tokens are text, but must be integers"),
        (["text"], "tokens are text, but must be integers"),
        ([1, 2], r"row 1 of the tokens is int64 \[\], but must be at least one token id; give a list of rows"),
        ([[1], []], r"row 2 of the tokens is float64 \[0\]"),
        ([[1.5]], r"row 1 of the tokens is float64 \[1\]"),
        ([[1], [HPARAMS.n_vocab]], "row 2 has the token id 311, but ids go from 0 to 310"),
        ([[-1]], "row 1 has the token id -1"),
        ([[1] * 49], "row 1 has 49 tokens, more than the model's window, 48"),
    ],
)
def test_wrong_tokens_are_an_error(model, tokens, message):
    with pytest.raises(ValueError, match=message):
        model.inspect(tokens)


def test_an_unknown_output_is_an_error(model, tokens):
    with pytest.raises(ValueError, match="there is no output 'logit'; the outputs are hidden_states, attentions"):
        model.inspect(tokens, "logit")


def test_inspect_traces_nothing(model, tokens, forbid_traces):
    traces = dict(model.__dict__.get("_traces", {}))
    forbid_traces()
    model.inspect(tokens, "attentions")
    assert model.__dict__.get("_traces", {}) == traces


def test_mixed_precision_is_shown_as_float32(tokens):
    mixed = random_model(HPARAMS, 0.1, dtype="mixed_bfloat16")
    inside = mixed.inspect(tokens[:1])
    assert all(getattr(inside, name).dtype == np.float32 for name in OUTPUTS)
    np.testing.assert_array_equal(inside.logits, mixed(tokens[:1]))
