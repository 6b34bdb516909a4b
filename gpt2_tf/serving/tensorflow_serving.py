"""Files that TensorFlow Serving reads: how to batch requests, and requests to warm up with."""

import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

BATCHING_PARAMETERS = """\
# For tensorflow_model_server --enable_batching --batching_parameters_file=...
max_batch_size {{ value: {max_batch} }}
batch_timeout_micros {{ value: 5000 }}
max_enqueued_batches {{ value: 64 }}
# One batch at a time, because a single batch uses all cores.
num_batch_threads {{ value: 1 }}
# Rows of ids may have different lengths.
pad_variable_length_inputs: true
"""
# One request per signature; `serving_default` has one more, since several rows run another loop than one row.
WARM_UP_REQUESTS: list[tuple[str, dict[str, list[Any]]]] = [
    ("serving_default", {"text": [b""]}),
    ("serving_default", {"text": [b"", b""]}),
    ("generate", {"text": [b""]}),
    ("score", {"context": [b""], "text": [b"A"]}),
    ("encode", {"text": [b"A"]}),
    ("decode", {"ids": [[0]], "count": [1]}),
    ("logits", {"ids": [[0]]}),
]


def write_warm_up_requests(model_name: str, folder: Path) -> None:
    """Write the requests that TensorFlow Serving sends itself at its start, because the first ones are slow.

    Without the extra `[serving]`, no file is written, and a line on stderr says so.

    Args:
        model_name: the model's name in the server.
        folder: the SavedModel; gets `assets.extra/tf_serving_warmup_requests`.

    Example:
        >>> Path("export").mkdir()
        >>> write_warm_up_requests("gpt2", Path("export"))  # needs the extra [serving] # doctest: +SKIP
    """
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError:
        print(
            "gpt2-tf: no warm-up requests are written, because tensorflow-serving-api is missing; "
            "pip install 'gpt2-tf[serving]' installs it",
            file=sys.stderr,
        )
        return
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in WARM_UP_REQUESTS:
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = model_name, signature
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
