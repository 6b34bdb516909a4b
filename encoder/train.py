"""Learn a byte-level BPE vocabulary from texts (with the `tokenizers` library), or take their characters for one."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence

from encoder.bpe import BYTES, END_OF_TEXT, VERSION, Encoder


def train(files: Sequence[str | os.PathLike], n_vocab: int, folder: str | os.PathLike) -> Encoder:
    """Learn `n_vocab` tokens from UTF-8 `files`, write encoder.json and vocab.bpe into `folder`, return the Encoder.

    The ids are 256 bytes, `n_vocab` - 257 merges in the order learned, and last `<|endoftext|>`. The same files give
    the same bytes. Each file is read whole, so it must fit in memory, with its words and their counts. ValueError for
    a file that is empty or not UTF-8, or where the text has too few pairs seen twice to give `n_vocab` tokens: a model
    built for `n_vocab` would hold rows that no text can reach.
    """
    files = [files] if isinstance(files, str | os.PathLike) else list(files)
    if not files:
        raise ValueError("no text files to learn from; expected at least one")

    encoder = learn(_pieces(files), n_vocab)
    encoder.save(folder)
    return encoder


def learn(texts: Iterable[str | list[str]], n_vocab: int) -> Encoder:
    """The vocabulary of `n_vocab` tokens that `train` would learn from files with these texts, written nowhere."""
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise ImportError("training a vocabulary needs the extra `tokenizers`: pip install tokenizers") from None

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
            f"the text gives {len(BYTES) + len(merges) + 1} tokens, and n_vocab is {n_vocab}: "
            f"lower n_vocab to that, or add text"
        )

    tokens = [*BYTES, *("".join(merge) for merge in merges), END_OF_TEXT]
    return _encoder(tokens, merges)


def characters(texts: Iterable[str]) -> Encoder:
    """The vocabulary in which each distinct character of the texts is one token.

    The ids are the characters' distinct bytes, lowest first; then, for each character of several bytes, merges of its
    first two, three and four; last `<|endoftext|>`. A text with other bytes can't be encoded. ValueError for no text.
    """
    found = set()
    for text in texts:
        found.update(text)
    if not found:
        raise ValueError("there is no text to take the characters of; expected some")
    found = {character.encode() for character in found}
    name = {byte: character for character, byte in BYTES.items()}
    tokens = [name[byte] for byte in sorted(set().union(*found))]
    merges = {}  # in the order they come, each once
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


def _pieces(files: Sequence[str | os.PathLike]) -> Iterator[list[str]]:
    """The text of each file, cut where GPT-2's pattern cuts it anyway: before a newline that a letter follows."""
    for path in files:
        with open(path, "rb") as file:
            content = file.read()
        if not content:
            raise ValueError(f"{os.fspath(path)}: the file is empty; expected UTF-8 text")
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{os.fspath(path)}: not UTF-8 at byte offset {error.start} (byte {content[error.start]:#04x}); "
                f"expected UTF-8 text: convert the file, or leave it out"
            ) from None
        yield re.split(r"(?=\n\w)", text)
