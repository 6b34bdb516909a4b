"""What TensorFlow Serving reads beside a SavedModel: how to batch requests, and requests to warm up with."""

import sys
from pathlib import Path

import tensorflow as tf

BATCHING = """\
# For tensorflow_model_server --enable_batching --batching_parameters_file=...
max_batch_size {{ value: {max_batch} }}
batch_timeout_micros {{ value: 5000 }}
max_enqueued_batches {{ value: 64 }}
# One batch at a time: a batch takes all cores.
num_batch_threads {{ value: 1 }}
# Rows of ids may have different lengths.
pad_variable_length_inputs: true
"""


def write_warm_up_requests(name: str, folder: Path) -> None:
    """Writes the requests that TensorFlow Serving sends itself before it answers others: the first are slow."""
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError:
        print(
            "gpt2-tf: no warm-up requests are written, for want of tensorflow-serving-api, "
            "which pip install 'gpt2-tf[serving]' brings",
            file=sys.stderr,
        )
        return
    place = folder / "assets.extra" / "tf_serving_warmup_requests"
    place.parent.mkdir()
    with tf.io.TFRecordWriter(str(place)) as writer:
        for signature, inputs in (
            ("serving_default", {"text": [b""]}),
            ("serving_default", {"text": [b"", b""]}),
            ("generate", {"text": [b""]}),
            ("score", {"context": [b""], "text": [b"A"]}),
            ("encode", {"text": [b"A"]}),
            ("decode", {"ids": [[0]], "count": [1]}),
            ("logits", {"ids": [[0]]}),
        ):
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = name, signature
            for key, value in inputs.items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
