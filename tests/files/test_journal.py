"""The journal of a run: what a kill leaves of it, byte by byte, and which run it belongs to."""

import json
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from gpt2_tf.files.journal import Journal
from gpt2_tf.files.shard import Shard

RUN = {"prompts": "3", "temperature": 0.7, "stop": ("\n",)}
SAMPLES = [{"text": "naïve"}, {"text": "two\nlines"}, {"text": "色"}]


def lines(header, *results) -> bytes:
    """The lines of a journal with these contents, which may be wrong, and right checksums."""
    start, written = 0, b""
    for fields in (header, *results):
        content = json.dumps(fields).encode()[:-1]
        crc = zlib.crc32(content, start)
        start = start or crc
        written += content + b', "crc32": "%08x"}\n' % crc
    return written


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.txt"


@pytest.fixture
def part(tmp_path):
    return tmp_path / "out.txt.part"


def test_results_in_any_order_become_the_file_in_order(out, part):
    with Journal(out, RUN, 1) as journal:
        for number in (2, 0, 1):
            journal.add(number, SAMPLES[number])
            assert not out.exists()
        journal.finish(journal.results[number]["text"] for number in range(3))
    assert out.read_bytes() == "naïve\ntwo\nlines\n色\n".encode()
    assert [path.name for path in out.parent.iterdir()] == ["out.txt"]


def test_a_result_is_in_the_journal_at_once(out, part):
    with Journal(out, RUN, 1) as journal:
        journal.add(1, SAMPLES[1])
        first, line = part.read_text().splitlines()
    header, result = json.loads(first), json.loads(line)
    assert header.pop("crc32") and result.pop("crc32")
    assert header == {"run": {"prompts": "3", "temperature": 0.7, "stop": ["\n"], "seed": 1}}
    assert result == {"number": 1, **SAMPLES[1]}


def test_a_journal_cut_at_any_byte_is_resumed(out, part):
    with Journal(out, RUN, 1) as journal:
        for number, fields in enumerate(SAMPLES):
            journal.add(number, fields)
    whole = part.read_bytes()
    assert whole.count(b"\n") == 4
    for size in range(len(whole) + 1):
        part.write_bytes(whole[:size])
        with Journal(out, RUN, 1) as journal:
            n = max(0, whole[:size].count(b"\n") - 1)
            assert journal.results == dict(enumerate(SAMPLES[:n]))
            for number in range(n, 3):
                journal.add(number, SAMPLES[number])
        assert part.read_bytes() == whole


def test_the_seed_that_was_drawn_is_used_again(out):
    with Journal(out, RUN) as journal:
        seed = journal.seed
        journal.add(0, SAMPLES[0])
    with Journal(out, RUN) as journal:
        assert journal.seed == seed
    with Journal(out, RUN, seed) as journal:
        assert journal.seed == seed
    with pytest.raises(ValueError, match=f"out.txt was begun with seed {seed}, not {seed + 1}; give the same"):
        Journal(out, RUN, seed + 1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"temperature": 0.8}, "begun with temperature 0.7, not 0.8"),
        ({"prompts": "4"}, "begun with prompts 3, not 4"),
        ({"stop": ()}, r"begun with stop \['\\n'\], not \[\]"),
        ({"top_k": 3}, "begun with top_k None, not 3"),
    ],
)
def test_a_run_with_other_settings_is_refused(out, part, other, message):
    with Journal(out, RUN, 1) as journal:
        journal.add(1, SAMPLES[1])
    before = part.read_bytes()
    with pytest.raises(ValueError, match=message):
        Journal(out, {**RUN, **other}, 1)
    assert part.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"Once upon a time\nthere was a text", 1),
        (b"[1]\n", 1),
        (b'{"number": 1}\n', 1),
        (lines({"run": {}}, {"number": 0}) + b'{"num\n', 3),
        (lines({"run": {}}) + b"\xff\n", 2),
        (lines({"run": {}}) + b'{"number": 0}\n', 2),  # no checksum
        (lines({"run": {}}) + lines({"number": 0}), 2),  # a checksum that does not start from the header's
        (lines({"run": 5}, {"number": 0}), 1),
        (lines({"run": {}}, {"number": [0]}), 2),
        (lines({"run": {}}, {"number": True}), 2),
        (lines({"run": {}}, {"number": -1}), 2),
        (lines({"run": {}}, {"text": "a"}), 2),
    ],
)
def test_a_file_that_is_not_a_journal_is_left_alone(out, part, content, number):
    part.write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged in line {number}, or not a journal of this program; choose"):
        Journal(out, RUN, 1)
    assert part.read_bytes() == content


