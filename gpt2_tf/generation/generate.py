"""Text in, text out: `generate`, `stream` and `score`."""

import codecs
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from encoder import Encoder
from gpt2_tf.files.shard import UNSHARDED, Shard
from gpt2_tf.generation import stop_strings
from gpt2_tf.generation.decoding import STEPS, Noise, Piece, check_length, draw_seed, extend
from gpt2_tf.generation.likelihood import Row, likelihoods
from gpt2_tf.generation.params import STOP
from gpt2_tf.generation.sampler import Filter, choice
from gpt2_tf.generation.speculative import Draft, look_up
from gpt2_tf.hparams import HParams, is_whole
from gpt2_tf.model.gpt2 import GPT2

BATCH_SIZE = 16
LENGTH = 100
LOOKUP = "lookup"


class Completion(NamedTuple):
    """One sample: what was asked, and what came after it.

    `text` ends before what stopped it, and `ids` with the token in which it ends: a stop string may begin within one.
    `finish_reason` is "stop", or "length" where there was more to say. `logprobs` has a number for each of `ids`: its
    natural log-probability, before any filter.
    """

    prompt: str
    text: str
    ids: list[int]
    finish_reason: str
    logprobs: list[float]


def generate(
    model: GPT2,
    enc: Encoder,
    prompts: str | Sequence[str] | None = None,
    *,
    length: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    logit_bias: Mapping[int, float] | None = None,
    filters: Sequence[Filter] = (),
    stop: str | int | Collection[str | int] = STOP,
    min_length: int = 0,
    num_samples: int = 1,
    seed: int | None = None,
    window: bool = False,
    batch_size: int | None = None,
    draft: GPT2 | str | None = None,
) -> list[Completion]:
    """`num_samples` for each prompt, in order.

    The settings act in this order: logit_bias, repetition_penalty, no_repeat_ngram, min_length, filters, temperature,
    top_k, top_p, min_p.

    Args:
        prompts: one or several, of any lengths; None starts from `<|endoftext|>`.
        length: new tokens at most. None takes 100, or what fits.
        temperature: divides the logits; 0 takes the likeliest token each time.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities add up to at most this; 1 keeps all.
        min_p: keep tokens at least this times as likely as the likeliest; 0 keeps all.
        repetition_penalty: above 1, tokens that the text in the window holds become less likely.
        no_repeat_ngram: no run of so many tokens comes twice in the window; 0 lets it.
        logit_bias: id -> what is added to its logit; -inf for never.
        filters: functions of TensorFlow ops, logits -> logits, float32 [batch, n_vocab]. Each new one is compiled, with
            the model, when it first comes: pass the same objects again.
        stop: ids, strings, and names of special tokens, any of which ends the text; () for none.
        min_length: until so many new tokens, none that would end the text is chosen (a stop string may begin there).
        seed: the same gives the same texts; a sample depends on it and on the sample's number, whatever its neighbours,
            but where rounding decides between two tokens.
        window: where the model's window is full, go on from the newer half of it, so that any length can be asked for.
        batch_size: samples computed at a time, those of like length together; None takes up to 16.
        draft: a smaller model of the same vocabulary, which guesses several tokens for this one to check at once; or
            "lookup", which guesses what followed the last tokens when they came before. Texts stay as they are, but
            where rounding decides between two tokens; samples are computed one at a time.

    Raises:
        ValueError: an argument out of its range, an empty prompt, or more tokens than the model's window has.
    """
    prompts = [prompts] if prompts is None or isinstance(prompts, str) else list(prompts)
    found = dict(
        completions(
            model,
            enc,
            prompts,
            length=length,
            filters=filters,
            stop=stop,
            num_samples=num_samples,
            seed=seed,
            window=window,
            batch_size=batch_size,
            draft=draft,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram=no_repeat_ngram,
            logit_bias=logit_bias,
            min_length=min_length,
        )
    )
    return [found[number] for number in range(len(found))]


def completions(
    model: GPT2,
    enc: Encoder,
    prompts: Sequence[str | None],
    *,
    done: Collection[int] = (),
    shard: Shard = UNSHARDED,
    **settings,
) -> Iterator[tuple[int, Completion]]:
    """`generate`'s list, each with its number in it as soon as it is finished; what is wrong is said at once.

    Those whose numbers are `done` are left out, and those that aren't the shard's. A batch that has others too is
    computed whole: among the same neighbours, the others come out the same to the last bit.
    """
    samples, pieces = _samples(model, enc, prompts, done=done, shard=shard, **settings)

    def finished():
        for piece in pieces:
            samples[piece.row].add(piece)
            if piece.finish_reason and piece.row not in done:
                yield piece.row, samples[piece.row].completion()

    return finished()


