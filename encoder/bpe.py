"""Text to token ids and back, by OpenAI's two files: `encoder.json` (token -> id) and `vocab.bpe` (the merges).

OpenAI's rule merges the neighbouring pair that `vocab.bpe` lists first. The fast library tiktoken, which does the
encoding here, merges the neighbours whose joined bytes have the lowest id. Both rules give the same ids for most
vocabularies. This file reads a vocabulary and refuses those for which the two rules differ.
"""

import copy
import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from operator import index

import tiktoken

END_OF_TEXT = "<|endoftext|>"
VERSION = "#version: 0.2"  # the first line of a vocab.bpe
OPENAI_MERGES = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"  # SHA-256 of OpenAI's vocab.bpe

# OpenAI's pattern, 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+, with possessive
# quantifiers (++), which never backtrack. For `\s+(?!\S)`, tiktoken's engine keeps a stack entry per space and fails at
# a million spaces, so spaces are matched in blocks of 256.
# OpenAI used Python's `regex` package. Its \s equals tiktoken's. Its \p{L} and \p{N} differ only in characters that the
# older of the two does not know: tiktoken 0.14 has Unicode 16, and `regex` gets a new Unicode version every autumn.
PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|(?:\s{256}(?=\s\s))*+\s+(?!\S)|\s"

# The printable character that stands for each byte in the two files, in the order of OpenAI's ids 0 to 255. Printable
# bytes come first and stand for themselves. The other bytes follow, as the characters from U+0100.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = {chr(byte): byte for byte in _PRINTABLE}
BYTES |= {chr(256 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)}


