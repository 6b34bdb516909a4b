"""`SamplingParams`: how one text is sampled, as one validated object.

A new sampling setting is one field of `SamplingParams`, and everything else follows from `sampling_settings()`:

- `generate`, `stream` and `completions` take every field as a keyword argument.
- A command-line flag is derived from each `Setting` whose `kind` is not None. The flag's name is the field's name with
  "-" for "_". `kind`, `least`, `most` and `above` say what a typed value may be, `default` is the flag's default, and
  `help_text` is its help. A `bool` is a flag without a value. `stop` is the only field that may be given several times.
- An interactive session, an export and a test harness read the same names, limits and texts.

This module imports neither TensorFlow nor NumPy, so `gpt2-tf --help` stays quick.
"""

import dataclasses
import inspect
import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

from gpt2_tf.hparams import is_whole

if TYPE_CHECKING:
    from encoder import Encoder

STOP = ("<|endoftext|>",)
DEFAULT_LENGTH = 100  # new tokens per text, where the caller gives no length
MAX_FLOAT32 = 3.4028234663852886e38  # the sampler computes in float32
MAX_INT32 = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Setting:
    """The type, range, default and help of one field of `SamplingParams`.

    Attributes:
        default: the field's value where the caller gives none.
        help: what the setting does, in one sentence without a full stop.
        kind: int or float for a number, str for text, bool for a switch, None for a field that only Python can set.
        least: the smallest allowed number.
        most: the largest allowed number.
        above: whether `least` itself is forbidden.
        special: what a special value means, such as "0 keeps all".
        default_text: the default as help texts show it; "" shows `default`.

    Example:
        >>> setting = Setting(default=1.0, help="Scale by this", kind=float, least=0, most=2, special="0 is off")
        >>> setting.expected
        'a number from 0 to 2 (0 is off)'
        >>> setting.help_text
        'Scale by this; from 0 to 2; 0 is off (default: 1)'
    """

    default: Any
    help: str
    kind: type | None = None
    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    special: str = ""
    default_text: str = ""

    @property
    def help_text(self) -> str:
        """The complete help: the sentence, the range, the special value and the default."""
        default = self.default_text or f"{self.default:g}"
        details = "; ".join(filter(None, [self.limits.removeprefix("of "), self.special]))
        return f"{self.help}{details and f'; {details}'} (default: {default})"

    @property
    def expected(self) -> str:
        """The allowed values, for an error message: "a number above 0 and at most 1 (1 keeps all)"."""
        noun = "a whole number" if self.kind is int else "a number"
        return f"{noun} {self.limits}" + (f" ({self.special})" if self.special else "")

    @property
    def limits(self) -> str:
        """The range of a number in words, such as "from 0 to 1"; "" for a setting that is no number."""
        if self.kind not in (int, float):
            return ""
        if self.above:
            return f"above {self.least:g} and at most {self.most:g}"
        if self.most in (MAX_INT32, math.inf):
            return f"of at least {self.least:g}"
        if self.least == -(2**63):
            return "from -2^63 to 2^63 - 1"
        return f"from {self.least:g} to {self.most:.3g}"

    def checked(self, name: str, value: object) -> object:
        """Return the value as a plain Python number; values of other kinds are returned unchanged.

        Raises:
            TypeError: a value that must be a number has another type.
            ValueError: a number outside the range.
        """
        if self.kind not in (int, float) or (value is None and self.default is None):
            return value
        if self.kind is int:
            allowed = is_whole(value, self.least, self.most)
        else:
            check_number(name, value)
            allowed = (self.least < value if self.above else self.least <= value) and value <= self.most
        if not allowed:
            raise ValueError(f"{name} is {value!r}, but must be {self.expected}")
        return self.kind(value)


def check_number(name: str, value: object) -> None:
    """Raise TypeError unless the value is a real number; NumPy's and TensorFlow's scalars are numbers too.

    Example:
        >>> check_number("top_p", 0.9)
        >>> check_number("top_p", "0.9")
        Traceback (most recent call last):
        TypeError: top_p is '0.9', of type str, but must be a number
    """
    if not isinstance(value, Real) and getattr(value, "shape", None) != ():
        raise TypeError(f"{name} is {value!r:.60}, of type {type(value).__name__}, but must be a number")


