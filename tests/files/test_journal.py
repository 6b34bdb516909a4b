"""The record of a run: what a kill leaves of it, byte by byte, and whose run it is."""

import json
import subprocess
import sys

import pytest

from gpt2_tf.files.journal import Record
from gpt2_tf.files.shard import Shard

RUN = {"prompts": "3", "temperature": 0.7, "stop": ("\n",)}
SAMPLES = [{"text": "naïve"}, {"text": "two\nlines"}, {"text": "色"}]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.txt"


@pytest.fixture
def part(tmp_path):
    return tmp_path / "out.txt.part"


def test_a_record_becomes_the_file(out, part):
    with Record(out, RUN, 1) as record:
        for number in (2, 0, 1):
            record.add(number, SAMPLES[number])
            assert not out.exists()
        record.finish(record.done[number]["text"] for number in range(3))
    assert out.read_bytes() == "naïve\ntwo\nlines\n色\n".encode()
    assert [path.name for path in out.parent.iterdir()] == ["out.txt"]


def test_what_is_added_is_in_the_file_at_once(out, part):
    with Record(out, RUN, 1) as record:
        record.add(1, SAMPLES[1])
        first, line = part.read_text().splitlines()
    assert json.loads(first) == {"run": {"prompts": "3", "temperature": 0.7, "stop": ["\n"], "seed": 1}}
    assert json.loads(line) == {"number": 1, **SAMPLES[1]}


def test_a_record_cut_anywhere_is_gone_on_with(out, part):
    with Record(out, RUN, 1) as record:
        for number, fields in enumerate(SAMPLES):
            record.add(number, fields)
    whole = part.read_bytes()
    assert whole.count(b"\n") == 4
    for size in range(len(whole) + 1):
        part.write_bytes(whole[:size])
        with Record(out, RUN, 1) as record:
            n = max(0, whole[:size].count(b"\n") - 1)
            assert record.done == dict(enumerate(SAMPLES[:n]))
            for number in range(n, 3):
                record.add(number, SAMPLES[number])
        assert part.read_bytes() == whole


def test_a_drawn_seed_is_kept(out):
    with Record(out, RUN) as record:
        seed = record.seed
        record.add(0, SAMPLES[0])
    with Record(out, RUN) as record:
        assert record.seed == seed
    with Record(out, RUN, seed) as record:
        assert record.seed == seed
    with pytest.raises(ValueError, match=f"of another run, with seed {seed} instead of {seed + 1}; give what it was"):
        Record(out, RUN, seed + 1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"temperature": 0.8}, "with temperature 0.7 instead of 0.8"),
        ({"prompts": "4"}, "with prompts 3 instead of 4"),
        ({"stop": ()}, r"with stop \['\\n'\] instead of \[\]"),
        ({"top_k": 3}, "with top_k None instead of 3"),
    ],
)
def test_another_run_is_not_mixed_in(out, part, other, message):
    with Record(out, RUN, 1) as record:
        record.add(1, SAMPLES[1])
    before = part.read_bytes()
    with pytest.raises(ValueError, match=message):
        Record(out, {**RUN, **other}, 1)
    assert part.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"Once upon a time\nthere was a text", 1),
        (b"[1]\n", 1),
        (b'{"number": 1}\n', 1),
        (b'{"run": {"prompts": "3", "temperature": 0.7, "stop": ["\\n"], "seed": 1}}\n{"number": 0}\n{"num\n', 3),
        (b'{"run": {"prompts": "3", "temperature": 0.7, "stop": ["\\n"], "seed": 1}}\n\xff\n{"number": 1}\n', 2),
    ],
)
def test_a_file_that_is_no_record_stays_as_it_is(out, part, content, number):
    part.write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged in line {number}, or no record of a run; choose another --out"):
        Record(out, RUN, 1)
    assert part.read_bytes() == content


def test_a_file_that_is_there_is_not_overwritten(out, part):
    out.write_text("mine")
    with pytest.raises(FileExistsError, match=r"out.txt is there already; choose another --out, or remove it"):
        Record(out, RUN, 1)
    assert out.read_text() == "mine" and not part.exists()


def test_a_kill_between_the_file_and_the_records_end(out, part):
    with Record(out, RUN, 1) as record:
        record.add(0, SAMPLES[0])
        content = part.read_bytes()
        record.finish(["naïve"])
    part.write_bytes(content)
    with Record(out, RUN, 1) as record:
        record.finish(["naïve"])
    assert out.read_text() == "naïve\n" and not part.exists()


