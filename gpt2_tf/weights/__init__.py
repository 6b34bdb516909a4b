"""Weights on disk, as OpenAI's TensorFlow checkpoints and as Hugging Face's safetensors, both read and written."""
