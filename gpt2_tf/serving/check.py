"""An export's answers beside the model's, in a process that has TensorFlow alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

from encoder import Encoder
from gpt2_tf.generation.generate import generate, score
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.serving.signatures import Limits

CHECKED = ("", "A", "\u00e9!")  # short, so that they fit any window
CHECK = """
import json, sys
import tensorflow as tf
signatures = tf.saved_model.load(sys.argv[1]).signatures
answers = []
for name, inputs in json.load(sys.stdin):
    specs = signatures[name].structured_input_signature[1]
    answer = signatures[name](**{key: tf.constant(value, specs[key].dtype) for key, value in inputs.items()})
    answers.append({key: value.numpy().tolist() for key, value in answer.items()})
assert not {"gpt2_tf", "encoder"} & set(sys.modules)
print(json.dumps(answers, default=bytes.decode))
"""


def check_export(model: GPT2, enc: Encoder, limits: Limits, folder: Path) -> None:
    """Raises ValueError unless a process that has TensorFlow alone gets the model's answers from the folder."""
    room = model.hparams.n_ctx + 1 - max(len(enc.encode(prompt)) for prompt in CHECKED)
    rounded = model.compute_dtype != "float32"  # where rounding decides between tokens too often to compare texts
    requests, expected = [], []
    for seed, prompt in enumerate(CHECKED):
        requests.append(("score", {"context": [prompt], "text": ["A"]}))
        (logprobs,) = score(model, enc, "A", prompt or None)
        expected.append((None, len(logprobs), None, sum(logprobs)))
        for temperature in () if rounded else (0.0, 1.0):
            settings = {"length": min(8, limits.max_length, room), "temperature": temperature, "top_k": 0, "top_p": 1.0}
            inputs = {"text": prompt, **settings, "seed": seed, "stop": ""}
            requests.append(("generate", {name: [value] for name, value in inputs.items()}))
            (completion,) = generate(model, enc, prompt or None, seed=seed, **settings)
            found = completion.text, len(completion.ids), completion.finish_reason
            expected.append((*found, sum(completion.logprobs)))
    # The package is not to be found, and TensorFlow is to find a Keras, if any, as it would elsewhere.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "KERAS_BACKEND")}
    ran = subprocess.run(
        [sys.executable, "-c", CHECK, str(folder.resolve())],
        input=json.dumps(requests),
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        raise ValueError(f"the export can't be loaded and run: {(ran.stderr.strip() or '?').splitlines()[-1]}")
    for request, answer, want in zip(requests, json.loads(ran.stdout.splitlines()[-1]), expected, strict=True):
        found = tuple(answer.get(name, [None])[0] for name in ("text", "count", "finish_reason", "logprob"))
        if found[:3] != want[:3] or not abs(found[3] - want[3]) <= (0.2 if rounded else 1e-3):
            raise ValueError(f"the export answers {found} to {request}, but the model {want}")
