"""Perplexity, LAMBADA and choices, against the NumPy reference and against transformers on the same weights.

1e-4 relative: float32 in another order, on means of numbers of about 5; 1e-5 against the reference.
"""

import hashlib
import json
import math
import warnings

import numpy as np
import pytest
from oracles import reference
from oracles.random_model import is_freed_after, random_model

from gpt2_tf import HParams, load
from gpt2_tf.evaluation import scoring
from gpt2_tf.evaluation.examples import read_examples
from gpt2_tf.evaluation.lambada import STOP_WORDS, lambada
from gpt2_tf.evaluation.multiple_choice import choice
from gpt2_tf.evaluation.perplexity import perplexity, window_rows
from gpt2_tf.evaluation.report import report
from gpt2_tf.generation.likelihood import Likelihood, Row, score_in_batches
from gpt2_tf.model import loss

TEXT = "The quick brown fox jumps over the lazy dog,\n and then naïve 色 the dog didn't jump. " * 3
TEXTS = ["the then them", "e they then the", "then  eat them", "a🎈é the quite", "x y z the", "t the"]
QUESTIONS = [
    {"context": "the then", "choices": [" them", " the", " xyz"], "answer": 1, "ending": " eats"},
    {"context": "", "choices": ["them", "e", "then the"], "answer": 0, "ending": " naïve"},
    {"context": "e ", "choices": ["then", "q", "the", "them them"], "answer": 3, "ending": "!"},
    {"context": "x the", "choices": ["n", "m"], "answer": 1, "ending": " 色"},
]


@pytest.fixture
def model(lively):
    return lively


@pytest.fixture(scope="module")
def logprobs(lively):
    """NumPy's: ids -> the log-probabilities of each next token, float64 [seq, n_vocab]."""
    weights = {variable.path: variable.numpy() for variable in lively.weights}
    return lambda ids: np.log(reference.softmax(reference.forward(weights, lively.hparams.n_head, ids)[0]))


@pytest.fixture(scope="module")
def peer(lively, enc, tmp_path_factory):
    """transformers': ids -> the same."""
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra [peers]")
    transformers = pytest.importorskip("transformers", reason="transformers is in the extra [peers]")
    folder = tmp_path_factory.mktemp("hf")
    lively.save_pretrained(folder, enc)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it imports warns, and that is not ours to mend
        model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()

    def logprobs(ids):
        with torch.no_grad():
            return torch.log_softmax(model(torch.tensor([list(ids)])).logits[0].double(), -1).numpy()

    return logprobs


def expected_perplexity(logprobs, enc, window, stride):
    """By the definition: token by token, each from the window that holds it first."""
    ids = [enc.end_of_text, *enc.encode(TEXT)]
    nats, scored, end = 0.0, 1, window + 1
    while scored < len(ids):
        end = min(end, len(ids))
        begin = max(0, end - window - 1)
        found = logprobs(ids[begin : end - 1])
        for at in range(scored, end):
            assert at - begin >= min(at, window - stride)  # tokens before it
            nats -= found[at - 1 - begin, ids[at]]
        scored, end = end, end + stride
    return nats


def expected_lambada(logprobs, enc):
    never = [enc.encode(f" {word}")[0] for word in STOP_WORDS.split() if len(enc.encode(f" {word}")) == 1]
    words, filtered, last = [], [], []
    for text in TEXTS:
        context = text.rpartition(" ")[0]
        ids = enc.encode(text)
        n = len(enc.encode(context.rstrip()))
        found = logprobs(ids[:-1])
        words.append([found[at - 1, ids[at]] for at in range(n, len(ids))])
        greedy = [found[at - 1].argmax() == ids[at] for at in range(n, len(ids))]
        others = found[n - 1].copy()
        others[never] = -np.inf
        filtered.append(others.argmax() == ids[n] and all(greedy[1:]))
        last.append(greedy[-1])
        words[-1].append(all(greedy))
    return {
        "texts": len(TEXTS),
        "last_word": {
            "accuracy": np.mean([word[-1] for word in words]),
            "perplexity": math.exp(-np.mean([sum(word[:-1]) for word in words])),
        },
        "last_word_filtered": {"accuracy": np.mean(filtered)},
        "last_token": {
            "accuracy": np.mean(last),
            "perplexity": math.exp(-np.mean([word[-2] for word in words])),
        },
    }


