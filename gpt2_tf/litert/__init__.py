"""GPT-2 on LiteRT, TensorFlow's runtime for CPUs: quick to start, fast, and without TensorFlow at run time.

    graph.py          the forward pass as a graph of LiteRT operations, with a KV cache of fixed capacity
    model_file.py     weights and graphs -> files
    kept.py           where the engine keeps its files, and whether they are intact
    graph_files.py    the folder from which the engine runs: written when needed, checked before use
    runtime.py        runs one graph
    decoder.py        tokens -> logits, for a batch of texts
    logits.py         the filters, in NumPy
    sampler.py        logits -> the next token, in NumPy
    speculative.py    speculative decoding: proposals of a draft, which the model verifies
    beam_search.py    the search of beams, in NumPy
    engine.py         LiteRTEngine: the Engine on top of these

Public name: `LiteRTEngine`. `gpt2_tf.load(..., engine="litert")` makes one.
"""

from gpt2_tf.lazy import public_names

public_names(__name__, {"LiteRTEngine": "gpt2_tf.litert.engine:LiteRTEngine"})
