"""The scripts in `examples/`, run from the command line."""

import io
import os
import runpy
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

import gpt2_tf
from gpt2_tf import HParams, evaluation, load, sample_sequence, score

EXAMPLES = Path(__file__).parents[1] / "examples"
UNCONDITIONAL = "generate_unconditional_samples.py"
INTERACTIVE = "interactive_conditional_samples.py"


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    """The tiny model and its encoder."""
    return load(tiny_folder)


@pytest.fixture
def run(tiny, tiny_folder, monkeypatch, capsys):
    """Return a function that runs a script on the tiny model with flags and stdin, and returns its stdout."""
    # Loading the model again would compile the decode loop again, which takes seconds.
    monkeypatch.setattr(gpt2_tf, "load", lambda name, *rest: tiny if name == str(tiny_folder) else load(name, *rest))

    def run(script: str, *flags, stdin: str = "", model=tiny_folder) -> str:
        monkeypatch.setattr(sys, "argv", [script, "--model_name", str(model), *map(str, flags)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run


def written(enc, samples, context: int, first: int) -> str:
    """Return what the scripts print of a batch whose first sample has the number `first`."""
    return "".join(
        f"{f' SAMPLE {i} ':=^80}\n{enc.decode(sample[context:])}\n" for i, sample in enumerate(samples.numpy(), first)
    )


def test_unconditional_samples(run, tiny):
    model, enc = tiny
    out = run(UNCONDITIONAL, "--nsamples", 4, "--batch_size", 2, "--length", 6, "--seed", 7, "--top_k", 40)
    batches = [
        sample_sequence(model, length=6, start_token=enc.end_of_text, batch_size=2, seed=seed, top_k=40)
        for seed in (7, 9)
    ]
    assert out == written(enc, batches[0], 1, 1) + written(enc, batches[1], 1, 3)
    assert len({tuple(sample) for batch in batches for sample in batch.numpy().tolist()}) == 4


def test_unconditional_samples_fill_the_window(run, tiny):
    model, enc = tiny
    whole = sample_sequence(model, length=32, start_token=enc.end_of_text, seed=1)
    assert run(UNCONDITIONAL, "--nsamples", 1, "--seed", 1) == written(enc, whole, 1, 1)


def test_interactive_samples(run, tiny):
    model, enc = tiny
    out = run(INTERACTIVE, "--nsamples", 2, "--seed", 3, "--temperature", 0.7, stdin="\nThe quick\nnaïve\n")
    ask, end = "Model prompt >>> ", "=" * 80 + "\n"
    expected = f"{ask}Prompt should not be empty!\n"
    for prompt in ("The quick", "naïve"):
        ids = enc.encode(prompt)
        batches = [sample_sequence(model, length=16, context=ids, temperature=0.7, seed=seed) for seed in (3, 4)]
        samples = "".join(written(enc, batch, len(ids), i) for i, batch in enumerate(batches, 1))
        expected += f"{ask}{samples}{end}"
    assert out == expected + ask + "\n"


@pytest.mark.parametrize("script", [UNCONDITIONAL, INTERACTIVE])
def test_a_mistake_is_an_error_of_one_line(run, capsys, script):
    with pytest.raises(SystemExit, match="error: there is no model 'nope': expected a size"):
        run(script, model="nope")
    with pytest.raises(SystemExit, match=r"error: top_p is 0\.0, but must be a number above 0"):
        run(script, "--top_p", 0, stdin="The\n")
    with pytest.raises(SystemExit) as end:
        run(script, "--nsamples", 3, "--batch_size", 2)
    assert end.value.code == 2
    assert "--nsamples 3 is not a multiple of --batch_size 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, flags, message",
    [
        (b"", [], "text.txt is empty"),
        (b"\xff", [], "text.txt is not UTF-8: 'utf-8' codec can't decode byte 0xff in position 0"),
        (b"one two", ["--n-embd", "30"], "n_embd 30 can't be divided among n_head 4 heads"),
        (b"one two", ["--steps", "0"], "--steps and --batch-size must be at least 1"),
        (None, [], "No such file or directory"),
    ],
)
def test_a_mistake_in_training_is_an_error_of_one_line_and_writes_nothing(tmp_path, content, flags, message):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    command = [sys.executable, EXAMPLES / "train_shakespeare.py", tmp_path / "text.txt", tmp_path / "out", *flags]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode in (1, 2)
    assert message in ran.stderr.splitlines()[-1] and "Traceback" not in ran.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_train_a_model_and_load_it(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("ROMEO:\nBut soft, what light through yonder window breaks?\n\nJULIET:\nAy me, naïve!\n\n" * 30)
    flags = ["--n-vocab", "300", "--n-ctx", "16", "--n-embd", "16", "--n-head", "2", "--n-layer", "1"]
    flags += ["--steps", "80", "--batch-size", "4", "--dropout", "0"]
    # The script sets Keras's dtype policy and the seeds, so it runs in a process of its own.
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "train_shakespeare.py", text, tmp_path / "out", *flags],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert ran.returncode == 0, ran.stderr
    model, enc = load(tmp_path / "out")
    assert model.hparams == HParams(n_vocab=300, n_ctx=16, n_embd=16, n_head=2, n_layer=1)
    assert {weight.dtype for weight in model.weights} == {"float32"}
    quality, hint = ran.stdout.splitlines()[-2:]
    assert quality.startswith(f"{model.hparams.n_params:,} parameters; ")
    assert quality.endswith(f" nats per character on the last 10% of {text}")
    assert hint == f"gpt2-tf generate --model {tmp_path / 'out'} generates text with it"
    assert ran.stderr == ""
    # The trained model predicts better than the untrained model, which finds all 300 tokens about equally likely.
    ids = np.array([enc.encode("But soft, what light")])
    logits = model(ids[:, :-1]).numpy()[0]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(logits)), ids[0, 1:]]
    assert losses.mean() < np.log(300) - 0.5


