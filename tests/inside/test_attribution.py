"""Direct logit attribution: its parts sum to the logit, and each part is what its head or MLP adds."""

import numpy as np
import pytest
from oracles.random_model import random_model

from gpt2_tf import HParams
from gpt2_tf.inside import attribute_logit

IDS = [3, 14, 15, 92, 65]
# float32 in another order, on logits of up to 10
TOLERANCE = 2e-5


@pytest.mark.parametrize("lora_rank", [None, 2])
@pytest.mark.parametrize("target", [None, 0, 259])
def test_the_parts_sum_to_the_logit(target, lora_rank):
    model = random_model(HParams(n_vocab=260, n_ctx=32, n_embd=40, n_head=4, n_layer=2), lora_rank=lora_rank)
    logits = model(np.array([IDS])).numpy()[0, -1]
    parts = attribute_logit(model, IDS, target)
    assert parts.target == (logits.argmax() if target is None else target)
    assert parts.logit == pytest.approx(logits[parts.target], abs=TOLERANCE)
    total = parts.embed + parts.heads.sum() + parts.attn_bias.sum() + parts.mlp.sum() + parts.norm_bias
    assert total == pytest.approx(parts.logit, abs=TOLERANCE)
    assert parts.heads.shape == (2, 4) and parts.mlp.shape == parts.attn_bias.shape == (2,)


def test_each_part_is_read_through_the_norm(lively):
    """A part's share is what the normed stream loses without it, with the norm's scale held fixed."""
    inside = lively.inspect([IDS], "hidden_states", "head_out", "mlp_out")
    stream = inside.hidden_states[-1, 0, -1].astype(np.float64)
    scale = np.sqrt(stream.var() + 1e-5)

    def logit(h, target):
        normed = (h - h.mean()) / scale * lively.ln_f.g.numpy() + lively.ln_f.b.numpy()
        return normed @ lively.wte.numpy()[target]

    parts = attribute_logit(lively, IDS, target=7)
    for layer in range(2):
        c_proj = lively.h[layer].attn.c_proj.w.numpy()[0]  # [n_embd, n_embd]
        assert parts.mlp[layer] == pytest.approx(
            logit(stream, 7) - logit(stream - inside.mlp_out[layer, 0, -1], 7), abs=TOLERANCE
        )
        for head in range(4):
            added = inside.head_out[layer, 0, head, -1] @ c_proj[10 * head : 10 * head + 10]
            assert parts.heads[layer, head] == pytest.approx(logit(stream, 7) - logit(stream - added, 7), abs=TOLERANCE)


@pytest.mark.parametrize("target", [-1, 260, "the"])
def test_a_wrong_target_is_an_error(lively, target):
    with pytest.raises(ValueError, match=f"target is {target!r}, but must be a token id from 0 to 259"):
        attribute_logit(lively, IDS, target)
