"""Logits -> text: filters, sampling, stop strings, the decoding loop, speculative decoding, beam search, scores."""

from gpt2_tf.lazy import public_names

public_names(
    __name__,
    {
        "SamplingParams": "gpt2_tf.generation.params:SamplingParams",
        "generate": "gpt2_tf.generation.generate:generate",
        "stream": "gpt2_tf.generation.generate:stream",
        "score": "gpt2_tf.generation.generate:score",
        "Completion": "gpt2_tf.generation.generate:Completion",
        "beam_search": "gpt2_tf.generation.beam_search:beam_search",
        "sample_sequence": "gpt2_tf.generation.decoding:sample_sequence",
    },
)
