"""Logits -> text. A model is used through an `Engine`, so that another decoder than TensorFlow's can stand in.

    params.py             SamplingParams: how a text is sampled; every setting's type, range, default and help
    engine.py             Engine: the protocol between generation and a decoder
    generate.py           generate, stream, completions: text in, text out
    sample_sequence.py    OpenAI's sample_sequence: token ids in, token ids out
    beam_search.py        beam_search: text in, the best texts out
    likelihood.py         score: the log-probabilities of given texts
    stop_strings.py       where a text ends

The TensorFlow engine; nothing above imports it before a GPT2 is used:

    tensorflow_engine.py  TensorFlowEngine: the Engine of a GPT2
    decoding.py           prefill, decode_one_token and the compiled loop
    sampler.py            one token from its logits: the filters in order, then the draw
    logits.py             the filters: temperature, top-k, top-p, min-p, penalties
    noise.py              the random numbers of each seed and row
    prompt_lookup.py      proposals for the next tokens that need no model
    speculative.py        speculative decoding with draft models
    beam_decoding.py      the compiled loop of beam search
"""

from gpt2_tf.lazy import public_names

public_names(
    __name__,
    {
        "SamplingParams": "gpt2_tf.generation.params:SamplingParams",
        "Engine": "gpt2_tf.generation.engine:Engine",
        "TensorFlowEngine": "gpt2_tf.generation.tensorflow_engine:TensorFlowEngine",
        "generate": "gpt2_tf.generation.generate:generate",
        "stream": "gpt2_tf.generation.generate:stream",
        "Completion": "gpt2_tf.generation.generate:Completion",
        "sample_sequence": "gpt2_tf.generation.sample_sequence:sample_sequence",
        "beam_search": "gpt2_tf.generation.beam_search:beam_search",
        "Hypothesis": "gpt2_tf.generation.beam_search:Hypothesis",
        "score": "gpt2_tf.generation.likelihood:score",
    },
)