def test_two_processes_do_not_write_one_record(out):
    pytest.importorskip("fcntl")
    script = "import sys; from gpt2_tf.files.journal import Record; Record(sys.argv[1], {}, 1)"
    with Record(out, {}, 1):
        ran = subprocess.run([sys.executable, "-c", script, out], capture_output=True, text=True, timeout=60)
    assert "BlockingIOError" in ran.stderr
    assert f"{out}.part is being written by another process; wait for it, or choose another --out" in ran.stderr
    assert subprocess.run([sys.executable, "-c", script, out], timeout=60).returncode == 0


def test_a_record_without_samples_gives_way_to_other_settings(out, part):
    """A mistake is often found after the record has begun, and is then put right."""
    with Record(out, {"top_k": 5000}, 1):
        pass
    assert part.exists()
    with Record(out, {"top_k": 50}, 1) as record:
        record.add(0, {"text": "a"})
    with pytest.raises(ValueError, match="of another run, with top_k 50 instead of 5000"):
        Record(out, {"top_k": 5000}, 1)


@pytest.mark.parametrize("content", [b"my notes", b'{"ruin": 1'])
def test_notes_without_a_line_end_stay_too(out, part, content):
    part.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged in line 1, or no record of a run"):
        Record(out, {}, 1)
    assert part.read_bytes() == content


# Shards


@pytest.fixture
def shards(out):
    """Three records of one run, each with its sample, as if all had ended at the same time."""
    records = [Record(out, RUN, 1, Shard(number, 3)) for number in range(3)]
    for number, record in enumerate(records):
        record.add(number, SAMPLES[number])
    yield records
    for record in records:
        record.file.close()


def finish(record, samples):
    record.finish(samples[number]["text"] for number in range(3))


def names(out):
    return sorted(path.name for path in out.parent.iterdir())


def test_the_last_shard_writes_the_file(out):
    for number in (2, 0, 1):
        with Record(out, RUN, 1, Shard(number, 3)) as record:
            assert record.part.name == f"out.txt.{number}-of-3.part"
            assert record.gather(3) is None
            record.add(number, SAMPLES[number])
            samples = record.gather(3)
            assert (samples is None) == (number != 1) and not out.exists()
            assert record.done == {number: SAMPLES[number]}
            if samples:
                finish(record, samples)
    assert out.read_bytes() == "naïve\ntwo\nlines\n色\n".encode()
    assert names(out) == ["out.txt"]


def test_shards_that_end_at_once_write_the_same(out, shards):
    gathered = [record.gather(3) for record in shards]
    assert gathered == [dict(enumerate(SAMPLES))] * 3
    for record, samples in zip(shards, gathered, strict=True):
        finish(record, samples)
        assert out.read_bytes() == "naïve\ntwo\nlines\n色\n".encode()
    assert names(out) == ["out.txt"]


def test_a_shard_that_ends_after_the_file_is_there(out, shards):
    finish(shards[1], shards[1].gather(3))
    assert shards[0].gather(3) is None
    assert names(out) == ["out.txt"]


def test_a_killed_end_is_done_again(out, shards):
    """Killed before the file was there; and after it, as the records went."""
    for record in shards:
        record.file.close()
    with Record(out, RUN, 1, Shard(2, 3)) as record:
        finish(record, record.gather(3))
    (out.parent / "out.txt.2-of-3.part").write_bytes(b"")
    with Record(out, RUN, 1, Shard(2, 3)) as record:
        assert record.gather(3) is None
    with pytest.raises(FileExistsError, match=r"out\.txt is there already"):
        Record(out, RUN, 1, Shard(0, 3))


def test_a_shard_cut_anywhere_counts_as_far_as_it_goes(out, shards):
    part = shards[0].part
    whole = part.read_bytes()
    for size in range(len(whole)):
        part.write_bytes(whole[:size])
        assert shards[1].gather(3) is None
    part.write_bytes(whole)
    assert len(shards[1].gather(3)) == 3


def test_shards_are_of_one_run(out, shards):
    shards[2].file.close()
    for run, seed, name in (({**RUN, "temperature": 0.8}, 1, "temperature 0.7 instead of 0.8"), (RUN, 2, "seed 1 ins")):
        shards[2].part.unlink()
        with pytest.raises(ValueError, match=f"out.txt.0-of-3.part is of another run, with {name}"):
            Record(out, run, seed, Shard(2, 3))
    with Record(out, RUN, 1, Shard(2, 3)):
        pass


def test_a_mistaken_shard_without_samples_stands_in_nobodys_way(out):
    with Record(out, {"top_k": 5000}, 1, Shard(0, 2)):
        pass
    with Record(out, {"top_k": 50}, 1, Shard(1, 2)) as record:
        record.add(0, SAMPLES[0])  # all there is to do
        assert record.gather(1) == {0: SAMPLES[0]}
        record.finish(["naïve"])
    assert names(out) == ["out.txt"]
