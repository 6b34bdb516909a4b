"""`SamplingParams`: ranges, types, error messages, and the texts that flags and help are derived from."""

import dataclasses
import inspect
import random

import numpy as np
import pytest
import tensorflow as tf

from gpt2_tf import SamplingParams, generate, stream
from gpt2_tf.generation.generate import completions
from gpt2_tf.generation.params import sampling_settings


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"min_p": -0.1}, r"^min_p is -0.1, but must be a number from 0 to 1 \(0 keeps all\)$"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"temperature": 1e39}, r"^temperature is 1e\+39, but must be a number from 0 to 3.4e\+38 \(0 always takes"),
        ({"repetition_penalty": 0}, r"repetition_penalty is 0, but must be a number from 1e-06 to 1e\+06 \(1 is off\)"),
        ({"repetition_penalty": 1e-45}, "repetition_penalty is 1e-45"),
        ({"repetition_penalty": 1e7}, "repetition_penalty is 10000000.0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
        ({"no_repeat_ngram": -1}, r"no_repeat_ngram is -1, but must be a whole number of at least 0 \(0 is off\)"),
        ({"no_repeat_ngram": 2.5}, "no_repeat_ngram is 2.5"),
        ({"min_length": -1}, "min_length is -1, but must be a whole number of at least 0"),
        ({"top_p": 0}, r"top_p is 0, but must be a number above 0 and at most 1 \(1 keeps all\)"),
        ({"top_k": 2.5}, r"top_k is 2.5, but must be a whole number of at least 0 \(0 keeps all\)"),
        ({"top_k": 5}, r"top_k is 5, but must be 0 \(off\) to 4, the size of the vocabulary"),
        ({"length": 0}, "length is 0, but must be a whole number of at least 1$"),
        ({"seed": 2**63}, "seed is 9223372036854775808, but must be a whole number from -2.63 to 2.63 - 1"),
        ({"logit_bias": dict.fromkeys(range(4), -np.inf)}, "logit_bias forbids every token"),
        ({"logit_bias": {4: 1.0}}, "logit_bias has 1.0 for 4, but must have ids from 0 to 3"),
        ({"logit_bias": {0: float("nan")}}, "logit_bias has nan for 0"),
        ({"logit_bias": {0: float("inf")}}, "logit_bias has inf for 0"),
        ({"logit_bias": {0: 1e39}}, r"logit_bias has 1e\+39 for 0, but must have .* numbers up to 3.4e\+38"),
    ],
)
def test_an_error_gives_the_value_and_the_range(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**settings).check_vocabulary_size(4)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": "1"}, "temperature is '1', of type str, but must be a number"),
        ({"top_p": None}, "top_p is None, of type NoneType"),
        ({"min_p": [0.1]}, r"min_p is \[0.1\], of type list"),
        ({"repetition_penalty": 1j}, "repetition_penalty is 1j, of type complex"),
        ({"logit_bias": {3: "1"}}, "logit_bias of 3 is '1', of type str"),
        ({"logit_bias": [1.0]}, r"logit_bias is \[1.0\], but must map token ids to numbers"),
        ({"stop": 5.5}, "stop is 5.5, but must be a string, a token id, or a collection of them"),
        ({"filters": 5}, "filters is 5, but must be functions from logits to logits"),
        ({"filters": ["top_k"]}, r"filters is \['top_k'\], but must be functions"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_type(settings, message):
    with pytest.raises(TypeError, match=message):
        SamplingParams(**settings).check_vocabulary_size(4)


def test_scalars_of_numpy_and_tensorflow_are_numbers():
    for scalar in (np.float32, np.float64, np.array, tf.constant):
        assert SamplingParams(temperature=scalar(0.5), top_p=scalar(0.5)).top_p == 0.5


def test_numbers_become_plain_python_numbers():
    """So that equal settings are equal, and a journal can hold them."""
    params = SamplingParams(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.int32(7))
    assert params == SamplingParams(temperature=0.5, top_k=3, seed=7)
    assert [type(value) for value in (params.temperature, params.top_k, params.seed)] == [float, int, int]


def test_one_stop_and_one_filter_may_stand_without_a_list():
    assert SamplingParams(stop="x").stop == ("x",) and SamplingParams(stop=5).stop == (5,)
    assert SamplingParams(stop=None).stop == SamplingParams(stop=()).stop == ()
    assert SamplingParams(filters=abs).filters == SamplingParams(filters=[abs]).filters == (abs,)


def test_a_seed_is_drawn_only_where_there_is_none():
    assert SamplingParams(seed=0).with_seed().seed == 0
    random.seed(5)
    first = SamplingParams().with_seed().seed
    random.seed(5)
    assert SamplingParams().with_seed().seed == first != SamplingParams().with_seed().seed


@pytest.mark.parametrize("function", [generate, stream, completions])
def test_the_functions_show_every_field_with_its_default(function):
    parameters = inspect.signature(function).parameters
    for field in dataclasses.fields(SamplingParams):
        assert parameters[field.name].default == field.default
        assert parameters[field.name].kind == inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name, setting", sampling_settings().items())
def test_every_setting_has_a_help_text_of_one_line_and_a_default_in_its_range(name, setting):
    assert setting.help[0].isupper() and not setting.help.endswith(".")
    assert "\n" not in setting.help_text and "(default: " in setting.help_text
    assert setting.checked(name, setting.default) == setting.default


@pytest.mark.parametrize(
    "name, least, most", [(name, s.least, s.most) for name, s in sampling_settings().items() if s.kind in (int, float)]
)
def test_the_ends_of_each_range_are_allowed_and_nothing_beyond(name, least, most):
    setting = sampling_settings()[name]
    step = 1 if setting.kind is int else 1e-9
    assert getattr(SamplingParams(**{name: most}), name) == most
    with pytest.raises(ValueError, match=f"^{name} is "):
        SamplingParams(**{name: most + step * max(1, most)})
    with pytest.raises(ValueError, match=f"^{name} is "):
        SamplingParams(**{name: least if setting.above else least - step})
    if not setting.above:
        assert getattr(SamplingParams(**{name: least}), name) == least


def test_an_unknown_setting_is_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        SamplingParams(temprature=1)