def stream(model: GPT2, enc: Encoder, prompt: str | None = None, **settings) -> Iterator[str]:
    """The text after one prompt in pieces, each as soon as it is sure: whole characters, and no beginning of a stop.

    Together they are `generate`'s text. `settings` are `generate`'s; what is wrong with them is said at once.
    """
    if settings.get("num_samples", 1) != 1:
        raise ValueError(f"num_samples is {settings['num_samples']!r}, but stream writes one text; ask `generate`")
    (sample,), pieces = _samples(model, enc, [prompt], steps=1, **settings)

    def texts():
        for piece in pieces:
            sample.add(piece)
            if text := sample.news():
                yield text

    return texts()


class Sample:
    """One sample as it grows."""

    def __init__(self, enc: Encoder, prompt: str | None, stop_ids: Collection[int], stop_strings: Collection[bytes]):
        self.enc, self.prompt, self.stop_ids, self.stop_strings = enc, prompt or "", stop_ids, stop_strings
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.text = b""
        self.finish_reason: str | None = None
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.told = 0  # bytes

    def add(self, piece: Piece) -> None:
        """Takes what came next; the last piece says why the text ends, and is cut there."""
        self.finish_reason = piece.finish_reason
        by_id = self.finish_reason == "stop" and piece.ids[-1] in self.stop_ids
        ids = piece.ids[:-1] if by_id else piece.ids
        self.ids += ids
        self.text += self.enc.decode_bytes(ids)
        if self.finish_reason == "stop" and (end := stop_strings.find(self.text, self.stop_strings)) < len(self.text):
            size = len(self.text)
            while self.ids and (size := size - len(self.enc.tokens[self.ids[-1]])) >= end:
                self.ids.pop()
            self.text = self.text[:end]
        self.logprobs = (self.logprobs + piece.logprobs)[: len(self.ids)]

    def news(self) -> str:
        """What is sure and wasn't told before."""
        held_back = 0 if self.finish_reason else stop_strings.held_back(self.text, self.stop_strings)
        before, self.told = self.told, len(self.text) - held_back
        return self.decoder.decode(self.text[before : self.told], final=self.finish_reason is not None)

    def completion(self) -> Completion:
        """What it is so far, and all of it once there is a `finish_reason`."""
        text = self.text.decode("utf-8", "replace")
        return Completion(self.prompt, text, self.ids, self.finish_reason, self.logprobs)


def _samples(
    model: GPT2,
    enc: Encoder,
    prompts: Sequence[str | None],
    *,
    length: int | None = None,
    filters: Sequence[Filter] = (),
    stop: str | int | Collection[str | int] = STOP,
    num_samples: int = 1,
    seed: int | None = None,
    window: bool = False,
    batch_size: int | None = None,
    draft: GPT2 | str | None = None,
    done: Collection[int] = (),
    shard: Shard = UNSHARDED,
    steps: int = STEPS,
    **settings,
) -> tuple[list[Sample], Iterator[Piece]]:
    """The samples, all empty, and what comes to each, by its number; whatever is wrong is raised before."""
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value is not None and not is_whole(value, 1, 2**31 - 1):
            raise ValueError(f"{name} is {value!r}, but must be a whole number, at least 1")
    check_vocabulary(model, enc)
    contexts, limits = [], []
    for number, prompt in enumerate(prompts, start=1):
        try:
            context = prompt_ids(enc, prompt)
            limit = length_limit(model.hparams, len(context), length, window)
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}" if len(prompts) > 1 else str(error)) from None
        contexts += [context] * num_samples
        limits += [limit] * num_samples
    ids, strings = stop_strings.parse(enc, stop)
    settings = choice(enc.n_vocab, stops=stop_strings.table(enc.tokens, ids, strings), **settings)
    seed = draw_seed(seed)
    by_length = sorted(range(len(contexts)), key=lambda number: len(contexts[number]))
    filters = (filters,) if callable(filters) else tuple(filters)
    _check_draft(draft, enc)
    batch_size = batch_size or BATCH_SIZE if draft is None else 1

    def guess(noise):
        return look_up if draft == LOOKUP else draft and Draft(draft, settings, noise, filters)

    def pieces():
        for first in shard.batch_starts(len(contexts), batch_size):
            numbers = by_length[first : first + batch_size]
            if all(number in done for number in numbers):
                continue
            batch_limits = [limits[number] for number in numbers]
            noise = Noise(seed, numbers)
            rows = [contexts[number] for number in numbers]
            for batch in extend(model, rows, settings, batch_limits, noise, filters, steps, guess(noise)):
                for piece in batch:
                    yield piece._replace(row=numbers[piece.row])

    return [Sample(enc, prompt, ids, strings) for prompt in prompts for _ in range(num_samples)], pieces()


