"""The figures show the arrays that they are given."""

import sys

import numpy as np
import pytest

from gpt2_tf.files.png import write_png
from gpt2_tf.inside import attention_figure, figures, lens_figure, logit_lens, surprise, surprise_figure
from gpt2_tf.inside.figures import token_labels

TEXT = 'the $x$ "day"\n漢 then'


@pytest.fixture(autouse=True)
def matplotlib():
    return pytest.importorskip("matplotlib", reason="matplotlib is in the extra [plot]")


def test_labels_are_one_line_each(enc):
    assert "".join(token_labels(enc, enc.encode('the "day"\n\x1b'))) == 'the "day"\\n\\u001b'


def test_the_attention_figure(lively, enc, tmp_path):
    ids = enc.encode(TEXT)
    weights = lively.inspect([ids], "attentions").attentions[1, 0, 2]
    figure = attention_figure(enc, ids, weights)
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), weights)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == token_labels(enc, ids)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("token that is read", "token that reads")
    write_png(figure, tmp_path / "attention.png")  # a `$` is no formula, and a missing character no warning
    assert (tmp_path / "attention.png").read_bytes()[1:4] == b"PNG"


def test_the_lens_figure(lively, enc, tmp_path):
    ids = enc.encode(TEXT)
    lens = logit_lens(lively, ids)
    figure = lens_figure(enc, ids, lens)
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), lens.probabilities[..., 0])
    shown = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    expected = {
        (place, layer): token_labels(enc, [lens.ids[layer, place, 0]])[0]
        for layer in range(3)
        for place in range(len(ids))
    }
    assert shown == expected
    assert axes.get_ylim()[0] < axes.get_ylim()[1]  # the last layer is on top
    write_png(figure, tmp_path / "lens.png")


def test_the_surprise_figure(lively, enc, tmp_path):
    found = surprise(lively, enc, TEXT)
    found = found._replace(nats=np.linspace(0, 12, len(found.ids), dtype=np.float32))
    figure = surprise_figure(enc, found)
    axes = figure.axes[0]
    assert "".join(text.get_text() for text in axes.texts) == "".join(token_labels(enc, found.ids))
    colors = [bar.get_facecolor() for bar in axes.patches]
    assert len(colors) == len(found.ids)
    greens = [color[1] for color in colors]
    assert greens == sorted(greens, reverse=True) and greens[0] > 0.9 and greens[-1] < 0.1  # from white to dark red
    lines = [text.get_position()[1] for text in axes.texts]
    newline = token_labels(enc, found.ids).index("\\n")
    assert lines[newline] == 0.5 and lines[newline + 1] == 1.5
    write_png(figure, tmp_path / "surprise.png")


def test_a_long_line_is_broken_between_tokens(lively, enc):
    ids = np.array(enc.encode("then") * 60)
    figure = surprise_figure(enc, surprise(lively, enc, "a")._replace(ids=ids, nats=np.zeros(len(ids))))
    ends = [text.get_position()[0] + len(text.get_text()) for text in figure.axes[0].texts]
    assert max(ends) <= 80 and len({text.get_position()[1] for text in figure.axes[0].texts}) == 3


def test_a_text_that_is_too_long_for_a_figure_is_an_error(enc):
    with pytest.raises(ValueError, match="the text has 129 tokens, but a figure has room for 128; shorten the text"):
        attention_figure(enc, [1] * 129, np.zeros([129, 129]))


def test_without_matplotlib_the_error_says_how_to_install_it(lively, enc, monkeypatch):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"figures need matplotlib: pip install 'gpt2-tf\[plot\]'"):
        attention_figure(enc, [1], np.eye(1))
    with pytest.raises(ImportError, match="figures need matplotlib"):
        surprise_figure(enc, surprise(lively, enc, "a"))
