"""Many prompts in, their samples out; a run that was killed resumes and writes the same file."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gpt2_tf
from gpt2_tf.cli import batch
from gpt2_tf.files.terminal import escape_generated_text
from gpt2_tf.generation.generate import Completion


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ["a"]),
        ("a\nb\n", ["a", "b"]),
        ("a\r\nb \r\n", ["a", "b "]),
        ("a\u2028b\x0bc\n d", ["a\u2028b\x0bc", " d"]),
    ],
)
def test_each_line_is_a_prompt(text, expected):
    assert batch.parse_prompts(text, "p.txt") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p.txt is empty; expected one prompt per line"),
        ("\n", "p.txt is empty"),
        ("\n\n", "p.txt: line 1 is empty"),
        ("a\n\nb\n", "p.txt: line 2 is empty; expected one prompt per line, so remove it"),
        ("a\nb\n\r\n", "p.txt: line 3 is empty"),
    ],
)
def test_an_empty_line_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        batch.parse_prompts(text, "p.txt")


def test_in_order_waits_for_earlier_samples():
    taken = []
    numbered = ((number, taken.append(number) or str(number)) for number in (2, 0, 3, 1))
    for number, (found, value) in enumerate(batch.in_order(numbered)):
        assert (found, value) == (number, str(number))
        assert taken == [[2, 0], [2, 0, 3, 1], [2, 0, 3, 1], [2, 0, 3, 1]][number]


def test_format_of_a_sample():
    fields = Completion("naïve ", "two\nlines", [1, 2], "stop", [-0.5, -1.0])._asdict()
    assert batch.format_sample(fields, 0, 1) == "naïve two\nlines"
    assert batch.format_sample(fields, 6, 9) == "======== SAMPLE 7 ========\nnaïve two\nlines"
    whole = batch.format_sample(fields, 6, 9, as_json=True)
    assert whole.isascii() and "\n" not in whole
    assert json.loads(whole) == fields


SETTINGS = {"num_samples": 1, "temperature": 0.7, "seed": 1}


def test_a_journal_of_another_model_or_other_prompts_is_refused(tiny_folder, tmp_path):
    with batch.open_journal(tmp_path / "out", ["a", "b"], tiny_folder, SETTINGS) as journal:
        journal.add(0, {"text": "c"})
    with batch.open_journal(tmp_path / "out", ["a", "b"], tiny_folder, SETTINGS | {"seed": None}) as journal:
        assert journal.seed == 1
    with pytest.raises(ValueError, match=r"begun with prompts 2 \(SHA-256 \w+\), not 2 \(SHA-256 \w+\)"):
        batch.open_journal(tmp_path / "out", ["a", "c"], tiny_folder, SETTINGS)
    bundled = Path(gpt2_tf.__file__).parent / "bundled" / "shakespeare"
    with pytest.raises(ValueError, match=r"begun with model SHA-256 \w+, not SHA-256 \w+; give the same"):
        batch.open_journal(tmp_path / "out", ["a", "b"], bundled, SETTINGS)


def test_stdout_and_the_journal_get_the_same_samples(lively, enc, tiny_folder, tmp_path, capsys, monkeypatch):
    settings = {"num_samples": 2, "length": 5, "seed": 1, "batch_size": 2}
    batch.write_samples(lively, enc, ["the then", "e"], settings)
    text = capsys.readouterr().out
    assert text.startswith("======== SAMPLE 1 ========\nthe then")
    run = {name: settings[name] for name in ("num_samples", "length", "seed")}
    with batch.open_journal(tmp_path / "out", ["the then", "e"], tiny_folder, run) as journal:
        batch.write_samples(
            lively, enc, ["the then", "e"], {**settings, "seed": 7}, journal=journal
        )  # the journal's seed is used
    assert (tmp_path / "out").read_bytes().decode() == text
    assert capsys.readouterr() == ("", "")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    batch.write_samples(lively, enc, ["the then", "e"], settings, show_progress=True)
    assert sys.stdout.getvalue() == escape_generated_text(text)
    assert "4/4" in sys.stderr.getvalue()


@pytest.mark.slow
def test_a_killed_run_resumes_and_writes_the_same_file(tmp_path):
    """Each kill comes after at least one new sample. At the end, the file has the bytes of a run without kills."""
    lines = [f"{name}:{' what' * (n % 7)}" for n, name in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ")]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    command = [sys.executable, "-m", "gpt2_tf", "generate", "--model", "shakespeare", "--file", "prompts.txt", "--json"]
    command += ["--batch-size", "1", "--length", "40", "--nsamples", "3"]  # seconds, so that a kill is never too late
    subprocess.run([*command, "--out", "whole", "--seed", "5"], cwd=tmp_path, check=True, capture_output=True)
    part, counts = tmp_path / "out.part", []
    for how in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(
            [*command, "--out", "out", "--seed", "5"], cwd=tmp_path, stderr=subprocess.PIPE
        ) as process:
            try:
                before = counts[-1] if counts else 0
                deadline = time.monotonic() + 300
                while not part.exists() or part.read_bytes().count(b"\n") - 1 <= before:
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.005)
                process.send_signal(how)
                err = process.communicate(timeout=120)[1].decode()
            finally:
                process.kill()
        assert process.returncode == (130 if how == signal.SIGINT else -how), (counts, err)
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists()
        numbers = [json.loads(line)["number"] for line in part.read_bytes().split(b"\n")[1:-1]]
        assert len(numbers) == len(set(numbers)) > before
        counts.append(len(numbers))
    kept = part.read_bytes()
    kept = kept[: kept.rindex(b"\n") + 1]
    with open(part, "ab") as file:
        file.write(b'{"number": 3, "prom')  # as a kill may cut it
    other = subprocess.run([*command, "--out", "out", "--seed", "6"], cwd=tmp_path, capture_output=True)
    assert (other.returncode, other.stdout) == (1, b"")
    assert b"out was begun with seed 5, not 6; " in other.stderr
    assert part.read_bytes().startswith(kept)
    ran = subprocess.run([*command, "--out", "out"], cwd=tmp_path, check=True, capture_output=True)
    assert f"{counts[-1]}/78".encode() in ran.stderr and b"78/78" in ran.stderr
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["out", "prompts.txt", "whole"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["generate", "evaluate"])
def test_processes_share_a_file(tmp_path, task):
    """Three shards run at once; one is killed and started again. The file has the bytes of a single process."""
    lines = [f"{name}:{' what say you' * (n % 7)}" for n, name in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ")]
    (tmp_path / "file").write_text("\n".join(lines))
    command = {
        "generate": ["generate", "--file", "file", "--json", "--length", "30", "--nsamples", "5", "--seed", "5"],
        "evaluate": ["evaluate", "perplexity", "file", "--window", "64", "--stride", "2"],
    }[task]
    command = [sys.executable, "-m", "gpt2_tf", *command, "--model", "shakespeare", "--batch-size", "4"]
    whole = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout

    def begin(number):
        return subprocess.Popen(
            [*command, "--out", "out", "--shard", f"{number}/3"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )

    processes = [begin(number) for number in range(3)]
    try:
        part = tmp_path / "out.1-of-3.part"
        deadline = time.monotonic() + 300
        while not part.exists() or part.read_bytes().count(b"\n") < 5:
            assert processes[1].poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        processes[1].kill()
        processes[1].communicate()
        assert not (tmp_path / "out").exists()
        kept = part.read_bytes().count(b"\n") - 1
        processes[1] = begin(1)
        shown = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], shown
    assert 0 < kept < int(re.search(rf" {kept}/(\d+) ", shown[1])[1])  # else the kill came too late
    assert (tmp_path / "out").read_bytes() == whole
    assert sorted(os.listdir(tmp_path)) == ["file", "out"]
