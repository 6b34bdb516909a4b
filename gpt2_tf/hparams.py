"""The hyperparameters of a GPT-2 model: `HParams`, OpenAI's four sizes, and the file `hparams.json`."""

import dataclasses
import difflib
import json
import os
from numbers import Integral, Real

from gpt2_tf.files.atomic import atomic_write
from gpt2_tf.files.regular import open_regular

# n_embd, n_head and n_layer of each size. All sizes have n_vocab 50257 and n_ctx 1024.
SIZES = {
    "124M": (768, 12, 12),
    "355M": (1024, 16, 24),
    "774M": (1280, 20, 36),
    "1558M": (1600, 25, 48),
}
# OpenAI's first names of the sizes. Their parameter counts were wrong, so OpenAI renamed the sizes later.
OLDER_NAMES = {"117M": "124M", "345M": "355M", "762M": "774M", "1542M": "1558M"}
HUGGING_FACE_NAMES = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}


def is_whole(value: object, least: Real, most: Real) -> bool:
    """Return whether `value` is an integer from `least` to `most`, of Python or of NumPy.

    Example:
        >>> from gpt2_tf.hparams import is_whole
        >>> is_whole(3, 1, 10), is_whole(2.5, 1, 10)
        (True, False)
    """
    return isinstance(value, Integral) and least <= value <= most


def canonical_size(name: str) -> str:
    """Return OpenAI's current name of a size.

    Raises:
        ValueError: no size has that name.

    Example:
        >>> from gpt2_tf.hparams import canonical_size
        >>> canonical_size("117M")
        '124M'
    """
    size = OLDER_NAMES.get(name, name)
    if size not in SIZES:
        known = ", ".join(f"{new} (or {old})" for old, new in OLDER_NAMES.items())
        close = closest_size(name)
        suggestion = f"did you mean {close!r}? " if close else ""
        raise ValueError(f"no GPT-2 size is named {name!r}; {suggestion}OpenAI's sizes are {known}")
    return size


def closest_size(name: str, *others: str) -> str | None:
    """Return the size that a misspelled name may stand for, or None.

    Args:
        name: such as "124m", "gpt2-117M", or Hugging Face's "gpt2".
        others: further names that may be meant.

    Example:
        >>> from gpt2_tf.hparams import closest_size
        >>> closest_size("gpt2-medium"), closest_size("124m"), closest_size("bert")
        ('355M', '124M', None)
    """
    name = name.lower().removeprefix("openai-community/")
    if name in HUGGING_FACE_NAMES:
        return HUGGING_FACE_NAMES[name]
    known = {size.lower(): size for size in (*SIZES, *OLDER_NAMES, *others)}
    close = difflib.get_close_matches(name.removeprefix("gpt2-"), known, n=1)
    return known[close[0]] if close else None


def json_object(path: str | os.PathLike) -> dict:
    """Read a file that holds one JSON object.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file does not hold a JSON object.

    Example:
        >>> from pathlib import Path
        >>> from gpt2_tf.hparams import json_object
        >>> _ = Path("settings.json").write_text('{"n_ctx": 32}')
        >>> json_object("settings.json")
        {'n_ctx': 32}
    """
    with open_regular(path) as file:
        text = file.read()
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
    """The hyperparameters of a model, under the names of OpenAI's `hparams.json`.

    Attributes:
        n_vocab: number of token ids; at least 1.
        n_ctx: length of the longest sequence, in tokens; at least 1.
        n_embd: width of the residual stream; a multiple of `n_head`.
        n_head: attention heads per block; at least 1.
        n_layer: number of blocks; at least 1.
        dropout: share of values that training sets to zero, in [0, 1); 0 by default. OpenAI's code has no dropout.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> from gpt2_tf import HParams
        >>> HParams(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=3).head_dim
        8
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
        """The width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def n_params(self) -> int:
        """The number of weights of the model. The tied embedding `wte` counts once.

        Example:
            >>> from gpt2_tf import HParams
            >>> HParams.from_size("124M").n_params
            124439808
        """
        norm = 2 * self.n_embd

        def conv1d(n_in: int, n_out: int) -> int:
            return n_in * n_out + n_out

        attn = conv1d(self.n_embd, 3 * self.n_embd) + conv1d(self.n_embd, self.n_embd)
        mlp = conv1d(self.n_embd, 4 * self.n_embd) + conv1d(4 * self.n_embd, self.n_embd)
        block = norm + attn + norm + mlp
        return (self.n_vocab + self.n_ctx) * self.n_embd + self.n_layer * block + norm

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by OpenAI's name, in the order in which a checkpoint stores them.

        Example:
            >>> from gpt2_tf import HParams
            >>> HParams.from_size("124M").shapes["model/h0/attn/c_attn/w"]
            (1, 768, 2304)
        """
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
        """Return the hyperparameters of one of OpenAI's sizes.

        Args:
            name: "124M", "355M", "774M", "1558M", or the older name of a size, such as "117M".

        Raises:
            ValueError: no size has that name.

        Example:
            >>> from gpt2_tf import HParams
            >>> HParams.from_size("124M").n_layer
            12
        """
        n_embd, n_head, n_layer = SIZES[canonical_size(name)]
        return cls(n_vocab=50257, n_ctx=1024, n_embd=n_embd, n_head=n_head, n_layer=n_layer)

    @classmethod
    def from_dict(cls, values: dict) -> "HParams":
        """Make hyperparameters from a dict that has OpenAI's five keys and perhaps `dropout`.

        Raises:
            ValueError: keys are unknown or missing (the error names them), or a value is out of its range.

        Example:
            >>> from gpt2_tf import HParams
            >>> HParams.from_dict({"n_vocab": 300, "n_ctx": 32, "n_embd": 16, "n_head": 2, "n_layer": 3}).n_ctx
            32
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(key if str(key).isprintable() else repr(key) for key in values.keys() - fields)
        missing = sorted(fields - {"dropout"} - values.keys())
        wrong = [f"unknown: {', '.join(unknown)}"] * bool(unknown) + [f"missing: {', '.join(missing)}"] * bool(missing)
        if wrong:
            raise ValueError(f"hyperparameters {'; '.join(wrong)}; they are {', '.join(sorted(fields))}")
        return cls(**values)

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> "HParams":
        """Read an `hparams.json`.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: the file is not a JSON object, its keys are wrong, or a value is out of its range.

        Example:
            >>> from gpt2_tf import HParams
            >>> HParams.from_size("124M").to_json("hparams.json")
            >>> HParams.from_json("hparams.json").n_embd
            768
        """
        try:
            values = json_object(path)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} is missing; a folder of OpenAI's format has it beside model.ckpt.*. "
                "`gpt2-tf download` fetches OpenAI's files"
            ) from None
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_dict(self) -> dict:
        """Return what `hparams.json` holds: OpenAI's five keys, and `dropout` if it is not 0.

        Example:
            >>> from gpt2_tf import HParams
            >>> HParams.from_size("124M").to_dict()
            {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': 768, 'n_head': 12, 'n_layer': 12}
        """
        values = dataclasses.asdict(self)
        if not self.dropout:
            del values["dropout"]
        return values

    def to_json(self, path: str | os.PathLike) -> None:
        """Write an `hparams.json`. A write that fails leaves the earlier file unchanged.

        Example:
            >>> from gpt2_tf import HParams
            >>> HParams.from_size("124M").to_json("hparams.json")
        """
        atomic_write(path, (json.dumps(self.to_dict(), indent=2) + "\n").encode())
