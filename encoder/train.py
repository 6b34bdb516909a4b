"""Make a vocabulary from text: byte-level BPE, learned by the `tokenizers` library, or one token per character."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence

from encoder.bpe import BYTES, END_OF_TEXT, VERSION, Encoder


def train(files: Sequence[str | os.PathLike], n_vocab: int, folder: str | os.PathLike) -> Encoder:
    """Learn a byte-level BPE vocabulary from text files and save it.

    The ids are the 256 bytes, then `n_vocab` - 257 merges in the order in which they are learned, then
    `<|endoftext|>`. The same files give the same vocabulary, byte for byte.

    Args:
        files: UTF-8 text files. Each file must fit in memory.
        n_vocab: the number of tokens, at least 257.
        folder: where `encoder.json` and `vocab.bpe` are written; made if missing.

    Returns:
        The Encoder of the new vocabulary.

    Raises:
        ValueError: a file is empty or not UTF-8. Or the text has fewer than `n_vocab` - 257 pairs that occur twice; the
            embedding of a model with `n_vocab` tokens would then have rows that no text uses.
        ImportError: the `tokenizers` library is not installed.

    Example:
        >>> with open("text.txt", "w") as file:
        ...     _ = file.write("low lower lowest\\n" * 2)
        >>> train("text.txt", 260, "vocabulary").n_vocab
        260
    """
    files = [files] if isinstance(files, str | os.PathLike) else list(files)
    if not files:
        raise ValueError("there are no text files to learn from; give at least one")

    encoder = learn(_read_texts(files), n_vocab)
    encoder.save(folder)
    return encoder


def learn(texts: Iterable[str | list[str]], n_vocab: int) -> Encoder:
    """Learn a byte-level BPE vocabulary from texts in memory, without saving it.

    Args:
        texts: each a text, or a list of pieces of a text.
        n_vocab: the number of tokens, at least 257.

    Raises:
        ValueError, ImportError: as `train`.

    Example:
        >>> learn(["low lower lowest " * 2], 260).tokens[256:259]
        [b'lo', b'low', b' low']
    """
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise ImportError("learning a vocabulary needs the `tokenizers` library: pip install tokenizers") from None

    if n_vocab < len(BYTES) + 1:
        raise ValueError(f"n_vocab is {n_vocab}; expected at least 257: 256 bytes and {END_OF_TEXT}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab - 1, min_frequency=2, initial_alphabet=list(BYTES), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    if len(BYTES) + len(merges) + 1 < n_vocab:
        raise ValueError(
            f"the text gives only {len(BYTES) + len(merges) + 1} tokens, but n_vocab is {n_vocab}; "
            f"lower n_vocab to {len(BYTES) + len(merges) + 1}, or add text"
        )

    tokens = [*BYTES, *("".join(merge) for merge in merges), END_OF_TEXT]
    return _encoder(tokens, merges)


def characters(texts: Iterable[str]) -> Encoder:
    """Make a vocabulary in which each distinct character of the texts is one token.

    The ids are the distinct bytes of these characters, lowest first. A character of several bytes is made by merges of
    its first two, three and four bytes; these come next. The last id is `<|endoftext|>`. A text with other bytes cannot
    be encoded.

    Raises:
        ValueError: the texts are empty.

    Example:
        >>> character_encoder = characters(["hello"])
        >>> character_encoder.encode("hole")
        [1, 3, 2, 0]
        >>> character_encoder.n_vocab
        5
    """
    found = set()
    for text in texts:
        found.update(text)
    if not found:
        raise ValueError("the texts are empty; a vocabulary of characters needs at least one character")
    found = {character.encode() for character in found}
    name = {byte: character for character, byte in BYTES.items()}
    tokens = [name[byte] for byte in sorted(set().union(*found))]
    merges = {}  # a dict, because it keeps the order and drops duplicates
    for first, *others in sorted(found):
        token = name[first]
        for byte in others:
            merges[token, name[byte]] = None
            token += name[byte]
    return _encoder([*tokens, *("".join(merge) for merge in merges), END_OF_TEXT], list(merges))


def _encoder(tokens: list[str], merges: list[tuple[str, str]]) -> Encoder:
    encoder_json = json.dumps({token: i for i, token in enumerate(tokens)})
    vocab_bpe = "".join(f"{line}\n" for line in [VERSION, *(" ".join(merge) for merge in merges)])
    return Encoder(encoder_json.encode(), vocab_bpe.encode())


def _read_texts(files: Sequence[str | os.PathLike]) -> Iterator[list[str]]:
    """Read each file as pieces of text, cut before each newline that a letter follows.

    GPT-2's pattern cuts there too, so the pieces give the same counts as the whole text.
    """
    for path in files:
        with open(path, "rb") as file:
            content = file.read()
        try:
            text = content.decode().removeprefix("\ufeff")  # Windows editors write a byte order mark
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{os.fspath(path)}: not UTF-8 at byte offset {error.start} (byte {content[error.start]:#04x}); "
                f"expected UTF-8 text; convert the file, or leave it out"
            ) from None
        if 4 * text.count("\0") > len(text):
            raise ValueError(f"{os.fspath(path)}: the file is UTF-16; expected UTF-8 text; convert the file")
        if not text:
            raise ValueError(f"{os.fspath(path)}: the file is empty; expected UTF-8 text")
        yield re.split(r"(?=\n\w)", text)
