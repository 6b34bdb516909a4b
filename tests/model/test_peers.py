"""The same random weights in other implementations give the same logits, gradients and beams, and train alike.

2e-5: float32 in another order, on logits of about 3.
"""

import copy
import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracles.random_model import random_model

from gpt2_tf import GPT2, HParams
from gpt2_tf.generation.beam_decoding import search_beams
from gpt2_tf.generation.stop_strings import build_stop_table
from gpt2_tf.training import train

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


def transformers_name(name):
    """Of a weight of OpenAI's name, without its "model/"."""
    kinds = {"g": "weight", "b": "bias", "w": "weight", "wte": "wte.weight", "wpe": "wpe.weight"}
    *scopes, kind = name.split("/")
    if scopes and scopes[0] != "ln_f":
        scopes[0] = f"h.{scopes[0][1:]}"
    return ".".join(["transformer", *scopes, kinds[kind]])


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
    state = {}
    for name, value in weights.items():
        state[transformers_name(name)] = torch.tensor(value[0] if name.endswith("/w") else value)  # [1, nx, nf]
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
def test_transformers_inside_agrees(model, transformers_peer, tokens):
    """1e-5 as a share of the largest value: the stream reaches 5, the logits 3."""
    import torch

    peer = copy.deepcopy(transformers_peer)
    peer.set_attn_implementation("eager")  # the default one gives no attentions
    parts = {"attn_out": [], "mlp_out": [], "head_out": []}
    for block in peer.transformer.h:
        block.attn.register_forward_hook(lambda module, args, out: parts["attn_out"].append(out[0]))
        block.mlp.register_forward_hook(lambda module, args, out: parts["mlp_out"].append(out))
        block.attn.c_proj.register_forward_hook(lambda module, args, out: parts["head_out"].append(args[0]))
    with torch.no_grad():
        theirs = peer(torch.tensor(tokens), output_hidden_states=True, output_attentions=True)
    ours = model.inspect(tokens)

    def assert_equal(one, other):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)

    *states, last = (state.numpy() for state in theirs.hidden_states)
    assert_equal(ours.hidden_states[:-1], np.stack(states))
    assert_equal(model.ln_f(ours.hidden_states[-1]).numpy(), last)  # theirs is after `ln_f`, ours before
    assert_equal(ours.attentions, np.stack(theirs.attentions))
    heads = np.stack(parts.pop("head_out")).reshape([3, 2, HPARAMS.n_ctx, HPARAMS.n_head, HPARAMS.head_dim])
    assert_equal(ours.head_out, heads.transpose(0, 1, 3, 2, 4))
    for name, values in parts.items():
        assert_equal(getattr(ours, name), np.stack(values))
    assert_equal(ours.logits, theirs.logits.numpy())


@pytest.mark.slow  # for the import of PyTorch
@pytest.mark.parametrize("settings", [{}, {"grad_accumulation": 2}, {"remat": True}], ids=str)
def test_transformers_loss_and_gradients_agree(model, transformers_peer, tokens, settings):
    """1e-5 of each gradient's size: float32 in another order. Some of the targets are padding."""
    import torch

    targets = tokens.copy()
    targets[1, 25:] = -1
    labels = torch.tensor(np.where(targets < 0, -100, targets))
    transformers_peer.zero_grad()
    # Its loss is of the logits before each label.
    logits = transformers_peer(torch.tensor(tokens[:, :-1])).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    peers = {name: parameter.grad.numpy() for name, parameter in transformers_peer.named_parameters()}

    ours = GPT2(HPARAMS, w_init_stdev=None, remat=settings.get("remat", False))
    for one, other in zip(ours.weights, model.weights, strict=True):
        one.assign(other)
    ours.compile(Kept(), grad_accumulation=settings.get("grad_accumulation", 1))
    assert ours.train_on_batch(tokens[:, :-1], targets[:, 1:]) == pytest.approx(loss.item(), rel=1e-5)
    for weight, gradient in zip(ours.weights, ours.optimizer.kept, strict=True):
        name = weight.path.removeprefix("model/")
        peer = peers[transformers_name(name)]
        gradient = gradient.numpy()[0] if name.endswith("/w") else gradient.numpy()
        assert np.linalg.norm(gradient - peer) <= 1e-5 * np.linalg.norm(peer), name


class Kept(keras.optimizers.Optimizer):
    """Keeps the gradients, and changes nothing."""

    def __init__(self):
        super().__init__(learning_rate=1.0)

    def build(self, variables):
        super().build(variables)
        self.kept = [tf.Variable(tf.zeros(variable.shape)) for variable in variables]

    def update_step(self, gradient, variable, learning_rate):
        self.kept[self._get_variable_index(variable)].assign(gradient)


@pytest.mark.slow  # for the import of PyTorch
def test_ten_steps_of_pytorchs_adamw_agree(model, transformers_peer):
    """With clipping that clips, decay of matrices alone, and the schedule; the losses to 1e-4."""
    import torch

    peer = copy.deepcopy(transformers_peer)
    ours = GPT2(HPARAMS, w_init_stdev=None)
    for one, other in zip(ours.weights, model.weights, strict=True):
        one.assign(other)
    steps, warmup, rate, clip_norm = 10, 3, 1e-2, 0.5
    ours.compile(train.adamw(rate, steps, warmup_steps=warmup, weight_decay=0.3, clip_norm=clip_norm))
    parameters = dict(peer.named_parameters())
    matrices = [parameter for parameter in parameters.values() if parameter.ndim == 2]
    others = [parameter for parameter in parameters.values() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    rng = np.random.default_rng(3)
    batch = rng.integers(0, HPARAMS.n_vocab, [4, 33])  # the same again and again, so that it is learned
    losses = []
    for step in range(steps):
        share = (step - warmup) / (steps - warmup)
        now = rate * (step / warmup if step < warmup else 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = now
        logits = peer(torch.tensor(batch[:, :-1])).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(batch[:, 1:]).flatten())
        optimizer.zero_grad()
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(peer.parameters(), clip_norm) > clip_norm
        optimizer.step()
        ours.reset_metrics()
        losses.append((ours.train_on_batch(batch[:, :-1], batch[:, 1:]), loss.item()))
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=0, atol=1e-4)
    assert losses[-1][0] < losses[0][0] - 0.5
    for weight in ours.weights:
        name = weight.path.removeprefix("model/")
        ours_now = weight.numpy()[0] if name.endswith("/w") else weight.numpy()
        # Adam makes a step of a gradient's sign, so of one near 0 a rounding does: the least rate of some steps.
        np.testing.assert_allclose(ours_now, parameters[transformers_name(name)].detach(), rtol=0, atol=2e-3)


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
        ours = search_beams(
            model,
            context,
            build_stop_table([b""] * HPARAMS.n_vocab, ends, []),
            num_beams=num_beams,
            num_return=num_return,
            length=length,
            length_penalty=length_penalty,
        )
        for text, peer, count in zip(ours.tokens.numpy(), peers.sequences.numpy(), ours.n_new.numpy(), strict=True):
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
