"""Text in, text out: `generate`, `stream` and `completions`. All of them use the model through an `Engine`."""

import codecs
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from encoder import Encoder
from gpt2_tf.files.shard import UNSHARDED, Shard
from gpt2_tf.generation.engine import LOOKUP, STEPS_PER_CHUNK, Chunk, Engine, as_engine
from gpt2_tf.generation.params import DEFAULT_LENGTH, SamplingParams, takes_sampling_params
from gpt2_tf.generation.stop_strings import build_stop_table, count_held_back, find_stop, parse_stops
from gpt2_tf.hparams import HParams, is_whole

if TYPE_CHECKING:
    from gpt2_tf.model.gpt2 import GPT2

BATCH_SIZE = 16


class Completion(NamedTuple):
    """One sample: the prompt, and the text that the model wrote after it.

    Attributes:
        prompt: the prompt; "" where the sample started from `<|endoftext|>`.
        text: the new text, without the stop that ended it.
        ids: the new tokens, up to the token in which `text` ends. A stop string may begin inside that token.
        finish_reason: "stop" where a stop ended the text, "length" where the text reached its limit.
        logprobs: the natural log-probability of each of `ids`, before any filter.

    Example:
        >>> from gpt2_tf import generate
        >>> (completion,) = generate(model, enc, "ROMEO:", length=5, seed=1)
        >>> completion.prompt, completion.finish_reason, len(completion.ids), len(completion.logprobs)
        ('ROMEO:', 'length', 5, 5)
    """

    prompt: str
    text: str
    ids: list[int]
    finish_reason: str
    logprobs: list[float]


@takes_sampling_params
def generate(
    model: "GPT2 | Engine",
    enc: Encoder,
    prompts: str | Sequence[str] | None = None,
    *,
    num_samples: int = 1,
    batch_size: int | None = None,
    draft: "GPT2 | Engine | str | None" = None,
    **settings: Any,
) -> list[Completion]:
    """Write `num_samples` texts after each prompt, and return them in order.

    Args:
        model: a GPT2 or an Engine.
        enc: the model's vocabulary.
        prompts: one prompt or several, of any lengths. None starts from `<|endoftext|>`.
        num_samples: texts per prompt, at least 1.
        batch_size: how many samples are computed together, at least 1. Samples of similar length share a batch. None
            takes at most 16.
        draft: a smaller model of the same vocabulary and engine, which proposes several tokens for this model to verify
            together; or "lookup", which proposes what followed the newest tokens when they last occurred. The texts are
            the same, except where rounding decides between two tokens. Samples are then computed one at a time.
        settings: the fields of `SamplingParams`, by name: `length`, `temperature`, `top_k`, `seed` and so on. A
            sample depends on the seed and on its own number, not on its neighbours, except where rounding decides
            between two tokens. The loop is compiled again for each new function in `filters`, so pass the same
            functions again.

    Raises:
        TypeError: a setting that must be a number has another type, or a setting does not exist.
        ValueError: an argument outside its range, an empty prompt, or more tokens than the model's window.

    Example:
        >>> a, b = generate(model, enc, ["ROMEO:", "JULIET:"], length=8, temperature=0)
        >>> a.prompt, len(a.ids), b.prompt
        ('ROMEO:', 8, 'JULIET:')
        >>> generate(model, enc, "ROMEO:", top_p=2)
        Traceback (most recent call last):
        ValueError: top_p is 2, but must be a number above 0 and at most 1 (1 keeps all)
    """
    prompts = [prompts] if prompts is None or isinstance(prompts, str) else list_texts("prompts", prompts)
    numbered = completions(model, enc, prompts, num_samples=num_samples, batch_size=batch_size, draft=draft, **settings)
    by_number = dict(numbered)
    return [by_number[number] for number in range(len(by_number))]


