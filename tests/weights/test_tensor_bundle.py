"""`gpt2_tf.bundle` against TensorFlow's own reader, and against broken files."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpt2_tf.weights import tensor_bundle
from gpt2_tf.weights.tensor_bundle import Entry, crc32c, damaged, data_sizes, prefix, proto_fields, read_index

OFFICIAL = Path(__file__).parents[3] / "shared" / "data" / "official-117M" / "model.ckpt.index"


def write(prefix, tensors):
    """Writes tensors, {name: array}, with TensorFlow's own writer; returns the index's path."""
    import tensorflow as tf

    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    return f"{prefix}.index"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small checkpoint with each plain type and some shapes: the path of its index, and the tensors."""
    numbers = np.arange(24)
    tensors = {f"type/{name}": numbers.astype(name) for name in sorted(NUMPY_TYPES)}
    tensors |= {"rank/0": np.float32(7), "rank/3": numbers.reshape(1, 4, 6), "rank/empty": np.zeros((0, 5), np.float32)}
    tensors |= {f"model/h{i}/attn/c_attn/w": np.full((1, 8, 24), i, np.float32) for i in range(40)}
    return write(tmp_path_factory.mktemp("saved") / "model.ckpt", tensors), tensors


NUMPY_TYPES = {
    name for name in tensor_bundle.DTYPES.values() if name != "string" and not name.startswith(("bfloat", "float8"))
}


def assert_as_tensorflow_reads(index):
    import tensorflow as tf

    entries = read_index(index)
    prefix = index.removesuffix(".index")
    reader = tf.train.load_checkpoint(prefix)
    assert {name: list(entry.shape) for name, entry in entries.items()} == reader.get_variable_to_shape_map()
    types = {name: tf.dtypes.as_dtype(entry.dtype) for name, entry in entries.items()}
    assert types == reader.get_variable_to_dtype_map()
    shards = {
        shard: Path(f"{prefix}.data-{shard:05d}-of-{len(data_sizes(entries)):05d}") for shard in data_sizes(entries)
    }
    assert data_sizes(entries) == {shard: path.stat().st_size for shard, path in shards.items()}
    for name, entry in entries.items():
        if entry.dtype != "string":
            data = shards[entry.shard].read_bytes()[entry.offset : entry.offset + entry.size]
            assert data == reader.get_tensor(name).tobytes()
            assert crc32c(data) == entry.crc32c
    return entries


def test_every_plain_type_and_shape_reads_as_in_tensorflow(saved):
    index, tensors = saved
    entries = assert_as_tensorflow_reads(index)
    assert list(entries) == sorted(tensors)
    assert {name: (entry.dtype, entry.shape) for name, entry in entries.items()} == {
        name: (value.dtype.name, value.shape) for name, value in tensors.items()
    }


def test_the_type_table_is_tensorflows():
    import tensorflow as tf

    assert {number: tf.dtypes.as_dtype(number).name for number in tensor_bundle.DTYPES} == tensor_bundle.DTYPES


def test_strings_bfloat16_and_other_alphabets_in_names(tmp_path):
    import tensorflow as tf

    tensors = {"слово": tf.constant(["ab", "c"]), "b": tf.constant([1.5], tf.bfloat16), "é/w": tf.zeros([2, 2])}
    entries = assert_as_tensorflow_reads(write(tmp_path / "c", tensors))
    assert entries["слово"].dtype == "string"
    assert damaged(tmp_path / "c.data-00000-of-00001", entries) == []


def test_an_index_of_several_blocks(tmp_path):
    index = write(tmp_path / "c", {f"{i:04d}{'x' * 200}": np.float32(i) for i in range(2500)})
    assert os.path.getsize(index) > 262_144  # TensorFlow's block size
    assert len(assert_as_tensorflow_reads(index)) == 2500


