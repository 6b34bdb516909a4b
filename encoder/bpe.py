"""Text <-> token ids from OpenAI's two files, `encoder.json` (token -> id) and `vocab.bpe` (merges, first come first).

The merging is tiktoken's, which is OpenAI's and fast; this file reads the vocabulary, and proves that tiktoken's rule
(merge the neighbours whose joined bytes have the lowest id) gives OpenAI's ids (merge the pair listed first) on it.
"""

import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from operator import index

import tiktoken

END_OF_TEXT = "<|endoftext|>"
VERSION = "#version: 0.2"

# OpenAI's 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ made atomic (++).
# Its `\s+(?!\S)` keeps a stack entry for each space and fails at a million of them, so 256 are taken at a time.
# OpenAI ran it in Python's `regex`. tiktoken's \s is the same, and its \p{L} and \p{N} differ from any `regex` only on
# characters that one of the two is too old to know: tiktoken 0.14 knows Unicode 16, `regex` a new one every autumn.
PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|(?:\s{256}(?=\s\s))*+\s+(?!\S)|\s"

# A byte as a printable character, in the order of OpenAI's ids 0..255: those which print as themselves, then the rest.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = {chr(byte): byte for byte in _PRINTABLE}
BYTES |= {chr(256 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)}


class Encoder:
    """Text <-> token ids, exactly OpenAI's.

    `n_vocab` is the number of tokens, `end_of_text` the id of `<|endoftext|>`, `special_tokens` name -> id of it and
    of its like, `tokens[id]` a token's bytes, `merges` pair of ids -> the id they merge to, the first to merge first.
    """

    def __init__(self, encoder_json: bytes, vocab_bpe: bytes, folder: str | os.PathLike = ""):
        """Read the two files' contents; `folder` only names them in errors. ValueError where they are no vocabulary."""
        self._files = {"encoder.json": encoder_json, "vocab.bpe": vocab_bpe}
        ids = _read_ids(encoder_json, os.path.join(folder, "encoder.json"))
        ranks, self.merges = _read_merges(vocab_bpe, ids, os.path.join(folder, "vocab.bpe"))
        self.special_tokens = _special_tokens(ids, ranks, folder)
        self.n_vocab = len(ids)
        self.end_of_text = self.special_tokens[END_OF_TEXT]
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
        """Read `encoder.json` and `vocab.bpe` in `folder`. FileNotFoundError or ValueError, in one line."""
        contents = []
        for name in ("encoder.json", "vocab.bpe"):
            try:
                with open(os.path.join(folder, name), "rb") as file:
                    contents.append(file.read())
            except FileNotFoundError:
                raise FileNotFoundError(
                    f"no {name} in {os.fspath(folder)!r}: expected a model's folder with encoder.json and vocab.bpe; "
                    f"`gpt2-tf download` fetches OpenAI's"
                ) from None
        return cls(*contents, folder=folder)

    def save(self, folder: str | os.PathLike) -> None:
        """Write the two files into `folder`, byte for byte as they were read; each appears whole or not at all."""
        os.makedirs(folder, exist_ok=True)
        for name, content in self._files.items():
            path = os.path.join(folder, name)
            temporary = f"{path}.{os.getpid()}.tmp"
            try:
                with open(temporary, "wb") as file:
                    file.write(content)
                os.replace(temporary, path)
            except BaseException:
                if os.path.exists(temporary):
                    os.remove(temporary)
                raise

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """The ids of `text`; special tokens in it are plain text but for those that `allowed_special` names (or "all").

        A pair of surrogates is the character that it stands for; an unpaired one, which UTF-8 cannot hold, is U+FFFD.
        ValueError for a special token that the vocabulary lacks, and for a character that it has no bytes for.
        """
        allowed = self._allowed(allowed_special)
        self._check(text, allowed)
        return self._bpe.encode(text, allowed_special=allowed, disallowed_special=())

    def encode_batch(
        self, texts: Sequence[str], allowed_special: Collection[str] = (), num_threads: int = 8
    ) -> list[list[int]]:
        """`encode` for each of `texts`, in `num_threads` threads."""
        if isinstance(texts, str):
            raise TypeError("encode_batch takes a list of texts, not one str; encode() takes one")
        allowed = self._allowed(allowed_special)
        for text in texts:
            self._check(text, allowed)
        return self._bpe.encode_batch(texts, num_threads=num_threads, allowed_special=allowed, disallowed_special=())

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of `ids`; `errors` as in `bytes.decode`, for ids that stop inside a character. See decode_bytes."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, a sequence or 1-D array of integers. ValueError for what is no id."""
        return b"".join([self.tokens[i] for i in self._checked(ids)])

    def _allowed(self, names: Collection[str]) -> set[str]:
        names = set(self.special_tokens) if names == "all" else {names} if isinstance(names, str) else set(names)
        if unknown := sorted(names - set(self.special_tokens)):
            raise ValueError(
                f"{unknown[0]!r} is no special token of this vocabulary; it has {', '.join(self.special_tokens)}"
            )
        return names

    def _check(self, text: str, allowed: set[str]) -> None:
        """ValueError for a byte of the text that has no token, as in a vocabulary of a text's own characters."""
        if len(self._bytes) == 256:
            return
        for name in allowed:
            text = text.replace(name, "")
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # as tiktoken reads surrogates
        if unknown := set(text.encode().translate(None, self._bytes)):
            character = next(c for c in text if unknown & set(c.encode()))
            raise ValueError(
                f"{character!r} can't be encoded: this vocabulary of {self.n_vocab} tokens has no such character; "
                "leave it out, or take a vocabulary with all 256 bytes"
            )

    def _checked(self, ids: Iterable[int]) -> list[int]:
        # a negative index would quietly count from the end, and NumPy's integers are slow one by one
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        valid = f"expected integers from 0 to {self.n_vocab - 1}"
        if not isinstance(ids, Iterable):
            raise ValueError(f"{ids!r} is no sequence of token ids; {valid}")
        checked = []
        for position, given in enumerate(ids):
            try:
                i = index(given)
            except TypeError:
                i = -1
            if not 0 <= i < self.n_vocab:
                raise ValueError(f"{repr(given)[:40]} at position {position} is no token id; {valid}")
            checked.append(i)
        return checked


