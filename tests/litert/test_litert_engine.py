"""LiteRT's engine against TensorFlow's: the same texts, and logits within float32's rounding."""

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from oracles.random_settings import PROMPTS, random_settings

import gpt2_tf
from gpt2_tf import beam_search, generate, score, stream
from gpt2_tf.evaluation import perplexity
from gpt2_tf.generation import Engine
from gpt2_tf.generation.engine import Row, as_engine
from gpt2_tf.litert.decoder import Batch


def assert_same(pair, prompts, **settings):
    expected = generate(pair.model, pair.enc, prompts, **settings)
    found = generate(pair.engine, pair.enc, prompts, **settings)
    assert [(c.text, c.ids, c.finish_reason) for c in found] == [(c.text, c.ids, c.finish_reason) for c in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["bundled", pytest.param("small", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", range(6))
def test_the_texts_are_tensorflows_for_any_settings(name, case, request):
    rng = random.Random(case)
    prompts = rng.sample(PROMPTS[:2] + PROMPTS[3:], rng.choice([1, 3]))
    assert_same(request.getfixturevalue(name), prompts, **random_settings(rng))


def test_a_text_longer_than_each_capacity_and_than_the_window(bundled):
    assert_same(bundled, ["ROMEO:"], length=300, seed=1, top_k=20, window=True)


@pytest.mark.slow
def test_rows_of_a_batch_fill_the_window_at_different_steps(bundled):
    """The longest row ends first; the others then have room left on their padded side."""
    prompts = ["My lord! " * 25, "ROMEO:", "A " * 50]
    assert_same(bundled, prompts, length=230, seed=2, window=True, stop=["."])


def test_more_rows_than_a_batch_of_the_graphs(bundled):
    assert_same(bundled, PROMPTS[:1], num_samples=19, batch_size=19, length=6, seed=3)


def test_pieces_of_a_stream_are_those_of_tensorflow(bundled):
    settings = {"length": 20, "seed": 4, "stop": "\n\n"}
    expected = list(stream(bundled.model, bundled.enc, "ROMEO:", **settings))
    assert list(stream(bundled.engine, bundled.enc, "ROMEO:", **settings)) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 1, "length": 8},
        {"num_beams": 4, "num_return": 3, "length": 9, "stop": "e"},
        {"num_beams": 18, "num_return": 5, "length": 5, "length_penalty": -0.5},
    ],
)
def test_beams_are_tensorflows(bundled, settings):
    expected = beam_search(bundled.model, bundled.enc, "ROMEO:", **settings)
    found = beam_search(bundled.engine, bundled.enc, "ROMEO:", **settings)
    assert [(h.text, h.ids, h.finish_reason) for h in found] == [(h.text, h.ids, h.finish_reason) for h in expected]
    assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-4)


@pytest.mark.parametrize("n", [2, 17, 60, 130, 257])
def test_likelihoods_are_tensorflows(bundled, n):
    ids = np.random.default_rng(n).integers(0, 1024, n).tolist()
    for count in {1, n // 2, n - 1}:
        (found,) = bundled.engine.likelihoods([Row(ids, count)], excluded=[5, 6])
        (expected,) = as_engine(bundled.model).likelihoods([Row(ids, count)], excluded=[5, 6])
        np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=0, atol=1e-4)
        assert found.logprobs.dtype == np.float32
        np.testing.assert_array_equal(found.greedy, expected.greedy)
        np.testing.assert_array_equal(found.filtered, expected.filtered)


def test_an_empty_text_has_no_scores(bundled):
    assert score(bundled.engine, bundled.enc, ["", "Hi"], ["ROMEO:"] * 2)[0] == []


