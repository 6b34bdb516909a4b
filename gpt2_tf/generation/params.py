"""The settings of sampling."""

STOP = ("<|endoftext|>",)