def test_an_existing_file_is_not_overwritten(out, part):
    out.write_text("mine")
    with pytest.raises(FileExistsError, match=r"out.txt exists already; choose another --out, or remove it"):
        Journal(out, RUN, 1)
    assert out.read_text() == "mine" and not part.exists()


def test_a_kill_after_the_file_and_before_the_journals_removal(out, part):
    with Journal(out, RUN, 1) as journal:
        journal.add(0, SAMPLES[0])
        content = part.read_bytes()
        journal.finish(["naïve"])
    part.write_bytes(content)
    with Journal(out, RUN, 1) as journal:
        journal.finish(["naïve"])
    assert out.read_text() == "naïve\n" and not part.exists()


def test_two_processes_do_not_write_the_same_journal(out):
    script = "import sys; from gpt2_tf.files.journal import Journal; Journal(sys.argv[1], {}, 1)"
    with Journal(out, {}, 1):
        ran = subprocess.run([sys.executable, "-c", script, out], capture_output=True, text=True, timeout=60)
    assert "BlockingIOError" in ran.stderr
    assert (
        f"{out} is being written by another process; wait until that process ends, or choose another --out"
        in ran.stderr
    )
    assert subprocess.run([sys.executable, "-c", script, out], timeout=60).returncode == 0


def test_a_journal_without_results_takes_other_settings(out, part):
    """A wrong setting is often found only after the journal was begun."""
    with Journal(out, {"top_k": 5000}, 1):
        pass
    assert part.exists()
    with Journal(out, {"top_k": 50}, 1) as journal:
        journal.add(0, {"text": "a"})
    with pytest.raises(ValueError, match=r"begun with top_k 50, not 5000; .*remove .*out\.txt\.part to start again"):
        Journal(out, {"top_k": 5000}, 1)


@pytest.mark.parametrize("content", [b"my notes", b'{"ruin": 1'])
def test_a_file_without_a_line_end_is_left_alone(out, part, content):
    part.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged in line 1, or not a journal"):
        Journal(out, {}, 1)
    assert part.read_bytes() == content


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_journal_is_refused_or_gives_the_same_results(out, part, seed):
    """Bits that change, bytes that go or come, and lines of another run, anywhere in the file."""
    with Journal(out.with_name("other"), {**RUN, "temperature": 0.8}, 1) as journal:
        journal.add(0, {"text": "other"})
        foreign = journal.path.read_bytes().splitlines(keepends=True)[1]
    with Journal(out, RUN, 1) as journal:
        for number, fields in enumerate(SAMPLES):
            journal.add(number, fields)
    whole = part.read_bytes()
    rng = random.Random(seed)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        at = rng.randrange(len(content))
        damage = rng.randrange(4)
        if damage == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif damage == 1:
            del content[at : at + rng.randrange(1, 20)]
        elif damage == 2:
            content[at:at] = rng.randbytes(rng.randrange(1, 20))
        else:
            content[len(content) :] = foreign
        part.write_bytes(content)
        try:
            with Journal(out, RUN, 1) as journal:
                assert journal.results.items() <= dict(enumerate(SAMPLES)).items()
        except ValueError as error:
            assert str(error).startswith(f"{part} is damaged in line ")
            assert part.read_bytes() == content
            refused += 1
    assert refused > 200


