"""Text in, text out: against the reference, against `sample_sequence`, and each row against the same row alone."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import weakref

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import reference

from gpt2_tf import GPT2, HParams, beam_search, generate, score, stream
from gpt2_tf.files import interrupt
from gpt2_tf.generation import TensorFlowEngine
from gpt2_tf.generation.engine import Chunk
from gpt2_tf.generation.generate import Sample, completions

PROMPTS = ["them", "e", "the then them", "🎈 x", "th"]


@pytest.fixture
def model(lively):
    return lively


def weights(model):
    return {variable.path: variable.numpy() for variable in model.weights}


def ids(completions):
    return [completion.ids for completion in completions]


class RecordingEngine(TensorFlowEngine):
    """Keeps the chunks that each batch yields."""

    def __init__(self, model):
        super().__init__(model)
        self.batches = []

    def extend(self, contexts, *args, **kwargs):
        self.batches.append([])
        for chunks in super().extend(contexts, *args, **kwargs):
            self.batches[-1].append(chunks)
            yield chunks

    def batch_sizes(self):
        return [len(batch[0]) for batch in self.batches]


def test_greedy_texts_are_the_references(model, enc):
    completions = generate(model, enc, ["them", "e"], length=6, num_samples=2, seed=4, temperature=0)
    assert [c.prompt for c in completions] == ["them", "them", "e", "e"]
    for c in completions:
        expected = reference.greedy(weights(model), model.hparams.n_head, enc.encode(c.prompt), 6)[-6:]
        assert (c.ids, c.text, c.finish_reason) == (expected, enc.decode(expected), "length")


def test_texts_do_not_depend_on_the_batch_size(model, enc):
    whole = generate(model, enc, ["them", "e"], length=6, num_samples=5, seed=4)
    assert len({tuple(c.ids) for c in whole}) == 10
    for batch_size in (1, 2, 3, 7):
        assert ids(generate(model, enc, ["them", "e"], length=6, num_samples=5, seed=4, batch_size=batch_size)) == ids(
            whole
        )
    assert ids(generate(model, enc, "them", length=6, num_samples=2, seed=4)) == ids(whole[:2])


def test_the_default_length_is_100_or_as_many_as_fit(model, enc):
    assert [len(c.ids) for c in generate(model, enc, ["e", "x" * 32], seed=1)] == [32, 1]
    long = GPT2(HParams(n_vocab=260, n_ctx=300, n_embd=4, n_head=1, n_layer=1), w_init_stdev=0)
    (completion,) = generate(long, enc, "e", seed=1)
    assert len(completion.ids) == 100 or completion.finish_reason == "stop"


def test_without_a_prompt_the_text_starts_from_end_of_text(model, enc):
    (completion,) = generate(model, enc, length=6, temperature=0)
    assert completion.prompt == ""
    expected = reference.greedy(weights(model), model.hparams.n_head, [enc.end_of_text], 6)[1:]
    assert completion.ids == expected


def test_generate_stops_at_end_of_text(enc):
    """The model writes 65, 66, 67, <|endoftext|> after any context, because its logits depend on the position alone."""
    model = GPT2(HParams(n_vocab=260, n_ctx=8, n_embd=260, n_head=1, n_layer=1), w_init_stdev=0)
    model.wte.assign(np.eye(260) * 1e-3)
    model.ln_f.g.assign(np.ones(260) * 1e3)
    for variable in model.weights:
        if variable.name == "g" and "ln_f" not in variable.path:
            variable.assign(np.ones(260))
    wpe = np.zeros([8, 260])
    wpe[range(8), [65, 66, 67, enc.end_of_text, 68, 68, 68, 68]] = 1
    model.wpe.assign(wpe)
    (completion,) = generate(model, enc, enc.decode([0]), length=7, temperature=0)
    assert completion.ids == [65, 66, 67]
    assert (completion.text, completion.finish_reason) == (enc.decode([65, 66, 67]), "stop")


def test_wrong_arguments_are_errors_that_say_what_is_expected(model, enc):
    with pytest.raises(ValueError, match="the prompt is empty; leave it out"):
        generate(model, enc, ["e", ""])
    with pytest.raises(ValueError, match="the prompt has 100,000 tokens, but the model reads at most 32; shorten it"):
        generate(model, enc, "x" * 100_000)
    for name in ("num_samples", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} is 0, but must be a whole number of at least 1"):
            generate(model, enc, "e", **{name: 0})
    with pytest.raises(ValueError, match="length is '3', but must be a whole number of at least 1"):
        generate(model, enc, "e", length="3")
    with pytest.raises(TypeError, match="a prompt is b'e', but must be a str"):
        generate(model, enc, [b"e"])
    with pytest.raises(ValueError, match="the vocabulary has 260 tokens, but the model 261"):
        generate(GPT2(HParams(n_vocab=261, n_ctx=8, n_embd=4, n_head=1, n_layer=1)), enc, "e")


def test_text_beyond_ascii_is_encoded_and_decoded_whole(model, enc):
    (completion,) = generate(model, enc, "größer 😀", length=3, temperature=0)
    assert completion.prompt + completion.text == "größer 😀" + enc.decode(completion.ids)


def test_completions_yield_their_numbers(model, enc):
    settings = {"length": 6, "num_samples": 2, "seed": 4, "batch_size": 3}
    whole = generate(model, enc, PROMPTS, **settings)
    found = list(completions(model, enc, PROMPTS, **settings))
    numbers = [number for number, _ in found]
    assert sorted(numbers) == list(range(10)) != numbers  # samples of similar length share a batch
    assert dict(found) == dict(enumerate(whole))


def test_done_samples_are_not_yielded_and_the_others_do_not_change(model, enc):
    settings = {"length": 6, "num_samples": 2, "seed": 4, "batch_size": 3}
    engine = RecordingEngine(model)
    found = list(completions(engine, enc, PROMPTS, **settings))
    assert engine.batch_sizes() == [3, 3, 3, 1]
    for n in range(11):
        engine = RecordingEngine(model)
        done = [number for number, _ in found[:n]]
        assert list(completions(engine, enc, PROMPTS, done=done, **settings)) == found[n:]
        assert engine.batch_sizes() == ([] if n == 10 else [3, 3, 3, 1][n // 3 :])


def test_the_number_of_a_wrong_prompt_is_named_before_anything_runs(model, enc):
    with pytest.raises(ValueError, match="prompt 2: the prompt has 40 tokens, but the model reads at most 32"):
        completions(model, enc, ["e", "x" * 40])
    with pytest.raises(ValueError, match=r"^the prompt has 40 tokens"):
        completions(model, enc, ["x" * 40])


@pytest.mark.parametrize("setting", [{"temperature": 0}, {}, {"top_k": 9, "repetition_penalty": 1.5, "min_length": 3}])
def test_each_row_is_the_same_as_alone(model, enc, setting):
    together = generate(model, enc, PROMPTS, length=15, seed=5, **setting)
    assert len({len(enc.encode(prompt)) for prompt in PROMPTS}) > 3
    for number, prompt in enumerate(PROMPTS):
        # A sample's random numbers depend on its number, so the prompts before it are kept; each is a batch of its own.
        alone = generate(model, enc, [*PROMPTS[:number], prompt], length=15, seed=5, batch_size=1, **setting)[-1]
        assert alone[:4] == together[number][:4]
        np.testing.assert_allclose(alone.logprobs, together[number].logprobs, rtol=0, atol=1e-5)


def test_logprobs_are_the_references_before_any_filter(model, enc):
    (completion,) = generate(model, enc, "them", length=9, seed=1, temperature=0.7, top_k=5, stop=())
    context = enc.encode("them")
    logits, _ = reference.forward(weights(model), model.hparams.n_head, context + completion.ids)
    expected = np.log(reference.softmax(logits))[range(len(context) - 1, len(context) + 8), completion.ids]
    np.testing.assert_allclose(completion.logprobs, expected, rtol=0, atol=1e-5)


def stops_at(model, enc, stop, **settings):
    """Pair the completions without the stop with those with it; their texts begin alike."""
    whole = generate(model, enc, PROMPTS, length=18, seed=2, stop=(), **settings)
    return zip(whole, generate(model, enc, PROMPTS, length=18, seed=2, stop=stop, **settings), strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("first, last", [(0, 1), (3, 6), (7, 8), (17, 18), (16, 18)])
def test_stop_strings_end_the_text_also_across_tokens(model, enc, first, last, batch_size):
    ascii = {token: -np.inf for token in range(260) if not enc.tokens[token].isascii()}
    settings = {"length": 18, "seed": 2, "logit_bias": ascii, "batch_size": batch_size}
    whole = generate(model, enc, PROMPTS, stop=(), **settings)
    for number, completion in enumerate(whole):
        data = enc.decode_bytes(completion.ids)
        stop = enc.decode_bytes(completion.ids[first:last])[-3:].decode()
        stopped = generate(model, enc, PROMPTS, stop=stop, **settings)[number]
        assert stopped.finish_reason == "stop"
        assert stopped.text == data[: data.index(stop.encode())].decode(errors="replace")
        assert stopped.ids == completion.ids[: len(stopped.ids)]
        covered = enc.decode_bytes(stopped.ids)
        assert len(enc.decode_bytes(stopped.ids[:-1])) <= data.index(stop.encode()) <= len(covered)
        assert stopped.logprobs == pytest.approx(completion.logprobs[: len(stopped.ids)], abs=1e-5)


def test_stop_ids_end_the_text(model, enc):
    for whole, stopped in stops_at(model, enc, [int(i) for i in range(0, 260, 9)]):
        end = next((i for i, token in enumerate(whole.ids) if token % 9 == 0), None)
        assert stopped.ids == whole.ids[:end]
        assert stopped.finish_reason == ("length" if end is None else "stop")
        assert stopped.text == enc.decode(whole.ids[:end])


def test_the_loop_ends_once_every_row_has_stopped(model, enc):
    engine = RecordingEngine(model)
    generate(engine, enc, PROMPTS, length=20, temperature=0, stop=range(260))
    ((chunks,),) = engine.batches
    assert [len(chunk.ids) for chunk in chunks] == [1] * 5


def test_before_min_length_no_stop_is_sampled(model, enc):
    stop = list(range(200))
    for completion in generate(model, enc, PROMPTS, length=12, seed=3, stop=stop, min_length=6):
        assert all(token >= 200 for token in completion.ids) and len(completion.ids) >= 6
    assert any(len(c.ids) < 6 for c in generate(model, enc, PROMPTS, length=12, seed=3, stop=stop))


def test_a_full_window_slides_to_its_newer_half(model, enc):
    """Each row equals the reference, which drops the older half whenever the window is full."""
    prompts = ["them", "th" * 20, "e" * 31]
    completions = generate(model, enc, prompts, length=70, temperature=0, window=True, stop=())
    n_ctx = model.hparams.n_ctx
    for prompt, completion in zip(prompts, completions, strict=True):
        seen, expected = enc.encode(prompt)[-n_ctx:], []
        if len(enc.encode(prompt)) > n_ctx:
            seen = enc.encode(prompt)[-(n_ctx // 2) :]
        while len(expected) < 70:
            if len(seen) > n_ctx:
                seen = seen[-(n_ctx // 2) :]
            seen = reference.greedy(weights(model), model.hparams.n_head, seen, 1)
            expected.append(seen[-1])
        assert completion.ids == expected
        assert len(completion.logprobs) == 70


def test_streamed_text_is_the_same_as_generated_text(model, enc):
    whole = generate(model, enc, "them", length=80, seed=1, window=True)[0]
    assert "".join(stream(model, enc, "them", length=80, seed=1, window=True)) == whole.text


@pytest.mark.slow
@settings(deadline=None, max_examples=20, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), first=st.integers(0, 20), size=st.integers(1, 4), end=st.sampled_from(["", "\0!"]))
def test_streamed_pieces_are_the_text_in_whole_characters(model, enc, seed, first, size, end):
    """The stop is a part of the text without stops, so it occurs; or that part with "\\0!", so it does not."""
    (whole,) = generate(model, enc, "them", length=25, seed=seed, stop=())
    stop = [whole.text[first : first + size].replace("\ufffd", "") + end] if whole.text[first:] + end else []
    stop = [string for string in stop if string]
    (completion,) = generate(model, enc, "them", length=25, seed=seed, stop=stop)
    pieces = list(stream(model, enc, "them", length=25, seed=seed, stop=stop))
    assert "".join(pieces) == completion.text
    assert all(pieces)
    if stop and stop[0] in whole.text:
        assert completion.finish_reason == "stop"


def test_a_character_of_several_tokens_is_taken_whole(model, enc):
    sample = Sample(enc, None, set(), [b"!!"])
    pieces = []
    *tokens, last = enc.encode("a🎈é! !!")
    for token, reason in [*((token, None) for token in tokens), (last, "stop")]:
        sample.add_chunk(Chunk(0, [token], [0.0], reason))
        pieces.append(sample.take_new_text())
    assert [piece for piece in pieces if piece] == ["a", "🎈", "é", "! "]


@pytest.mark.slow
def test_all_settings_at_once_equal_numpy(model, enc):
    """Rows of different lengths, and stops of several tokens. NumPy applies the settings in their documented order.

    The padding is token 0, "!", which has a large bias, so a row that reads its padding gives another text.
    """
    bias = {token: -np.inf for token in range(260) if not enc.tokens[token].isascii()} | {0: 6.0}
    tips = np.random.default_rng(5).normal(size=260)
    n, penalty, min_length, length = 3, 1.7, 6, 16

    def written(prompt, stop):
        """The new ids up to the stop, and whether it came."""
        text, new = enc.encode(prompt), []
        while len(new) < length:
            logits = reference.forward(weights(model), model.hparams.n_head, text)[0][-1]
            for token, value in bias.items():
                logits[token] += value
            for token in set(text):
                logits[token] *= 1 / penalty if logits[token] > 0 else penalty
            runs = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
            cut = [token for token in range(260) if (*text[len(text) - n + 1 :], token) in runs]
            if stop and len(new) < min_length:
                cut += [token for token in range(260) if stop in enc.decode_bytes([*new, token])]
            logits[cut] = -np.inf
            text.append(int((logits + tips).argmax()))
            new.append(text[-1])
            if stop and stop in enc.decode_bytes(new):
                return new, True
        return new, False

    n_stopped = 0
    for prompts in (["th", "the then them", "e!"], ["e", "! !"]):
        unstopped = [written(prompt, b"")[0] for prompt in prompts]
        # Four bytes of one row: before min_length, and after it.
        for stop in (enc.decode_bytes(unstopped[0])[2:6], enc.decode_bytes(unstopped[1])[9:13]):
            completions = generate(
                model,
                enc,
                prompts,
                length=length,
                temperature=0,
                stop=stop.decode(),
                min_length=min_length,
                repetition_penalty=penalty,
                no_repeat_ngram=n,
                logit_bias=bias,
                filters=[lambda logits: logits + tips.astype(np.float32)],
            )
            for prompt, completion in zip(prompts, completions, strict=True):
                new, stopped = written(prompt, stop)
                n_stopped += stopped
                assert completion.finish_reason == ("stop" if stopped else "length")
                data = enc.decode_bytes(new)
                assert completion.text == data[: data.index(stop) if stopped else None].decode()
                assert completion.ids == new[: len(completion.ids)]
    assert n_stopped >= 2


def test_stream_raises_at_the_call(model, enc):
    with pytest.raises(ValueError, match="the prompt is empty"):
        stream(model, enc, "")
    with pytest.raises(ValueError, match="top_p is 0"):
        stream(model, enc, "e", top_p=0)
    with pytest.raises(ValueError, match="num_samples is 2, but stream writes one text; `generate` writes several"):
        stream(model, enc, "e", num_samples=2)


def test_one_trace_serves_all_texts(model, enc, forbid_traces):
    generate(model, enc, ["e", "t"], length=2)

    forbid_traces()
    for setting in ({"top_k": 4}, {"stop": "the"}, {"logit_bias": {3: 1.0}}, {"window": True, "length": 50}):
        generate(model, enc, PROMPTS, **setting)
    with pytest.raises(AssertionError, match="traced again"):
        generate(model, enc, "e", filters=[lambda logits: logits])


PEAK = """
import resource
from gpt2_tf import load, stream
model, enc = load("shakespeare")
for count, _ in enumerate(stream(model, enc, "ROMEO:", length=3000, window=True, seed=1, stop=()), start=1):
    if count == 300:  # most pieces are one token
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_is_flat_past_the_window():
    """The peak after 3,000 tokens is within 8 MB of the peak after 300 tokens.

    The allocator alone adds 3 MB, measured. A cache that kept all 2,700 tokens between would add 22 MB.
    """
    pytest.importorskip("resource")
    ran = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    early, late = (int(line) * (1 if sys.platform == "darwin" else 1024) for line in ran.stdout.split())
    assert late - early < 8e6


