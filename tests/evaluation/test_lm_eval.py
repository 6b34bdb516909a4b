"""The evaluation harness itself, on task files of the test's own: our adapter's numbers are its `hf` model's.

1e-4: float32 in another order, on sums of about 30 numbers of about 5.
"""

import importlib
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from gpt2_tf import generate, load

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and then",
    "the dog jumps over the fox.\n\nThe dog",
    "if x == 12: return 'naïve café'",
    "dog 色は匂へど " * 9,  # over the window of 32
]
TASKS = {
    "likelihood": """
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "greedy": """
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{target}}"
target_delimiter: ""
metric_list: [{metric: acc}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "choices": """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_target: 0
doc_to_choice: ["dog", "fox", "didn't sleep"]
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "writes": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "x"
generation_kwargs: {until: ["q", "\\n\\n"], max_gen_toks: 9, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def harness():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it imports warns, and that is not ours to mend
        lm_eval = pytest.importorskip("lm_eval", reason="the harness is in the extra [lm-eval]")
        pytest.importorskip("accelerate", reason="the harness's hf model needs `pip install 'lm-eval[hf]'`")
        pytest.importorskip("transformers", reason="transformers is in the extra [peers]")
        for name in ("lm_eval.tasks", "gpt2_tf.lm_eval"):
            importlib.import_module(name)
    return lm_eval


def greedy_examples(model, enc) -> list[dict[str, str]]:
    """Return contexts, each with its most likely continuation, and with that continuation but another last token."""
    examples = []
    for context in (f"The {a}{b}" for a in "abcdefgh" for b in ("", " dog", "x", "qu")):
        (completion,) = generate(model, enc, context, length=2, temperature=0, stop=())
        for ids in (completion.ids, [completion.ids[0], 5]):
            target = enc.decode(ids)
            if enc.encode(context + target) == enc.encode(context) + ids and context.strip() == context:
                examples.append({"context": context, "target": target})
    return examples


@pytest.fixture(scope="module")
def tasks(tiny_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    lines = "".join(json.dumps(example) + "\n" for example in greedy_examples(*load(tiny_folder)))
    (folder / "greedy.jsonl").write_text(lines, "utf-8")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8")
    for name, task in TASKS.items():
        file = "greedy" if name == "greedy" else "texts"
        data = (
            f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/{file}.jsonl}}}}\ntest_split: test\n"
        )
        (folder / f"{name}.yaml").write_text(f"task: ours_{name}\n{data}{task}", "utf-8")
    return folder


@pytest.fixture(scope="module")
def run(harness, tasks, tiny_folder, tmp_path_factory):
    """Runs the harness on all tasks with one of the two models, whose weights are the same."""
    hf_folder = tmp_path_factory.mktemp("hf")
    model, enc = load(tiny_folder)
    model.save_pretrained(hf_folder, enc)

    def run(model: str, batch_size: int = 3) -> dict:
        folder = tiny_folder if model == "gpt2-tf" else hf_folder
        device = {} if model == "gpt2-tf" else {"device": "cpu"}
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore")
            patch.setenv("HF_DATASETS_OFFLINE", "1")
            patch.setenv("HF_HUB_OFFLINE", "1")
            patch.setenv("HF_DATASETS_CACHE", str(hf_folder / "cache"))
            return harness.simple_evaluate(
                model=model,
                model_args={"pretrained": str(folder)},
                tasks=[f"ours_{name}" for name in TASKS],
                task_manager=harness.tasks.TaskManager(include_path=str(tasks), include_defaults=False),
                batch_size=batch_size,
                log_samples=True,
                bootstrap_iters=0,
                **device,
            )

    return run


@pytest.mark.slow  # for the imports of PyTorch and the harness
def test_the_harness_finds_what_it_finds_with_transformers(run):
    ours, theirs = run("gpt2-tf"), run("hf")
    assert ours["results"].keys() == theirs["results"].keys() == {f"ours_{name}" for name in TASKS}
    for task, results in theirs["results"].items():
        numbers = {name: value for name, value in results.items() if isinstance(value, float)}
        assert numbers
        for name, value in numbers.items():
            assert ours["results"][task][name] == pytest.approx(value, rel=1e-4), (task, name)
    assert 0 < ours["results"]["ours_greedy"]["acc,none"] < 1
    texts = set()
    for task, samples in theirs["samples"].items():
        for one, other in zip(ours["samples"][task], samples, strict=True):
            assert one["doc"] == other["doc"]
            for found, expected in zip(one["resps"], other["resps"], strict=True):
                if task == "ours_writes":
                    assert found == expected
                    texts |= set(found)
                else:
                    assert np.ravel(found) == pytest.approx(np.ravel(expected), abs=1e-4), task
    assert len(texts) == len(TEXTS) and all(texts)


@pytest.mark.slow  # for the imports of PyTorch and the harness
def test_the_command_is_the_harnesss_own_with_one_model_more(harness, tasks, tiny_folder, tmp_path):
    command = [
        *("run", "--model", "gpt2-tf", "--model_args", f"pretrained={tiny_folder}"),
        *("--tasks", "ours_likelihood", "--include_path", str(tasks), "--output_path", str(tmp_path / "out")),
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "gpt2_tf.lm_eval", *command], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert "ours_likelihood" in ran.stdout and "perplexity" in ran.stdout
    (written,) = (tmp_path / "out").rglob("results*.json")
    assert json.loads(written.read_text())["results"]["ours_likelihood"]["perplexity,none"] > 1


def test_without_the_harness_its_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if "lm_eval" in name.split(".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'gpt2-tf\[lm-eval\]'"):
        import gpt2_tf.evaluation.lm_eval  # noqa: F401