@pytest.mark.parametrize("name", ["bundled", "small"])
def test_logits_are_the_models(name, request):
    """In one pass over many tokens, and token by token from the cache, in a batch of left-padded rows."""
    model, engine, _ = request.getfixturevalue(name)
    n_ctx, n_vocab = engine.hparams.n_ctx, engine.hparams.n_vocab
    tokens = np.random.default_rng(0).integers(0, n_vocab, n_ctx)
    expected = model(tokens[None])[0].numpy()
    found = np.concatenate(list(engine.decoder.score(tokens.tolist(), n_ctx)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    starts = [5, 1, 9]
    batch = Batch(engine.decoder, [tokens[:start].tolist() for start in starts])
    for step in range(12):
        logits = batch.next_logits()
        for row, start in enumerate(starts):
            np.testing.assert_allclose(logits[row], expected[start + step - 1], rtol=0, atol=1e-4)
        batch.select([0, 1, 2], [int(tokens[start + step]) for start in starts])


def test_8_bits_cost_little(bundled):
    """The perplexity of the bundled model rises by less than 0.5%, so the scales are those of their rows."""
    import gpt2_tf

    engine, enc = gpt2_tf.load("shakespeare", engine="litert", weights="int8")
    text = "What light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n" * 3
    exact, rounded = (perplexity(one, enc, text)["token_perplexity"] for one in (bundled.engine, engine))
    assert rounded != exact and rounded == pytest.approx(exact, rel=5e-3)


def test_weights_that_diverged_are_an_error(lively, enc, tmp_path):
    import gpt2_tf

    lively.save_checkpoint(tmp_path / "model")
    model = gpt2_tf.GPT2.from_checkpoint(tmp_path / "model")
    model.wte.assign(model.wte * np.nan)
    model.save_checkpoint(tmp_path / "model")
    enc.save(tmp_path / "model")
    engine, enc = gpt2_tf.load(tmp_path / "model", engine="litert")
    for use in (
        lambda: generate(engine, enc, "the", length=3),
        lambda: score(engine, enc, "the"),
        lambda: beam_search(engine, enc, "the", length=3),
    ):
        with pytest.raises(ValueError, match="the model's logits are not finite"):
            use()


def test_filters_are_functions_of_arrays(bundled):
    assert isinstance(bundled.engine, Engine)
    only_z = lambda logits: np.where(np.arange(1024) == 90, 1.0, -1.0)  # noqa: E731
    assert generate(bundled.engine, bundled.enc, "A", length=3, temperature=0, filters=only_z)[0].ids == [90] * 3


def test_threads_share_an_engine(bundled):
    """Python changes between threads as often as it can, and every text is still the one it has alone."""
    prompts = ["ROMEO:", "JULIET:", "my lord", "the king"]

    def write(prompt):
        return [gpt2_tf.generate(bundled.engine, bundled.enc, prompt, length=20, seed=i)[0].text for i in range(3)]

    expected, interval = [write(prompt) for prompt in prompts], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(write, prompts)) == expected
    finally:
        sys.setswitchinterval(interval)


def test_a_filter_may_change_its_argument_in_place(bundled):
    def forbid(logits):
        logits[:, 10] = -np.inf
        return logits

    settings = {"length": 8, "seed": 3}
    changed = gpt2_tf.generate(bundled.engine, bundled.enc, "ROMEO:", filters=[forbid], **settings)
    copied = gpt2_tf.generate(bundled.engine, bundled.enc, "ROMEO:", filters=[lambda x: forbid(x.copy())], **settings)
    assert changed == copied


@pytest.mark.slow
@pytest.mark.parametrize("first", ["tensorflow", "litert"])
def test_both_engines_in_one_process_write_nothing_to_stderr(first):
    code = f"""import gpt2_tf
engines = sorted(["litert", "tensorflow"], key={first!r}.__ne__)
models = [gpt2_tf.load("shakespeare", engine=engine) for engine in engines]
print(len({{gpt2_tf.generate(*model, "ROMEO:", length=3, seed=1)[0].text for model in models}}))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ran.stdout, ran.stderr) == ("1\n", "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "litert", "threads": 0}, "threads is 0, but must be at least 1"),
        ({"engine": "tensorflow", "threads": 2}, "threads is 2, but the engine tensorflow takes all"),
        ({"engine": "tflite"}, "engine is 'tflite', but must be auto, litert or tensorflow"),
        ({"weights": "int3"}, "weights is 'int3', but must be"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        gpt2_tf.load("shakespeare", **settings)
