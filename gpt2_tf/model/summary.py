"""`model.summary()` with a row for each embedding, so that the rows add up to the model's number of parameters."""

from types import SimpleNamespace

import keras


class Embedding(keras.layers.Layer):
    """A row of the summary for a variable that belongs to the model itself.

    Example:
        >>> row = Embedding(model.wpe, (None, model.hparams.n_embd))
        >>> row.count_params() == model.hparams.n_ctx * model.hparams.n_embd
        True
    """

    def __init__(self, variable: keras.Variable, output_shape: tuple[int | None, ...]):
        super().__init__(name=variable.name)
        self.table = variable
        self.output_shape = output_shape
        self.build(output_shape)


class Summary:
    """The part of `GPT2` that prints its summary."""

    def summary(self, *args, **kwargs) -> None:
        """Print a table of the layers with their output shapes and parameter counts.

        The arguments are those of `keras.Model.summary`. Keras prints a row per layer, but `wte` and `wpe` are
        variables of the model, named as in OpenAI's checkpoints; rows for them are added here.


        Example:
            >>> lines = []
            >>> model.summary(print_fn=lines.append)
            >>> "wte (Embedding)" in lines[0] and "h0 (Block)" in lines[0]
            True
        """
        n_embd = self.hparams.n_embd
        rows = [Embedding(self.wte, (None, None, n_embd)), Embedding(self.wpe, (None, n_embd))]
        view = SimpleNamespace(
            name=self.name,
            layers=[*rows, *self.layers],
            trainable_weights=self.trainable_weights,
            non_trainable_weights=self.non_trainable_weights,
            compiled=self.compiled,
            optimizer=getattr(self, "optimizer", None),
        )
        keras.Model.summary(view, *args, **kwargs)