def test_a_large_length_takes_no_memory_in_advance(model, enc):
    """The random numbers for the whole length would take 16 GB."""
    settings = {"window": True, "seed": 1, "stop": ()}
    pieces = stream(model, enc, "e", length=2_000_000_000, **settings)
    text = "".join(next(pieces) for _ in range(50))
    assert generate(model, enc, "e", length=70, **settings)[0].text.startswith(text)


def test_a_window_of_one_token(enc):
    model = GPT2(HParams(n_vocab=260, n_ctx=1, n_embd=4, n_head=1, n_layer=1))
    assert len(generate(model, enc, "e", length=5, window=True, stop=())[0].ids) == 5


def test_weights_that_diverged_are_an_error(enc):
    model = GPT2(HParams(n_vocab=260, n_ctx=8, n_embd=4, n_head=1, n_layer=1))
    model.ln_f.b.assign(np.full(4, np.nan))
    for temperature in (0, 1):
        with pytest.raises(ValueError, match="the model's logits are not finite: its weights are damaged"):
            generate(model, enc, "e", length=2, temperature=temperature)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("draft", [None, "lookup"])
@pytest.mark.parametrize("factor", [-np.inf, np.nan])
def test_filters_that_leave_no_token_are_an_error(model, enc, temperature, draft, factor):
    """Without the check, the last id would be sampled, `<|endoftext|>`, and the text would seem complete."""
    settings = {"filters": lambda logits: tf.zeros_like(logits) + factor, "temperature": temperature, "draft": draft}
    with pytest.raises(ValueError, match=r"no token is left to choose: .*; check what filters, logit_bias and"):
        generate(model, enc, "e", length=2, **settings)


