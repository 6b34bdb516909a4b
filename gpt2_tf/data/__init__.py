"""Text files -> documents -> token ids -> batches.

text_file  decodes the text of files and of stdin
corpus     finds text files and reads their documents
prepare    tokenizes documents into a folder of token ids, as `gpt2-tf prepare` does
prepared   reads such a folder, or a `.bin` of nanoGPT or llm.c
dataset    token ids -> batches of tokens and targets, as Keras's `fit` takes them
"""

from gpt2_tf.lazy import public_names

public_names(
    __name__,
    {
        "Prepared": "gpt2_tf.data.prepared:Prepared",
        "documents": "gpt2_tf.data.dataset:documents",
        "load_prepared": "gpt2_tf.data.prepared:load_prepared",
        "windows": "gpt2_tf.data.dataset:windows",
    },
)
