"""LoRA adapters: PEFT reads what we write, and we read what it writes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from oracles.random_model import random_model
from oracles.transformers_models import (
    HPARAMS,
    assert_same_weights,
    edit_json,
    random_tokens,
    transformers_logits,
)

from gpt2_tf import GPT2
from gpt2_tf.weights import peft


@pytest.fixture(scope="module")
def adapted():
    return random_model(HPARAMS, stdev=0.1, lora_rank=4)


@pytest.fixture
def adapters(adapted, tmp_path) -> Path:
    adapted.save_adapters(tmp_path / "adapters")
    return tmp_path / "adapters"


def test_adapters_come_back_exactly(adapted, adapters, tmp_path):
    """Loaded beside the weights that they were trained on. Saved as a whole model, they are merged into the weights."""
    assert {path.name for path in adapters.iterdir()} == set(peft.FILES)
    again = GPT2(HPARAMS, lora_rank=4)
    for one, other in zip(again.weights, adapted.weights, strict=True):
        if "lora" not in other.name:
            one.assign(other)
    again.load_adapters(adapters)
    assert_same_weights(again, adapted)
    adapted.save_pretrained(tmp_path / "merged")
    merged = GPT2.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(merged(random_tokens()), adapted(random_tokens()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "rank, changed, message",
    [
        (8, {}, "r is 4, but only 8 is supported"),
        (4, {"init_lora_weights": "pissa"}, 'init_lora_weights is "pissa", but only true is supported'),
        (4, {"use_rslora": True}, "use_rslora is true, but only false is supported"),
        (4, {"alpha_pattern": {"c_attn": 2}}, "alpha_pattern is"),
        (4, {"peft_type": "LOHA"}, 'peft_type is "LOHA", but only'),
        (4, {"r": 4, "n_layer": 2}, r"c_attn and c_proj at rank 4: 6 tensors differ, such as base_model\..*\.h\.2\."),
        (4, {"n_embd": 24}, "18 tensors differ"),
    ],
    ids=str,
)
def test_other_adapters_are_refused(adapted, adapters, rank, changed, message):
    sizes = {name: changed.pop(name) for name in ("n_layer", "n_embd") if name in changed}
    model = GPT2(dataclasses.replace(HPARAMS, **sizes), lora_rank=rank)
    edit_json(adapters / "adapter_config.json", **changed)
    before = [variable.numpy() for variable in model.weights]
    with pytest.raises(ValueError, match=message):
        model.load_adapters(adapters)
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.slow  # for the import of PyTorch
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21 with transformers 5
def test_peft_loads_our_adapters_and_we_load_pefts(adapted, adapters, transformers, tmp_path):
    """PEFT's adapters are scaled by lora_alpha / r. Logits differ by at most 2e-5, as in test_huggingface.py."""
    import torch

    peft = pytest.importorskip("peft", reason="PEFT comes with the extra [peers]")
    base = GPT2(HPARAMS)
    for name, variable in adapted.named_weights().items():
        base.named_weights()[name].assign(variable)
    base.save_pretrained(tmp_path / "base")
    peer = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    ours = peft.PeftModel.from_pretrained(peer, str(adapters)).eval()
    np.testing.assert_allclose(adapted(random_tokens()), transformers_logits(ours), rtol=0, atol=2e-5)
    peer = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, lora_alpha=12, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    theirs = peft.get_peft_model(peer, config).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_" in name:
                weight.add_(torch.randn(weight.shape) / 10)
    theirs.save_pretrained(tmp_path / "theirs")
    model = GPT2(HPARAMS, lora_rank=2)
    for name, variable in adapted.named_weights().items():
        model.named_weights()[name].assign(variable)
    model.load_adapters(tmp_path / "theirs")
    np.testing.assert_allclose(model(random_tokens()), transformers_logits(theirs), rtol=0, atol=2e-5)
    assert np.abs(model(random_tokens()) - base(random_tokens())).max() > 0.1