@takes_sampling_params
def completions(
    model: "GPT2 | Engine",
    enc: Encoder,
    prompts: Sequence[str | None],
    *,
    num_samples: int = 1,
    batch_size: int | None = None,
    draft: "GPT2 | Engine | str | None" = None,
    done: Collection[int] = (),
    shard: Shard = UNSHARDED,
    **settings: Any,
) -> Iterator[tuple[int, Completion]]:
    """Yield `generate`'s completions as soon as each is finished, with their numbers in `generate`'s list.

    Wrong arguments raise at the call, before the first completion is asked for. A batch that holds a sample of `done`
    is computed whole, so that each sample keeps its neighbours and its exact numbers.

    Args:
        model, enc, num_samples, batch_size, draft, settings: as for `generate`.
        prompts: the prompts; None starts from `<|endoftext|>`.
        done: the numbers of the samples that are not yielded, because they are already known.
        shard: the share of the samples that this process computes.

    Example:
        >>> numbered = completions(model, enc, ["ROMEO:"], num_samples=2, done=[0], length=3, seed=1)
        >>> [(number, len(completion.ids)) for number, completion in numbered]
        [(1, 3)]
    """
    samples, chunks = _start_samples(
        model,
        enc,
        prompts,
        SamplingParams(**settings),
        num_samples=num_samples,
        batch_size=batch_size,
        draft=draft,
        done=done,
        shard=shard,
    )

    def finished():
        for chunk in chunks:
            samples[chunk.row].add_chunk(chunk)
            if chunk.finish_reason and chunk.row not in done:
                yield chunk.row, samples[chunk.row].to_completion()

    return finished()


@takes_sampling_params
def stream(
    model: "GPT2 | Engine",
    enc: Encoder,
    prompt: str | None = None,
    *,
    num_samples: int = 1,
    batch_size: int | None = None,
    draft: "GPT2 | Engine | str | None" = None,
    **settings: Any,
) -> Iterator[str]:
    """Yield the text after one prompt piece by piece, while it is written.

    A piece holds whole characters only, and never the beginning of a stop string. Joined, the pieces are `generate`'s
    text. Wrong arguments raise at the call, before the first piece is asked for.

    Args:
        model, enc, draft, settings: as for `generate`.
        prompt: the text to continue. None starts from `<|endoftext|>`.
        num_samples: 1, since one text is written.
        batch_size: at least 1; it has no effect on one text.

    Example:
        >>> pieces = stream(model, enc, "ROMEO:", length=8, seed=1)
        >>> "".join(pieces) == generate(model, enc, "ROMEO:", length=8, seed=1)[0].text
        True
    """
    if num_samples != 1:
        raise ValueError(f"num_samples is {num_samples!r}, but stream writes one text; `generate` writes several")
    (sample,), chunks = _start_samples(
        model, enc, [prompt], SamplingParams(**settings), batch_size=batch_size, draft=draft, steps=1
    )

    def pieces():
        for chunk in chunks:
            sample.add_chunk(chunk)
            if text := sample.take_new_text():
                yield text

    return pieces()


