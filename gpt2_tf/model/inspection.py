"""`inspect`: the tensors inside the model, for given tokens, as NumPy arrays."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gpt2_tf.hparams import HParams

# Where in a block, or before the first block, each output is read. The logits come after the blocks.
PLACES = {
    (): "hidden_states",
    ("attn", "weights"): "attentions",
    ("attn", "heads"): "head_out",
    ("attn", "out"): "attn_out",
    ("mlp", "out"): "mlp_out",
}
OUTPUTS = (*PLACES.values(), "logits")
MAX_BYTES = 4 * 10**9


class Inspection(NamedTuple):
    """What `inspect` has read: float32 arrays. An output that was not asked for is None.

    Shorter rows of a batch are padded at their end. All values at padding are 0.

    Attributes:
        lengths: int [batch], the number of tokens of each row.
        hidden_states: [n_layer + 1, batch, seq, n_embd], the residual stream: the embeddings, then the stream after
            each block. All of them are before `ln_f`. In transformers, the last one is after `ln_f` instead.
        attentions: [n_layer, batch, n_head, seq, seq], the share of each token (last axis) in what each head reads for
            each token. A row sums to 1.
        head_out: [n_layer, batch, n_head, seq, head_dim], the output of each head, before `c_proj`.
        attn_out: [n_layer, batch, seq, n_embd], what each block's attention adds to the residual stream.
        mlp_out: [n_layer, batch, seq, n_embd], what each block's MLP adds to the residual stream.
        logits: [batch, seq, n_vocab], of each next token.

    Example:
        >>> inside = model.inspect([enc.encode("ROMEO:")], "attn_out", "mlp_out", "hidden_states")
        >>> after_block_0 = inside.hidden_states[0] + inside.attn_out[0] + inside.mlp_out[0]
        >>> bool(abs(after_block_0 - inside.hidden_states[1]).max() < 1e-5), inside.logits is None
        (True, True)
    """

    lengths: np.ndarray
    hidden_states: np.ndarray | None = None
    attentions: np.ndarray | None = None
    head_out: np.ndarray | None = None
    attn_out: np.ndarray | None = None
    mlp_out: np.ndarray | None = None
    logits: np.ndarray | None = None


def inspection_shapes(hparams: HParams, batch: int, seq: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each output of `inspect`, by name. An array takes 4 bytes per number.

    Example:
        >>> from math import prod
        >>> from gpt2_tf import HParams
        >>> shape = inspection_shapes(HParams.from_size("124M"), batch=1, seq=1024)["attentions"]
        >>> shape, 4 * prod(shape)  # bytes
        ((12, 1, 12, 1024, 1024), 603979776)
    """
    n_layer, n_head, n_embd = hparams.n_layer, hparams.n_head, hparams.n_embd
    return {
        "hidden_states": (n_layer + 1, batch, seq, n_embd),
        "attentions": (n_layer, batch, n_head, seq, seq),
        "head_out": (n_layer, batch, n_head, seq, hparams.head_dim),
        "attn_out": (n_layer, batch, seq, n_embd),
        "mlp_out": (n_layer, batch, seq, n_embd),
        "logits": (batch, seq, hparams.n_vocab),
    }


def right_pad(rows: Sequence[Sequence[int]] | np.ndarray | tf.Tensor, hparams: HParams) -> tuple[tf.Tensor, np.ndarray]:
    """Pad rows of token ids at their end. Later tokens are masked, so padding changes nothing before it.

    Args:
        rows: int [batch, seq], or rows of different lengths.
        hparams: the sizes of the model.

    Returns:
        The tokens, int32 [batch, seq], and the length of each row, int [batch].

    Raises:
        ValueError: the rows are not token ids of the vocabulary, or longer than the model's window.

    Example:
        >>> tokens, lengths = right_pad([[10, 20, 30], [40]], model.hparams)
        >>> tokens.numpy().tolist(), lengths.tolist()
        ([[10, 20, 30], [40, 0, 0]], [3, 1])
    """
    rows = [rows] if isinstance(rows, str) else list(rows)
    if any(isinstance(row, str) for row in rows):
        raise ValueError("tokens are text, but must be integers [batch, seq]; encode the text first: enc.encode(text)")
    if not rows:
        raise ValueError("there are no tokens; give at least one row of token ids")
    arrays = [np.asarray(row) for row in rows]
    for number, row in enumerate(arrays, start=1):
        if row.ndim != 1 or not row.size or row.dtype.kind not in "iu":
            raise ValueError(
                f"row {number} of the tokens is {row.dtype} {[*row.shape]}, but must be at least one token id; give a "
                "list of rows: inspect([enc.encode(text)])"
            )
        if row.min() < 0 or row.max() >= hparams.n_vocab:
            wrong = row[(row < 0) | (row >= hparams.n_vocab)][0]
            raise ValueError(f"row {number} has the token id {wrong}, but ids go from 0 to {hparams.n_vocab - 1}")
        if row.size > hparams.n_ctx:
            raise ValueError(
                f"row {number} has {row.size:,} tokens, more than the model's window, {hparams.n_ctx:,}; shorten it"
            )
    lengths = np.array([row.size for row in arrays])
    tokens = np.zeros([len(arrays), lengths.max()], np.int32)
    for padded, row in zip(tokens, arrays, strict=True):
        padded[: row.size] = row
    return tf.constant(tokens), lengths


