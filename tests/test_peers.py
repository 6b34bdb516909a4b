"""The same random weights in other implementations give the same logits, and the same beams.

2e-5: float32 in another order, on logits of about 3.
"""

import warnings

import numpy as np
import pytest
from random_model import random_model

from gpt2_tf import HParams, stops
from gpt2_tf.beam import find

HPARAMS = HParams(n_vocab=300, n_ctx=40, n_embd=48, n_head=4, n_layer=3)


@pytest.fixture(scope="module")
def model():
    return random_model(HPARAMS, stdev=0.1)


@pytest.fixture(scope="module")
def weights(model):
    return {variable.path.removeprefix("model/"): variable.numpy() for variable in model.weights}


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, HPARAMS.n_vocab, [2, HPARAMS.n_ctx])


@pytest.fixture(scope="module")
def transformers_peer(weights):
    """transformers' model with the same weights."""
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
    return peer


@pytest.mark.slow  # for the import of PyTorch
def test_transformers_agrees(model, transformers_peer, tokens):
    import torch

    with torch.no_grad():
        logits = transformers_peer(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(model(tokens), logits, rtol=0, atol=2e-5)


@pytest.mark.slow  # for the import of PyTorch
@pytest.mark.parametrize("ends", [[], [63, 108, 164, 221]], ids=["no end", "ends"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
def test_transformers_beams_agree(model, transformers_peer, tokens, ends, length_penalty):
    """Scores to 1e-4: the sums of 20 numbers of about 4 in float32."""
    import torch

    context = tokens[0, :9].tolist()
    for num_beams, num_return, length in ((2, 1, 20), (5, 4, 20)):
        peers = transformers_peer.generate(
            torch.tensor([context]),
            attention_mask=torch.ones([1, len(context)]),
            num_beams=num_beams,
            num_return_sequences=num_return,
            max_new_tokens=length,
            length_penalty=length_penalty,
            early_stopping="never",
            do_sample=False,
            eos_token_id=ends or None,
            pad_token_id=1,
            output_scores=True,
            return_dict_in_generate=True,
        )
        ours = find(
            model,
            context,
            stops.table([b""] * HPARAMS.n_vocab, ends, []),
            num_beams=num_beams,
            num_return=num_return,
            length=length,
            length_penalty=length_penalty,
        )
        for text, peer, count in zip(ours.tokens.numpy(), peers.sequences.numpy(), ours.count.numpy(), strict=True):
            n = len(context) + count
            assert text[:n].tolist() == peer[:n].tolist() and set(peer[n:]) <= {1}
        np.testing.assert_allclose(ours.score, peers.sequences_scores, rtol=1e-5, atol=1e-4)
    assert ours.stopped.numpy().any() == bool(ends)


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