def test_a_row_without_tokens_after_its_end_is_no_error(model, enc):
    """A row that has ended is still computed with its neighbours, until the loop returns."""
    rows = ids(generate(model, enc, PROMPTS, length=6, temperature=0, stop=()))
    written = [token for tokens in rows for token in tokens]
    # Find two neighbouring tokens of one row that occur nowhere else. The row ends at the first, and the second is
    # forbidden.
    row, at = next(
        (row, at)
        for row, tokens in enumerate(rows)
        for at in range(5)
        if written.count(tokens[at]) == written.count(tokens[at + 1]) == 1
    )
    end, after = rows[row][at : at + 2]

    def breaks_after_the_end(logits):
        return tf.where(tf.argmax(logits, axis=-1)[:, None] == after, -np.inf, logits)

    settings = {"length": 6, "temperature": 0, "filters": breaks_after_the_end}
    rows[row] = rows[row][:at]
    assert ids(generate(model, enc, PROMPTS, stop=end, **settings)) == rows
    with pytest.raises(ValueError, match="no token is left"):
        generate(model, enc, PROMPTS, stop=(), **settings)


def test_new_filters_do_not_accumulate(enc):
    """The model drops its oldest compiled functions, and with them their filters."""
    model = GPT2(HParams(n_vocab=260, n_ctx=8, n_embd=4, n_head=1, n_layer=1))

    def build_constant(model, filters):
        return tf.function(lambda: 0.0, autograph=False)  # stands for a decode loop, which takes seconds to compile

    def new_filter(logits):
        return logits

    generate(model, enc, "e", length=1, filters=new_filter)
    dropped = weakref.ref(new_filter)
    del new_filter
    for _ in range(20):
        model.traced(build_constant, (lambda logits: logits,))
    gc.collect()
    assert dropped() is None


def test_other_wrong_arguments_are_errors(model, enc):
    with pytest.raises(ValueError, match=r"draft is .*, but must be a model, 'lookup', or None"):
        generate(model, enc, "e", draft=(model, enc))
    with pytest.raises(ValueError, match="logit_bias forbids every token"):
        generate(model, enc, "e", logit_bias=dict.fromkeys(range(260), -np.inf))
    assert len(generate(model, enc, "e", stop=None, length=9)[0].ids) == 9
    assert len(generate(model, enc, "e", stop=(), length=9, no_repeat_ngram=2**31 - 1)[0].ids) == 9


@pytest.mark.parametrize("function", ["generate", "beam_search", "score"])
def test_a_ctrl_c_that_tensorflow_has_dropped_ends_the_work(lively, enc, function):
    run = {
        "generate": lambda: generate(lively, enc, "The", length=5),
        "beam_search": lambda: beam_search(lively, enc, "The", length=5),
        "score": lambda: score(lively, enc, "The quick"),
    }[function]
    done = []
    with pytest.raises(KeyboardInterrupt), interrupt.reliable_ctrl_c():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        run()
        done.append(1)
    assert not done
