"""Answers requests from an export as TensorFlow Serving does, in a process that has TensorFlow alone.

    python tests/oracles/serving.py FOLDER

A line of stdin is a REST request's body, {"signature_name": ..., "instances": [...]} or {..., "inputs": {...}}, and a
line of stdout the answer's, {"predictions": [...]}, {"outputs": ...} or {"error": ...}:
https://www.tensorflow.org/tfx/serving/api_rest. As there, no input may be left out; over gRPC some may, which is
{..., "grpc": {...}} here.
"""

import base64
import json
import sys

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

BY_TENSORFLOW = set(sys.modules)  # which may import a Keras, that isn't ours


class Server:
    def __init__(self, folder: str):
        self.signatures = tf.saved_model.load(folder).signatures
        proto = saved_model_pb2.SavedModel()
        with open(f"{folder}/saved_model.pb", "rb") as file:
            proto.ParseFromString(file.read())
        # What a gRPC request leaves out, the server puts in.
        self.defaults = {name: dict(d.defaults) for name, d in proto.meta_graphs[0].signature_def.items()}

    def answer(self, body: dict) -> dict:
        name = body.get("signature_name", "serving_default")
        specs = self.signatures[name].structured_input_signature[1]
        try:
            if "instances" in body:
                rows = body["instances"]
                # A signature of one input takes its values without a name.
                if not isinstance(rows[0], dict) or "b64" in rows[0]:
                    rows = [{next(iter(specs)): row} for row in rows]
                if any(row.keys() != specs.keys() for row in rows):
                    raise ValueError(f"keys must be equal to: {', '.join(specs)}")
                inputs = {key: [row[key] for row in rows] for key in specs}
            elif "inputs" in body:
                inputs = body["inputs"]
                inputs = inputs if isinstance(inputs, dict) else {next(iter(specs)): inputs}
                if missing := specs.keys() - inputs.keys():
                    raise ValueError(f"Missing named input: {', '.join(missing)} in 'inputs' object.")
            else:
                inputs = body["grpc"]
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


def _bytes(value):
    """JSON's values, where an object {"b64": ...} is bytes."""
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return [_bytes(item) for item in value] if isinstance(value, list) else value


def main():
    server = Server(sys.argv[1])
    print(json.dumps({"tensorflow": tf.__version__}), flush=True)
    for line in sys.stdin:
        answer = server.answer(json.loads(line))
        answer["modules"] = sorted({"gpt2_tf", "encoder", "keras", "tiktoken"} & (set(sys.modules) - BY_TENSORFLOW))
        print(json.dumps(answer, default=bytes.decode), flush=True)


if __name__ == "__main__":
    main()
