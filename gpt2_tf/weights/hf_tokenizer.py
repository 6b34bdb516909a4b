"""Tokenizer files in Hugging Face's form <-> an `Encoder`.

A folder holds `tokenizer.json`, which is read if it is there, or `vocab.json` and `merges.txt`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from encoder.bpe import BYTES, END_OF_TEXT, VERSION, Encoder
from gpt2_tf.weights.hf_settings import check_settings, read_json

VOCABULARY = ("vocab.json", "merges.txt")
FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json")
# Settings of tokenizer.json that change token ids -> the supported values.
SETTINGS = {
    "normalizer": (None,),
    "pre_tokenizer.type": ("ByteLevel",),
    "pre_tokenizer.add_prefix_space": (False,),
    "pre_tokenizer.use_regex": (True,),
    "model.type": ("BPE",),
    "model.dropout": (None, 0),
    "model.continuing_subword_prefix": (None, ""),
    "model.end_of_word_suffix": (None, ""),
    "model.ignore_merges": (False,),
}


def read_encoder(folder: Path, n_vocab: int) -> Encoder:
    """Read the encoder of a folder.

    Args:
        folder: holds `tokenizer.json`, or `vocab.json` and `merges.txt`.
        n_vocab: the count of token ids of the model. Ids without a token, as in a vocabulary that was rounded up,
            are named `<|unused50300|>` and so on.

    Raises:
        FileNotFoundError: a file of the tokenizer is missing.
        ValueError: the tokenizer is of another kind than GPT-2's (all settings that are not supported are named), or
            has more tokens than the model.

    Example:
        >>> for name, text in tokenizer_files(enc, n_ctx=1024).items():
        ...     _ = Path(name).write_text(text, encoding="utf-8")
        >>> read_encoder(Path(), enc.n_vocab).encode("ROMEO") == enc.encode("ROMEO")
        True
    """
    config_path = folder / "tokenizer_config.json"
    if config_path.exists():
        check_settings(config_path, read_json(config_path), {"add_prefix_space": (False,)})
    path = folder / "tokenizer.json"
    if not path.exists():
        added_path = folder / "added_tokens.json"
        added = read_json(added_path) if added_path.exists() else {}
        return encoder_from_files(folder / "vocab.json", folder / "merges.txt", added, n_vocab)
    tokenizer = read_json(path)
    check_settings(path, tokenizer, SETTINGS)
    if not tokenizer.get("pre_tokenizer"):
        raise ValueError(f"{path} has no pre_tokenizer, but only ByteLevel is supported")
    try:
        ids = dict(tokenizer["model"]["vocab"])
        added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a file of the tokenizers library ({error!r})") from None
    return _encoder(path, ids | added, merges, n_vocab)


def encoder_from_files(vocab: Path, merges: Path, added: Mapping[str, int], n_vocab: int) -> Encoder:
    """Read an encoder from two files such as `vocab.json` and `merges.txt`.

    Args:
        vocab: a JSON file of the ids by token.
        merges: a text file with one merge per line.
        added: the ids of further tokens.
        n_vocab: as for `read_encoder`.

    Raises:
        FileNotFoundError, ValueError: as for `read_encoder`.

    Example:
        >>> files = tokenizer_files(enc, n_ctx=1024)
        >>> for name in VOCABULARY:
        ...     _ = Path(name).write_text(files[name], encoding="utf-8")
        >>> encoder_from_files(Path("vocab.json"), Path("merges.txt"), {}, enc.n_vocab).n_vocab == enc.n_vocab
        True
    """
    return _encoder(vocab, read_json(vocab) | added, _read_merges(merges), n_vocab)


def vocab_and_merges(enc: Encoder) -> tuple[dict[str, int], list[str]]:
    """Return the contents of `vocab.json` and `merges.txt`: the ids by token, and one merge per line.

    Example:
        >>> ids, merges = vocab_and_merges(enc)
        >>> ids["<|endoftext|>"] == enc.end_of_text
        True
    """
    characters = {byte: character for character, byte in BYTES.items()}
    names = ["".join(characters[byte] for byte in token) for token in enc.tokens]
    for name, i in enc.special_tokens.items():
        names[i] = name
    return {name: i for i, name in enumerate(names)}, [f"{names[left]} {names[right]}" for left, right in enc.merges]


def tokenizer_files(enc: Encoder, n_ctx: int) -> dict[str, str]:
    """Return the contents of the tokenizer files that the transformers library loads, by the files' names.

    Args:
        enc: the encoder.
        n_ctx: the model's longest sequence in tokens, for `model_max_length`.

    Example:
        >>> sorted(tokenizer_files(enc, n_ctx=1024))
        ['merges.txt', 'tokenizer.json', 'tokenizer_config.json', 'vocab.json']
    """
    ids, merges = vocab_and_merges(enc)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **flags} for name, i in enc.special_tokens.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level | {"trim_offsets": False},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": ids,
            "merges": merges,
        },
    }
    config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": n_ctx}
    config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    return {
        "vocab.json": json.dumps(ids),
        "merges.txt": "".join(f"{line}\n" for line in (VERSION, *merges)),
        "tokenizer.json": json.dumps(tokenizer, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }


def _encoder(path: Path, ids: dict[str, int], merges: list[str], n_vocab: int) -> Encoder:
    if len(ids) > n_vocab:
        raise ValueError(f"{path} has {len(ids)} tokens, but config.json says vocab_size {n_vocab}")
    taken = [i for i in ids.values() if type(i) is int]
    ids |= {f"<|unused{i}|>": i for i in sorted(set(range(n_vocab)) - set(taken))}
    # Only distinct whole numbers can be sorted; the encoder reports anything else.
    if len(taken) == len(set(taken)) == len(ids):
        ids = dict(sorted(ids.items(), key=lambda item: item[1]))  # the order of OpenAI's encoder.json
    vocab_bpe = "".join(f"{line}\n" for line in (VERSION, *merges))
    try:
        return Encoder(json.dumps(ids).encode(), vocab_bpe.encode(), path.parent)
    except ValueError as error:
        raise ValueError(f"{path} is not a tokenizer of GPT-2's kind: {error}") from None


def _read_merges(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; the tokenizer consists of vocab.json and this file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start})") from None
    return [line.removesuffix("\r") for line in lines if line.strip() and not line.startswith("#version")]
