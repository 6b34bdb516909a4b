"""GPT-2's byte-level BPE: text to token ids and back, with exactly OpenAI's ids.

This package works without `gpt2_tf` and, except for `graph.py`, without TensorFlow.

- `bpe.py`: `Encoder` and `get_encoder`, which read OpenAI's `encoder.json` and `vocab.bpe`.
- `graph.py`: the same encoder as TensorFlow operations, for `tf.data` and for exported models.
- `train.py`: learn a new vocabulary from text.
"""

from encoder.bpe import Encoder, get_encoder

__all__ = ["Encoder", "get_encoder"]
