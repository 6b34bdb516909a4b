"""Fine-tuning and training from scratch, in plain Keras; a stopped run resumes exactly."""

from gpt2_tf.lazy import public_names

public_names(__name__, {"AdamW": "gpt2_tf.training.optimizer:AdamW", "adamw": "gpt2_tf.training.optimizer:adamw"})
