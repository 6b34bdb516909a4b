"""Beam search: the continuations of the highest score among all that a few beams find."""

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from encoder import Encoder
from gpt2_tf.generation.engine import Chunk, Engine, as_engine
from gpt2_tf.generation.generate import Sample, check_vocabulary, encode_prompt, resolve_length
from gpt2_tf.generation.params import STOP, check_number
from gpt2_tf.generation.stop_strings import build_stop_table, parse_stops
from gpt2_tf.hparams import is_whole

if TYPE_CHECKING:
    from gpt2_tf.model.gpt2 import GPT2


class Hypothesis(NamedTuple):
    """One text that beam search found: the fields of a `Completion`, and its score.

    `score` counts the token that stopped the text, which `ids` and `logprobs` may not show.

    Example:
        >>> from gpt2_tf import beam_search
        >>> hypotheses = beam_search(model, enc, "ROMEO:", num_beams=3, num_return=2, length=5)
        >>> hypotheses[0].prompt, hypotheses[0].score >= hypotheses[1].score
        ('ROMEO:', True)
    """

    prompt: str
    text: str
    ids: list[int]
    finish_reason: str
    logprobs: list[float]
    score: float


def beam_search(
    model: "GPT2 | Engine",
    enc: Encoder,
    prompt: str | None = None,
    *,
    num_beams: int = 4,
    num_return: int = 1,
    length: int | None = None,
    length_penalty: float = 1.0,
    stop: str | int | Collection[str | int] | None = STOP,
) -> list[Hypothesis]:
    """Find the `num_return` continuations of the highest score that `num_beams` beams reach. The best comes first.

    A text's score is the sum of its new tokens' natural log-probabilities, divided by their number to the power of
    `length_penalty`. At each step, every beam is extended by every token, and the `num_beams` most likely results that
    have not ended continue. A text ends at a stop, or at `length`. It counts as found if it was then among the
    `num_beams` most likely results, ended or not. The search ends as soon as no beam can reach a better score than the
    texts found. A single beam is greedy decoding: it ends at its stop.

    With stop ids, the texts are those of transformers' `generate(num_beams=..., early_stopping="never")`. Its other
    values of `early_stopping` end on a heuristic and may miss the best text.

    Args:
        model: a GPT2 or an Engine.
        enc: the model's vocabulary.
        prompt: the text to continue. None starts from `<|endoftext|>`.
        num_beams: how many texts are continued side by side, 1 to the size of the vocabulary. With enough beams, the
            search is exhaustive.
        num_return: how many texts to return, 1 to `num_beams`.
        length: at most this many new tokens. None takes 100, or as many as fit.
        length_penalty: -10 to 10. Above 0 favours longer texts, below 0 shorter texts; 0 compares the plain sums.
        stop: token ids, strings, and names of special tokens, any of which ends the text; () never ends it.

    Raises:
        ValueError: an argument outside its range, an empty prompt, or more tokens than the model's window.

    Source: "Sequence to Sequence Learning with Neural Networks" (Sutskever et al., 2014); transformers for the score
    and for the choice of the beams that continue.

    Example:
        >>> best, = beam_search(model, enc, "ROMEO:", num_beams=1, length=5)
        >>> best.finish_reason, len(best.ids)
        ('length', 5)
    """
    engine = as_engine(model)
    check_vocabulary(engine, enc)
    # With at most as many beams as tokens, even a search of length 1 finds `num_return` texts.
    n_tokens = enc.n_vocab - len(enc.unused_ids)
    if not is_whole(num_beams, 1, n_tokens):
        raise ValueError(f"num_beams is {num_beams}, but must be 1 to {n_tokens}, the size of the vocabulary")
    if not is_whole(num_return, 1, num_beams):
        raise ValueError(f"num_return is {num_return}, but must be 1 to {num_beams}, the number of beams")
    check_number("length_penalty", length_penalty)
    # Beyond 10, the scores of long texts would leave float64's range.
    if not -10 <= length_penalty <= 10:
        raise ValueError(f"length_penalty is {length_penalty}, but must be -10 to 10 (0 compares the plain sums)")
    context = encode_prompt(enc, prompt)
    ids, strings = parse_stops(enc, stop)
    beams = engine.search_beams(
        context,
        num_beams=int(num_beams),
        num_return=int(num_return),
        length=resolve_length(engine.hparams, len(context), length, slide=False),
        length_penalty=length_penalty,
        stop_table=build_stop_table(enc.tokens, ids, strings),
        forbidden=enc.unused_ids,
    )
    hypotheses = []
    for beam in beams:
        sample = Sample(enc, prompt, ids, strings)
        sample.add_chunk(Chunk(0, beam.ids, beam.logprobs, beam.finish_reason))
        hypotheses.append(Hypothesis(*sample.to_completion(), beam.score))
    return hypotheses
