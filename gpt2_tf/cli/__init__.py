"""The command `gpt2-tf`."""

from gpt2_tf.lazy import public_names

public_names(__name__, {"main": "gpt2_tf.cli.main:main"})