def _check_draft(draft: GPT2 | str | None, enc: Encoder) -> None:
    if not (draft is None or isinstance(draft, GPT2) or draft == LOOKUP):
        raise ValueError(f"draft is {draft!r:.60}, but must be a model, {LOOKUP!r}, or None")
    if isinstance(draft, GPT2) and draft.hparams.n_vocab != enc.n_vocab:
        raise ValueError(f"the draft model has {draft.hparams.n_vocab} tokens, but the vocabulary {enc.n_vocab}")


def check_vocabulary(model: GPT2, enc: Encoder) -> None:
    """Raises ValueError unless the model has as many tokens as the vocabulary."""
    if enc.n_vocab != model.hparams.n_vocab:
        raise ValueError(f"the vocabulary has {enc.n_vocab} tokens, but the model {model.hparams.n_vocab}")


def prompt_ids(enc: Encoder, prompt: str | None) -> list[int]:
    """The prompt's ids; None is `<|endoftext|>` alone. Raises ValueError for an empty one, TypeError for no str."""
    if not isinstance(prompt, str | None):
        raise TypeError(f"a prompt is {prompt!r:.60}, but must be a str, or None to start from <|endoftext|>")
    if prompt == "":
        raise ValueError("the prompt is empty; leave it out to start from <|endoftext|>")
    return [enc.end_of_text] if prompt is None else enc.encode(prompt)


def length_limit(hparams: HParams, seq: int, length: int | None, window: bool) -> int:
    """New tokens at most, after a context of `seq`. Raises ValueError for a length that doesn't fit."""
    if window:
        length = LENGTH if length is None else length
        if not is_whole(length, 1, 2**31 - 1):
            raise ValueError(f"length is {length!r}, but must be a whole number, at least 1")
    elif length is None:
        length = max(1, min(LENGTH, hparams.n_ctx + 1 - seq))
    if not window:
        check_length(hparams, seq, length)
    return int(length)


def score(
    model: GPT2,
    enc: Encoder,
    texts: str | Sequence[str],
    contexts: str | Sequence[str] | None = None,
    *,
    batch_size: int = 8,
) -> list[list[float]]:
    """The natural log-probability of each token of each text.

    Args:
        texts: one or several; each one's tokens are `enc.encode`'s.
        contexts: what goes before each text and isn't scored; None is `<|endoftext|>` alone.
        batch_size: texts computed at a time.

    Raises:
        ValueError: an empty context, or more tokens than the model's window has.
    """
    check_vocabulary(model, enc)
    texts = [texts] if isinstance(texts, str) else list(texts)
    contexts = [contexts] if isinstance(contexts, str) else contexts
    contexts = [None] * len(texts) if contexts is None else list(contexts)
    if not is_whole(batch_size, 1, 2**31 - 1):
        raise ValueError(f"batch_size is {batch_size!r}, but must be a whole number, at least 1")
    if len(contexts) != len(texts):
        raise ValueError(f"there are {len(texts)} texts, but {len(contexts)} contexts")
    targets = [enc.encode(text) for text in texts]
    rows = [prompt_ids(enc, context) + ids for context, ids in zip(contexts, targets, strict=True)]
    for row in rows:
        if len(row) > model.hparams.n_ctx + 1:
            raise ValueError(
                f"a context and its text have {len(row):,} tokens, but the model reads at most "
                f"{model.hparams.n_ctx:,}, and the last is not read; shorten it"
            )
    scored = dict(likelihoods(model, [Row(row, len(ids)) for row, ids in zip(rows, targets, strict=True)], batch_size))
    return [scored[number].logprobs.tolist() for number in range(len(rows))]
