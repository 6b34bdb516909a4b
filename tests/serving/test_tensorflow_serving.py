"""Files for TensorFlow Serving, and its requests."""

import sys

import pytest
import tensorflow as tf
from oracles.serving import check_answers, generate_inputs, model_answer

from gpt2_tf.serving.tensorflow_serving import write_warm_up_requests


def test_without_the_extra_a_notice_names_what_is_left_out(tmp_path, monkeypatch, capsys):
    for name in ("tensorflow_serving", "tensorflow_serving.apis"):
        monkeypatch.setitem(sys.modules, name, None)
    write_warm_up_requests("gpt2", tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "gpt2-tf[serving]" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_warm_up_requests_are_answered_by_every_signature(exported, signatures):
    pytest.importorskip("tensorflow_serving.apis", reason="needs tensorflow-serving-api")
    from tensorflow_serving.apis import prediction_log_pb2

    records = tf.data.TFRecordDataset(str(exported / "assets.extra" / "tf_serving_warmup_requests"))
    asked = set()
    for record in records.as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        name = request.model_spec.signature_name
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        if name == "generate":
            inputs = generate_inputs([""]) | inputs
        signatures[name](**inputs)
        asked.add(name)
    assert asked == set(signatures)


@pytest.mark.slow
def test_a_grpc_request_and_its_response_keep_their_values(signatures, lively, enc):
    """Both are serialized and parsed, as on their way to a server and back."""
    pytest.importorskip("tensorflow_serving.apis", reason="needs tensorflow-serving-api")
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "gpt2", "generate"
    for name, value in generate_inputs(["them", "e"], temperature=0.0, length=5).items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
    request = predict_pb2.PredictRequest.FromString(request.SerializeToString())
    inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
    response = predict_pb2.PredictResponse()
    for name, value in signatures[request.model_spec.signature_name](**inputs).items():
        response.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
    response = predict_pb2.PredictResponse.FromString(response.SerializeToString())
    outputs = {name: tf.make_ndarray(value).tolist() for name, value in response.outputs.items()}
    for name in ("text", "finish_reason"):
        outputs[name] = [value.decode() for value in outputs[name]]
    check_answers(outputs, [model_answer(lively, enc, text, length=5, temperature=0) for text in ("them", "e")])
