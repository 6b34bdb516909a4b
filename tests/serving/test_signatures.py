"""Every signature's answers equal the model's, in a process that has TensorFlow alone; invalid requests are refused."""

import os
import random
import re
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from oracles.random_model import random_model
from oracles.serving import (
    MAX_BATCH,
    PROMPTS,
    ServerProcess,
    base64_value,
    check_answers,
    generate_inputs,
    model_answer,
)
from tensorflow.core.protobuf import saved_model_pb2

from gpt2_tf import score
from gpt2_tf.serving import export
from gpt2_tf.serving import signatures as serving_signatures

TF220 = "GPT2_TF_TF220_PYTHON"
SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"top_k": 3},
    {"top_p": 0.6},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_completions_equal_the_models(server, lively, enc, settings):
    for seed, prompt in enumerate(PROMPTS):
        outputs = server.generate([prompt], length=12, seed=seed, **settings)
        check_answers(outputs, [model_answer(lively, enc, prompt, length=12, seed=seed, **settings)])


def test_rows_of_a_batch_do_not_influence_each_other(server, lively, enc):
    rng = random.Random(0)
    for _ in range(6):
        texts = rng.choices(PROMPTS, k=MAX_BATCH)
        wanted = [
            {**rng.choice(SETTINGS), "length": rng.randrange(1, 13), "seed": rng.randrange(-5, 99), "stop": stop}
            for stop in rng.choices(["", "t", "he", " "], k=MAX_BATCH)
        ]
        neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        columns = {name: [(neutral | w)[name] for w in wanted] for name in {**neutral, **wanted[0]}}
        expected = [
            model_answer(lively, enc, text, **w | {"stop": ("<|endoftext|>", *filter(None, [w["stop"]]))})
            for text, w in zip(texts, wanted, strict=True)
        ]
        check_answers(server.generate(texts, **columns), expected)


