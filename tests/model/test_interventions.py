"""Interventions, checked by identities: what they do to the model equals a change of its weights, or nothing."""

import numpy as np
import pytest
import tensorflow as tf
from oracles.random_model import arrays, random_model

from gpt2_tf import HParams, beam_search, generate, score
from gpt2_tf.generation.engine import as_engine
from gpt2_tf.model.inspection import OUTPUTS
from gpt2_tf.model.interventions import places

HPARAMS = HParams(n_vocab=260, n_ctx=32, n_embd=40, n_head=4, n_layer=2)
PROMPTS = ["the", "then them"]
# float32 in another order, on log-probabilities of about -10
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model():
    return random_model(HPARAMS)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, HPARAMS.n_vocab, [2, 9])


def changed_weights(model, change):
    """A copy of the model whose weights `change` has edited, as a dict of arrays by path."""
    weights = arrays(model)
    change(weights)
    copy = random_model(HPARAMS)
    for variable in copy.weights:
        variable.assign(weights[variable.path])
    return copy


def numbers(model, enc) -> list:
    """What generate, score and beam_search return: tokens and their log-probabilities."""
    texts = generate(model, enc, PROMPTS, length=9, seed=1)
    beams = beam_search(model, enc, "the", num_beams=2, length=4)
    ids = [text.ids for text in (*texts, *beams)]
    return [ids, *(text.logprobs for text in (*texts, *beams)), *score(model, enc, PROMPTS)]


