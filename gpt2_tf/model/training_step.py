"""The training step: `compile`, `fit` and `evaluate` with the model's own loss."""

from typing import Any

import keras
import tensorflow as tf

from gpt2_tf.model import distribute, ops
from gpt2_tf.model.loss import cross_entropy


def unpack_batch(data: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the tokens and targets of the batch that Keras passes to a step.

    Example:
        >>> tokens, targets = unpack_batch((tf.constant([[1, 2]]), tf.constant([[2, 3]])))
        >>> targets.numpy().tolist()
        [[2, 3]]
    """
    tokens, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if targets is None:
        raise ValueError(
            "the model's own loss takes tokens and targets, but got no targets; to train on rows of token ids, call "
            "model.fit(rows[:, :-1], rows[:, 1:])"
        )
    if sample_weight is not None:
        raise ValueError(
            "the model's own loss takes tokens and targets, without sample weights; set a target to -1 to leave it out"
        )
    if not targets.dtype.is_integer or not tokens.shape.is_compatible_with(targets.shape):
        raise ValueError(
            f"targets are {targets.dtype.name} {targets.shape}, but must be integers of the same shape as the tokens, "
            f"{tokens.shape}"
        )
    return tokens, targets


def count_targets(targets: tf.Tensor) -> tf.Tensor:
    """Return the number of targets that are not padding, float32 [].

    Example:
        >>> float(count_targets(tf.constant([[5, 7, -1]])))
        2.0
    """
    return tf.reduce_sum(tf.cast(targets >= 0, tf.float32))


def reject_text(x: Any) -> None:
    """Raise a ValueError if `x` is text, which Keras would call an invalid dtype or an unrecognized data type.

    Example:
        >>> reject_text("To be, or not to be")
        Traceback (most recent call last):
        ValueError: fit got text, but takes token ids; ...
    """
    first = x
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if isinstance(first, str | bytes) or getattr(getattr(first, "dtype", None), "kind", "") in {"U", "S"}:
        raise ValueError(
            "fit got text, but takes token ids; encode the text first: rows = np.array([enc.encode(text)]), then "
            "model.fit(rows[:, :-1], rows[:, 1:])"
        )


class TrainingStep(keras.Model):
    """The part of `GPT2` that trains and evaluates on the model's own loss.

    The loss reads the hidden states, so the logits of a whole batch are never in memory.
    """

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "adamw",
        loss: Any = None,
        *,
        grad_accumulation: int = 1,
        jit_compile: bool = False,
        **kwargs,
    ) -> None:
        """Prepare the model for `fit` and `evaluate`.

        Without a `loss`, the model's own loss is used: the mean cross-entropy of the targets, in nats. `fit` then takes
        batches `(tokens, targets)`, int [batch, seq] each. Targets below 0 are padding and have no part in the loss. A
        batch that is all padding has loss 0 and changes nothing.

        Args:
            optimizer: a Keras optimizer or its name; "adamw" by default.
            loss: a Keras loss on the logits; None (the default) is the model's own loss.
            grad_accumulation: number of equal parts that a batch is split into, which are computed one after the other
                to save memory; at least 1, the default. Must divide the batch size.
            jit_compile: compile with XLA; off by default, since on a CPU the compilation takes longer than it saves.
            kwargs: other arguments of `keras.Model.compile`.

        Raises:
            ValueError: `grad_accumulation` is given with a `loss`, or `metrics` without one.

        Example:
            >>> from gpt2_tf import GPT2, HParams
            >>> import numpy as np
            >>> small = GPT2(HParams(n_vocab=260, n_ctx=32, n_embd=16, n_head=2, n_layer=1))
            >>> small.compile("adamw")
            >>> rows = np.tile(np.arange(9), [4, 1])
            >>> history = small.fit(rows[:, :-1], rows[:, 1:], batch_size=2, epochs=1, verbose=0)
            >>> 5 < history.history["loss"][0] < 6  # untrained: about log 260 = 5.56
            True
        """
        if loss is not None and grad_accumulation != 1:
            raise ValueError(
                "grad_accumulation is for the model's own loss only; with another loss, give the optimizer "
                "gradient_accumulation_steps instead"
            )
        if loss is None and (kwargs.get("metrics") or kwargs.get("weighted_metrics")):
            raise ValueError(
                "metrics need the logits, which the model's own loss never computes for a whole batch; leave metrics "
                "out, or compile with loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)"
            )
        self.grad_accumulation = grad_accumulation
        super().compile(optimizer=optimizer, loss=loss, jit_compile=jit_compile, **kwargs)
        if loss is None and self.distribute_strategy.num_replicas_in_sync > 1:
            # `train_step` has already summed the gradients across replicas; stop Keras from reducing them again. Keras
            # would also clip each replica's gradients before the sum.
            getattr(self.optimizer, "inner_optimizer", self.optimizer)._all_reduce_sum_gradients = list

    def get_compile_config(self):
        config = super().get_compile_config()
        return config and {**config, "grad_accumulation": self.grad_accumulation}

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def fit(self, x=None, *args, **kwargs):
        reject_text(x)
        return super().fit(x, *args, **kwargs)

    def make_train_function(self, force=False):
        # A traced function that makes variables runs their initializers in a `tf.cond`. With several replicas, that
        # fails beside the `tf.cond` of `run_if`. So the optimizer's variables are made before the step is traced.
        if not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def train_step(self, data):
        with ops.free_gradients_with(self):
            return self._own_loss_step(data) if self.loss is None else super().train_step(data)

    def _own_loss_step(self, data: Any) -> dict[str, tf.Tensor]:
        tokens, targets = unpack_batch(data)
        # The number of targets of all replicas, so that each target counts once in the mean.
        count = distribute.all_reduce_sum(count_targets(targets))

        def loss_and_gradients(tokens, targets):
            with tf.GradientTape() as tape:
                h, _ = self.hidden_states(tokens, training=True)
                frozen = bool(self.lora_rank)
                loss = cross_entropy(h, self.tied_embedding(), targets, training=True, frozen=frozen)
                loss /= tf.maximum(count, 1)
                scaled = self.optimizer.scale_loss(loss)
            return loss, tape.gradient(scaled, self.trainable_variables)

        n = self.grad_accumulation
        if n == 1:
            loss, gradients = loss_and_gradients(tokens, targets)
        else:
            tokens, targets = (tf.reshape(part, [n, -1, part.shape[1]]) for part in (tokens, targets))
            zeros = (0.0, [tf.zeros(variable.shape, variable.dtype) for variable in self.trainable_variables])

            def add_part(i, sums):
                return i + 1, tf.nest.map_structure(tf.add, sums, loss_and_gradients(tokens[i], targets[i]))

            _, (loss, gradients) = tf.while_loop(lambda i, _: i < n, add_part, (0, zeros), parallel_iterations=1)
        loss, gradients = distribute.all_reduce_sum((loss, gradients))
        # Without targets, the gradients are zero, but momentum and weight decay would still move the weights.
        distribute.run_if(count > 0, lambda grads: self.optimizer.apply(grads, self.trainable_variables), gradients)
        return self._update_metrics(loss, count)

    def test_step(self, data):
        if self.loss is not None:
            return super().test_step(data)
        tokens, targets = unpack_batch(data)
        count = count_targets(targets)
        nats = cross_entropy(self.hidden_states(tokens, training=False)[0], self.tied_embedding(), targets)
        nats, count = distribute.all_reduce_sum((nats, count))
        return self._update_metrics(nats / tf.maximum(count, 1), count)

    def _update_metrics(self, loss: tf.Tensor, count: tf.Tensor) -> dict[str, tf.Tensor]:
        """Update the mean loss of the epoch, in which each target counts once, and return all metrics."""
        # Keras's metric of the loss. It has no public name, and only Keras's own losses update it.
        self._loss_tracker.update_state(loss, sample_weight=count)
        result = self.get_metrics_result()
        if distribute.is_multi_worker(self.distribute_strategy):
            # With several workers, Keras averages each metric over its first axis, so a scalar would fail.
            result = {name: value[None] for name, value in result.items()}
        return result

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Before `fit`, Keras reads a batch to build the layers, which fails under some strategies. The layers of GPT2
        # are built when it is made, so only the metrics of another loss need this.
        if self.loss is not None:
            super()._maybe_symbolic_build(iterator, data_batch)