def get_encoder(model_name: str, models_dir: str | os.PathLike) -> Encoder:
    """The Encoder of `models_dir`/`model_name`, as OpenAI's `get_encoder`. See Encoder.from_folder for errors."""
    return Encoder.from_folder(os.path.join(models_dir, model_name))


def _damaged(path: str, wrong: str, expected: str) -> ValueError:
    return ValueError(
        f"{path}: {wrong}; expected {expected}; put back the encoder.json and vocab.bpe that were made together "
        f"(`gpt2-tf download` fetches OpenAI's)"
    )


def _read_ids(content: bytes, path: str) -> dict[str, int]:
    """encoder.json: each token, its bytes as printable characters, -> its id."""
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
    """vocab.bpe: the bytes of each token but the special ones -> its id, and pairs of ids -> the id they merge to."""
    try:
        lines = content.decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} of {len(content)} is not UTF-8"
        raise _damaged(path, wrong, "merges, as in OpenAI's vocab.bpe") from None
    if not lines[0].startswith("#version"):
        wrong = f"its first line is {lines[0][:40]!r}" if content.strip() else "it is empty"
        raise _damaged(path, wrong, f"{VERSION!r} and then a merge a line")
    if lines.pop():
        raise _damaged(path, f"its last line, {len(lines) + 1}, has no end: the file was cut short", "a whole line")

    # All 256 but in a vocabulary of a text's own characters.
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
            raise _damaged(path, f"{at} is no merge", "two tokens with a space between")
        if first not in tokens or second not in tokens:
            unknown = second if first in tokens else first
            raise _damaged(path, f"{at} merges {unknown[:40]!r}", "bytes and the results of lines above")
        if token in tokens:
            raise _damaged(path, f"{at} makes {token[:40]!r} a second time", "each token from one merge")
        if token not in ids:
            raise _damaged(path, f"{at} makes {token[:40]!r}", "a token that encoder.json holds")
        raise _damaged(path, f"{at} makes id {i} after id {last}", "ids that rise with the lines")
    ranks = {token: ids[name] for name, token in tokens.items()}
    if (bad := _unreachable(merges)) is not None:
        wrong = f"line {bad + 2}, {lines[bad + 1][:80]!r}, is never reached: earlier merges take its parts"
        raise _damaged(path, wrong, "merges in the order they were learned")
    return ranks, merges


def _unreachable(merges: dict[tuple[int, int], int]) -> int | None:
    """The number of the first merge whose own token does not encode to itself, if any.

    Where there is none, OpenAI's rule and tiktoken's agree: neighbours whose joined bytes are a token could only have
    come to be by merging within those bytes, as they do when the token stands alone, and there the last two parts are
    the listed pair. Ids rise with the merges here, so an id is its merge's rank.
    """
    parts = {i: pair for pair, i in merges.items()}
    never = max(parts, default=0) + 1
    for n, (left, right) in enumerate(merges):
        # undo, latest first, what made the two tokens at the seam; a pair across it that ranks lower came first
        left_born = left if left in parts else -1
        right_born = right if right in parts else -1
        while left_born >= 0 or right_born >= 0:
            if left_born > right_born:
                left = parts[left][1]
                if merges.get((left, right), never) < left_born:
                    return n
                left_born = left if left in parts else -1
            else:  # equal ranks merge from the left, so a tie across the seam comes first here
                right = parts[right][0]
                if merges.get((left, right), never) <= right_born:
                    return n
                right_born = right if right in parts else -1
    return None


def _special_tokens(ids: dict[str, int], ranks: dict[bytes, int], folder: str | os.PathLike) -> dict[str, int]:
    """The tokens that are neither bytes nor merged: `<|endoftext|>`, and others of the form `<name>` or `[name]`."""
    merged = set(ranks.values())
    special = {token: i for token, i in ids.items() if i not in merged}
    path = os.path.join(folder, "encoder.json")
    if odd := [token for token in special if not re.fullmatch(r"<[!-~]+>|\[[!-~]+\]", token)]:
        wrong = f"{len(odd)} of its {len(ids)} tokens, first {odd[0][:40]!r}, come from no merge in vocab.bpe"
        n_bytes = sum(len(token) == 1 for token in ranks)
        raise _damaged(path, wrong, f"{n_bytes} bytes, {len(ranks) - n_bytes} merges and {END_OF_TEXT}")
    if END_OF_TEXT not in special:
        raise _damaged(path, f"it has no {END_OF_TEXT}", f"{END_OF_TEXT} beside the bytes and the merges")
    return special
