"""Check an export: its answers are the model's, in a process that has TensorFlow alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from encoder import Encoder
from gpt2_tf.generation.generate import generate
from gpt2_tf.generation.likelihood import score
from gpt2_tf.model.gpt2 import GPT2

PROMPTS = ("", "A", "\u00e9!")  # short, so that they fit any window
LENGTH = 8  # new tokens per completion
# Sums of at most LENGTH log-probabilities, whose float32 roundings differ from graph to graph; bfloat16 has 8 bits.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}
# The process that loads the export: requests on stdin, answers on stdout, as JSON.
CLIENT = """
import json, sys
import tensorflow as tf
signatures = tf.saved_model.load(".").signatures
answers = []
for name, inputs in json.load(sys.stdin):
    answer = signatures[name](**inputs)
    answers.append({key: value.numpy().tolist() for key, value in answer.items()})
assert not {"gpt2_tf", "encoder"} & set(sys.modules), "the process has imported gpt2_tf"
print(json.dumps(answers, default=bytes.decode))
"""

Request = tuple[str, dict[str, list[Any]]]  # a signature's name, and its inputs of one row each


def compare_with_model(folder: Path, model: GPT2, enc: Encoder, max_length: int) -> int:
    """Ask an export and the model for the same completions and scores.

    Completions are compared for a float32 model only: in bfloat16, rounding too often decides between two tokens.

    Args:
        folder: the SavedModel.
        model: the model that it was made of, in the same dtype.
        enc: the model's encoder.
        max_length: the largest `length` that the export accepts, in tokens.

    Returns:
        How many requests were answered alike.

    Raises:
        ValueError: the export cannot be loaded, or an answer differs.

    Example:
        >>> from gpt2_tf.serving import export
        >>> folder = export(model, enc, "exported")  # doctest: +SKIP
        >>> compare_with_model(folder, model, enc, max_length=100)  # doctest: +SKIP
        9
    """
    cases = _cases(model, enc, max_length)
    answers = _ask_export(folder, [request for request, _ in cases])
    for (request, expected), answer in zip(cases, answers, strict=True):
        found = {name: answer[name][0] for name in expected}
        difference = abs(found["logprob"] - expected["logprob"])
        texts_differ = any(found[name] != value for name, value in expected.items() if name != "logprob")
        if texts_differ or not difference <= TOLERANCE[model.compute_dtype]:
            raise ValueError(f"the export answers {found} to {request}, but the model answers {expected}")
    return len(cases)


def _cases(model: GPT2, enc: Encoder, max_length: int) -> list[tuple[Request, dict[str, Any]]]:
    """Requests, and what the model answers."""
    room = model.hparams.n_ctx + 1 - max(len(enc.encode(prompt)) for prompt in PROMPTS)
    length = min(LENGTH, max_length, room)
    cases = []
    for seed, prompt in enumerate(PROMPTS):
        (logprobs,) = score(model, enc, "A", prompt or None)
        request = "score", {"context": [prompt], "text": ["A"]}
        cases.append((request, {"count": len(logprobs), "logprob": sum(logprobs)}))
        for temperature in (0.0, 1.0) if model.compute_dtype == "float32" else ():
            settings = {"length": length, "temperature": temperature, "top_k": 0, "top_p": 1.0, "seed": seed}
            (completion,) = generate(model, enc, prompt or None, **settings)
            request = "generate", {name: [value] for name, value in {"text": prompt, **settings, "stop": ""}.items()}
            expected = {"text": completion.text, "count": len(completion.ids)}
            expected |= {"finish_reason": completion.finish_reason, "logprob": sum(completion.logprobs)}
            cases.append((request, expected))
    return cases


def _ask_export(folder: Path, requests: list[Request]) -> list[dict[str, list[Any]]]:
    """The export's answers, from a process that cannot import gpt2_tf."""
    # TensorFlow finds the Keras that it would find elsewhere, if there is any.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "KERAS_BACKEND")}
    process = subprocess.run(
        [sys.executable, "-c", CLIENT],
        input=json.dumps(requests),
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        last_line = (process.stderr.strip() or "no message").splitlines()[-1]
        raise ValueError(f"the export cannot be loaded and run: {last_line}")
    return json.loads(process.stdout.splitlines()[-1])
