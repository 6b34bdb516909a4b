"""The named places of the forward pass, where its tensors can be read and changed.

`GPT2.hidden_states` calls a `Tap` at each place, with the names that lead there and the tensor. What the tap returns
takes the tensor's place. `no_tap` returns the tensor itself, so it adds nothing to a graph.

    names                  tensor                                                     its shape
    "embed"                the sum of the token's and the position's embedding        [batch, seq, n_embd]
    "h5", "attn", "weights"  the attention of block 5, after the softmax              [batch, n_head, seq, past + seq]
    "h5", "attn", "heads"  the output of each of its heads, before `c_proj`           [batch, n_head, seq, head_dim]
    "h5", "attn", "out"    what its attention adds to the residual stream             [batch, seq, n_embd]
    "h5", "mlp", "out"     what its MLP adds to the residual stream                   [batch, seq, n_embd]
    "h5"                   the residual stream after block 5                          [batch, seq, n_embd]
"""

from collections.abc import Callable

import tensorflow as tf

Tap = Callable[..., tf.Tensor]  # tap(*names, x) -> what goes on in the place of x


def no_tap(*names_and_x: str | tf.Tensor) -> tf.Tensor:
    """Return the tensor unchanged, as the tap of an ordinary forward pass.

    Example:
        >>> float(no_tap("h5", "attn", "out", tf.constant(1.5)))
        1.5
    """
    return names_and_x[-1]