def assert_alike(one: list, other: list) -> None:
    assert one[0] == other[0]
    for a, b in zip(one[1:], other[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("identity", [lambda x: x, tf.identity], ids=["itself", "tf.identity"])
def test_the_identity_changes_nothing_to_the_last_bit(model, enc, tokens, identity):
    same = model.with_interventions(dict.fromkeys(places(HPARAMS), identity))
    assert numbers(same, enc) == numbers(model, enc)
    for before, after in zip(model.inspect(tokens), same.inspect(tokens), strict=True):
        np.testing.assert_array_equal(before, after)


def zero_head(weights):
    weights["model/h1/attn/c_proj/w"][:, 20:30] = 0  # head 2 of 4; each has 10 rows


def zero_mlp(weights):
    for name in ("w", "b"):
        weights[f"model/h0/mlp/c_proj/{name}"][:] = 0


def zero_attention(weights):
    for name in ("w", "b"):
        weights[f"model/h0/attn/c_proj/{name}"][:] = 0


def steer(weights):
    weights["model/h0/mlp/c_proj/b"] += np.linspace(-1, 1, 40, dtype=np.float32)


def shift_embeddings(weights):
    weights["model/wpe"] += np.linspace(-1, 1, 40, dtype=np.float32)


@pytest.mark.parametrize(
    ("place", "function", "change"),
    [
        ("h1/attn/head/2", tf.zeros_like, zero_head),
        ("h0/mlp/out", tf.zeros_like, zero_mlp),
        ("h0/attn/out", lambda x: 0 * x, zero_attention),
        ("h0", lambda x: x + tf.linspace(-1.0, 1.0, 40), steer),
        ("embed", lambda x: x + np.linspace(-1, 1, 40, dtype=np.float32), shift_embeddings),
    ],
)
def test_an_intervention_equals_other_weights(model, enc, tokens, place, function, change):
    one, other = model.with_interventions({place: function}), changed_weights(model, change)
    before, after = numbers(one, enc), numbers(other, enc)
    assert_alike(before, after)
    assert before != numbers(model, enc)
    np.testing.assert_allclose(
        one.inspect(tokens, "logits").logits, other.inspect(tokens, "logits").logits, rtol=0, atol=TOLERANCE
    )


def test_attention_to_the_first_token_alone_reads_its_value(model, tokens):
    def first_only(weights):
        return tf.one_hot(tf.zeros(tf.shape(weights)[:-1], tf.int32), tf.shape(weights)[-1])

    inside = model.with_interventions({"h0/attn/weights": first_only}).inspect(tokens, "head_out", "attentions")
    assert (inside.attentions[0, ..., 0] == 1).all()
    values = model.forward(tokens)["present"][:, 0, 1].numpy()  # [batch, n_head, seq, head_dim]
    np.testing.assert_allclose(inside.head_out[0], np.repeat(values[:, :, :1], 9, axis=2), rtol=0, atol=TOLERANCE)


def test_patching_from_another_run(model, tokens):
    """With all of the last block's parts from another run, the logits are that run's. One position changes one row."""
    other = model.inspect(tokens[::-1].copy())
    patches = {"h1/attn/out": other.attn_out[1], "h1/mlp/out": other.mlp_out[1], "h0": other.hidden_states[1]}
    patched = model.with_interventions({place: lambda x, value=value: value for place, value in patches.items()})
    np.testing.assert_array_equal(patched.inspect(tokens, "logits").logits, other.logits)

    def patch_position_4(x):
        return tf.concat([x[:, :4], other.hidden_states[2][:, 4:5], x[:, 5:]], axis=1)

    inside, plain = (m.inspect(tokens) for m in (model.with_interventions({"h1": patch_position_4}), model))
    np.testing.assert_allclose(inside.logits[:, 4], other.logits[:, 4], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(np.delete(inside.logits, 4, axis=1), np.delete(plain.logits, 4, axis=1))


def test_inspect_shows_what_goes_on(model, tokens):
    inside = model.with_interventions({"h1/attn/head/2": tf.zeros_like, "h0": tf.ones_like}).inspect(tokens)
    assert not inside.head_out[1][:, 2].any() and inside.head_out[1][:, 1].any()
    assert (inside.hidden_states[1] == 1).all()


def test_a_view_takes_what_a_model_takes(model, enc):
    """A single row, speculative decoding and a sliding window run the interventions too."""
    muted = model.with_interventions(
        {f"h{i}/{part}": tf.zeros_like for i in (0, 1) for part in ("attn/out", "mlp/out")}
    )
    for settings in ({}, {"draft": "lookup"}, {"length": 40, "window": True}, {"draft": model}):
        (completion,) = generate(muted, enc, "the", seed=1, temperature=0, stop=(), **{"length": 8} | settings)
        # Without its blocks, the model sees the last token and its position only.
        ids, n = [*enc.encode("the"), *completion.ids], len(enc.encode("the"))
        for i in range(n, min(len(ids), 20)):
            h = model.ln_f(model.wte[ids[i - 1]] + model.wpe[i - 1])
            assert ids[i] == int(tf.argmax(tf.linalg.matvec(tf.convert_to_tensor(model.wte), h)))


def test_a_function_is_compiled_once(enc, forbid_traces):
    model = random_model(HPARAMS)

    def double(x):
        return 2 * x

    for m in (model, model.with_interventions({"h0": double})):
        generate(m, enc, "the", length=3)
        generate(m, enc, PROMPTS, length=3)
        score(m, enc, PROMPTS)
    assert len(model._traces) == 6  # a loop for one row, a loop for several, and a scorer; each twice
    forbid_traces()
    for m in (model, model.with_interventions({"h0": double})):
        generate(m, enc, ["then", "the"], length=5, temperature=0.5)
        generate(m, enc, "them", length=5, top_k=3)
        score(m, enc, "them")
    with pytest.raises(AssertionError, match="traced again"):
        score(model.with_interventions({"h0": lambda x: 2 * x}), enc, "the")


@pytest.mark.parametrize(
    ("interventions", "error", "message"),
    [
        (
            {"h2": tf.identity},
            ValueError,
            "there is no place 'h2' in this model; the places are embed, and for each block, here the last: "
            "h1/attn/weights, h1/attn/head/0, h1/attn/head/1, h1/attn/head/2, h1/attn/head/3, h1/attn/out, h1/mlp/out, "
            "h1$",
        ),
        ({"h0/attn/head/4": tf.identity}, ValueError, "there is no place 'h0/attn/head/4'"),
        ({"h0/attn/heads": tf.identity}, ValueError, "there is no place 'h0/attn/heads'"),
        ({"h0": 0}, TypeError, "the intervention at h0 is 0, but must be a function"),
        ([tf.identity], TypeError, "interventions are .*, but must map names of places to functions"),
    ],
)
def test_a_wrong_intervention_is_an_error(model, interventions, error, message):
    with pytest.raises(error, match=message):
        model.with_interventions(interventions)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: None, "the intervention at h0 returned None"),
        (lambda x: x[0], r"the intervention at h0 returned float32 .*, but must return float32 .*, as it got"),
        (lambda x: tf.cast(x, tf.float64), "the intervention at h0 returned float64"),
        (lambda x: x[..., :3], "the intervention at h0 returned float32"),
    ],
)
def test_a_wrong_result_is_an_error(model, enc, tokens, function, message):
    wrong = model.with_interventions({"h0": function})
    with pytest.raises(ValueError, match=message):
        wrong.inspect(tokens)
    with pytest.raises(ValueError, match=message):
        score(wrong, enc, "the")


def test_a_result_that_is_broadcast_is_an_error(model, enc):
    """A graph knows the sizes only when it runs."""
    with pytest.raises(tf.errors.InvalidArgumentError, match="the intervention at h0 returned another shape"):
        score(model.with_interventions({"h0": lambda x: x[:, :1]}), enc, "then them")


def test_an_engine_without_tensorflow_takes_no_interventions(model):
    with pytest.raises(TypeError, match="must be a GPT2 or an Engine"):
        as_engine(object())
    assert as_engine(model.with_interventions({})).model.interventions == {}


def test_outputs_are_named_once():
    assert len(set(OUTPUTS)) == len(OUTPUTS) == 6