class Sample:
    """One sample while it is written: chunks of tokens go in, text comes out.

    Example:
        >>> sample = Sample(enc, "ROMEO:", stop_ids=[], stop_strings=[b"JULIET"])
        >>> sample.add_chunk(Chunk(0, enc.encode("I am. JULIET"), [-1.0] * 20, "stop"))
        >>> sample.take_new_text(), sample.to_completion().finish_reason
        ('I am. ', 'stop')
    """

    def __init__(self, enc: Encoder, prompt: str | None, stop_ids: Collection[int], stop_strings: Collection[bytes]):
        self.enc, self.prompt, self.stop_ids, self.stop_strings = enc, prompt or "", stop_ids, stop_strings
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.text = b""
        self.finish_reason: str | None = None
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.emitted_bytes = 0  # how much of `text` `take_new_text` has returned

    def add_chunk(self, chunk: Chunk) -> None:
        """Append the chunk's tokens. In the last chunk, cut off the stop that ended the text."""
        self.finish_reason = chunk.finish_reason
        by_id = self.finish_reason == "stop" and chunk.ids[-1] in self.stop_ids
        ids = chunk.ids[:-1] if by_id else chunk.ids
        self.ids += ids
        self.text += self.enc.decode_bytes(ids)
        if self.finish_reason == "stop" and (end := find_stop(self.text, self.stop_strings)) < len(self.text):
            size = len(self.text)
            while self.ids and (size := size - len(self.enc.tokens[self.ids[-1]])) >= end:
                self.ids.pop()
            self.text = self.text[:end]
        self.logprobs = (self.logprobs + chunk.logprobs)[: len(self.ids)]

    def take_new_text(self) -> str:
        """Return the text that is certain by now and was not returned before."""
        held_back = 0 if self.finish_reason else count_held_back(self.text, self.stop_strings)
        first, self.emitted_bytes = self.emitted_bytes, len(self.text) - held_back
        return self.decoder.decode(self.text[first : self.emitted_bytes], final=self.finish_reason is not None)

    def to_completion(self) -> Completion:
        """Return the sample as a Completion; it is complete once there is a `finish_reason`."""
        text = self.text.decode("utf-8", "replace")
        return Completion(self.prompt, text, self.ids, self.finish_reason, self.logprobs)