class Inspecting:
    """The part of a model that shows its inside."""

    def inspect(
        self,
        tokens: Sequence[Sequence[int]] | np.ndarray | tf.Tensor,
        *outputs: str,
        max_bytes: int = MAX_BYTES,
    ) -> Inspection:
        """Run the forward pass, and return what is computed inside it.

        Only the arrays that are asked for are made. Each is filled while the model runs, so the model itself needs
        little more memory than for one block. The forward pass is not compiled.

        Args:
            tokens: int [batch, seq], or rows of different lengths, each at most `n_ctx` tokens long.
            outputs: the names of the outputs, which are the fields of `Inspection`. Without a name, all of them.
            max_bytes: the most that the arrays may take together. More is an error, before anything is computed.
                Default: 4 GB. `inspection_shapes` tells the sizes.

        Raises:
            ValueError: there is no output of that name, the arrays would be too large, or `tokens` are not token ids of
                the vocabulary that fit the model's window.

        Example:
            >>> inside = model.inspect([enc.encode("ROMEO:"), enc.encode("O Romeo, Romeo!")], "attentions")
            >>> inside.attentions.shape == (4, 2, 4, inside.lengths.max(), inside.lengths.max())
            True
        """
        names = outputs or OUTPUTS
        if unknown := [name for name in names if name not in OUTPUTS]:
            raise ValueError(f"there is no output {unknown[0]!r}; the outputs are {', '.join(OUTPUTS)}")
        tokens, lengths = right_pad(tokens, self.hparams)
        arrays = _allocate(self.hparams, tokens.shape, names, max_bytes)

        def record(*names_and_x):
            block, *place, x = names_and_x
            name = PLACES[tuple(place)]
            if name in arrays:
                number = -1 if block == "embed" else int(block[1:])
                arrays[name][number + (name == "hidden_states")] = x.numpy()
            return x

        h, _ = self.hidden_states(tokens, tap=record)
        if "logits" in arrays:
            for row, hidden in enumerate(h):  # row by row, so that the logits are not in memory twice
                arrays["logits"][row] = self.logits(hidden[None])[0].numpy()
        for row, length in enumerate(lengths):
            for name, array in arrays.items():
                values = array[row] if name == "logits" else array[:, row]
                values[(..., slice(length, None), slice(None))] = 0
        return Inspection(lengths, **arrays)


def _allocate(hparams: HParams, shape: tf.TensorShape, names: Collection[str], max_bytes: int) -> dict[str, np.ndarray]:
    """The empty arrays, by name. ValueError with their sizes if they would take more than `max_bytes`."""
    shapes = {name: size for name, size in inspection_shapes(hparams, *shape).items() if name in names}
    sizes = {name: 4 * np.prod(size, dtype=float) for name, size in shapes.items()}
    if (total := sum(sizes.values())) > max_bytes:
        largest = max(sizes, key=sizes.get)
        numbers = " x ".join(map(str, shapes[largest]))
        raise ValueError(
            f"the arrays would take {total / 1e9:.2f} GB, more than max_bytes, {max_bytes / 1e9:.2f} GB; the largest "
            f"is {largest}: {numbers} x 4 bytes; ask for fewer outputs or tokens, or raise max_bytes"
        )
    return {name: np.empty(size, np.float32) for name, size in shapes.items()}