def expected_choice(logprobs, enc):
    chosen = {"full": [], "per_byte": [], "partial": []}
    for question in QUESTIONS:
        scores = {name: [] for name in chosen}
        for text in question["choices"]:
            whole = enc.encode(question["context"] + text + question["ending"])
            before = enc.encode(question["context"].rstrip())
            ending = len(whole) - len(enc.encode(question["context"] + text))
            ids = whole if before else [enc.end_of_text, *whole]
            found = logprobs(ids[:-1])
            each = [found[at - 1, ids[at]] for at in range(max(len(before), 1), len(ids))]
            scores["full"].append(sum(each))
            scores["per_byte"].append(sum(each) / len((text + question["ending"]).encode()))
            scores["partial"].append(sum(each[len(each) - ending :]))
        for name, values in scores.items():
            chosen[name].append(int(np.argmax(values)))
    return chosen


@pytest.mark.parametrize("window, stride", [(None, None), (32, 32), (32, 1), (10, 3), (1, 1)])
def test_perplexity_is_the_references(model, enc, logprobs, window, stride):
    found = perplexity(model, enc, TEXT, window=window, stride=stride)
    nats = expected_perplexity(logprobs, enc, window or 32, stride or 16)
    assert found["nats"] == pytest.approx(nats, rel=1e-5)
    counts = {"token": len(enc.encode(TEXT)), "word": 51, "byte": len(TEXT.encode())}
    for unit, count in counts.items():
        assert found[f"{unit}s"] == count
        assert found[f"{unit}_perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / counts["byte"], rel=1e-5)


def test_lambada_is_the_references(model, enc, logprobs):
    for batch_size in (1, 4, 8):
        found, expected = lambada(model, enc, TEXTS, batch_size=batch_size), expected_lambada(logprobs, enc)
        assert found.keys() == expected.keys()
        for way in ("last_word", "last_word_filtered", "last_token"):
            assert found[way] == pytest.approx(expected[way], rel=1e-5)


def test_the_likeliest_choice_is_the_references(model, enc, logprobs):
    found, chosen = choice(model, enc, QUESTIONS), expected_choice(logprobs, enc)
    assert found["chosen"] == chosen
    answers = [question["answer"] for question in QUESTIONS]
    assert found["accuracy"] == {name: np.mean(np.equal(numbers, answers)) for name, numbers in chosen.items()}
    assert len({tuple(numbers) for numbers in chosen.values()}) == 3  # so that none stands for another
    without = [{**question, "ending": ""} for question in QUESTIONS]
    assert choice(model, enc, without)["accuracy"]["partial"] is None
    assert choice(model, enc, without)["chosen"].keys() == {"full", "per_byte"}


@pytest.mark.slow  # for the import of PyTorch
def test_transformers_agrees(model, enc, peer):
    found = perplexity(model, enc, TEXT)
    assert found["token_perplexity"] == pytest.approx(
        math.exp(expected_perplexity(peer, enc, 32, 16) / found["tokens"]), rel=1e-4
    )
    words, expected = lambada(model, enc, TEXTS), expected_lambada(peer, enc)
    for way in ("last_word", "last_word_filtered", "last_token"):
        assert words[way] == pytest.approx(expected[way], rel=1e-4)
    assert choice(model, enc, QUESTIONS)["chosen"] == expected_choice(peer, enc)


def test_what_is_right_counts():
    """A model that has learned one text: its words are right, and a stop word is so but for the filter."""
    model, enc = load("shakespeare")
    ids = enc.encode("my lord, my lord, my lord,")
    (_, score), *_ = score_in_batches(model, [Row(ids, 1)])
    assert score.greedy.tolist() == score.filtered.tolist()
    likeliest = int(np.argmax(model(np.array([ids]))[0, -1]))
    (_, score), *_ = score_in_batches(model, [Row([*ids, likeliest], 1)], excluded=[likeliest])
    assert (score.greedy.tolist(), score.filtered.tolist()) == ([True], [False])
    second = int(np.argsort(model(np.array([ids]))[0, -1])[-2])
    (_, score), *_ = score_in_batches(model, [Row([*ids, second], 1)], excluded=[likeliest])
    assert (score.greedy.tolist(), score.filtered.tolist()) == ([False], [True])


def test_each_way_of_lambada_counts_its_own(model, enc, monkeypatch):
    """What is right of texts by what is likeliest of their words' tokens: all, all but a stop word, the last alone."""
    right = [  # greedy, filtered
        ([1, 1], [1, 1]),
        ([0, 1], [1, 1]),
        ([0, 1], [0, 1]),
        ([1, 0], [1, 0]),
        ([1], [0]),
        ([0, 1], [1, 0]),
    ]
    scores = [
        (number, Likelihood(np.full(len(greedy), -1.0, np.float32), np.array(greedy, bool), np.array(filtered, bool)))
        for number, (greedy, filtered) in enumerate(right)
    ]
    called = {}

    def likelihoods(model, rows, batch_size, never, *share):
        called["never"] = never
        return iter(scores)

    monkeypatch.setattr(scoring, "score_in_batches", likelihoods)
    found = lambada(model, enc, TEXTS)
    assert found["last_word"] == {"accuracy": 2 / 6, "perplexity": pytest.approx(math.exp(11 / 6))}
    assert found["last_word_filtered"] == {"accuracy": 3 / 6}
    assert found["last_token"] == {"accuracy": 5 / 6, "perplexity": pytest.approx(math.e)}
    assert called["never"] == {enc.encode(" the")[0]} and len(enc.encode(" the")) == 1


def test_windows_score_each_token_once():
    for n in (2, 5, 9, 10, 31):
        for window in (1, 4, 9):
            for stride in range(1, window + 1):
                seen = []
                for row in window_rows(range(n), window, stride):
                    assert len(row.ids) <= window + 1 and 1 <= row.count < len(row.ids)
                    for at in range(len(row.ids) - row.count, len(row.ids)):
                        seen.append(row.ids[at])
                        assert at >= min(row.ids[at], window - stride)
                assert seen == list(range(1, n))


def test_a_chunk_at_a_time_is_the_same(model, enc, monkeypatch):
    whole = perplexity(model, enc, TEXT)["nats"]
    monkeypatch.setattr(loss, "CHUNK", 260 * 7)
    assert perplexity(random_model(model.hparams), enc, TEXT)["nats"] == pytest.approx(whole, rel=1e-6)


def test_one_trace_serves_all_lengths(model, enc, forbid_traces):
    perplexity(model, enc, "e")
    forbid_traces()
    perplexity(model, enc, TEXT, window=9, batch_size=2)
    lambada(model, enc, TEXTS)
    choice(model, enc, QUESTIONS)


def test_no_logits_of_a_whole_batch_are_held(enc, monkeypatch):
    """No tensor in the graph of the scoring has the batch, the text and the vocabulary as its axes."""
    from gpt2_tf.generation.tensorflow_engine import build_scorer

    graph = random_model(HParams(n_vocab=260, n_ctx=8, n_embd=4, n_head=1, n_layer=1)).traced(build_scorer).graph
    shapes = [tensor.shape for op in graph.get_operations() for tensor in op.outputs]
    assert not [shape for shape in shapes if shape.rank == 3 and shape[-1] == 260]


def test_a_model_that_was_measured_is_freed(enc):
    hparams = HParams(n_vocab=260, n_ctx=8, n_embd=4, n_head=1, n_layer=1)
    assert is_freed_after(lambda model: perplexity(model, enc, "the then"), hparams)


def test_a_perplexity_beyond_a_float_is_none(model, enc):
    found = perplexity(model, enc, "x!?" * 200)
    assert found["word_perplexity"] is None and found["words"] == 1
    assert perplexity(model, enc, " \n")["word_perplexity"] is None
    json.dumps(found, allow_nan=False)


def test_the_report_repeats_it(model, enc):
    text = '{"text": "the then them"}\n{"text": "e they then the"}\n'
    found = report(model, enc, "lambada", text, "f.jsonl", {"batch_size": 2})
    assert found["results"] == lambada(model, enc, TEXTS[:2], batch_size=2)
    digest = f"SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    assert found["file"] == {"name": "f.jsonl", "bytes": len(text), "digest": digest}
    assert found["model"]["n_vocab"] == 260 and found["settings"] == {"batch_size": 2}
    assert {"python", "tensorflow", "keras", "numpy"} <= found["versions"].keys()
    found = report(model, enc, "perplexity", TEXT, "f", {"window": None, "stride": None, "batch_size": 8})
    assert found["settings"] == {"window": 32, "stride": 16, "batch_size": 8}


CHOICE = '{"context": "a", "choices": ["b", "c"], "answer": 0}'


@pytest.mark.parametrize(
    ("task", "text", "error"),
    [
        ("lambada", "", "f is empty, but must have one JSON object per line"),
        ("lambada", '{"text": "a b"}\nno\n', 'f: line 2 is not JSON (.*); expected {"text": "..."}'),
        ("lambada", '{"text": "a b"}\n\n{"text": "a b"}', "f: line 2 is not JSON"),
        ("lambada", '{"txt": "a b"}', """f: line 1 is '{"txt": "a b"}', but must be {"text": "..."}"""),
        ("lambada", "[1]", "f: line 1 is .*, but must be"),
        ("lambada", '{"text": 3}', "f: line 1 is .*, but must be"),
        ("choice", CHOICE + '\n{"context": "a", "choices": ["b", "c"]}', 'f: line 2 .* but must be {"context"'),
        ("choice", CHOICE.replace("0", "2"), "f: line 1 .* but must be"),
        ("choice", CHOICE.replace("0", '"0"'), "f: line 1 .* but must be"),
        ("choice", CHOICE.replace('"c"', '""'), "f: line 1 .* but must be"),
        ("choice", CHOICE.replace(', "c"', ""), "f: line 1 .* but must be"),
        ("choice", CHOICE.replace("}", ', "ending": 1}'), "f: line 1 .* but must be"),
    ],
)
def test_a_file_that_is_wrong_is_said_by_its_line(task, text, error):
    with pytest.raises(ValueError, match=error.replace("(", r"\(").replace(")", r"\)").replace(r"\(.*\)", ".*")):
        read_examples(text, "f", task)


def test_what_does_not_fit_is_said(model, enc):
    with pytest.raises(ValueError, match="f: line 2 has 40 tokens, but must have at most 33"):
        lambada(model, enc, ["a b", "xy" * 19 + " b"], name="f")
    with pytest.raises(ValueError, match="f: line 2 must end in a space and a word, but ends in 'word'"):
        lambada(model, enc, ["a b", "word"], name="f")
    for text in ("a b ", " b"):
        with pytest.raises(ValueError, match="f: line 1 must end in a space and a word"):
            lambada(model, enc, [text], name="f")
    with pytest.raises(ValueError, match="f: line 1 has 41 tokens"):
        choice(model, enc, [{"context": "x" * 40, "choices": ["y", "z"], "answer": 0}], name="f")
    with pytest.raises(
        ValueError, match="f: line 1 has a continuation whose first letters belong to the context's last token"
    ):
        choice(model, enc, [{"context": "th", "choices": ["e", "en"], "answer": 0}], name="f")
    with pytest.raises(ValueError, match="the text is empty"):
        perplexity(model, enc, "")
    with pytest.raises(ValueError, match="window is 33, but must be a whole number from 1 to 32, the model's n_ctx"):
        perplexity(model, enc, "e", window=33)
    with pytest.raises(ValueError, match="stride is 9, but must be a whole number from 1 to 8, the window"):
        perplexity(model, enc, "e", window=8, stride=9)
    with pytest.raises(ValueError, match="batch_size is 0"):
        lambada(model, enc, ["a b"], batch_size=0)
    with pytest.raises(ValueError, match="a row has 34 tokens, but must have at most 33"):
        list(score_in_batches(model, [Row([0] * 34, 1)]))


def test_damaged_weights_are_said(enc):
    model = random_model(HParams(n_vocab=260, n_ctx=8, n_embd=4, n_head=1, n_layer=1))
    model.ln_f.b.assign(np.full(4, np.nan))
    with pytest.raises(ValueError, match="the model's logits are not finite; its weights are damaged"):
        perplexity(model, enc, "e")
