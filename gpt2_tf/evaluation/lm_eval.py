"""The model `gpt2-tf` for EleutherAI's lm-evaluation-harness. It needs the extra `[lm-eval]`.

    python -m gpt2_tf.lm_eval run --model gpt2-tf --model_args pretrained=124M --tasks lambada_openai

This is the harness's own command, with all of its flags. The harness finds models only in its own package, so this file
registers the model `gpt2-tf` first. In Python, `import gpt2_tf.lm_eval` registers it.
"""

import logging
from collections.abc import Iterable, Sequence

from gpt2_tf.pretrained import load

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
except ImportError as error:
    raise ImportError(
        f"the evaluation harness needs the extra: pip install 'gpt2-tf[lm-eval]' ({error.name} is missing)"
    ) from None

from tqdm import tqdm

from encoder.bpe import END_OF_TEXT
from gpt2_tf.evaluation.perplexity import window_rows
from gpt2_tf.generation.engine import Likelihood, Row, as_engine
from gpt2_tf.generation.generate import Sample
from gpt2_tf.generation.likelihood import BATCH_SIZE, score_in_batches
from gpt2_tf.generation.params import SamplingParams, sampling_settings
from gpt2_tf.generation.stop_strings import build_stop_table, parse_stops

DEFAULT_LENGTH = 256  # new tokens where a task gives no number, as in the harness's model `hf`
# A task's generation arguments may name any setting but these, which the harness itself decides.
SETTINGS = sorted(sampling_settings().keys() - {"length", "stop", "seed", "window", "filters", "logit_bias"})


@register_model("gpt2-tf")
class GPT2LM(TemplateLM):
    """The harness's interface to a model. Windows, truncation and splits equal those of the harness's model `hf`.

    The harness calls the methods; its base class `lm_eval.api.model.LM` documents them.

    Args:
        pretrained: as in `gpt2_tf.load`: a size, a folder, "hf:NAME" or "shakespeare". Default: "124M".
        models_dir: the folder with the sizes. Default: "models".
        batch_size: rows per batch, at least 1; "auto" is 8, the default.
        seed: for `generate_until` with `do_sample`. Default: 0.
        device: unused; the harness passes it. TensorFlow chooses the device.
        max_batch_size: unused; the harness passes it.
    """

    def __init__(
        self,
        pretrained: str = "124M",
        models_dir: str = "models",
        batch_size: int | str = BATCH_SIZE,
        seed: int = 0,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        self.pretrained = str(pretrained)
        self.model, self.enc = load(self.pretrained, models_dir)
        self.engine = as_engine(self.model)
        self.batch_size = BATCH_SIZE if str(batch_size).startswith("auto") else int(batch_size)
        self.seed = SamplingParams(seed=seed).with_seed().seed

    @property
    def eot_token_id(self) -> int:
        """The id of `<|endoftext|>`."""
        return self.enc.end_of_text

    @property
    def max_length(self) -> int:
        """The model's window, in tokens."""
        return self.engine.hparams.n_ctx

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's cache of requests."""
        return f"gpt2-tf/{self.pretrained}".replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """Encode a text; the names of special tokens in it become special tokens, as in transformers."""
        return self.enc.encode(string, allowed_special="all")

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether greedy decoding would write it."""
        rows, n_truncated = [], 0
        for (_, continuation), context_ids, ids in requests:
            if not 1 <= len(ids) <= self.max_length:
                raise ValueError(
                    f"the continuation {continuation[:60]!r} has {len(ids):,} tokens, but must have 1 to "
                    f"{self.max_length:,}, the model's window"
                )
            rows.append(Row((context_ids + ids)[-(self.max_length + 1) :], len(ids)))
            n_truncated += len(context_ids) + len(ids) > self.max_length + 1
        if n_truncated:
            logging.getLogger(__name__).warning(
                "%d contexts are longer than the model's window; their beginnings are left out", n_truncated
            )
        answers = [None] * len(rows)
        for number, scores in self._score(rows, "loglikelihood", disable_tqdm):
            answers[number] = float(scores.logprobs.sum(dtype="float64")), bool(scores.greedy.all())
            self.cache_hook.add_partial("loglikelihood", requests[number][0], answers[number])
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, by windows that do not overlap."""
        rows, owners = [], []
        for owner, request in enumerate(requests):
            ids = [self.prefix_token_id, *self.tok_encode(request.args[0])]
            rows_of_text = window_rows(ids, self.max_length, self.max_length)
            rows += rows_of_text
            owners += [owner] * len(rows_of_text)
        totals = [0.0] * len(requests)
        for number, scores in self._score(rows, "loglikelihood_rolling", disable_tqdm):
            totals[owners[number]] += float(scores.logprobs.sum(dtype="float64"))
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until one of its stop strings.

        Decoding is greedy, unless a request has `do_sample`. Then the request's sampling settings apply, which have
        the names and meanings of `gpt2_tf.generate`.

        Raises:
            ValueError: a request has another argument, such as beam search's, or leaves no room for a context.
        """
        texts = [""] * len(requests)
        groups = {}  # the requests of one batch must have the same arguments
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:
            for numbers in groups.values():
                contexts = {number: self.tok_encode(requests[number].args[0]) for number in numbers}
                numbers.sort(key=lambda number: -len(contexts[number]))
                for first in range(0, len(numbers), self.batch_size):
                    batch = numbers[first : first + self.batch_size]
                    arguments = requests[batch[0]].args[1]
                    new_texts = self._generate_batch([contexts[number] for number in batch], batch, arguments)
                    for number, text in zip(batch, new_texts, strict=True):
                        texts[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar.update(len(batch))
        return texts

    def _generate_batch(self, contexts: Sequence[list[int]], numbers: Sequence[int], arguments: dict) -> list[str]:
        """Continue contexts of token ids, whose requests have these numbers and the same arguments."""
        arguments = normalize_gen_kwargs(arguments, DEFAULT_LENGTH)
        length, do_sample = arguments.pop("max_gen_toks"), arguments.pop("do_sample")
        stop_ids, stop_strings = parse_stops(self.enc, handle_stop_sequences(arguments.pop("until"), eos=END_OF_TEXT))
        settings = {name: arguments.pop(name) for name in SETTINGS if name in arguments}
        if arguments:
            raise ValueError(f"gpt2-tf cannot generate with {', '.join(arguments)}; it takes {', '.join(SETTINGS)}")
        if not do_sample:
            settings["temperature"] = 0.0
        if not 1 <= length < self.max_length:
            raise ValueError(
                f"max_gen_toks is {length}, but must be 1 to {self.max_length - 1}, to leave room for a context"
            )
        contexts = [ids[-(self.max_length - length) :] or [self.eot_token_id] for ids in contexts]
        params = SamplingParams(seed=self.seed, **settings).for_vocabulary(self.enc)
        samples = [Sample(self.enc, None, stop_ids, stop_strings) for _ in contexts]
        for chunks in self.engine.extend(
            contexts,
            params,
            limits=[length] * len(contexts),
            row_numbers=numbers,
            stop_table=build_stop_table(self.enc.tokens, stop_ids, stop_strings),
        ):
            for chunk in chunks:
                samples[chunk.row].add_chunk(chunk)
        return [sample.to_completion().text for sample in samples]

    def _score(self, rows: Sequence[Row], description: str, disable_tqdm: bool) -> Iterable[tuple[int, Likelihood]]:
        """Each row's number and scores, with the harness's progress bar."""
        numbered = score_in_batches(self.engine, rows, self.batch_size)
        return tqdm(numbered, total=len(rows), desc=description, disable=disable_tqdm)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
