"""Weights on disk: OpenAI's TensorFlow checkpoints and Hugging Face's folders, both read and written.

Tensors are read and written one at a time, by OpenAI's names. This package knows names and shapes, but not the model.

    checkpoint          a folder's checkpoint in OpenAI's form: find, restore, save, remove
    tensor_bundle       TensorFlow's checkpoint format
    leveldb_table       the table that is a checkpoint's index
    protobuf            the encoding of the index's entries
    huggingface         Hugging Face's config.json and weights; models of the Hugging Face hub
    hf_tokenizer        Hugging Face's tokenizer files <-> an Encoder
    hf_settings         the JSON files of such folders, and which settings are supported
    peft                LoRA adapters in the form of Hugging Face's PEFT
    safetensors         the safetensors format
    lazy_tensor         a tensor whose values are read when they are needed
"""
