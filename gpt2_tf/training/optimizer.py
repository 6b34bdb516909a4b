"""GPT's optimizer: AdamW with a warm-up and a cosine schedule."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="gpt2_tf")
class AdamW(keras.optimizers.AdamW):
    """Keras's AdamW, with the update of each weight done by one TensorFlow kernel.

    The formula is Keras's. `tf.raw_ops.ResourceApplyAdam` computes it in one pass over the memory, so an update takes
    half the time of Keras's own ops, and its graph a third of the nodes. `amsgrad` is not supported.

    A Keras optimizer overrides `update_step`, and reads its moments from private attributes, as Keras's AdamW does.

    Args are those of `keras.optimizers.AdamW`.

    Example:
        >>> weight = keras.Variable([1.0, 1.0])
        >>> AdamW(learning_rate=0.1, weight_decay=0.0).apply([tf.constant([1.0, -1.0])], [weight])
        >>> weight.numpy().round(4)
        array([0.9, 1.1], dtype=float32)
    """

    def update_step(self, gradient, variable, learning_rate):
        def handle(variable):
            return (variable.value if isinstance(variable, keras.Variable) else variable).handle

        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=handle(variable),
            m=handle(self._momentums[index]),
            v=handle(self._velocities[index]),
            beta1_power=tf.pow(self.beta_1, step),
            beta2_power=tf.pow(self.beta_2, step),
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(tf.convert_to_tensor(gradient), variable.dtype),
        )

    def _apply_weight_decay(self, variables):
        if not self.weight_decay:
            return
        factor = 1 - self.weight_decay * self.learning_rate
        for variable in variables:
            if self._use_weight_decay(variable):
                variable.assign(variable * tf.cast(factor, variable.dtype))


def adamw(
    learning_rate: float,
    steps: int,
    *,
    warmup_steps: int = 0,
    weight_decay: float = 0.1,
    clip_norm: float | None = 1.0,
    floor: float = 0.1,
) -> AdamW:
    """AdamW with GPT-3's settings: betas 0.9 and 0.95, a linear warm-up, then half a cosine.

    Source: "Language Models are Few-Shot Learners" (Brown et al., 2020), appendix B.

    Args:
        learning_rate: the highest learning rate, reached at the end of the warm-up.
        steps: the step at which the cosine ends, warm-up included; from there on the rate is constant.
        warmup_steps: steps in which the rate rises from 0; 0 starts at the highest rate.
        weight_decay: the decay of matrices; biases and the gains of the norms do not decay.
        clip_norm: the largest allowed norm of all gradients together; None or 0 turns clipping off.
        floor: the last rate, as a fraction of `learning_rate`; 0 to 1.

    Example:
        >>> optimizer = adamw(1e-3, steps=100, warmup_steps=10)
        >>> float(optimizer.learning_rate)  # at step 0
        0.0
        >>> _ = optimizer.iterations.assign(10)
        >>> round(float(optimizer.learning_rate), 6)
        0.001
    """
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup_steps else learning_rate,
        steps - warmup_steps,
        alpha=floor,
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
    optimizer = AdamW(
        schedule, weight_decay=weight_decay, beta_1=0.9, beta_2=0.95, epsilon=1e-8, global_clipnorm=clip_norm or None
    )
    # Biases are named b and gains g: "b" to Keras, ".../b:0" to TensorFlow.
    optimizer.exclude_from_weight_decay(var_names=["(^|/)[bg](:0)?$"])
    return optimizer
