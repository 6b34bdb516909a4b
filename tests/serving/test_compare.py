"""`--check`: an export's answers are compared with the model's."""

import pytest
from oracles.random_model import random_model

from gpt2_tf.serving.compare import compare_with_model
from gpt2_tf.serving.saved_model import export


@pytest.mark.slow
def test_the_same_model_agrees_and_another_model_is_found(exported, lively, enc):
    assert compare_with_model(exported, lively, enc, 20) == 9  # 3 prompts: a score, and completions at 2 temperatures
    with pytest.raises(ValueError, match=r"the export answers .* but the model"):
        compare_with_model(exported, random_model(lively.hparams, seed=9), enc, 20)


@pytest.mark.slow
def test_a_folder_that_is_no_export_is_refused(lively, enc, tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded and run: "):
        compare_with_model(tmp_path, lively, enc, 20)


@pytest.mark.slow
def test_check_prints_its_verdict(lively, enc, tmp_path, capsys):
    assert export(lively, enc, tmp_path, dtype="bfloat16", check=True).name == "1"
    assert "gpt2-tf: checked: 3 requests answered as the model does" in capsys.readouterr().err