@pytest.mark.slow
def test_finetune_a_model_and_load_it(tiny_folder, tmp_path):
    assert len((EXAMPLES / "finetune.py").read_text("utf-8").splitlines()) < 40
    (tmp_path / "text.txt").write_text("The quick brown fox didn't sleep.\n" * 50)
    flags = [tmp_path / "text.txt", tmp_path / "out", "--model", tiny_folder, "--steps", "50", "--window", "16"]
    command = [sys.executable, EXAMPLES / "finetune.py", *flags]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stderr) == (0, "")
    (before, enc), (after, same) = load(tiny_folder), load(tmp_path / "out")
    tokens = np.array([enc.encode("The quick brown fox didn't sleep.")])
    assert same.encode("The quick brown fox didn't sleep.") == tokens[0].tolist()
    for model in (before, after):
        model.compile()
    losses = [model.evaluate(tokens[:, :-1], tokens[:, 1:], verbose=0) for model in (before, after)]
    assert losses[1] < losses[0] - 0.01


@pytest.mark.slow
def test_finetune_with_fewer_steps_than_between_evaluations(tiny_folder, tmp_path):
    (tmp_path / "text.txt").write_text("The quick brown fox didn't sleep.\n" * 50)
    flags = [tmp_path / "text.txt", tmp_path / "out", "--model", tiny_folder, "--steps", "2", "--window", "16"]
    command = [sys.executable, EXAMPLES / "finetune.py", *flags]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stderr) == (0, "") and "Epoch 2/2" in ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", [UNCONDITIONAL, INTERACTIVE])
