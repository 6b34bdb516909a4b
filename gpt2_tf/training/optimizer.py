"""GPT's optimizer: AdamW on a warm-up and a cosine, in Keras's pieces, its update in one pass over the weights."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="gpt2_tf")
class AdamW(keras.optimizers.AdamW):
    """Keras's AdamW with its arithmetic, by TensorFlow's own kernel for Adam: half the time, and a third of the graph.

    Without `amsgrad`.
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
        kept = 1 - self.weight_decay * self.learning_rate
        for variable in variables:
            if self._use_weight_decay(variable):
                variable.assign(variable * tf.cast(kept, variable.dtype))


def adamw(
    learning_rate: float,
    steps: int,
    *,
    warmup_steps: int = 0,
    weight_decay: float = 0.1,
    clip_norm: float | None = 1.0,
    floor: float = 0.1,
) -> AdamW:
    """AdamW on a linear warm-up and then half a cosine down to `floor` of the rate.

    The decay is of matrices alone, not of biases and of the norms' gains. Source: "Language Models are Few-Shot
    Learners" (Brown et al., 2020), appendix B.
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
    optimizer.exclude_from_weight_decay(var_names=["(^|/)[bg](:0)?$"])  # Keras's names, or TensorFlow's
    return optimizer
