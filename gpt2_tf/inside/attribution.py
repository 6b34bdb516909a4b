"""Direct logit attribution: which part of the model raises the logit of a token.

The residual stream is a sum: of the embeddings, and of what each head and each MLP adds. `ln_f` scales this sum, and
the logit is its product with the token's row of `wte`. With the scale held fixed, the logit is a sum of the same parts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gpt2_tf.hparams import is_whole
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.model.interventions import Intervened


class Attribution(NamedTuple):
    """How much each part of the model adds to the logit of a token. The parts sum to the logit.

    Attributes:
        target: the id of the token.
        logit: its logit.
        embed: the part of the embeddings of the last token and its position.
        heads: float32 [n_layer, n_head], the parts of the heads, each through its rows of `c_proj`.
        attn_bias: float32 [n_layer], the parts of the biases of the attentions' `c_proj`.
        mlp: float32 [n_layer], the parts of the MLPs.
        norm_bias: the part of the bias of `ln_f`.

    Example:
        >>> parts = attribute_logit(model, enc.encode("ROMEO:"))
        >>> total = parts.embed + parts.heads.sum() + parts.attn_bias.sum() + parts.mlp.sum() + parts.norm_bias
        >>> bool(abs(total - parts.logit) < 1e-3)
        True
    """

    target: int
    logit: float
    embed: float
    heads: np.ndarray
    attn_bias: np.ndarray
    mlp: np.ndarray
    norm_bias: float


def attribute_logit(model: GPT2 | Intervened, ids: Sequence[int], target: int | None = None) -> Attribution:
    """Divide the logit of the token after a text among the parts of the model.

    Args:
        model: a GPT2, with or without interventions. The parts do not sum to the logit where an intervention changes
            the residual stream itself (such as "h5"), or a whole attention (such as "h5/attn/out").
        ids: the token ids of the text, at most n_ctx.
        target: the id of the token. Default: the most likely one.

    Raises:
        ValueError: `ids` or `target` are not token ids that fit the model.

    Example:
        >>> parts = attribute_logit(model, enc.encode("ROMEO:"))
        >>> enc.decode([parts.target]), parts.heads.shape
        ('\\n', (4, 4))
    """
    n_vocab = model.hparams.n_vocab
    if target is not None and not is_whole(target, 0, n_vocab - 1):
        raise ValueError(f"target is {target!r}, but must be a token id from 0 to {n_vocab - 1}")
    inside = model.inspect([ids], "hidden_states", "head_out", "mlp_out", "logits")
    logits = inside.logits[0, -1]
    target = int(logits.argmax() if target is None else target)
    embedding = model.tied_embedding()[target].numpy().astype(np.float64)
    # The norm subtracts the mean of the stream. Subtracting the mean of what reads the stream is the same.
    reader = embedding * model.ln_f.g.numpy()
    reader = (reader - reader.mean()) / np.sqrt(inside.hidden_states[-1, 0, -1].var() + 1e-5)  # [n_embd]
    heads, biases = [], []
    for block, head_out in zip(model.h, inside.head_out[:, 0, :, -1], strict=True):  # [n_head, head_dim]
        # Row i of the matrix has the output of head i in its place, and zeros for the other heads.
        rows = np.eye(len(head_out))[:, :, None] * head_out  # [n_head, n_head, head_dim]
        bias = block.attn.c_proj.b.numpy()
        projected = block.attn.c_proj(tf.cast(rows.reshape(1, len(head_out), -1), model.compute_dtype))[0]
        heads.append((projected.numpy() - bias) @ reader)
        biases.append(bias @ reader)
    return Attribution(
        target,
        float(logits[target]),
        float(inside.hidden_states[0, 0, -1] @ reader),
        np.array(heads, np.float32),
        np.array(biases, np.float32),
        (inside.mlp_out[:, 0, -1] @ reader).astype(np.float32),
        float(model.ln_f.b.numpy() @ embedding),
    )