def test_a_script_prints_nothing_from_tensorflow(script, tiny_folder):
    flags = ["--model_name", tiny_folder, "--length", "4", "--nsamples", "1"]
    ran = subprocess.run(
        [sys.executable, EXAMPLES / script, *flags], input="The\n", capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "= SAMPLE 1 =" in ran.stdout


QUESTION = "1 The fox .\n2 `` Hi , '' he said .\n21 The XXXXX did n't jump .\tdog\t\tdog|fox|lazy\n\n"


@pytest.mark.slow
def test_the_papers_table(tiny, tiny_folder, monkeypatch, capsys, tmp_path):
    model, enc = tiny
    files = {
        "lambada": '{"text": "The quick brown fox"}\n{"text": "over the lazy dog"}\n',
        "cbt-cn": QUESTION * 2,
        "wikitext2": " \n = The fox = \n \n The dog , he did n't sleep @-@ walk . \n",
        "text8": "the quick brown fox",
        "1bw": "The dog jumps .\nThe fox , too .\n",
    }
    flags = []
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        flags += [f"--{name}", str(tmp_path / name)]
    monkeypatch.setattr(gpt2_tf, "load", lambda *_: tiny)
    monkeypatch.setattr(sys, "argv", ["paper_table.py", *flags, "--model", "345M"])
    script = runpy.run_path(str(EXAMPLES / "paper_table.py"), run_name="__main__")
    header, _, figures, paper, *_, ways = capsys.readouterr().out.splitlines()
    assert header == "| model | LAMBADA PPL | LAMBADA ACC | CBT-CN ACC | WikiText2 PPL | text8 BPC | 1BW PPL |"
    assert paper == "| the paper | 15.60 | 55.48 | 92.35 | 22.76 | 1.06 | 55.72 |"
    lambada = evaluation.lambada(model, enc, ["The quick brown fox", "over the lazy dog"])
    assert f"last token {100 * lambada['last_token']['accuracy']:.2f}%" in ways
    wiki = evaluation.perplexity(model, enc, "\n= The fox =\n\nThe dog, he didn't sleep-walk.\n")["nats"]
    expected = [
        lambada["last_word"]["perplexity"],
        100 * lambada["last_word_filtered"]["accuracy"],
        100 * evaluation.choice(model, enc, script["questions"](QUESTION))["accuracy"]["full"],
        np.exp(wiki / (14 + 4)),
        evaluation.perplexity(model, enc, files["text8"])["bits_per_byte"],
        np.exp(-sum(map(sum, score(model, enc, ["The dog jumps.", "The fox, too."]))) / (9 + 2)),
    ]
    assert figures == "| 345M | " + " | ".join(f"{value:.2f}" for value in expected) + " |"


def test_the_papers_table_cleans_its_datasets():
    script = runpy.run_path(str(EXAMPLES / "paper_table.py"))
    wiki = ' = = Career = = \n He said " Bill " ( 1 @,@ 000 ) in 2000 @.@ 5 ; \n'
    assert script["wikitext"](wiki) == '== Career ==\nHe said "Bill" (1,000) in 2000.5;\n'
    assert script["ptb"](" it 's $ N , `` too ''\n no \n") == 'it\'s $N, "too"\nno\n'
    assert script["words"](" a b \n c \n") == 5
    (question,) = script["questions"](QUESTION)
    assert question == {
        "context": 'The fox. "Hi," he said. The',
        "choices": [" dog", " fox", " lazy"],
        "answer": 0,
        "ending": " didn't jump.",
    }
    (question,) = script["questions"]("21 He said , `` XXXXX , no . ''\tDog\t\tDog|Fox\n")
    assert (question["choices"], question["ending"]) == (["Dog", "Fox"], ', no."')
    (question,) = script["questions"]("21 XXXXX ran .\tDog\t\tDog|Fox\n")
    assert (question["context"], question["choices"]) == ("", ["Dog", "Fox"])
    with pytest.raises(ValueError, match="line 1 is no question"):
        script["questions"]("21 XXXXX ran .\tCat\t\tDog|Fox\n")


class Answer:
    """The response of a server that answers each prompt with its settings."""

    ok = True

    def __init__(self, body):
        self.inputs = body["inputs"]

    def json(self):
        rows = [dict(zip(self.inputs, row, strict=True)) for row in zip(*self.inputs.values(), strict=True)]
        texts = [f" {row['length']} {row['seed']} {row['stop']}" for row in rows]
        return {"outputs": {"text": texts, "finish_reason": ["length"] * len(rows)}}


def test_serving_client_over_rest(monkeypatch, capsys):
    import requests

    asked = []

    def post(url, json, timeout):
        asked.append((url, json["signature_name"], set(json["inputs"])))
        return Answer(json)

    monkeypatch.setattr(requests, "post", post)
    monkeypatch.setattr(sys, "argv", ["serving_client.py", "a", "b", "--length", "7", "--seed", "4", "--stop", "x"])
    runpy.run_path(str(EXAMPLES / "serving_client.py"), run_name="__main__")
    assert capsys.readouterr().out == "a 7 4 x\n[length]\nb 7 5 x\n[length]\n"
    inputs = {"text", "length", "temperature", "top_k", "top_p", "seed", "stop"}
    assert asked == [("http://localhost:8501/v1/models/gpt2:predict", "generate", inputs)]


@pytest.mark.parametrize(
    ("up", "said"), [(False, "doesn't answer; is the server up"), (True, "is no TensorFlow Serving")]
)
def test_serving_client_names_a_missing_or_wrong_server(monkeypatch, up, said):
    """Either no server answers, or a server of web pages."""
    with HTTPServer(("localhost", 0), BaseHTTPRequestHandler) as server:
        address = f"localhost:{server.server_port}"
        if up:
            threading.Thread(target=server.handle_request, daemon=True).start()
        else:
            server.server_close()
        monkeypatch.setattr(sys, "argv", ["serving_client.py", "a", "--rest", address])
        with pytest.raises(SystemExit, match=said):
            runpy.run_path(str(EXAMPLES / "serving_client.py"), run_name="__main__")


def test_serving_client_over_grpc(monkeypatch, capsys):
    """Against a server on loopback, made of the stubs that the extra installs."""
    pytest.importorskip("tensorflow_serving.apis", reason="needs tensorflow-serving-api")
    from concurrent import futures

    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            if inputs["length"][0] > 9:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "length must be 1 to 9")
            dtypes.update({name: value.dtype.name for name, value in inputs.items()})
            response = predict_pb2.PredictResponse()
            for name, values in (("text", [b" x", b" y"]), ("finish_reason", [b"stop", b"length"])):
                response.outputs[name].CopyFrom(tf.make_tensor_proto(values))
            return response

    dtypes = {}
    server = grpc.server(futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Servicer(), server)
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    monkeypatch.setattr(sys, "argv", ["serving_client.py", "a", "b", "--grpc", address])
    runpy.run_path(str(EXAMPLES / "serving_client.py"), run_name="__main__")
    assert capsys.readouterr().out == "a x\n[stop]\nb y\n[length]\n"
    numbers = {"length": "int32", "temperature": "float32", "top_k": "int32", "top_p": "float32", "seed": "int64"}
    assert dtypes == {"text": "object", "stop": "object", **numbers}
    monkeypatch.setattr(sys, "argv", ["serving_client.py", "a", "b", "--grpc", address, "--length", "10"])
    with pytest.raises(SystemExit, match="length must be 1 to 9"):
        runpy.run_path(str(EXAMPLES / "serving_client.py"), run_name="__main__")
    server.stop(None)
