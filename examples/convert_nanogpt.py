"""Convert a checkpoint of nanoGPT (https://github.com/karpathy/nanoGPT) to OpenAI's form.

    python examples/convert_nanogpt.py out/ckpt.pt my-model --vocabulary models/124M
    gpt2-tf generate --model my-model

It needs PyTorch (`pip install torch`). The checkpoint must use GPT-2's vocabulary, as nanoGPT's `openwebtext` and
`shakespeare` data do. The folder given by `--vocabulary` holds that vocabulary: `encoder.json` and `vocab.bpe`.

Two differences remain:

- nanoGPT's GELU is exact, and OpenAI's is the tanh approximation. The logits of a GPT-2 of 124M differ by about 2.5e-3.
- nanoGPT pads the vocabulary of 50,257 tokens to 50,304. The rows of the padding are dropped.
"""

import argparse
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from encoder import Encoder
from gpt2_tf import HParams
from gpt2_tf.weights import checkpoint

# nanoGPT's name inside a block -> OpenAI's.
LAYERS = {
    "ln_1": "ln_1",
    "attn.c_attn": "attn/c_attn",
    "attn.c_proj": "attn/c_proj",
    "ln_2": "ln_2",
    "mlp.c_fc": "mlp/c_fc",
    "mlp.c_proj": "mlp/c_proj",
}


def read_nanogpt(path: Path, n_vocab: int) -> tuple[HParams, dict[str, np.ndarray]]:
    """Read the sizes and the weights of a nanoGPT checkpoint.

    Args:
        path: the file `ckpt.pt`. Only tensors and plain values are read from it, never code.
        n_vocab: the count of tokens of the vocabulary; further rows of the embeddings are dropped.

    Returns:
        The sizes, and the weights by OpenAI's names in OpenAI's shapes.
    """
    stored = torch.load(path, map_location="cpu", weights_only=True)
    sizes = stored["model_args"]
    if sizes["vocab_size"] < n_vocab:
        raise ValueError(
            f"{path} has a vocabulary of {sizes['vocab_size']} tokens, but the vocabulary given has {n_vocab}. A model "
            "of characters can't be converted; train it again with `gpt2-tf prepare --vocab-size chars`"
        )
    hparams = HParams(n_vocab, sizes["block_size"], sizes["n_embd"], sizes["n_head"], sizes["n_layer"])
    # torch.compile adds this prefix.
    tensors = {name.removeprefix("_orig_mod."): tensor.float().numpy() for name, tensor in stored["model"].items()}
    weights = {
        "model/wte": tensors["transformer.wte.weight"][:n_vocab],
        "model/wpe": tensors["transformer.wpe.weight"],
        **norm(tensors, "transformer.ln_f", "model/ln_f"),
    }
    for i in range(hparams.n_layer):
        for theirs, ours in LAYERS.items():
            convert = norm if theirs.startswith("ln") else linear
            weights |= convert(tensors, f"transformer.h.{i}.{theirs}", f"model/h{i}/{ours}")
    return hparams, weights


def norm(tensors: Mapping[str, np.ndarray], theirs: str, ours: str) -> dict[str, np.ndarray]:
    """Return a layer normalization's gain and bias. A model trained with `bias=False` has no bias, which equals 0."""
    gain = tensors[f"{theirs}.weight"]
    return {f"{ours}/g": gain, f"{ours}/b": tensors.get(f"{theirs}.bias", np.zeros_like(gain))}


def linear(tensors: Mapping[str, np.ndarray], theirs: str, ours: str) -> dict[str, np.ndarray]:
    """Return a linear layer's weights and bias. PyTorch's weights are [out, in], and OpenAI's are [1, in, out]."""
    w = tensors[f"{theirs}.weight"].T[None]
    return {f"{ours}/w": w, f"{ours}/b": tensors.get(f"{theirs}.bias", np.zeros(w.shape[-1], np.float32))}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convert a checkpoint of nanoGPT to OpenAI's form.")
    parser.add_argument("checkpoint", type=Path, help="nanoGPT's file, such as out/ckpt.pt")
    parser.add_argument("folder", type=Path, help="the new folder")
    parser.add_argument(
        "--vocabulary", type=Path, required=True, help="a folder with encoder.json and vocab.bpe, such as models/124M"
    )
    options = parser.parse_args(arguments)
    if options.folder.exists():
        parser.error(f"{options.folder} exists already; name a new folder")
    try:
        enc = Encoder.from_folder(options.vocabulary)
        hparams, weights = read_nanogpt(options.checkpoint, enc.n_vocab)
        checkpoint.save(options.folder, weights)
        hparams.to_json(options.folder / "hparams.json")
        enc.save(options.folder)
    except (OSError, ValueError) as error:
        print(f"convert_nanogpt.py: error: {error}", file=sys.stderr)
    except (LookupError, TypeError, AttributeError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())
        print(
            f"convert_nanogpt.py: error: {options.checkpoint} is not a checkpoint of nanoGPT: {reason:.200}",
            file=sys.stderr,
        )
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