def test_a_long_prompt_does_not_shorten_another_rows_text(server, lively, enc):
    """Together, the longest prompt and the largest length do not fit the window; each row on its own fits."""
    texts, lengths = ["x" * 30, "x"], [3, 20]
    outputs = server.generate(texts, length=lengths, temperature=0.0)
    check_answers(
        outputs, [model_answer(lively, enc, t, length=n, temperature=0) for t, n in zip(texts, lengths, strict=True)]
    )
    assert outputs["count"] == lengths


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_stop_string_ends_the_text_wherever_it_begins(server, lively, enc, prompt):
    """A stop string may begin and end within a token: try every substring of 1, 2 and 5 characters."""
    whole = model_answer(lively, enc, prompt, length=20, seed=3)[0]
    pieces = {whole[i : i + n] for i in range(len(whole)) for n in (1, 2, 5)} - {""}
    pieces = sorted(piece for piece in pieces if "\ufffd" not in piece)[:: max(1, len(pieces) // 16)]
    for first in range(0, len(pieces), MAX_BATCH):
        stops = pieces[first : first + MAX_BATCH]
        outputs = server.generate([prompt] * len(stops), length=20, seed=3, stop=stops)
        check_answers(
            outputs, [model_answer(lively, enc, prompt, length=20, seed=3, stop=("<|endoftext|>", s)) for s in stops]
        )


@pytest.mark.slow
def test_end_of_text_stops_the_text_and_is_not_part_of_it(lively, enc, exported):
    """The model always writes `<|endoftext|>` first."""
    model = random_model(lively.hparams)
    model.ln_f.g.assign(np.zeros(model.hparams.n_embd))
    model.ln_f.b.assign(10 * model.wte.numpy()[enc.end_of_text])
    folder = export(model, enc, exported.parents[1] / "end")
    outputs = tf.saved_model.load(folder).signatures["generate"](**generate_inputs(["e", "them"], temperature=0.0))
    assert outputs["text"].numpy().tolist() == [b"", b""]
    assert outputs["count"].numpy().tolist() == [0, 0]
    assert outputs["finish_reason"].numpy().tolist() == [b"stop", b"stop"]
    assert outputs["logprob"].numpy().tolist() == [0, 0]


@pytest.mark.slow
def test_weights_that_are_nan_fail_the_request(lively, enc, tmp_path):
    model = random_model(lively.hparams)
    model.ln_f.g.assign(np.full(model.hparams.n_embd, np.nan))
    generate = tf.saved_model.load(export(model, enc, tmp_path)).signatures["generate"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="the model's logits are not finite"):
        generate(**generate_inputs(["e"]))


def test_scores_equal_the_models(server, lively, enc):
    contexts, texts = ["them", "", "the", "e"], ["then", "x", "", "🎈"]
    answer = server.post(signature_name="score", inputs={"context": contexts, "text": texts})["outputs"]
    expected = [score(lively, enc, t, c or None)[0] for c, t in zip(contexts, texts, strict=True)]
    np.testing.assert_allclose(answer["logprob"], [sum(logprobs) for logprobs in expected], rtol=0, atol=1e-4)
    assert answer["count"] == [len(logprobs) for logprobs in expected]


def test_encode_and_decode_equal_the_encoders(server, enc):
    texts = ["them", "", "the 🎈", "\x00"]
    answer = server.post(signature_name="encode", inputs={"text": texts})["outputs"]
    ids = [enc.encode(text) for text in texts]
    longest = max(map(len, ids))
    assert answer == {"ids": [row + [0] * (longest - len(row)) for row in ids], "count": [*map(len, ids)]}
    assert server.post(signature_name="decode", inputs=answer) == {"outputs": texts}
    cut = {"ids": answer["ids"], "count": [1, 0, len(ids[2]) - 1, 1]}
    assert server.post(signature_name="decode", inputs=cut)["outputs"][2] == enc.decode(ids[2][:-1])


def test_logits_equal_the_models(server, lively):
    ids = [[1, 2, 3], [200, 0, 259]]
    answer = server.post(signature_name="logits", inputs={"ids": ids})
    np.testing.assert_allclose(answer["outputs"], lively(tf.constant(ids)), rtol=0, atol=1e-4)


def test_rest_requests_in_both_forms_are_answered(server, lively, enc):
    """The forms are `instances`, a list of rows, and `inputs`, a list per input."""
    texts = ["them", "e"]
    expected = [model_answer(lively, enc, text, length=6, seed=0)[0] for text in texts]
    assert server.post(instances=texts) == {"predictions": expected}
    assert server.post(instances=[base64_value(t.encode()) for t in texts]) == {"predictions": expected}
    assert server.post(inputs=texts) == {"outputs": expected}
    assert server.post(inputs={"text": texts}) == {"outputs": expected}
    rest = {"length": 0, "temperature": 1, "top_k": 0, "top_p": 1.0, "stop": ""}
    instances = [{"text": text, "seed": seed, **rest} for seed, text in enumerate(texts)]
    answer = server.post(signature_name="generate", instances=instances)
    assert [row["text"] for row in answer["predictions"]] == [
        model_answer(lively, enc, text, length=6, seed=seed)[0] for seed, text in enumerate(texts)
    ]
    assert "error" in server.post(signature_name="generate", instances=[{"text": "them"}])
    assert set(answer["predictions"][0]) == {"text", "count", "finish_reason", "logprob"}


def test_without_a_length_a_row_gets_the_default_or_as_many_tokens_as_fit(server):
    assert server.generate(["them", "x" * 30], temperature=0.0)["count"] == [6, 3]


@pytest.mark.parametrize(
    ("signature", "inputs", "said"),
    [
        ("serving_default", {"text": ["a"] * 9}, "text must have 1 to 8 rows; given:] [9]"),
        ("serving_default", {"text": []}, "text must have 1 to 8 rows; given:] [0]"),
        (
            "serving_default",
            {"text": ["x" * 33]},
            "text must have at most 32 tokens, the window of the model; shorten it; given: 33",
        ),
        (
            "generate",
            {"text": ["a"], "length": [21]},
            "length must be 1 to 20, or 0 for the default, which is 6 or as many as fit; given: 21",
        ),
        ("generate", {"text": ["a"], "length": [-1]}, "length must be 1 to 20"),
        ("generate", {"text": ["x" * 30], "length": [4]}, "must add up to at most 33; given: 30 and 4"),
        ("generate", {"text": ["a"], "temperature": [-0.5]}, "temperature must be a number from 0 to 3.4e+38"),
        ("generate", {"text": ["a"], "temperature": [float("nan")]}, "temperature must be a number from 0 to 3.4e+38"),
        ("generate", {"text": ["a"], "top_k": [261]}, "top_k must be 1 to 260, or 0 to keep all; given: 261"),
        ("generate", {"text": ["a"], "top_p": [0.0]}, "top_p must be a number above 0 and at most 1 (1 keeps all)"),
        ("generate", {"text": ["a"], "stop": ["x" * 257]}, "stop must have at most 256 bytes"),
        ("generate", {"text": ["a"] * 3, "seed": [1, 2]}, "seed must have one value per row of text, or one value"),
        ("score", {"context": ["a"], "text": ["a", "b"]}, "context must have as many rows as text"),
        ("score", {"context": ["x" * 30], "text": ["yyyy"]}, "at most 33 tokens together; given:] [34]"),
        ("encode", {"text": ["a"] * 9}, "text must have 1 to 8 rows"),
        (
            "decode",
            {"ids": [[1, 2]], "count": [3]},
            "count must be at least 0 and at most the number of columns of ids; given:] [3]",
        ),
        ("decode", {"ids": [[1, 2]], "count": [-1]}, "count must be at least 0"),
        ("decode", {"ids": [[1, 2]], "count": [1, 1]}, "count must have one value per row of ids"),
        ("decode", {"ids": [[1, 260]], "count": [2]}, "ids must be 0 to 259"),
        ("logits", {"ids": [[-1]]}, "ids must be 0 to 259; the smallest and the largest given:] [-1]"),
        ("logits", {"ids": [[0] * 33]}, "ids must have 1 to 32 columns; given:] [33]"),
        ("logits", {"ids": [[0]] * 9}, "ids must have 1 to 8 rows"),
    ],
)
def test_an_invalid_input_is_refused_by_its_name(server, signature, inputs, said):
    assert said in server.post(signature_name=signature, grpc=inputs)["error"]


@pytest.mark.parametrize(
    ("signature", "inputs", "said"),
    [
        ("serving_default", {"text": "a"}, "text must have the shape [batch]; given:] []"),
        ("encode", {"text": [["a", "b"]]}, "text must have the shape [batch]; given:] [1 2]"),
        ("encode", {"text": [["a"], ["b"]]}, "text must have the shape [batch]; given:] [2 1]"),
        ("generate", {"text": ["a"], "top_k": [[1]]}, "top_k must have the shape [batch]; given:] [1 1]"),
        ("score", {"context": [["a"]], "text": ["a"]}, "context must have the shape [batch]; given:] [1 1]"),
        ("decode", {"ids": [1, 2], "count": [1]}, "ids must have the shape [batch, seq]; given:] [2]"),
        ("decode", {"ids": [[1, 2]], "count": [[1]]}, "count must have the shape [batch]; given:] [1 1]"),
        ("logits", {"ids": [[[1]]]}, "ids must have the shape [batch, seq]; given:] [1 1 1]"),
    ],
)
def test_a_wrong_number_of_axes_is_refused_by_the_inputs_name(server, signature, inputs, said):
    assert said in server.post(signature_name=signature, grpc=inputs)["error"]


@pytest.mark.parametrize("content", [b"\xff", b"th\xc3", b"\xf0\x9f\x8e x", b"\xed\xa0\x80"])
def test_bytes_that_are_not_utf8_are_read_as_replacement_characters(server, content):
    """In every signature, the answer is that to `content.decode("utf-8", "replace")`."""
    replaced = content.decode("utf-8", "replace")
    assert "\ufffd" in replaced

    def answers(value):
        return [
            server.post(signature_name="serving_default", inputs={"text": [value]}),
            server.post(signature_name="generate", grpc={"text": [value], "length": [5]}),
            server.post(signature_name="score", inputs={"context": [value], "text": ["th"]}),
            server.post(signature_name="score", inputs={"context": ["th"], "text": [value]}),
            server.post(signature_name="encode", inputs={"text": [value]}),
        ]

    found = answers(base64_value(content))
    assert found == answers(replaced) and not any("error" in answer for answer in found)


def test_the_documented_table_of_tensors_is_the_exports(exported):
    """The table in the docstring of signatures.py has each tensor's name, dtype, shape and name in the graph."""
    proto = saved_model_pb2.SavedModel.FromString((exported / "saved_model.pb").read_bytes())
    named = dict(proto.meta_graphs[0].signature_def)
    del named["__saved_model_init_op"]
    found = set()
    for name, signature in named.items():
        for kind, tensors in (("input", signature.inputs), ("output", signature.outputs)):
            for tensor_name, info in tensors.items():
                shape = {1: "[batch]", 2: "[batch, seq]", 3: "[batch, seq, n_vocab]"}[len(info.tensor_shape.dim)]
                found.add((name, kind, tensor_name, f"{tf.as_dtype(info.dtype).name} {shape}", info.name))
    documented, name, kind = set(), "", ""
    for line in serving_signatures.__doc__.splitlines():
        if re.search(r":\d` +\|$", line):
            cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
            name, kind = cells[0] or name, cells[1] or kind  # a cell that repeats the one above it is empty
            documented.add((name, kind, *cells[2:]))
    assert documented == found


@pytest.mark.slow
def test_from_python_inputs_may_be_lists_and_left_out(exported, lively, enc):
    loaded = tf.saved_model.load(exported)
    answer = loaded.generate(text=["them", "e"], temperature=[0.0])
    outputs = {name: value.numpy().tolist() for name, value in answer.items()}
    for name in ("text", "finish_reason"):
        outputs[name] = [value.decode() for value in outputs[name]]
    check_answers(outputs, [model_answer(lively, enc, text, length=6, temperature=0) for text in ("them", "e")])
    with pytest.raises(TypeError, match=r"int32, name='seed'.*int64, name='seed'"):
        loaded.generate(text=["e"], seed=tf.constant([1]))
    with pytest.raises(TypeError, match=r"Cannot convert \[1\.5\].*length"):
        loaded.generate(text=["e"], length=[1.5])


@pytest.mark.slow  # imports TensorFlow in another process
def test_the_example_in_python_prints_the_models_texts(exported, lively, enc):
    script = Path(__file__).parents[2] / "examples" / "use_export.py"
    ran = subprocess.run([sys.executable, script, exported, "them", "e"], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-2000:]
    answers = [
        model_answer(lively, enc, text, length=20, temperature=0.8, seed=seed)
        for seed, text in enumerate(("them", "e"))
    ]
    pairs = zip(("them", "e"), answers, strict=True)
    assert ran.stdout == "".join(f"{text}{answer[0]}\n[{answer[2]}]\n" for text, answer in pairs)


@pytest.mark.slow
def test_the_graph_does_not_depend_on_the_number_of_cores(exported, lively, enc, tmp_path, monkeypatch):
    """An export that is made on two cores must not be cut in two on 64."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    other = export(lively, enc, tmp_path, length=6, max_length=20, max_batch=MAX_BATCH)

    def operations(folder):
        graph = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
        counts = Counter(node.op for function in graph.library.function for node in function.node_def)
        sizes = Counter(
            tuple(node.attr["value"].tensor.int_val)
            for function in graph.library.function
            for node in function.node_def
            if node.op == "Const" and node.attr["dtype"].type == tf.int32.as_datatype_enum
        )
        return counts, sizes

    assert operations(other) == operations(exported)


def test_an_invalid_row_does_not_influence_the_others(server, lively, enc):
    """Each mistake stands between two valid rows, which may belong to other clients."""
    fine = {"text": "them", "length": 12, "temperature": 0.7, "top_k": 3, "top_p": 0.9, "seed": 4, "stop": "e"}
    wrongs = [
        (
            {"text": "x" * 33, "length": 0},
            "text must have at most 32 tokens, the window of the model; shorten it; given: 33",
        ),
        ({"text": "x" * 30}, "the tokens of text and length must add up to at most 33; given: 30 and 12"),
        ({"length": 21}, "length must be 1 to 20, or 0 for the default, which is 6 or as many as fit; given: 21"),
        (
            {"temperature": -0.5},
            "temperature must be a number from 0 to 3.4e+38 (0 always takes the most likely token); given: -0.500000",
        ),
        (
            {"temperature": float("inf")},
            "temperature must be a number from 0 to 3.4e+38 (0 always takes the most likely token); given: inf",
        ),
        ({"top_k": -1}, "top_k must be 1 to 260, or 0 to keep all; given: -1"),
        ({"top_p": float("nan")}, "top_p must be a number above 0 and at most 1 (1 keeps all); given: nan"),
        ({"stop": "x" * 257, "top_p": 1.0}, "stop must have at most 256 bytes; given: 257"),
    ]
    settings = fine | {"stop": ("<|endoftext|>", "e")}
    expected = model_answer(lively, enc, settings.pop("text"), **settings)
    for change, said in wrongs:
        requests = [fine, fine | change, fine]
        outputs = server.generate(**{name: [request[name] for request in requests] for name in fine})
        check_answers(outputs, [expected, ("", 0, f"error: {said}", 0.0), expected])
    texts = ["x" * 33, "them"]
    assert "given: 33" in server.post(instances=texts)["error"]  # `serving_default` has no output for one row's error


def random_bytes(rng: random.Random) -> bytes:
    kinds = [
        lambda: b"",
        lambda: b"\x00" * rng.randrange(1, 40),
        lambda: b"\x80" * rng.randrange(1, 12),
        lambda: "שלום עולם مرحبا"[: rng.randrange(1, 14)].encode(),
        lambda: b" " * rng.randrange(1, 40),
        lambda: rng.randbytes(rng.randrange(30)),
        lambda: b"\xf0\x9f\x8e" * rng.randrange(1, 9),
        lambda: "\u202e\ufeff\u0301"[: rng.randrange(1, 4)].encode(),
        lambda: b"<|endoftext|>"[: rng.randrange(1, 14)],
    ]
    return rng.choice(kinds)()


def check_hostile_texts(server, lively, enc, count):
    rng = random.Random(count)
    good = [model_answer(lively, enc, "them", length=3, temperature=0)]
    contents = [b"a" * 10**6, *(random_bytes(rng) for _ in range(count))]
    answered = 0
    for number, content in enumerate(contents):
        inputs = {
            "text": [base64_value(content)],
            "length": [3],
            "stop": [base64_value(random_bytes(rng)[:9])],
            "top_k": [1],
        }
        answer = server.post(signature_name="generate", grpc=inputs)
        text = content.decode("utf-8", "replace")
        fits = len(enc.encode(text)) <= 30
        assert ("outputs" if fits else "error") in answer, (content[:99], answer)
        if fits:
            answered += 1
        else:
            assert "tokens" in answer["error"]
        if fits and number % 10 == 0:
            inputs["stop"] = [""]
            outputs = server.post(signature_name="generate", grpc=inputs)["outputs"]
            check_answers(outputs, [model_answer(lively, enc, text, length=3, temperature=0)])
        if number % 10 == 0 or not fits:
            check_answers(server.generate(["them"], length=3, temperature=0.0), good)
    assert 0.5 * count < answered < count


def test_hostile_texts_get_an_answer_or_an_error(server, lively, enc):
    check_hostile_texts(server, lively, enc, 60)


@pytest.mark.slow
def test_a_thousand_hostile_texts_get_an_answer_or_an_error(server, lively, enc):
    check_hostile_texts(server, lively, enc, 1000)


def check_threads(signatures, seconds):
    """Ask from eight threads for some seconds; return by how many bytes the process has grown after the first tenth."""
    requests = [generate_inputs(PROMPTS[: 1 + i % 5], seed=i, length=8, stop="t" if i % 3 else "") for i in range(8)]

    def answer(request):
        return {name: value.numpy().tolist() for name, value in signatures["generate"](**request).items()}

    expected = [answer(request) for request in requests]
    wrong, begun, memory = [], time.monotonic(), []

    def ask(i):
        n = 0
        while time.monotonic() - begun < seconds:
            found = answer(requests[(i + n) % 8])
            logprob = found.pop("logprob")
            want = dict(expected[(i + n) % 8])
            if not np.allclose(logprob, want.pop("logprob"), rtol=0, atol=1e-4) or found != want:
                wrong.append((i, n))
            n += 1
        counts.append(n)

    counts = []
    threads = [threading.Thread(target=ask, args=[i]) for i in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(seconds / 40)
        memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
    assert wrong == [] and min(counts) > 0
    return memory[-1] - memory[len(memory) // 10]


@pytest.mark.slow
def test_eight_threads_at_once_get_the_same_answers(signatures):
    check_threads(signatures, 1)


@pytest.mark.slow
def test_eight_threads_for_a_minute_take_no_more_memory(signatures):
    assert check_threads(signatures, 60) < 50e6


@pytest.mark.slow
def test_tensorflow_2_20_gives_the_same_answers(exported, lively, enc):
    python = os.environ.get(TF220)
    if not python:
        pytest.skip(f"{TF220} doesn't name the Python of an environment with TensorFlow 2.20")
    server = ServerProcess(exported, python)
    assert server.tensorflow.startswith("2.20.")
    for settings in SETTINGS:
        test_completions_equal_the_models(server, lively, enc, settings)
    test_rows_of_a_batch_do_not_influence_each_other(server, lively, enc)
    test_scores_equal_the_models(server, lively, enc)
    test_encode_and_decode_equal_the_encoders(server, enc)
    test_rest_requests_in_both_forms_are_answered(server, lively, enc)
    server.close()