def _start_samples(
    model: "GPT2 | Engine",
    enc: Encoder,
    prompts: Sequence[str | None],
    params: SamplingParams,
    *,
    num_samples: int = 1,
    batch_size: int | None = None,
    draft: "GPT2 | Engine | str | None" = None,
    done: Collection[int] = (),
    shard: Shard = UNSHARDED,
    steps: int = STEPS_PER_CHUNK,
) -> tuple[list[Sample], Iterator[Chunk]]:
    """Check all arguments. Return the empty samples, and an iterator that computes their chunks.

    A chunk's `row` is the number of its sample.
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value is not None and not is_whole(value, 1, 2**31 - 1):
            raise ValueError(f"{name} is {value!r}, but must be a whole number of at least 1")
    engine = as_engine(model)
    check_vocabulary(engine, enc)
    contexts, limits = [], []
    for number, prompt in enumerate(prompts, start=1):
        try:
            context = encode_prompt(enc, prompt)
            limit = resolve_length(engine.hparams, len(context), params.length, slide=params.window)
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}" if len(prompts) > 1 else str(error)) from None
        contexts += [context] * num_samples
        limits += [limit] * num_samples
    stop_ids, stop_strings = parse_stops(enc, params.stop)
    stop_table = build_stop_table(enc.tokens, stop_ids, stop_strings)
    params = params.for_vocabulary(enc).with_seed()
    draft = _check_draft(draft, enc)
    batch_size = batch_size or BATCH_SIZE if draft is None else 1
    by_length = sorted(range(len(contexts)), key=lambda number: len(contexts[number]))

    def compute_chunks():
        for first in shard.batch_starts(len(contexts), batch_size):
            numbers = by_length[first : first + batch_size]
            if all(number in done for number in numbers):
                continue
            batch = engine.extend(
                [contexts[number] for number in numbers],
                params,
                limits=[limits[number] for number in numbers],
                row_numbers=numbers,
                stop_table=stop_table,
                steps=steps,
                draft=draft,
            )
            for chunks in batch:
                for chunk in chunks:
                    yield chunk._replace(row=numbers[chunk.row])

    samples = [Sample(enc, prompt, stop_ids, stop_strings) for prompt in prompts for _ in range(num_samples)]
    return samples, compute_chunks()


def _check_draft(draft: "GPT2 | Engine | str | None", enc: Encoder) -> "Engine | str | None":
    """Return the draft, a GPT2 as an Engine. Raise ValueError for anything that cannot be a draft."""
    if draft is None or (isinstance(draft, str) and draft == LOOKUP):
        return draft
    try:
        engine = as_engine(draft)
    except TypeError:
        raise ValueError(f"draft is {draft!r:.60}, but must be a model, {LOOKUP!r}, or None") from None
    if engine.hparams.n_vocab != enc.n_vocab:
        raise ValueError(
            f"the draft model has {engine.hparams.n_vocab} tokens, but the vocabulary {enc.n_vocab}; "
            "take a draft model with the same vocabulary"
        )
    return engine


def check_vocabulary(model: "GPT2 | Engine", enc: Encoder) -> None:
    """Raise ValueError unless the model and the vocabulary have the same number of tokens.

    Example:
        >>> check_vocabulary(model, enc)
    """
    if enc.n_vocab != model.hparams.n_vocab:
        raise ValueError(
            f"the vocabulary has {enc.n_vocab} tokens, but the model {model.hparams.n_vocab}; "
            "load both from the same folder"
        )


def encode_prompt(enc: Encoder, prompt: str | None) -> list[int]:
    """Encode a prompt. None becomes `<|endoftext|>` alone.

    Raises:
        TypeError: the prompt is neither a str nor None.
        ValueError: the prompt is empty.

    Example:
        >>> encode_prompt(enc, None) == [enc.end_of_text]
        True
    """
    if not isinstance(prompt, str | None):
        raise TypeError(f"a prompt is {prompt!r:.60}, but must be a str, or None to start from <|endoftext|>")
    if prompt == "":
        raise ValueError("the prompt is empty; leave it out to start from <|endoftext|>")
    return [enc.end_of_text] if prompt is None else enc.encode(prompt)


def list_texts(name: str, texts: Iterable[str]) -> list[str]:
    """Return a list of texts. Raise TypeError for a value that is neither a text nor a collection of texts.

    Example:
        >>> list_texts("prompts", ("ROMEO:", "JULIET:"))
        ['ROMEO:', 'JULIET:']
    """
    if not isinstance(texts, Iterable) or isinstance(texts, bytes):
        raise TypeError(f"{name} is {texts!r:.60}, but must be a str or a list of str")
    return list(texts)


def check_length(hparams: HParams, seq: int, length: int) -> None:
    """Raise ValueError unless `length` new tokens fit the model's window after a context of `seq` tokens.

    Example:
        >>> check_length(model.hparams, seq=250, length=100)
        Traceback (most recent call last):
        ValueError: length is 100, but must be 1 to 7: the model's window is 256 tokens, and the prompt has 250
    """
    # The last new token is not run, so n_ctx + 1 tokens fit.
    room = hparams.n_ctx + 1 - seq
    if room < 1:
        raise ValueError(f"the prompt has {seq:,} tokens, but the model reads at most {hparams.n_ctx:,}; shorten it")
    if not is_whole(length, 1, room):
        raise ValueError(
            f"length is {length!r}, but must be 1 to {room:,}: the model's window is {hparams.n_ctx:,} tokens, "
            f"and the prompt has {seq:,}"
        )


def resolve_length(hparams: HParams, seq: int, length: int | None, slide: bool) -> int:
    """Return the largest number of new tokens after a context of `seq` tokens.

    Args:
        hparams: the model's hyperparameters.
        seq: the number of tokens in the context.
        length: the wanted number. None takes 100; without `slide`, None takes fewer where fewer fit.
        slide: whether the window slides, so that any length fits.

    Raises:
        ValueError: the length does not fit.

    Example:
        >>> resolve_length(model.hparams, seq=250, length=None, slide=False)
        7
    """
    if slide:
        return DEFAULT_LENGTH if length is None else length
    if length is None:
        length = max(1, min(DEFAULT_LENGTH, hparams.n_ctx + 1 - seq))
    try:
        check_length(hparams, seq, length)
    except ValueError as error:
        hint = "or let the window slide: window=True in Python, --window on the command line"
        raise ValueError(f"{error}; {hint}") from None
    return int(length)
