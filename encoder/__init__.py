"""Byte-level BPE as in OpenAI's GPT-2: text <-> token ids. `encoder.train` learns a new vocabulary."""

from encoder.bpe import Encoder, get_encoder

__all__ = ["Encoder", "get_encoder"]