def test_several_shards(tmp_path):
    import tensorflow as tf

    for shard, count in enumerate((3, 50)):
        write(tmp_path / f"s{shard}", {f"v{shard}": np.arange(count)})
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(tmp_path / f"s{shard}") for shard in range(2)], destination_prefix=str(tmp_path / "c")
    )
    entries = assert_as_tensorflow_reads(str(tmp_path / "c.index"))
    assert data_sizes(entries) == {0: 24, 1: 400}


def test_what_the_v1_saver_writes(tmp_path):
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session, v1.variable_scope("model"):
        v1.get_variable("wte", [50, 8])
        v1.get_variable("h0/ln_1/g", [8])
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "model.ckpt"))
    entries = assert_as_tensorflow_reads(str(tmp_path / "model.ckpt.index"))
    assert set(entries) == {"model/wte", "model/h0/ln_1/g"}
    graph = dict(proto_fields((tmp_path / "model.ckpt.meta").read_bytes()))
    assert len(graph[2]) > 100


@pytest.mark.skipif(not OFFICIAL.exists(), reason="OpenAI's files are not in ../shared/data")
def test_openais_own_index():
    entries = read_index(OFFICIAL)
    assert len(entries) == 148
    assert data_sizes(entries) == {0: 497_759_232}
    assert sum(entry.size for entry in entries.values()) == 497_759_232
    assert entries["model/h0/attn/c_attn/w"][:2] == ("float32", (1, 768, 2304))
    assert entries["model/wte"][:3] == ("float32", (50257, 768), 0)
    assert {entry.size for entry in entries.values() if entry.size != 4 * np.prod(entry.shape)} == set()


def test_damaged_names_the_tensors_that_differ(saved, tmp_path):
    index, _ = saved
    entries = read_index(index)
    data = bytearray(Path(f"{index.removesuffix('.index')}.data-00000-of-00001").read_bytes())
    copy = tmp_path / "copy"
    copy.write_bytes(data)
    assert damaged(copy, entries) == []
    data[entries["type/int16"].offset + 3] ^= 1
    copy.write_bytes(data)
    assert damaged(copy, entries) == ["type/int16"]
    last = max(entries, key=lambda name: (entries[name].offset, entries[name].size))
    copy.write_bytes(data[:-1])
    assert set(damaged(copy, entries)) == {"type/int16", last}


