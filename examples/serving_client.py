"""Ask a TensorFlow Serving for completions. docs/serving.md says how to start TensorFlow Serving.

    python examples/serving_client.py "ROMEO:" "JULIET:" --length 20
    python examples/serving_client.py "ROMEO:" --grpc localhost:8500    # with pip install 'gpt2-tf[serving]'

Neither command needs gpt2_tf, and the first does not need TensorFlow.
"""

import argparse

import requests


def over_rest(address: str, model: str, inputs: dict[str, list]) -> dict[str, list]:
    """Call `generate` over REST. Each input and output has one value per text; no input may be left out."""
    body = {"signature_name": "generate", "inputs": inputs}
    try:
        answer = requests.post(f"http://{address}/v1/models/{model}:predict", json=body, timeout=600)
        content = answer.json()
    except requests.JSONDecodeError:
        raise SystemExit(f"{address} is no TensorFlow Serving: it answered {answer.status_code}, and no JSON") from None
    except requests.RequestException as error:
        raise SystemExit(f"{address} doesn't answer; is the server up, and --rest its HOST:PORT? ({error})") from None
    if not answer.ok:  # what was wrong with the request is in the body
        raise SystemExit(content.get("error", content))
    return content["outputs"]


def over_grpc(address: str, model: str, inputs: dict[str, list]) -> dict[str, list]:
    """Call `generate` over gRPC. An input that the request leaves out has the value that was set at the export.

    That has one row: of a server that batches, a request of several texts must send all inputs, as this one does.
    """
    try:
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
    except ImportError:
        raise SystemExit("--grpc needs the extra: pip install 'gpt2-tf[serving]'") from None

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, "generate"
    dtypes = {"temperature": tf.float32, "top_p": tf.float32, "seed": tf.int64}  # else as TensorFlow takes them
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values, dtypes.get(name)))
    with grpc.insecure_channel(address) as channel:
        try:
            response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=600)
        except grpc.RpcError as error:
            raise SystemExit(error.details()) from None
    outputs = {name: tf.make_ndarray(value).tolist() for name, value in response.outputs.items()}
    for name in ("text", "finish_reason"):
        outputs[name] = [value.decode() for value in outputs[name]]
    return outputs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="+", metavar="PROMPT")
    parser.add_argument("--rest", default="localhost:8501", metavar="HOST:PORT")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="instead of REST")
    parser.add_argument("--model", default="gpt2", help="as the server names it (default: gpt2)")
    parser.add_argument("--length", type=int, default=0, help="new tokens (default: as set at the export)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first; the next has the next (default: 0)")
    parser.add_argument("--stop", default="", help="each text ends before it")
    args = parser.parse_args()
    inputs = {"text": args.prompts, "seed": [args.seed + i for i in range(len(args.prompts))]}
    for name in ("length", "temperature", "top_k", "top_p", "stop"):
        inputs[name] = [getattr(args, name)] * len(args.prompts)
    ask, address = (over_grpc, args.grpc) if args.grpc else (over_rest, args.rest)
    outputs = ask(address, args.model, inputs)
    for prompt, text, reason in zip(args.prompts, outputs["text"], outputs["finish_reason"], strict=True):
        print(f"{prompt}{text}\n[{reason}]")  # "stop", "length", or "error: " and what was wrong with this one


if __name__ == "__main__":
    main()
