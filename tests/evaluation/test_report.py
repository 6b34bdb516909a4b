"""The report of `gpt2-tf evaluate`, and the files of examples that it reads."""

import hashlib
import re

import pytest

from gpt2_tf.evaluation.examples import read_examples
from gpt2_tf.evaluation.lambada import lambada
from gpt2_tf.evaluation.report import report

QUESTION = '{"context": "a", "choices": ["b", "c"], "answer": 0}'


def test_a_report_holds_the_results_and_how_to_repeat_them(model, enc):
    text = '{"text": "the then them"}\n{"text": "e they then the"}\n'
    found = report(model, enc, "lambada", text, "f.jsonl", {"batch_size": 2})
    assert found["results"] == lambada(model, enc, ["the then them", "e they then the"], batch_size=2)
    digest = f"SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    assert found["file"] == {"name": "f.jsonl", "bytes": len(text), "digest": digest}
    assert found["model"]["n_vocab"] == 260 and found["settings"] == {"batch_size": 2}
    assert {"python", "tensorflow", "keras", "numpy"} <= found["versions"].keys()


def test_a_report_of_perplexity_holds_the_window_that_was_used(model, enc):
    found = report(model, enc, "perplexity", "the then them", "f", {"window": None, "stride": None, "batch_size": 8})
    assert found["settings"] == {"window": 32, "stride": 16, "batch_size": 8}


def test_blank_lines_of_a_file_of_examples_are_skipped():
    """As in the files that `train` reads."""
    assert read_examples('\n{"text": "a b"}\n \r\n{"text": "c d"}\n\n', "f", "lambada") == ["a b", "c d"]


@pytest.mark.parametrize(
    ("task", "text", "error"),
    [
        ("lambada", "", "f is empty, but must have one JSON object per line"),
        ("lambada", '{"text": "a b"}\nno\n', 'f: line 2 is not JSON (.*); expected {"text": "..."}'),
        ("lambada", '{"txt": "a b"}', """f: line 1 is '{"txt": "a b"}', but must be {"text": "..."}"""),
        ("lambada", "[1]", "f: line 1 is .*, but must be"),
        ("lambada", '{"text": 3}', "f: line 1 is .*, but must be"),
        ("choice", QUESTION + '\n{"context": "a", "choices": ["b", "c"]}', 'f: line 2 .* but must be {"context"'),
        ("choice", QUESTION.replace("0", "2"), "f: line 1 .* but must be"),
        ("choice", QUESTION.replace("0", '"0"'), "f: line 1 .* but must be"),
        ("choice", QUESTION.replace('"c"', '""'), "f: line 1 .* but must be"),
        ("choice", QUESTION.replace(', "c"', ""), "f: line 1 .* but must be"),
        ("choice", QUESTION.replace("}", ', "ending": 1}'), "f: line 1 .* but must be"),
    ],
)
def test_an_invalid_line_is_refused_by_its_number(task, text, error):
    with pytest.raises(ValueError, match=re.escape(error).replace(r"\.\*", ".*")):
        read_examples(text, "f", task)