def slow_crc32c(data):
    """The definition, a bit at a time."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def test_crc32c_of_published_vectors():
    # RFC 3720, B.4, and the usual check value.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0


@given(size=st.integers(0, 3000), cut=st.integers(0, 3000), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_crc32c_is_its_definition_in_one_piece_or_two(size, cut, seed):
    data = random.Random(seed).randbytes(size)
    assert crc32c(data) == crc32c(data[cut:], crc32c(data[:cut])) == slow_crc32c(data)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes"),
        (b"<html>Please log in</html>", "26 bytes"),
        (b"<html>" + b"x" * 5000, "magic"),
    ],
    ids=["empty", "short page", "long page"],
)
def test_other_files_are_refused_by_name(content, says, tmp_path):
    path = tmp_path / "model.ckpt.index"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        read_index(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_the_systems_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_index(tmp_path / "none")
    with pytest.raises(OSError):
        read_index(tmp_path)


def varint(value):
    digits = [value >> shift & 0x7F for shift in range(0, max(1, value.bit_length()), 7)]
    return bytes(digit | 0x80 for digit in digits[:-1]) + bytes(digits[-1:])


def table(pairs, compression=0, shared=0, meta=()):
    """A table of one data block, with right checksums, from whatever keys and values."""

    def block(pairs, shared=0):
        body = b"".join(varint(shared) + varint(len(key)) + varint(len(value)) + key + value for key, value in pairs)
        return body + bytes(4) + (1).to_bytes(4, "little")

    data, handles = b"", []
    for contents in (block(pairs, shared), block(meta), None):
        contents = contents or block([(b"z", handles[0])])
        handles.append(varint(len(data)) + varint(len(contents)))
        crc = crc32c(contents + bytes([compression]))
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        data += contents + bytes([compression]) + masked.to_bytes(4, "little")
    return data + (handles[1] + handles[2]).ljust(40, b"\0") + tensor_bundle.MAGIC


HEADER = (b"", b"\x08\x01")
GOOD = (b"w", b"\x08\x01\x12\x04\x12\x02\x08\x03\x28\x0c")


def test_the_hand_made_table_reads(tmp_path):
    path = tmp_path / "i"
    path.write_bytes(table([HEADER, GOOD]))
    (entry,) = read_index(path).values()
    assert entry[:5] == Entry("float32", (3,), 0, 0, 12, 0)[:5]
    path.write_bytes(table([HEADER]))
    assert read_index(path) == {}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (table([HEADER, GOOD], compression=1), "compressed"),
        (table([(b"", b"\x08\x01\x10\x01"), GOOD]), "big-endian"),
        (table([HEADER, GOOD], shared=1), "beyond"),
        (table([HEADER, GOOD], meta=[GOOD]), "metaindex"),
        (table([GOOD]), "header"),
        (table([]), "header"),
        (table([HEADER, GOOD, GOOD]), "order"),
        (table([HEADER, (b"w", b"\x08\x63")]), "99"),
        (table([HEADER, (b"w", b"\x08\x01\x18\x01")]), "shard 1 of 1"),
        (table([HEADER, (b"w", b"\x08\x01\x28" + b"\xff" * 9 + b"\x01")]), "negative"),
        (table([HEADER, (b"w", b"\x08\x01\x28" + b"\xff" * 20)]), "64 bits"),
        (table([HEADER, (b"w", b"\x08\x01\x12\x7f")]), "beyond"),
        (table([HEADER, (b"w", b"\x08\x01\x10\x01")]), "should be a message"),
        (table([HEADER, (b"w", b"\x0b")]), "don't know"),
        (table([HEADER, (b"w", b"\x08\x01\x3a\x00")]), "slices"),
        (table([HEADER, (b"\xff", GOOD[1])]), "UTF-8"),
    ],
    ids=str,
)
def test_tables_that_are_no_checkpoint_say_why(data, says, tmp_path):
    path = tmp_path / "i"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=says) as caught:
        read_index(path)
    assert str(path) in str(caught.value)


def test_a_variable_in_slices_is_refused_by_name(tmp_path):
    import tensorflow as tf

    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "c"), tensor_names=["w"], shape_and_slices=["4 2 0,2:-"], tensors=[tf.zeros([2, 2])]
    )
    with pytest.raises(ValueError, match="slices"):
        read_index(tmp_path / "c.index")


def read_or_value_error(path, data):
    path.write_bytes(data)
    try:
        return read_index(path)
    except ValueError as error:
        assert str(path) in str(error)
        return None


@pytest.fixture(scope="module")
def good(saved):
    """Path of an index that reads."""
    return Path(saved[0])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "model.ckpt.index"


anything = settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_every_changed_byte_is_noticed_except_in_the_padding(good, scratch):
    data = good.read_bytes()
    # Sparsely in the data block, and everywhere in the metaindex, the index and the footer.
    for where in {*range(0, len(data), 7), *range(len(data) - 120, len(data))}:
        changed = bytearray(data)
        changed[where] ^= 1 << where % 8
        found = read_or_value_error(scratch, changed)
        assert found is None or (data[where] == 0 and where >= len(data) - 48), where


def test_every_truncation_is_noticed(good, scratch):
    data = good.read_bytes()
    assert not any(read_or_value_error(scratch, data[:size]) is not None for size in range(0, len(data), 7))


@given(changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4))
@anything
def test_bytes_changed_under_a_right_checksum_end_in_an_answer_or_a_value_error(good, scratch, changes):
    """The checksum guards the parser behind it, so this one looks past it."""
    data = bytearray(good.read_bytes())
    for where, value in changes:
        data[where % len(data)] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_bundle, "crc32c", lambda data: 0)
        patch.setattr(tensor_bundle, "_unmask", lambda crc: 0)
        read_or_value_error(scratch, data)


@given(data=st.binary(max_size=400))
@example(data=b"\x00" * 200)
@anything
def test_any_bytes_before_the_magic_number(scratch, data):
    read_or_value_error(scratch, data + tensor_bundle.MAGIC)


@given(data=st.binary(max_size=60))
@anything
def test_any_entry_in_a_right_table(scratch, data):
    read_or_value_error(scratch, table([HEADER, (b"w", data)]))


@pytest.mark.parametrize(
    "content, expected",
    [
        ('model_checkpoint_path: "model-500"\nall_model_checkpoint_paths: "model-400"\n', "model-500"),
        ('model_checkpoint_path: "/home/me/checkpoint/run1/model-500"\n', "model-500"),
        ('model_checkpoint_path: "C:\\\\run1\\\\model-500"\n', "model-500"),
        ('model_checkpoint_path: "model-600"\n', "model.ckpt"),  # which isn't there
        ("", "model.ckpt"),
        (None, "model.ckpt"),
    ],
)
def test_the_checkpoint_is_the_one_that_the_folder_names(tmp_path, content, expected):
    for name in ("model-400", "model-500", "model.ckpt"):
        (tmp_path / f"{name}.index").touch()
    if content is not None:
        (tmp_path / "checkpoint").write_text(content)
    assert prefix(tmp_path) == tmp_path / expected


def test_what_we_write_is_what_tensorflow_writes(tmp_path):
    """The data file to the byte, the index entry by entry; more tensors than LevelDB's sharing of keys passes over."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    arrays = {f"model/h{i}/w": rng.normal(size=(1, i % 7 + 1, 3)).astype(np.float32) for i in range(300)}
    arrays = dict(sorted((arrays | {"naïve": np.zeros(5, np.float32)}).items()))
    shapes = {name: array.shape for name, array in arrays.items()}
    tensor_bundle.write(tmp_path / "ours", shapes, iter(arrays.values()))
    theirs = write(tmp_path / "theirs", arrays)
    data = [(tmp_path / f"{name}.data-00000-of-00001").read_bytes() for name in ("ours", "theirs")]
    assert data[0] == data[1]
    assert read_index(tmp_path / "ours.index") == read_index(theirs)
    reader = tf.train.load_checkpoint(str(tmp_path / "ours"))
    assert reader.get_variable_to_shape_map() == {name: list(shape) for name, shape in shapes.items()}
    for name, array in arrays.items():
        np.testing.assert_array_equal(reader.get_tensor(name), array)


def test_tensors_are_read_when_they_are_asked_for(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(tensor_bundle.CHUNK // 4 + 1, np.float32)}
    shapes = {name: array.shape for name, array in arrays.items()}
    tensor_bundle.write(tmp_path / "x", shapes, iter(arrays.values()))
    stored = tensor_bundle.tensors(tmp_path / "x", shapes)
    for name, array in arrays.items():
        np.testing.assert_array_equal(stored[name], array)
    path = tmp_path / "x.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    np.testing.assert_array_equal(stored["a"], arrays["a"])
    with pytest.raises(ValueError, match="b is damaged"):
        np.asarray(stored["b"])
    with pytest.raises(ValueError, match=r"a is float32 \[2, 3\], expected float32 \[3, 2\]; b isn't of this model"):
        tensor_bundle.tensors(tmp_path / "x", {"a": (3, 2)})


def test_an_array_of_another_shape_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"a came as \[3\], expected \[2\]"):
        tensor_bundle.write(tmp_path / "x", {"a": (2,)}, iter([np.ones(3)]))
