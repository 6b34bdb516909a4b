"""EleutherAI's lm-evaluation-harness with our models, `--model gpt2-tf`; needs the extra `[lm-eval]`.

    python -m gpt2_tf.lm_eval run --model gpt2-tf --model_args pretrained=124M --tasks lambada_openai

is the harness's own command, all of its flags included, after this file has told it of `gpt2-tf`: the harness looks for
models nowhere but in its own package. In Python, `import gpt2_tf.lm_eval` does the same.
"""

import logging
from collections.abc import Sequence

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
from gpt2_tf.evaluation.perplexity import windows
from gpt2_tf.generation.engine import as_engine
from gpt2_tf.generation.generate import Sample
from gpt2_tf.generation.likelihood import BATCH_SIZE, Row, score_in_batches
from gpt2_tf.generation.params import SamplingParams
from gpt2_tf.generation.stop_strings import build_stop_table, parse_stops

LENGTH = 256  # new tokens where a task doesn't say, as for the harness's `hf`
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@register_model("gpt2-tf")
class GPT2LM(TemplateLM):
    """The harness's arithmetic, on our logits: windows, truncation and splits are those of its `hf` model.

    Args:
        pretrained: as `gpt2_tf.load`'s model: a size, a folder, "hf:NAME" or "shakespeare".
        models_dir: where sizes are kept.
        batch_size: rows computed at a time; "auto" takes 8.
        seed: of `generate_until` with `do_sample`.
        device, max_batch_size: the harness gives them, and TensorFlow does without.
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
        self.batch_size = BATCH_SIZE if str(batch_size).startswith("auto") else int(batch_size)
        self.seed = SamplingParams(seed=seed).with_seed().seed

    @property
    def eot_token_id(self) -> int:
        return self.enc.end_of_text

    @property
    def max_length(self) -> int:
        return self.model.hparams.n_ctx

    @property
    def tokenizer_name(self) -> str:
        return f"gpt2-tf/{self.pretrained}".replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        return self.enc.encode(string, allowed_special="all")  # as transformers' tokenizer

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs
    ) -> list[tuple[float, bool]]:
        rows = []
        for (_, continuation), context_ids, ids in requests:
            if not 1 <= len(ids) <= self.max_length:
                limits = f"a continuation must have 1 to {self.max_length:,}"
                raise ValueError(f"{continuation[:60]!r} has {len(ids):,} tokens, but {limits}")
            rows.append(Row((context_ids + ids)[-(self.max_length + 1) :], len(ids)))
        cut = sum(len(context_ids) + len(ids) > self.max_length + 1 for _, context_ids, ids in requests)
        if cut:
            logging.getLogger(__name__).warning("%d contexts are cut on the left, to fit the model's window", cut)
        answers = [None] * len(rows)
        for number, score in self._scored(rows, "loglikelihood", disable_tqdm):
            answers[number] = float(score.logprobs.sum(dtype="float64")), bool(score.greedy.all())
            self.cache_hook.add_partial("loglikelihood", requests[number][0], answers[number])
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        rows, owners = [], []
        for owner, request in enumerate(requests):
            ids = [self.prefix_token_id, *self.tok_encode(request.args[0])]
            new = windows(ids, self.max_length, self.max_length)
            rows += new
            owners += [owner] * len(new)
        totals = [0.0] * len(requests)
        for number, score in self._scored(rows, "loglikelihood_rolling", disable_tqdm):
            totals[owners[number]] += float(score.logprobs.sum(dtype="float64"))
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy, or with `do_sample` by temperature, top_k, top_p, min_p and repetition_penalty, which are ours.

        Raises:
            ValueError: any other argument, as of beam search; or no room for a context.
        """
        texts = [""] * len(requests)
        groups = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:
            for numbers in groups.values():
                contexts = {number: self.tok_encode(requests[number].args[0]) for number in numbers}
                numbers.sort(key=lambda number: -len(contexts[number]))
                for first in range(0, len(numbers), self.batch_size):
                    batch = numbers[first : first + self.batch_size]
                    arguments = requests[batch[0]].args[1]
                    written = self._generate([contexts[number] for number in batch], batch, arguments)
                    for number, text in zip(batch, written, strict=True):
                        texts[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar.update(len(batch))
        return texts

    def _generate(self, contexts: Sequence[list[int]], numbers: Sequence[int], arguments: dict) -> list[str]:
        arguments = normalize_gen_kwargs(arguments, LENGTH)
        length, sampled = arguments.pop("max_gen_toks"), arguments.pop("do_sample")
        stop_ids, strings = parse_stops(self.enc, handle_stop_sequences(arguments.pop("until"), eos=END_OF_TEXT))
        settings = {name: arguments.pop(name) for name in SAMPLING if name in arguments}
        if arguments:
            raise ValueError(f"gpt2-tf generates without {', '.join(arguments)}; it takes {', '.join(SAMPLING)}")
        if not sampled:
            settings["temperature"] = 0.0
        if not 1 <= length < self.max_length:
            raise ValueError(f"max_gen_toks is {length}, but must be 1 to {self.max_length - 1}, to leave room")
        contexts = [ids[-(self.max_length - length) :] or [self.eot_token_id] for ids in contexts]
        params = SamplingParams(seed=self.seed, **settings)
        params.check_vocabulary_size(self.enc.n_vocab)
        samples = [Sample(self.enc, None, stop_ids, strings) for _ in contexts]
        for chunks in as_engine(self.model).extend(
            contexts,
            params,
            limits=[length] * len(contexts),
            row_numbers=numbers,
            stop_table=build_stop_table(self.enc.tokens, stop_ids, strings),
        ):
            for chunk in chunks:
                samples[chunk.row].add_chunk(chunk)
        return [sample.to_completion().text for sample in samples]

    def _scored(self, rows: Sequence[Row], desc: str, disable_tqdm: bool):
        return tqdm(
            score_in_batches(self.model, rows, self.batch_size), total=len(rows), desc=desc, disable=disable_tqdm
        )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
