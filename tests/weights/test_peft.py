"""LoRA adapters: PEFT reads what we write, and we read what it writes."""

import dataclasses
import time
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
        (2, {}, "adapters of rank 4, but the model's lora_rank is 2"),
        (4, {"init_lora_weights": "pissa"}, 'init_lora_weights is "pissa", but only true is supported'),
        (4, {"use_rslora": True}, "use_rslora is true, but only false is supported"),
        (4, {"use_dora": True}, "use_dora is true, but only false is supported"),
        (4, {"modules_to_save": ["wte"]}, 'modules_to_save is \\["wte"\\], but only null'),
        (
            4,
            {"rank_pattern": {"c_attn": 2}},
            r"h\.0\.attn\.c_attn has .*, expected lora_A \[2, 48\] and lora_B \[144, 2\]",
        ),
        (4, {"rank_pattern": {"(": 2}}, r"rank_pattern has '\(', which RE2 cannot compile as a regular expression"),
        (4, {"rank_pattern": {"(?!x)c_attn": 2}}, "which RE2 cannot compile as a regular expression"),
        (4, {"alpha_pattern": [2]}, "alpha_pattern is .2., but must be an object"),
        (4, {"lora_alpha": "16"}, "lora_alpha of h.0.attn.c_attn is '16', but must be a number from 0 to"),
        (4, {"lora_alpha": float("nan")}, "lora_alpha of h.0.attn.c_attn is nan, but must be a number"),
        (4, {"lora_alpha": 1e300}, "lora_alpha of h.0.attn.c_attn is 1e.300, but must be a number"),
        (4, {"r": True}, "r of h.0.attn.c_attn is True, but must be a number from 1 to"),
        (4, {"peft_type": "LOHA"}, 'peft_type is "LOHA", but only'),
        (4, {"n_layer": 2}, r"base_model\.model\.transformer\.h\.2\..* is not a LoRA adapter of a dense layer of this"),
        (4, {"n_embd": 24}, r"has lora_A \[4, 48\], .*expected lora_A \[4, 24\]"),
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


def test_a_smaller_rank_and_missing_layers_have_no_effect_beyond_the_file(adapted, adapters, tmp_path):
    """The file has rank 4 and `c_attn` only. The logits of about 1 are sums of float32 in another order: 1e-5."""
    only_attention = GPT2(HPARAMS, w_init_stdev=0, lora_rank=4, lora_targets=["c_attn"])
    larger = random_model(HPARAMS, stdev=0.1, seed=2, lora_rank=6, lora_targets=["c_attn", "c_fc", "c_proj"])
    for model in (only_attention, larger):
        for name, variable in adapted.named_weights().items():
            model.named_weights()[name].assign(variable)
    for name, variable in only_attention.adapters().items():
        variable.assign(adapted.adapters()[name])
    only_attention.save_adapters(tmp_path / "attention")
    larger.load_adapters(tmp_path / "attention")
    np.testing.assert_allclose(larger(random_tokens()), only_attention(random_tokens()), rtol=0, atol=1e-5)
    ranks = {name: np.count_nonzero(np.any(v, axis=1)) for name, v in larger.adapters().items() if "lora_b" in name}
    assert set(ranks.values()) == {0, 4} and {name for name, rank in ranks.items() if rank} == {
        f"model/h{i}/attn/c_attn/lora_b" for i in range(3)
    }


def test_adapters_of_layers_without_any_in_the_model_say_how_to_make_it(tmp_path):
    GPT2(HPARAMS, lora_rank=4, lora_targets=["c_fc"]).save_adapters(tmp_path)
    with pytest.raises(ValueError, match=r"make it with lora_targets=\('c_attn', 'c_fc', 'c_proj'\)"):
        GPT2(HPARAMS, lora_rank=4).load_adapters(tmp_path)


PEFT_CONFIGS = [
    {"r": 2},  # PEFT's default targets are c_attn alone
    {"r": 3, "target_modules": "all-linear", "lora_alpha": 7},
    {"r": 4, "target_modules": r".*\.(0|2)\.mlp\.c_fc"},
    {"r": 4, "target_modules": ["attn.c_proj", "c_fc"], "rank_pattern": {"c_fc": 2, "h.1.attn.c_proj": 1}},
    {
        "r": 2,
        "target_modules": ["h.1.attn.c_attn", "c_proj"],
        "alpha_pattern": {r"mlp\.c_proj": 5, "c_attn": 0.5},
    },
    {"r": 2, "target_modules": ["c_proj"], "init_lora_weights": "orthogonal", "lora_dropout": 0.1},
]


@pytest.mark.slow  # for the import of PyTorch
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21 with transformers 5
@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2Model"])
@pytest.mark.parametrize("config", PEFT_CONFIGS, ids=str)
def test_plain_lora_of_peft_loads_whatever_its_layers_ranks_and_alphas(kind, config, transformers, tmp_path):
    """Logits differ by at most 2e-5, as in test_huggingface.py."""
    import torch

    peft = pytest.importorskip("peft", reason="PEFT comes with the extra [peers]")
    model = random_model(HPARAMS, stdev=0.1)
    model.save_pretrained(tmp_path / "base")
    peer = getattr(transformers, kind).from_pretrained(tmp_path / "base")
    theirs = peft.get_peft_model(peer, peft.LoraConfig(fan_in_fan_out=True, **config)).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_" in name:
                weight.add_(torch.randn(weight.shape) / 10)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = GPT2.from_pretrained(tmp_path / "base", lora_rank=4, lora_targets=["c_attn", "c_fc", "c_proj"])
    ours.load_adapters(tmp_path / "theirs")
    if kind == "GPT2Model":
        with torch.no_grad():
            expected = theirs(torch.tensor(random_tokens())).last_hidden_state.numpy() @ model.wte.numpy().T
    else:
        expected = transformers_logits(theirs)
    np.testing.assert_allclose(ours(random_tokens()), expected, rtol=0, atol=2e-5)
    assert np.abs(ours(random_tokens()) - model(random_tokens())).max() > 0.1


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


def test_a_pattern_that_would_take_hours_is_matched_at_once(adapted, adapters):
    edit_json(adapters / "adapter_config.json", rank_pattern={"(((.+)+)+)+x": 2})
    start = time.monotonic()
    GPT2(HPARAMS, lora_rank=4).load_adapters(adapters)
    assert time.monotonic() - start < 30
