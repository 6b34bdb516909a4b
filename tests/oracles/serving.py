"""Ask an export as TensorFlow Serving's clients do, and know the answers from the model itself.

    python tests/oracles/serving.py FOLDER

This command is a server on stdin and stdout, in a process with TensorFlow alone. The format is TensorFlow Serving's:
https://www.tensorflow.org/tfx/serving/api_rest. Each line of stdin is the body of a REST request: {"signature_name":
..., "instances": [...]} or {..., "inputs": {...}}. Each line of stdout is the body of the answer: {"predictions":
[...]}, {"outputs": ...} or {"error": ...}. A REST request must give all inputs. A gRPC request may leave inputs out; it
is written {..., "grpc": {...}} here.
"""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

PROMPTS = ["them", "", "the then them", "🎈 x", "th"]
MAX_BATCH = 8
IMPORTED_BY_TENSORFLOW = set(sys.modules)  # TensorFlow may import a Keras of its own


def model_answer(model, enc, prompt, **settings):
    """What the model itself answers to a prompt: text, count, finish_reason and logprob."""
    from gpt2_tf import generate

    (completion,) = generate(model, enc, prompt or None, **settings)
    return completion.text, len(completion.ids), completion.finish_reason, sum(completion.logprobs)


def check_answers(outputs, expected):
    """Compare the outputs of `generate` with answers of `model_answer`, one per row.

    Tolerance 1e-4: log-probabilities are sums of up to 20 numbers, which two graphs round differently in float32.
    """
    names = ("text", "count", "finish_reason")
    assert [*zip(*(outputs[name] for name in names), strict=True)] == [answer[:3] for answer in expected]
    np.testing.assert_allclose(outputs["logprob"], [answer[3] for answer in expected], rtol=0, atol=1e-4)


def generate_inputs(texts, **settings):
    """All inputs of `generate` as tensors; a setting may be one value, or a list with one value per text."""
    defaults = {"length": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0, "stop": ""}
    dtypes = {"length": tf.int32, "temperature": tf.float32, "top_k": tf.int32, "top_p": tf.float32, "seed": tf.int64}
    inputs = per_row(len(texts), **{**defaults, **settings})
    return {"text": tf.constant(texts)} | {k: tf.constant(v, dtypes.get(k, tf.string)) for k, v in inputs.items()}


def per_row(count, **settings):
    """Each setting as a list with one value per row."""
    return {name: value if isinstance(value, list) else [value] * count for name, value in settings.items()}


def base64_value(content: bytes):
    """Any bytes as a value in JSON."""
    return {"b64": base64.b64encode(content).decode()}


class ServerProcess:
    """The command above, with an export."""

    def __init__(self, folder: Path, python: str = sys.executable):
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "KERAS_BACKEND")}
        command = [python, "-c", Path(__file__).read_text("utf-8"), str(folder)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=env, cwd=folder, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
        )
        self.tensorflow = json.loads(self.process.stdout.readline())["tensorflow"]

    def post(self, **body):
        """Send a request's body and return the answer's."""
        self.process.stdin.write(json.dumps(body).encode() + b"\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert answer.pop("modules") == []  # neither gpt2_tf nor what it needs is imported
        return answer

    def generate(self, text, **settings):
        """The outputs of `generate` by name, a list each."""
        answer = self.post(signature_name="generate", grpc={"text": text, **per_row(len(text), **settings)})
        assert "error" not in answer, answer["error"]
        return answer["outputs"]

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=120)
        self.process.stdout.close()


class Server:
    """Answers the bodies of requests from an export."""

    def __init__(self, folder: str):
        self.signatures = tf.saved_model.load(folder).signatures
        proto = saved_model_pb2.SavedModel()
        with open(f"{folder}/saved_model.pb", "rb") as file:
            proto.ParseFromString(file.read())
        # TensorFlow Serving uses these values for the inputs that a gRPC request leaves out.
        self.defaults = {name: dict(d.defaults) for name, d in proto.meta_graphs[0].signature_def.items()}

    def answer(self, body: dict) -> dict:
        name = body.get("signature_name", "serving_default")
        specs = self.signatures[name].structured_input_signature[1]
        try:
            inputs = self._inputs(body, specs)
            tensors = {}
            if "grpc" in body:
                tensors = {key: tf.constant(tf.make_ndarray(value)) for key, value in self.defaults[name].items()}
            tensors |= {key: tf.constant(_bytes(value), specs[key].dtype) for key, value in inputs.items()}
            outputs = {key: value.numpy().tolist() for key, value in self.signatures[name](**tensors).items()}
        except (tf.errors.OpError, KeyError, ValueError, TypeError, UnicodeError) as error:
            return {"error": str(error)}
        if "instances" not in body:
            return {"outputs": next(iter(outputs.values())) if len(outputs) == 1 else outputs}
        rows = [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
        return {"predictions": [next(iter(row.values())) if len(row) == 1 else row for row in rows]}

    def _inputs(self, body: dict, specs: dict) -> dict:
        """The request's inputs by name, a list each."""
        if "instances" in body:
            rows = body["instances"]
            # A signature with one input takes its values without a name.
            if not isinstance(rows[0], dict) or "b64" in rows[0]:
                rows = [{next(iter(specs)): row} for row in rows]
            if any(row.keys() != specs.keys() for row in rows):
                raise ValueError(f"keys must be equal to: {', '.join(specs)}")
            return {key: [row[key] for row in rows] for key in specs}
        if "inputs" in body:
            inputs = body["inputs"]
            inputs = inputs if isinstance(inputs, dict) else {next(iter(specs)): inputs}
            if missing := specs.keys() - inputs.keys():
                raise ValueError(f"Missing named input: {', '.join(missing)} in 'inputs' object.")
            return inputs
        return body["grpc"]


def _bytes(value):
    """A value of JSON, with each object {"b64": ...} decoded to bytes."""
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return [_bytes(item) for item in value] if isinstance(value, list) else value


def main():
    server = Server(sys.argv[1])
    print(json.dumps({"tensorflow": tf.__version__}), flush=True)
    for line in sys.stdin:
        answer = server.answer(json.loads(line))
        imported = set(sys.modules) - IMPORTED_BY_TENSORFLOW
        answer["modules"] = sorted({"gpt2_tf", "encoder", "keras", "tiktoken"} & imported)
        print(json.dumps(answer, default=bytes.decode), flush=True)


if __name__ == "__main__" and len(sys.argv) > 1:
    main()
