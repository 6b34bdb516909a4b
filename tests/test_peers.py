"""The same random weights in other implementations give the same logits.

2e-5: float32 in another order, on logits of about 3.
"""

import warnings

import numpy as np
import pytest

from gpt2_tf import GPT2, HParams

HPARAMS = HParams(n_vocab=300, n_ctx=40, n_embd=48, n_head=4, n_layer=3)


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    model = GPT2(HPARAMS, w_init_stdev=0)
    for variable in model.weights:
        variable.assign(rng.normal(1 if variable.name == "g" else 0, 0.1, variable.shape))
    return model


@pytest.fixture(scope="module")
def weights(model):
    return {variable.path.removeprefix("model/"): variable.numpy() for variable in model.weights}


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, HPARAMS.n_vocab, [2, HPARAMS.n_ctx])


@pytest.mark.slow  # for the import of PyTorch
def test_transformers_agrees(model, weights, tokens):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra [peers]")
    transformers = pytest.importorskip("transformers", reason="transformers is in the extra [peers]")
    config = transformers.GPT2Config(
        vocab_size=HPARAMS.n_vocab,
        n_positions=HPARAMS.n_ctx,
        n_embd=HPARAMS.n_embd,
        n_head=HPARAMS.n_head,
        n_layer=HPARAMS.n_layer,
    )
    peer = transformers.GPT2LMHeadModel(config).eval()
    kinds = {"g": "weight", "b": "bias", "w": "weight", "wte": "wte.weight", "wpe": "wpe.weight"}
    state = {}
    for name, value in weights.items():
        *scopes, kind = name.split("/")
        if scopes and scopes[0] != "ln_f":
            scopes[0] = f"h.{scopes[0][1:]}"
        key = ".".join(["transformer", *scopes, kinds[kind]])
        state[key] = torch.tensor(value[0] if kind == "w" else value)  # OpenAI's w is [1, nx, nf]
    state["lm_head.weight"] = state["transformer.wte.weight"]
    peer.load_state_dict(state)
    with torch.no_grad():
        logits = peer(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(model(tokens), logits, rtol=0, atol=2e-5)


@pytest.mark.slow  # for the import of KerasNLP
def test_keras_nlp_agrees(model, weights, tokens):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it imports warns, and that is not ours to mend
        keras_nlp = pytest.importorskip("keras_nlp", reason="KerasNLP is in the extra [keras-nlp]")
    peer = keras_nlp.models.GPT2Backbone(
        vocabulary_size=HPARAMS.n_vocab,
        num_layers=HPARAMS.n_layer,
        num_heads=HPARAMS.n_head,
        hidden_dim=HPARAMS.n_embd,
        intermediate_dim=4 * HPARAMS.n_embd,
        dropout=0,
        max_sequence_length=HPARAMS.n_ctx,
    )
    n, heads, dim = HPARAMS.n_embd, HPARAMS.n_head, HPARAMS.head_dim
    peer.get_layer("token_embedding").embeddings.assign(weights["wte"])
    peer.get_layer("position_embedding").position_embeddings.assign(weights["wpe"])
    peer.get_layer("layer_norm").set_weights([weights["ln_f/g"], weights["ln_f/b"]])
    for i in range(HPARAMS.n_layer):
        layer = peer.get_layer(f"transformer_layer_{i}")
        h = {name.removeprefix(f"h{i}/"): value for name, value in weights.items() if name.startswith(f"h{i}/")}
        attention = layer._self_attention_layer
        parts = zip(
            (attention._query_dense, attention._key_dense, attention._value_dense),
            np.split(h["attn/c_attn/w"][0], 3, axis=-1),
            np.split(h["attn/c_attn/b"], 3),
            strict=True,
        )
        for dense, w, b in parts:
            dense.set_weights([w.reshape(n, heads, dim), b.reshape(heads, dim)])
        attention._output_dense.set_weights([h["attn/c_proj/w"][0].reshape(heads, dim, n), h["attn/c_proj/b"]])
        layer._self_attention_layer_norm.set_weights([h["ln_1/g"], h["ln_1/b"]])
        layer._feedforward_layer_norm.set_weights([h["ln_2/g"], h["ln_2/b"]])
        layer._feedforward_intermediate_dense.set_weights([h["mlp/c_fc/w"][0], h["mlp/c_fc/b"]])
        layer._feedforward_output_dense.set_weights([h["mlp/c_proj/w"][0], h["mlp/c_proj/b"]])
    hidden = peer({"token_ids": tokens, "padding_mask": np.ones_like(tokens)})
    np.testing.assert_allclose(model(tokens), peer.token_embedding(hidden, reverse=True), rtol=0, atol=2e-5)
