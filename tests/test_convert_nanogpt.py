"""`examples/convert_nanogpt.py`: a checkpoint as nanoGPT saves it gives the same logits here."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt2_tf import load
from gpt2_tf.pretrained.load import find_model_dir

SCRIPT = Path(__file__).parents[1] / "examples" / "convert_nanogpt.py"
N_LAYER, N_HEAD, N_EMBD, BLOCK_SIZE, PADDED = 2, 2, 16, 32, 320


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is in the extra [peers]")


def random_state(torch, bias: bool) -> dict:
    """Random weights by nanoGPT's names. Linear layers are [out, in], as in PyTorch."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, mean=0.0):
        return mean + 0.3 * torch.randn(shape, generator=generator)

    state = {"transformer.wte.weight": draw(PADDED, N_EMBD), "transformer.wpe.weight": draw(BLOCK_SIZE, N_EMBD)}
    norms = ["transformer.ln_f", *(f"transformer.h.{i}.{name}" for i in range(N_LAYER) for name in ("ln_1", "ln_2"))]
    for name in norms:
        state |= {f"{name}.weight": draw(N_EMBD, mean=1)} | ({f"{name}.bias": draw(N_EMBD)} if bias else {})
    for i in range(N_LAYER):
        for name, n_in, n_out in (
            ("attn.c_attn", N_EMBD, 3 * N_EMBD),
            ("attn.c_proj", N_EMBD, N_EMBD),
            ("mlp.c_fc", N_EMBD, 4 * N_EMBD),
            ("mlp.c_proj", 4 * N_EMBD, N_EMBD),
        ):
            scope = f"transformer.h.{i}.{name}"
            state |= {f"{scope}.weight": draw(n_out, n_in)} | ({f"{scope}.bias": draw(n_out)} if bias else {})
    return state | {"lm_head.weight": state["transformer.wte.weight"]}


def nanogpt_logits(torch, state: dict, ids: list[int], approximate: str) -> np.ndarray:
    """The forward pass of nanoGPT's model.py. `approximate` is "none" for its exact GELU, or "tanh" for OpenAI's."""
    functional = torch.nn.functional

    def norm(x, name):
        return functional.layer_norm(x, [N_EMBD], state[f"{name}.weight"], state.get(f"{name}.bias"), 1e-5)

    def linear(x, name):
        return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"][: len(ids)]
    for i in range(N_LAYER):
        block = f"transformer.h.{i}"
        qkv = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn")
        q, k, v = (part.view(-1, N_HEAD, N_EMBD // N_HEAD).transpose(0, 1) for part in qkv.split(N_EMBD, dim=-1))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(attended.transpose(0, 1).reshape(-1, N_EMBD), f"{block}.attn.c_proj")
        hidden = functional.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"), approximate=approximate)
        x = x + linear(hidden, f"{block}.mlp.c_proj")
    return (norm(x, "transformer.ln_f") @ state["lm_head.weight"].T).numpy()


def save(torch, path: Path, state: dict, prefix: str = "") -> None:
    sizes = {"n_layer": N_LAYER, "n_head": N_HEAD, "n_embd": N_EMBD, "block_size": BLOCK_SIZE}
    torch.save(
        {
            "model": {f"{prefix}{name}": tensor for name, tensor in state.items()},
            "model_args": sizes | {"bias": "transformer.ln_f.bias" in state, "vocab_size": PADDED, "dropout": 0.0},
            "iter_num": 5,
            "best_val_loss": torch.tensor(2.5),
            "config": {"out_dir": "out", "learning_rate": 6e-4},
        },
        path,
    )


@pytest.mark.slow  # for the import of PyTorch
@pytest.mark.parametrize(("bias", "prefix"), [(True, ""), (False, "_orig_mod.")], ids=["bias", "compiled, no bias"])
def test_the_converted_model_gives_nanogpts_logits(torch, tiny_folder, tmp_path, bias, prefix):
    """2e-5 with OpenAI's GELU: float32 sums in another order. With the exact GELU, small differences remain."""
    state = random_state(torch, bias)
    save(torch, tmp_path / "ckpt.pt", state, prefix)
    command = [sys.executable, SCRIPT, tmp_path / "ckpt.pt", tmp_path / "model", "--vocabulary", tiny_folder]
    subprocess.run(command, check=True, timeout=300)
    model, enc = load(tmp_path / "model")
    ids = enc.encode("The quick brown fox jumps")
    logits = model(np.array([ids]))[0]
    np.testing.assert_allclose(logits, nanogpt_logits(torch, state, ids, "tanh")[:, : enc.n_vocab], rtol=0, atol=2e-5)
    exact = nanogpt_logits(torch, state, ids, "none")[:, : enc.n_vocab]
    assert 2e-5 < np.abs(logits - exact).max() < 0.02


@pytest.mark.slow  # for the import of PyTorch
def test_a_model_of_characters_is_refused(torch, tmp_path):
    save(torch, tmp_path / "ckpt.pt", random_state(torch, bias=True))
    command = [sys.executable, SCRIPT, tmp_path / "ckpt.pt", tmp_path / "model"]
    command += ["--vocabulary", find_model_dir("shakespeare")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 1 and not (tmp_path / "model").exists()
    assert "ckpt.pt has a vocabulary of 320 tokens, but the vocabulary given has 1024" in ran.stderr.splitlines()[-1]


@pytest.mark.slow  # for the import of PyTorch
@pytest.mark.parametrize("stored", [{"weights": 1}, [1], None], ids=["others keys", "a list", "not PyTorch's"])
def test_another_file_is_named_in_one_line(torch, tiny_folder, tmp_path, stored):
    path = tmp_path / "ckpt.pt"
    torch.save(stored, path) if stored else path.write_bytes(b"text")
    command = [sys.executable, SCRIPT, path, tmp_path / "model", "--vocabulary", tiny_folder]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 1 and not (tmp_path / "model").exists()
    assert ran.stderr.startswith(f"convert_nanogpt.py: error: {path} is not a checkpoint of nanoGPT: ")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["", "ckpt.pt"])
def test_nanogpts_folder_and_file_are_named_for_what_they_are(tmp_path, name):
    (tmp_path / "ckpt.pt").write_bytes(b"PK")
    with pytest.raises(OSError, match=r"a checkpoint of nanoGPT, which examples/convert_nanogpt\.py"):
        load(tmp_path / name)
