"""The hyperparameters of a GPT-2: `HParams`, OpenAI's four sizes, `hparams.json`."""

import dataclasses
import difflib
import json
import os
from numbers import Integral, Real
from pathlib import Path

from gpt2_tf.files.atomic import atomic_write

# n_embd, n_head, n_layer; every size shares n_vocab 50257 and n_ctx 1024.
SIZES = {
    "124M": (768, 12, 12),
    "355M": (1024, 16, 24),
    "774M": (1280, 20, 36),
    "1558M": (1600, 25, 48),
}
# The names of OpenAI's first announcements, whose counts were off.
OLDER_NAMES = {"117M": "124M", "345M": "355M", "762M": "774M", "1542M": "1558M"}


def is_whole(value: object, least: Real, most: Real) -> bool:
    """Whether it is a whole number from `least` to `most`, NumPy's too; `in range()` would try them all for 2.5."""
    return isinstance(value, Integral) and least <= value <= most


def canonical_size(name: str) -> str:
    """Returns OpenAI's present name of a size ("117M" -> "124M").

    Raises:
        ValueError: no size has that name.
    """
    size = OLDER_NAMES.get(name, name)
    if size not in SIZES:
        known = ", ".join(f"{new} (or {old})" for old, new in OLDER_NAMES.items())
        close = difflib.get_close_matches(name, [*SIZES, *OLDER_NAMES], n=1)
        suggestion = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"no GPT-2 size is named {name!r}; {suggestion}OpenAI's sizes are {known}")
    return size


def json_object(path: str | os.PathLike) -> dict:
    """Reads a file's JSON object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else.
    """
    text = Path(path).read_bytes()
    if not text.strip():
        raise ValueError(f"{path} is empty, but must hold a JSON object")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a JSON {type(values).__name__}, but must hold an object")
    return values


@dataclasses.dataclass(frozen=True)
class HParams:
    """What `hparams.json` holds, with OpenAI's names, and `dropout`, which OpenAI's code left out.

    Attributes:
        n_vocab: count of token ids.
        n_ctx: the longest sequence, in tokens.
        n_embd: width of the residual stream; a multiple of `n_head`.
        n_head: attention heads a block.
        n_layer: blocks.
        dropout: share of values zeroed in training, in [0, 1); 0 is off.

    Raises:
        ValueError: a value that no model can have.
    """

    n_vocab: int
    n_ctx: int
    n_embd: int
    n_head: int
    n_layer: int
    dropout: float = 0.0

    def __post_init__(self):
        for name in ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}, but must be a whole number of at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} can't be divided among n_head {self.n_head} heads")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}, but must be at least 0 and below 1")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def n_params(self) -> int:
        """Count of weights in the whole model, the embedding `wte` (which is also the head) once."""
        norm = 2 * self.n_embd

        def conv1d(n_in: int, n_out: int) -> int:
            return n_in * n_out + n_out

        attn = conv1d(self.n_embd, 3 * self.n_embd) + conv1d(self.n_embd, self.n_embd)
        mlp = conv1d(self.n_embd, 4 * self.n_embd) + conv1d(4 * self.n_embd, self.n_embd)
        block = norm + attn + norm + mlp
        return (self.n_vocab + self.n_ctx) * self.n_embd + self.n_layer * block + norm

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by OpenAI's name, in the order of a checkpoint's data."""
        n_embd = self.n_embd
        block = {f"{norm}/{kind}": (n_embd,) for norm in ("ln_1", "ln_2") for kind in "gb"}
        for name, n_in, n_out in (
            ("attn/c_attn", n_embd, 3 * n_embd),
            ("attn/c_proj", n_embd, n_embd),
            ("mlp/c_fc", n_embd, 4 * n_embd),
            ("mlp/c_proj", 4 * n_embd, n_embd),
        ):
            block |= {f"{name}/w": (1, n_in, n_out), f"{name}/b": (n_out,)}
        shapes = {f"model/h{i}/{name}": shape for i in range(self.n_layer) for name, shape in block.items()}
        shapes |= {"model/wte": (self.n_vocab, n_embd), "model/wpe": (self.n_ctx, n_embd)}
        shapes |= {f"model/ln_f/{kind}": (n_embd,) for kind in "gb"}
        return dict(sorted(shapes.items()))

    @classmethod
    def from_size(cls, name: str) -> "HParams":
        """The hyperparameters of one of OpenAI's sizes, by its present or older name.

        Raises:
            ValueError: no size has that name.
        """
        n_embd, n_head, n_layer = SIZES[canonical_size(name)]
        return cls(n_vocab=50257, n_ctx=1024, n_embd=n_embd, n_head=n_head, n_layer=n_layer)

    @classmethod
    def from_dict(cls, values: dict) -> "HParams":
        """Checks that all keys are known and none is missing.

        Raises:
            ValueError: unknown or missing keys, each named, or a value that no model can have.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(map(str, values.keys() - fields))
        missing = sorted(fields - {"dropout"} - values.keys())
        wrong = [f"unknown: {', '.join(unknown)}"] * bool(unknown) + [f"missing: {', '.join(missing)}"] * bool(missing)
        if wrong:
            raise ValueError(f"hyperparameters {'; '.join(wrong)}; they are {', '.join(sorted(fields))}")
        return cls(**values)

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> "HParams":
        """Reads an `hparams.json`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a JSON object of known keys with values that a model can have.
        """
        try:
            values = json_object(path)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} is missing; it belongs beside a model's model.ckpt.*; `gpt2-tf download` fetches OpenAI's"
            ) from None
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_dict(self) -> dict:
        """As `hparams.json` has it: OpenAI's five keys, and `dropout` where it isn't 0."""
        values = dataclasses.asdict(self)
        if not self.dropout:
            del values["dropout"]
        return values

    def to_json(self, path: str | os.PathLike) -> None:
        """Writes an `hparams.json`, whole or not at all."""
        atomic_write(path, (json.dumps(self.to_dict(), indent=2) + "\n").encode())
