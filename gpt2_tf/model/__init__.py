"""The network: GPT-2's layers, its loss, LoRA, and training on several devices."""

from gpt2_tf.lazy import public_names

public_names(__name__, {"GPT2": "gpt2_tf.model.gpt2:GPT2", "cross_entropy": "gpt2_tf.model.loss:cross_entropy"})