class Encoder:
    """Text to token ids and back, with exactly OpenAI's ids.

    Attributes:
        n_vocab: int, the number of tokens.
        end_of_text: int, the id of `<|endoftext|>`.
        special_tokens: dict, name -> id of `<|endoftext|>` and other tokens that are neither bytes nor merged.
        unused_ids: list, ids that stand for no token. A model padded to a round number of ids has some. They are named
            `<|unused50281|>` and so on, and are never generated.
        added_tokens: dict, the special tokens that someone added to OpenAI's vocabulary, such as `<speaker1>`. They
            are recognized in every text.
        tokens: list, the bytes of each token, by id.
        merges: dict, pair of ids -> id of the merged token; pairs that merge first come first.

    Args:
        encoder_json: the content of `encoder.json`.
        vocab_bpe: the content of `vocab.bpe`.
        folder: the files' folder, used only in error messages.

    Raises:
        ValueError: the two files are damaged, or not a vocabulary together.

    Example:
        >>> ids = enc.encode("To be, or not to be")
        >>> enc.decode(ids)
        'To be, or not to be'
        >>> enc.n_vocab, enc.end_of_text
        (1024, 1023)
    """

    def __init__(self, encoder_json: bytes, vocab_bpe: bytes, folder: str | os.PathLike = ""):
        self._files = {"encoder.json": encoder_json, "vocab.bpe": vocab_bpe}
        ids = _read_ids(encoder_json, os.path.join(folder, "encoder.json"))
        ranks, self.merges = _read_merges(vocab_bpe, ids, os.path.join(folder, "vocab.bpe"))
        self.special_tokens = _special_tokens(ids, ranks, folder)
        self.n_vocab = len(ids)
        self.end_of_text = self.special_tokens[END_OF_TEXT]
        self.unused_ids = [i for name, i in self.special_tokens.items() if name == f"<|unused{i}|>"]
        not_added = {self.end_of_text, *self.unused_ids}
        self.added_tokens = {name: i for name, i in self.special_tokens.items() if i not in not_added}
        self.tokens = [b""] * self.n_vocab
        for token, i in ranks.items():
            self.tokens[i] = token
        for name, i in self.special_tokens.items():
            self.tokens[i] = name.encode()
        self._bytes = b"".join(token for token in ranks if len(token) == 1)
        self._bpe = tiktoken.Encoding(
            "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=self.special_tokens
        )

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "Encoder":
        """Read `encoder.json` and `vocab.bpe` in a folder.

        Raises:
            FileNotFoundError: one of the two files is missing.
            ValueError: the files are damaged.

        Example:
            >>> enc.save("vocabulary")
            >>> Encoder.from_folder("vocabulary").n_vocab
            1024
        """
        contents = []
        for name in ("encoder.json", "vocab.bpe"):
            path = os.path.join(folder, name)
            try:
                # Not by gpt2_tf.files, because this package works without gpt2_tf.
                if stat.S_ISFIFO(os.stat(path).st_mode) or stat.S_ISCHR(os.stat(path).st_mode):
                    raise ValueError(f"{path} is a pipe or a device, but must be a regular file")
                with open(path, "rb") as file:
                    contents.append(file.read())
            except FileNotFoundError:
                raise FileNotFoundError(
                    f"no {name} in {os.fspath(folder)!r}: expected a model's folder with encoder.json and vocab.bpe; "
                    f"`gpt2-tf download` fetches OpenAI's"
                ) from None
        return cls(*contents, folder=folder)

    def save(self, folder: str | os.PathLike) -> None:
        """Write `encoder.json` and `vocab.bpe`, with the same bytes that were read. Each file appears complete.

        Args:
            folder: made if missing; files of the same name in it are replaced.

        Raises:
            OSError: a file cannot be written.

        Example:
            >>> enc.save("copy")
            >>> sorted(os.listdir("copy"))
            ['encoder.json', 'vocab.bpe']
        """
        os.makedirs(folder, exist_ok=True)
        for name, content in self._files.items():
            path = os.path.join(folder, name)
            temporary = f"{path}.{os.getpid()}.tmp"  # not by gpt2_tf.files, because this package works without gpt2_tf
            try:
                with open(temporary, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException as error:
                if os.path.exists(temporary):
                    os.remove(temporary)
                if isinstance(error, OSError) and error.errno is not None:
                    raise OSError(error.errno, error.strerror, path) from error
                raise

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """Return the token ids of a text.

        Python strings can hold surrogates, which UTF-8 cannot. A pair of surrogates is read as the character that it
        stands for. An unpaired surrogate is read as U+FFFD, the replacement character.

        Args:
            text: any text.
            allowed_special: the names of the special tokens to recognize in the text beside `added_tokens`, or "all".
                Default none, so "<|endoftext|>" is plain text, as in OpenAI's code.

        Raises:
            ValueError: the vocabulary lacks a token of `allowed_special`, or has no bytes for a character.

        Example:
            >>> enc.encode("ROMEO:<|endoftext|>", allowed_special=["<|endoftext|>"])[-1] == enc.end_of_text
            True
            >>> enc.end_of_text in enc.encode("ROMEO:<|endoftext|>")
            False
        """
        allowed = self._allowed(allowed_special)
        self._check(text, allowed)
        return self._bpe.encode(text, allowed_special=allowed, disallowed_special=())

    def encode_batch(
        self, texts: Sequence[str], allowed_special: Collection[str] = (), num_threads: int = 8
    ) -> list[list[int]]:
        """Return the token ids of each text, as `encode` gives them, computed in several threads.

        Args:
            texts: a sequence of texts.
            allowed_special: as in `encode`.
            num_threads: the number of threads, at least 1; default 8.

        Example:
            >>> enc.encode_batch(["To be", "or not"]) == [enc.encode("To be"), enc.encode("or not")]
            True
        """
        if isinstance(texts, str):
            raise TypeError("encode_batch takes a list of texts, not a str; use encode for a single text")
        allowed = self._allowed(allowed_special)
        for text in texts:
            self._check(text, allowed)
        return self._bpe.encode_batch(texts, num_threads=num_threads, allowed_special=allowed, disallowed_special=())

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """Return the text of token ids.

        Args:
            ids: a sequence or 1-D array of integers from 0 to n_vocab - 1.
            errors: what to do with incomplete UTF-8, as in `bytes.decode`. Ids can end inside a character; the default
                "replace" gives U+FFFD for it.

        Raises:
            ValueError: an id is not an integer, or out of range.

        Example:
            >>> enc.decode(enc.encode("naïve"))
            'naïve'
        """
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of token ids, which can end inside a character. Arguments and errors are those of `decode`.

        Example:
            >>> enc.decode_bytes(enc.encode("ï"))
            b'\\xc3\\xaf'
        """
        return b"".join([self.tokens[i] for i in self._checked(ids)])

    def with_special_tokens(self) -> "Encoder":
        """Return a copy of this encoder that recognizes every special token in a text by default.

        The ids that stand for no token are not recognized.

        Example:
            >>> enc.with_special_tokens().encode("<|endoftext|>") == [enc.end_of_text]
            True
        """
        other = copy.copy(self)
        other.added_tokens = {name: i for name, i in self.special_tokens.items() if i not in self.unused_ids}
        return other

    def _allowed(self, names: Collection[str]) -> set[str]:
        names = set(self.special_tokens) if names == "all" else {names} if isinstance(names, str) else set(names)
        if unknown := sorted(names - set(self.special_tokens)):
            raise ValueError(
                f"{unknown[0]!r} is not a special token of this vocabulary; expected {', '.join(self.special_tokens)}"
            )
        return names | self.added_tokens.keys()

    def _check(self, text: str, allowed: set[str]) -> None:
        """Raise ValueError if a byte of the text has no token, as can happen with a vocabulary of single characters."""
        if len(self._bytes) == 256:
            return
        for name in allowed:
            text = text.replace(name, "")
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # surrogates as tiktoken reads them
        if unknown := set(text.encode().translate(None, self._bytes)):
            character = next(c for c in text if unknown & set(c.encode()))
            raise ValueError(
                f"{character!r} can't be encoded: this vocabulary of {self.n_vocab} tokens has no such character; "
                "remove it, or use a vocabulary with all 256 bytes"
            )

    def _checked(self, ids: Iterable[int]) -> list[int]:
        """The ids as a list of Python integers; ValueError names the first that is not an id."""
        # A list accepts negative indices in silence, so every id is checked. NumPy's integers are slow.
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        valid = f"expected integers from 0 to {self.n_vocab - 1}"
        if not isinstance(ids, Iterable):
            raise ValueError(f"{ids!r} is not a sequence of token ids; {valid}")
        checked = []
        for position, given in enumerate(ids):
            try:
                i = index(given)
            except TypeError:
                i = -1
            if not 0 <= i < self.n_vocab:
                raise ValueError(f"{repr(given)[:40]} at position {position} is not a token id; {valid}")
            checked.append(i)
        return checked


def get_encoder(model_name: str, models_dir: str | os.PathLike) -> Encoder:
    """Return the Encoder of a model, as OpenAI's function of that name does.

    Args:
        model_name: the model's folder in `models_dir`, such as "124M".
        models_dir: the folder that holds the models.

    Raises:
        FileNotFoundError, ValueError: as `Encoder.from_folder`.

    Example:
        >>> enc.save("models/tiny")
        >>> get_encoder("tiny", "models").n_vocab
        1024
    """
    return Encoder.from_folder(os.path.join(models_dir, model_name))


def _damaged(path: str, wrong: str, expected: str) -> ValueError:
    return ValueError(
        f"{path}: {wrong}; expected {expected}; use an encoder.json and a vocab.bpe that were made together "
        f"(`gpt2-tf download` fetches OpenAI's)"
    )


def _read_ids(content: bytes, path: str) -> dict[str, int]:
    """Read encoder.json: each token, written in the printable characters of `BYTES`, -> its id."""
    expected = "a JSON object of tokens and ids, as OpenAI's encoder.json"
    if content.startswith(b"#version"):
        raise _damaged(path, "it holds merges, as a vocab.bpe does (are the two files swapped?)", expected)
    try:
        ids = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise _damaged(path, f"byte {error.start} of {len(content)} is not UTF-8", expected) from None
    except (ValueError, RecursionError) as error:
        wrong = f"not JSON, or cut short after {len(content)} bytes ({error})" if content.strip() else "it is empty"
        raise _damaged(path, wrong, expected) from None
    if not isinstance(ids, dict):
        raise _damaged(path, f"it holds a JSON {type(ids).__name__}", expected)
    if not all(type(i) is int for i in ids.values()):
        token = next(token for token, i in ids.items() if type(i) is not int)
        raise _damaged(path, f"the id of {token!r} is {ids[token]!r}", "integers")
    if missing := sorted(set(range(len(ids))) - set(ids.values())):
        raise _damaged(
            path, f"no token has id {missing[0]}", f"each id from 0 to {len(ids) - 1} once, for its {len(ids)} tokens"
        )
    return ids


def _read_merges(content: bytes, ids: dict[str, int], path: str) -> tuple[dict[bytes, int], dict[tuple[int, int], int]]:
    """Read vocab.bpe.

    Returns:
        The bytes of each token -> its id, without the special tokens; and pairs of ids -> the id of the merged token.
    """
    try:
        lines = content.decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} of {len(content)} is not UTF-8"
        raise _damaged(path, wrong, "merges, as in OpenAI's vocab.bpe") from None
    if not lines[0].startswith("#version"):
        wrong = f"its first line is {lines[0][:40]!r}" if content.strip() else "it is empty"
        raise _damaged(path, wrong, f"{VERSION!r} and then one merge per line")
    if lines.pop():
        raise _damaged(
            path, f"its last line, {len(lines) + 1}, has no line end: the file was cut short", "a complete line"
        )

    # All 256 bytes are tokens, except in a vocabulary of single characters.
    tokens = {character: bytes([byte]) for character, byte in BYTES.items() if character in ids}
    merges = {}
    last = -1
    for number, line in enumerate(lines[1:], start=2):
        first, _, second = line.partition(" ")
        token = first + second
        i = ids.get(token, -1)
        if first in tokens and second in tokens and i > last:
            tokens[token] = tokens[first] + tokens[second]
            merges[ids[first], ids[second]] = last = i
            continue
        at = f"line {number}, {line[:80]!r},"
        if not first or not second or " " in second:
            raise _damaged(path, f"{at} is not a merge", "two tokens with a space between")
        if first not in tokens or second not in tokens:
            unknown = second if first in tokens else first
            raise _damaged(path, f"{at} merges {unknown[:40]!r}", "bytes and the results of the lines above")
        if token in tokens:
            raise _damaged(path, f"{at} makes {token[:40]!r} a second time", "one merge per token")
        if token not in ids:
            raise _damaged(path, f"{at} makes {token[:40]!r}", "a token that is in encoder.json")
        raise _damaged(path, f"{at} makes id {i} after id {last}", "ids that increase from line to line")
    ranks = {token: ids[name] for name, token in tokens.items()}
    # OpenAI's own merges are known to be good, and the search takes a third of the time to read a vocabulary.
    is_openais = hashlib.sha256(content).hexdigest() == OPENAI_MERGES
    if not is_openais and (bad := _unreachable(merges)) is not None:
        wrong = f"line {bad + 2}, {lines[bad + 1][:80]!r}, can never be used: earlier merges take its parts"
        raise _damaged(path, wrong, "merges in the order they were learned")
    return ranks, merges


def _unreachable(merges: dict[tuple[int, int], int]) -> int | None:
    """Return the position of the first merge whose own token does not encode to itself, or None.

    Without such a merge, OpenAI's rule and tiktoken's give the same ids. The reason: neighbours whose joined bytes are
    a token came to be by merges inside those bytes. The token alone goes through the same merges, and its last two
    parts are then the listed pair. Ids increase with the merges, so an id is also the rank of its merge.
    """
    parts = {i: pair for pair, i in merges.items()}
    never = max(parts, default=0) + 1
    for n, (left, right) in enumerate(merges):
        # Undo the merges that made the two tokens, latest first. A pair across their border that ranks lower than the
        # merge just undone would have been merged before it.
        left_born = left if left in parts else -1
        right_born = right if right in parts else -1
        while left_born >= 0 or right_born >= 0:
            if left_born > right_born:
                left = parts[left][1]
                if merges.get((left, right), never) < left_born:
                    return n
                left_born = left if left in parts else -1
            else:  # equal ranks merge from the left, so here a tie across the border is merged first
                right = parts[right][0]
                if merges.get((left, right), never) <= right_born:
                    return n
                right_born = right if right in parts else -1
    return None


def _special_tokens(ids: dict[str, int], ranks: dict[bytes, int], folder: str | os.PathLike) -> dict[str, int]:
    """Return the tokens that are neither bytes nor merged, such as `<|endoftext|>`: forms `<name>` and `[name]`."""
    merged = set(ranks.values())
    special = {token: i for token, i in ids.items() if i not in merged}
    path = os.path.join(folder, "encoder.json")
    if odd := [token for token in special if not re.fullmatch(r"<[!-~]+>|\[[!-~]+\]", token)]:
        wrong = f"{len(odd)} of its {len(ids)} tokens, first {odd[0][:40]!r}, are not made by a merge in vocab.bpe"
        n_bytes = sum(len(token) == 1 for token in ranks)
        raise _damaged(path, wrong, f"{n_bytes} bytes, {len(ranks) - n_bytes} merges and {END_OF_TEXT}")
    if END_OF_TEXT not in special:
        raise _damaged(path, f"it has no {END_OF_TEXT}", f"{END_OF_TEXT} beside the bytes and the merges")
    # Of two tokens that begin at the same place, tiktoken would take either.
    names = sorted(special)
    for name, following in pairwise(names):
        if following.startswith(name):
            raise _damaged(path, f"its token {name} begins {following}", "no token that begins another")
    return special