def test_a_result_with_a_number_out_of_range_is_refused(out):
    with Journal(out, RUN, 1) as journal:
        journal.add(0, SAMPLES[0])
        journal.add(7, SAMPLES[1])
        with pytest.raises(ValueError, match=r"out.txt: its journal has result 7, but the run has only 2 results"):
            journal.collect(2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(out, part):
    os.mkfifo(part)
    with pytest.raises(ValueError, match=r"out.txt.part is a pipe or a device, but must be a regular file"):
        Journal(out, RUN, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_names_the_file(out, part):
    with Journal(out, RUN, 1) as journal, open("/dev/full", "ab", buffering=0) as full:
        journal.file, file = full, journal.file
        with pytest.raises(OSError, match="No space left") as error:
            journal.add(0, SAMPLES[0])
        journal.file = file
    assert error.value.filename == str(out)


# Shards


@pytest.fixture
def shards(out):
    """Three journals of one run, each with its result, as if all had ended at the same time."""
    journals = [Journal(out, RUN, 1, Shard(number, 3)) for number in range(3)]
    for number, journal in enumerate(journals):
        journal.add(number, SAMPLES[number])
    yield journals
    for journal in journals:
        journal.close()


def finish(journal, samples):
    journal.finish(samples[number]["text"] for number in range(3))


def names(out):
    return sorted(path.name for path in out.parent.iterdir())


def test_the_last_shard_writes_the_file(out):
    for number in (2, 0, 1):
        with Journal(out, RUN, 1, Shard(number, 3)) as journal:
            assert journal.path.name == f"out.txt.{number}-of-3.part"
            assert journal.collect(3) is None
            journal.add(number, SAMPLES[number])
            samples = journal.collect(3)
            assert (samples is None) == (number != 1) and not out.exists()
            assert journal.results == {number: SAMPLES[number]}
            if samples:
                finish(journal, samples)
    assert out.read_bytes() == "naïve\ntwo\nlines\n色\n".encode()
    assert names(out) == ["out.txt"]


def test_shards_that_end_at_once_write_the_same(out, shards):
    gathered = [journal.collect(3) for journal in shards]
    assert gathered == [dict(enumerate(SAMPLES))] * 3
    for journal, samples in zip(shards, gathered, strict=True):
        finish(journal, samples)
        assert out.read_bytes() == "naïve\ntwo\nlines\n色\n".encode()
    assert names(out) == ["out.txt"]


def test_a_shard_that_ends_after_the_file_is_written(out, shards):
    finish(shards[1], shards[1].collect(3))
    assert shards[0].collect(3) is None
    for journal in shards:
        journal.close()
    assert names(out) == ["out.txt"]


def test_a_kill_while_finishing_is_repaired_by_the_next_run(out, shards):
    """Killed before the file was written, or while the journals were being removed."""
    for journal in shards:
        journal.close()
    with Journal(out, RUN, 1, Shard(2, 3)) as journal:
        finish(journal, journal.collect(3))
    (out.parent / "out.txt.2-of-3.part").write_bytes(b"")
    with Journal(out, RUN, 1, Shard(2, 3)) as journal:
        assert journal.collect(3) is None
    with pytest.raises(FileExistsError, match=r"out\.txt exists already"):
        Journal(out, RUN, 1, Shard(0, 3))


def test_the_complete_lines_of_another_shard_count(out, shards):
    part = shards[0].path
    whole = part.read_bytes()
    for size in range(len(whole)):
        part.write_bytes(whole[:size])
        assert shards[1].collect(3) is None
    part.write_bytes(whole)
    assert len(shards[1].collect(3)) == 3


def test_shards_with_different_settings_are_refused(out, shards):
    shards[2].close()
    for run, seed, name in (({**RUN, "temperature": 0.8}, 1, "temperature 0.7, not 0.8"), (RUN, 2, "seed 1, not 2")):
        shards[2].path.unlink()
        with pytest.raises(ValueError, match=f"out.txt was begun with {name}; .*remove .*out.txt.0-of-3.part"):
            Journal(out, run, seed, Shard(2, 3))
    with Journal(out, RUN, 1, Shard(2, 3)):
        pass


def test_a_shard_with_other_settings_and_no_results_is_ignored(out):
    with Journal(out, {"top_k": 5000}, 1, Shard(0, 2)):
        pass
    with Journal(out, {"top_k": 50}, 1, Shard(1, 2)) as journal:
        journal.add(0, SAMPLES[0])  # all there is to do
        assert journal.collect(1) == {0: SAMPLES[0]}
        journal.finish(["naïve"])
    assert names(out) == ["out.txt"]
