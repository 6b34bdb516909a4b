"""Interventions: functions that change the forward pass at named places, to see what depends on them.

    embed                the sum of the token's and the position's embedding        [batch, seq, n_embd]
    h5/attn/weights      the attention of block 5, after the softmax                [batch, n_head, seq, past + seq]
    h5/attn/head/3       the output of its head 3, before `c_proj`                  [batch, seq, head_dim]
    h5/attn/out          what its attention adds to the residual stream             [batch, seq, n_embd]
    h5/mlp/out           what its MLP adds to the residual stream                   [batch, seq, n_embd]
    h5                   the residual stream after block 5                          [batch, seq, n_embd]

`inspect` passes all tokens of a text at once, and pads shorter rows at their end. `generate` and `score` left-pad
shorter rows. `generate` passes the context but for its last token first, and then one token at a time.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import tensorflow as tf

from gpt2_tf.hparams import HParams
from gpt2_tf.model import kv_cache
from gpt2_tf.model.inspection import Inspecting
from gpt2_tf.model.taps import Tap, no_tap

if TYPE_CHECKING:
    from gpt2_tf.model.gpt2 import GPT2

Intervention = Callable[[tf.Tensor], tf.Tensor]


def places(hparams: HParams) -> list[str]:
    """Return the names of all places of a model.

    Example:
        >>> from gpt2_tf import HParams
        >>> places(HParams(n_vocab=260, n_ctx=32, n_embd=16, n_head=2, n_layer=1))
        ['embed', 'h0/attn/weights', 'h0/attn/head/0', 'h0/attn/head/1', 'h0/attn/out', 'h0/mlp/out', 'h0']
    """
    heads = [f"attn/head/{head}" for head in range(hparams.n_head)]
    in_block = ["attn/weights", *heads, "attn/out", "mlp/out"]
    blocks = [f"h{layer}" for layer in range(hparams.n_layer)]
    return ["embed", *(name for block in blocks for name in (*(f"{block}/{place}" for place in in_block), block))]


class Intervened(Inspecting):
    """A view of a GPT2 whose forward pass runs functions at named places. `GPT2.with_interventions` makes it.

    The weights are the model's own, and the model itself does not change. `inspect` and everything that takes a model
    and asks an `Engine` takes the view too: `generate`, `stream`, `score`, `beam_search` and the evaluation.

    Example:
        >>> from gpt2_tf import generate
        >>> without_block_2 = Intervened(model, {"h2/attn/out": tf.zeros_like, "h2/mlp/out": tf.zeros_like})
        >>> a, b = (generate(m, enc, "ROMEO:", length=8, seed=1)[0].text for m in (model, without_block_2))
        >>> a == b
        False
    """

    def __init__(self, model: "GPT2", interventions: Mapping[str, Intervention]):
        known = places(model.hparams)
        if not isinstance(interventions, Mapping):
            raise TypeError(f"interventions are {interventions!r:.60}, but must map names of places to functions")
        for place, function in interventions.items():
            if place not in known:
                raise ValueError(
                    f"there is no place {place!r} in this model; the places are embed, and for each block, here the "
                    f"last: {', '.join(known[-(len(known) // model.hparams.n_layer) :])}"
                )
            if not callable(function):
                raise TypeError(f"the intervention at {place} is {function!r:.60}, but must be a function")
        self.model, self.interventions = model, dict(interventions)
        self.hparams, self.compute_dtype = model.hparams, model.compute_dtype
        self.dtype_policy = model.dtype_policy
        self.h, self.ln_f = model.h, model.ln_f
        self.logits, self.tied_embedding = model.logits, model.tied_embedding

    def hidden_states(
        self,
        tokens: tf.Tensor,
        past: kv_cache.KVCache | None = None,
        pad_lengths: tf.Tensor | None = None,
        tap: Tap = no_tap,
    ) -> tuple[tf.Tensor, kv_cache.KVCache]:
        """Run the model's forward pass with the interventions. The arguments are those of `GPT2.hidden_states`.

        `tap` gets what the interventions return.
        """

        def intervene(*names_and_x):
            *names, x = names_and_x
            return tap(*names, self._change("/".join(names), x))

        return self.model.hidden_states(tokens, past, pad_lengths, tap=intervene)

    def traced(self, build: Callable, *arguments) -> Callable:
        """As `GPT2.traced`. Each function of the interventions is compiled once per model."""
        return self.model.traced(_build_intervened, tuple(self.interventions.items()), build, *arguments)

    def _change(self, place: str, x: tf.Tensor) -> tf.Tensor:
        block, _, rest = place.partition("/")
        if rest != "attn/heads":
            function = self.interventions.get(place)
            return _call(function, place, x) if function else x
        heads = {i: f"{block}/attn/head/{i}" for i in range(self.hparams.n_head)}
        if not self.interventions.keys() & set(heads.values()):
            return x
        outputs = tf.unstack(x, self.hparams.n_head, axis=1)  # [batch, seq, head_dim] each
        return tf.stack([self._change(heads[i], output) for i, output in enumerate(outputs)], axis=1)


def _call(function: Intervention, place: str, x: tf.Tensor) -> tf.Tensor:
    """Call an intervention, and check that its result can take the place of `x`."""
    y = function(x)
    if y is None:
        raise ValueError(f"the intervention at {place} returned None, but must return a tensor like the one it gets")
    y = tf.convert_to_tensor(y, None if tf.is_tensor(y) else x.dtype)
    if y.dtype != x.dtype or not y.shape.is_compatible_with(x.shape):
        raise ValueError(
            f"the intervention at {place} returned {y.dtype.name} {y.shape}, but must return {x.dtype.name} {x.shape}, "
            "as it got"
        )
    if not x.shape.is_fully_defined():
        # In a graph, some sizes are unknown until it runs. A reshape of `y` would check them too, but in the way of
        # TensorFlow's fusions, so that even the identity would change the last bits.
        y.set_shape(x.shape)
        tf.debugging.assert_equal(tf.shape(y), tf.shape(x), f"the intervention at {place} returned another shape")
    return y


def _build_intervened(model: "GPT2", interventions: tuple, build: Callable, *arguments) -> Callable:
    return build(Intervened(model, dict(interventions)), *arguments)


class Intervening:
    """The part of `GPT2` that is changed at named places."""

    def with_interventions(self, interventions: Mapping[str, Intervention]) -> Intervened:
        """Return a view of the model whose forward pass runs functions at named places. The model does not change.

        Args:
            interventions: maps the name of a place, such as "h5/attn/head/3", to a function that gets the tensor there
                and returns the tensor that takes its place, of the same shape and dtype. `places` lists the names.
                `generate` and `score` compile the functions, so they must consist of TensorFlow operations, and they
                are compiled again for each new function: pass the same functions again.

        Raises:
            ValueError: there is no place of that name. Later, when the model runs: a function returned another shape.
            TypeError: `interventions` does not map names to functions.

        Example:
            >>> from gpt2_tf import score
            >>> ablated = model.with_interventions({"h0/attn/head/3": tf.zeros_like})
            >>> (before,), (after,) = score(model, enc, "my lord"), score(ablated, enc, "my lord")
            >>> before == after
            False
        """
        return Intervened(self, interventions)