def _field(default: Any, help: str, *args: Any, **kwargs: Any) -> Any:
    setting = Setting(default, help, *args, **kwargs)
    return dataclasses.field(default=default, metadata={"setting": setting})


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How one text is sampled: every setting that can change which tokens the model writes.

    `generate`'s other arguments are not here, because they only decide how many texts are written and how they are
    computed: `num_samples`, `batch_size` and `draft`.

    The settings act on the logits in this order: `logit_bias`, `repetition_penalty`, `no_repeat_ngram`, `min_length`,
    `filters`, `temperature`, `top_k`, `top_p`, `min_p`.

    `stop` also takes a token id, or a collection of ids and strings; with an empty collection, nothing ends the text.

    Raises:
        TypeError: a value that must be a number has another type.
        ValueError: a number outside its range.

    Example:
        >>> params = SamplingParams(temperature=0.7, top_k=40)
        >>> params.top_k, params.stop
        (40, ('<|endoftext|>',))
        >>> SamplingParams(top_p=1.5)
        Traceback (most recent call last):
        ValueError: top_p is 1.5, but must be a number above 0 and at most 1 (1 keeps all)
    """

    length: int | None = _field(
        None, "Write at most this many new tokens", int, 1, MAX_INT32, default_text="100, or as many as fit"
    )
    temperature: float = _field(
        1.0,
        "Divide the logits by this: below 1 favours likely tokens, above 1 evens them out",
        float,
        0,
        MAX_FLOAT32,
        special="0 always takes the most likely token",
    )
    top_k: int = _field(0, "Keep only this many of the most likely tokens", int, 0, MAX_INT32, special="0 keeps all")
    top_p: float = _field(
        1.0,
        "Keep the most likely tokens whose probabilities sum to at most this",
        float,
        0,
        1,
        above=True,
        special="1 keeps all",
    )
    min_p: float = _field(
        0.0,
        "Keep tokens whose probability is at least this fraction of the most likely token's",
        float,
        0,
        1,
        special="0 keeps all",
    )
    # Beyond this range, a penalty would take logits out of float32's range.
    repetition_penalty: float = _field(
        1.0, "Above 1, make tokens that are already in the text less likely", float, 1e-6, 1e6, special="1 is off"
    )
    no_repeat_ngram: int = _field(
        0, "Never write the same sequence of this many tokens twice", int, 0, MAX_INT32, special="0 is off"
    )
    logit_bias: Mapping[int, float] | None = _field(
        None, "Add these numbers to the logits, by token id; -inf forbids a token", default_text="none"
    )
    filters: Collection[Callable] = _field(
        (), "Apply these functions, logits -> logits, float32 [batch, n_vocab]", default_text="none"
    )
    stop: str | int | Collection[str | int] | None = _field(
        STOP,
        "End the text before this string, or before the special token of this name",
        str,
        default_text=STOP[0],
    )
    min_length: int = _field(
        0, "Do not end the text before this many new tokens", int, 0, MAX_INT32, special="0 is off"
    )
    seed: int | None = _field(
        None,
        "Draw random numbers from this seed, so that the same seed gives the same text",
        int,
        -(2**63),
        2**63 - 1,
        default_text="a random seed",
    )
    window: bool = _field(
        False,
        "When the model's window is full, continue from its newer half, so that the text may have any length",
        bool,
        default_text="off",
    )

    def __post_init__(self):
        for name, setting in sampling_settings().items():
            object.__setattr__(self, name, setting.checked(name, getattr(self, name)))
        if not isinstance(self.logit_bias, Mapping | None):
            raise TypeError(
                f"logit_bias is {self.logit_bias!r:.60}, but must map token ids to numbers, as in {{50256: -1}}"
            )
        for token, value in (self.logit_bias or {}).items():
            check_number(f"logit_bias of {token!r}", value)
        stop = (self.stop,) if isinstance(self.stop, str | int) else self.stop
        if not isinstance(stop, Iterable | None):
            raise TypeError(f"stop is {stop!r:.60}, but must be a string, a token id, or a collection of them")
        object.__setattr__(self, "stop", tuple(stop or ()))
        filters = (self.filters,) if callable(self.filters) else self.filters
        if not isinstance(filters, Iterable) or not all(map(callable, filters := tuple(filters))):
            raise TypeError(f"filters is {self.filters!r:.60}, but must be functions from logits to logits")
        object.__setattr__(self, "filters", filters)

    def with_seed(self) -> "SamplingParams":
        """Return the same settings with a seed: where `seed` is None, Python's `random` draws a seed.

        Example:
            >>> SamplingParams(seed=5).with_seed().seed
            5
        """
        return self if self.seed is not None else dataclasses.replace(self, seed=random.getrandbits(31))

    def for_vocabulary(self, enc: "Encoder") -> "SamplingParams":
        """Check the settings against a vocabulary, and return them with its unused ids forbidden.

        A model that is padded to a round number of ids gives logits for ids that stand for no token.

        Raises:
            ValueError: `top_k` or `logit_bias` does not fit the vocabulary.

        Example:
            >>> SamplingParams(top_k=2000).for_vocabulary(enc)
            Traceback (most recent call last):
            ValueError: top_k is 2000, but must be 0 (off) to 1024, the size of the vocabulary
        """
        self.check_vocabulary_size(enc.n_vocab)
        if not enc.unused_ids:
            return self
        return dataclasses.replace(
            self, logit_bias={**(self.logit_bias or {}), **dict.fromkeys(enc.unused_ids, -math.inf)}
        )

    def check_vocabulary_size(self, n_vocab: int) -> None:
        """Raise ValueError where `top_k` or `logit_bias` does not fit a vocabulary of `n_vocab` tokens."""
        if self.top_k > n_vocab:
            raise ValueError(f"top_k is {self.top_k}, but must be 0 (off) to {n_vocab}, the size of the vocabulary")
        bias = self.logit_bias or {}
        for token, value in bias.items():
            if not is_whole(token, 0, n_vocab - 1) or not value <= MAX_FLOAT32:
                raise ValueError(
                    f"logit_bias has {value} for {token!r}, but must have ids from 0 to {n_vocab - 1}, and numbers "
                    f"up to {MAX_FLOAT32:.3g} (-inf forbids a token)"
                )
        if len(bias) == n_vocab and all(value == -math.inf for value in bias.values()):
            raise ValueError("logit_bias forbids every token; leave at least one token allowed")


def sampling_settings() -> dict[str, Setting]:
    """The `Setting` of each field of `SamplingParams`, by name, in the order of help texts.

    Example:
        >>> sampling_settings()["top_k"].help_text
        'Keep only this many of the most likely tokens; at least 0; 0 keeps all (default: 0)'
        >>> [name for name, setting in sampling_settings().items() if setting.kind is None]
        ['logit_bias', 'filters']
    """
    return {field.name: field.metadata["setting"] for field in dataclasses.fields(SamplingParams)}


Function = TypeVar("Function", bound=Callable)


def takes_sampling_params(function: Function) -> Function:
    """Show the fields of `SamplingParams` in the signature of a function that collects them in its `**settings`.

    `help`, editors and notebooks then list every setting with its type and default.

    Example:
        >>> @takes_sampling_params
        ... def write(prompt, **settings):
        ...     return SamplingParams(**settings)
        >>> inspect.signature(write).parameters["temperature"].default
        1.0
    """
    signature = inspect.signature(function)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind != parameter.VAR_KEYWORD]
    fields = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in dataclasses.fields(SamplingParams)
    ]
    function.__signature__ = signature.replace(parameters=[*own, *fields])
    return function


# `help(SamplingParams)` then shows what each field does.
SamplingParams.__doc__ += "\n\n    Attributes:\n" + "\n".join(
    f"        {name}: {setting.help_text}." for name, setting in sampling_settings().items()
)
