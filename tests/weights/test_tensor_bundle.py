"""TensorFlow's checkpoint format against TensorFlow's own reader and writer, and against damaged files."""

import os
import random
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpt2_tf.weights import leveldb_table, tensor_bundle
from gpt2_tf.weights.protobuf import decode_fields
from gpt2_tf.weights.tensor_bundle import (
    Entry,
    damaged_tensors,
    data_paths,
    data_sizes,
    lazy_tensors,
    read_index,
    write_bundle,
)

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
    shards = data_paths(prefix, data_sizes(entries))
    assert data_sizes(entries) == {shard: path.stat().st_size for shard, path in shards.items()}
    for name, entry in entries.items():
        if entry.dtype != "string":
            data = shards[entry.shard].read_bytes()[entry.offset : entry.offset + entry.size]
            assert data == reader.get_tensor(name).tobytes()
            assert google_crc32c.value(data) == entry.crc32c
    return entries


def test_every_plain_type_and_shape_reads_as_in_tensorflow(saved):
    index, tensors = saved
    entries = assert_as_tensorflow_reads(index)
    assert list(entries) == sorted(tensors)
    assert {name: (entry.dtype, entry.shape) for name, entry in entries.items()} == {
        name: (value.dtype.name, value.shape) for name, value in tensors.items()
    }


def test_the_table_of_dtypes_is_tensorflows():
    import tensorflow as tf

    assert {number: tf.dtypes.as_dtype(number).name for number in tensor_bundle.DTYPES} == tensor_bundle.DTYPES


def test_strings_bfloat16_and_non_ascii_names_read_as_in_tensorflow(tmp_path):
    import tensorflow as tf

    tensors = {"слово": tf.constant(["ab", "c"]), "b": tf.constant([1.5], tf.bfloat16), "é/w": tf.zeros([2, 2])}
    entries = assert_as_tensorflow_reads(write(tmp_path / "c", tensors))
    assert entries["слово"].dtype == "string"
    assert damaged_tensors(tmp_path / "c.data-00000-of-00001", entries) == []


def test_an_index_of_several_blocks_reads_as_in_tensorflow(tmp_path):
    index = write(tmp_path / "c", {f"{i:04d}{'x' * 200}": np.float32(i) for i in range(2500)})
    assert os.path.getsize(index) > 262_144  # TensorFlow's block size
    assert len(assert_as_tensorflow_reads(index)) == 2500


def test_an_index_of_several_shards_reads_as_in_tensorflow(tmp_path):
    import tensorflow as tf

    for shard, count in enumerate((3, 50)):
        write(tmp_path / f"s{shard}", {f"v{shard}": np.arange(count)})
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(tmp_path / f"s{shard}") for shard in range(2)], destination_prefix=str(tmp_path / "c")
    )
    entries = assert_as_tensorflow_reads(str(tmp_path / "c.index"))
    assert data_sizes(entries) == {0: 24, 1: 400}


def test_a_checkpoint_of_tensorflow_1s_saver_reads_as_in_tensorflow(tmp_path):
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session, v1.variable_scope("model"):
        v1.get_variable("wte", [50, 8])
        v1.get_variable("h0/ln_1/g", [8])
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "model.ckpt"))
    entries = assert_as_tensorflow_reads(str(tmp_path / "model.ckpt.index"))
    assert set(entries) == {"model/wte", "model/h0/ln_1/g"}
    graph = dict(decode_fields((tmp_path / "model.ckpt.meta").read_bytes()))
    assert len(graph[2]) > 100


@pytest.mark.skipif(not OFFICIAL.exists(), reason="OpenAI's files are not in ../shared/data")
def test_openais_own_index_of_124m():
    entries = read_index(OFFICIAL)
    assert len(entries) == 148
    assert data_sizes(entries) == {0: 497_759_232}
    assert sum(entry.size for entry in entries.values()) == 497_759_232
    assert entries["model/h0/attn/c_attn/w"][:2] == ("float32", (1, 768, 2304))
    assert entries["model/wte"][:3] == ("float32", (50257, 768), 0)
    assert {entry.size for entry in entries.values() if entry.size != 4 * np.prod(entry.shape)} == set()


def test_damaged_tensors_returns_the_names_of_changed_tensors(saved, tmp_path):
    index, _ = saved
    entries = read_index(index)
    data = bytearray(Path(f"{index.removesuffix('.index')}.data-00000-of-00001").read_bytes())
    copy = tmp_path / "copy"
    copy.write_bytes(data)
    assert damaged_tensors(copy, entries) == []
    data[entries["type/int16"].offset + 3] ^= 1
    copy.write_bytes(data)
    assert damaged_tensors(copy, entries) == ["type/int16"]
    last = max(entries, key=lambda name: (entries[name].offset, entries[name].size))
    copy.write_bytes(data[:-1])
    assert set(damaged_tensors(copy, entries)) == {"type/int16", last}


def reference_crc32c(data, crc=0):
    """The definition, bit by bit: division by the Castagnoli polynomial."""
    register = crc ^ 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # RFC 3720, B.4, and the usual check value.
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
    ids=["zeros", "ones", "rising", "digits", "empty"],
)
def test_the_reference_crc32c_gives_the_published_values(data, expected):
    assert reference_crc32c(data) == expected


@given(size=st.integers(0, 3000), cut=st.integers(0, 3000), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_library_computes_crc32c_of_bytes_and_arrays_whole_or_in_two_parts(size, cut, seed):
    data = random.Random(seed).randbytes(size)
    expected = reference_crc32c(data)
    assert google_crc32c.value(data) == google_crc32c.value(np.frombuffer(data, np.uint8)) == expected
    assert google_crc32c.extend(google_crc32c.value(data[:cut]), data[cut:]) == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes"),
        (b"<html>Please log in</html>", "26 bytes"),
        (b"<html>" + b"x" * 5000, "magic"),
    ],
    ids=["empty", "short page", "long page"],
)
def test_other_kinds_of_files_are_refused_by_name(content, says, tmp_path):
    path = tmp_path / "model.ckpt.index"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        read_index(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_raise_os_errors(tmp_path):
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
        crc = google_crc32c.value(contents + bytes([compression]))
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        data += contents + bytes([compression]) + masked.to_bytes(4, "little")
    return data + (handles[1] + handles[2]).ljust(40, b"\0") + leveldb_table.MAGIC


HEADER = (b"", b"\x08\x01")
GOOD = (b"w", b"\x08\x01\x12\x04\x12\x02\x08\x03\x28\x0c")


def test_the_hand_made_table_is_read(tmp_path):
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
        (table([HEADER, (b"w", b"\x0b")]), "wire type 3, which are invalid"),
        (table([HEADER, (b"w", b"\x08\x01\x3a\x00")]), "slices"),
        (table([HEADER, (b"\xff", GOOD[1])]), "UTF-8"),
        (table([HEADER, (b"w", GOOD[1][:-1] + b"\x0d")]), r"w is float32 \[3\], which 13 bytes can't hold"),
    ],
    ids=str,
)
def test_a_table_that_is_not_a_checkpoint_is_refused_with_the_reason(data, says, tmp_path):
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


def test_every_changed_byte_is_refused(good, scratch):
    data = good.read_bytes()
    # Sparsely in the data block, and everywhere in the metaindex, the index and the footer.
    for where in {*range(0, len(data), 7), *range(len(data) - 120, len(data))}:
        changed = bytearray(data)
        changed[where] ^= 1 << where % 8
        found = read_or_value_error(scratch, changed)
        assert found is None, where


def test_every_truncation_is_refused(good, scratch):
    data = good.read_bytes()
    assert not any(read_or_value_error(scratch, data[:size]) is not None for size in range(0, len(data), 7))


@given(changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4))
@anything
def test_changed_bytes_with_a_right_checksum_are_read_or_raise_value_error(good, scratch, changes):
    """The checksum guards the parser behind it, so this one looks past it."""
    data = bytearray(good.read_bytes())
    for where, value in changes:
        data[where % len(data)] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(google_crc32c, "value", lambda data: 0)
        patch.setattr(leveldb_table, "unmask_crc", lambda crc: 0)
        read_or_value_error(scratch, data)


@given(data=st.binary(max_size=400))
@example(data=b"\x00" * 200)
@anything
def test_any_bytes_before_the_magic_number_are_read_or_raise_value_error(scratch, data):
    read_or_value_error(scratch, data + leveldb_table.MAGIC)


@given(data=st.binary(max_size=60))
@anything
def test_any_entry_in_a_right_table_is_read_or_raises_value_error(scratch, data):
    read_or_value_error(scratch, table([HEADER, (b"w", data)]))


def test_write_bundle_writes_the_same_data_and_index_as_tensorflow(tmp_path):
    """The data file to the byte, the index entry by entry; more tensors than LevelDB's sharing of keys passes over."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    arrays = {f"model/h{i}/w": rng.normal(size=(1, i % 7 + 1, 3)).astype(np.float32) for i in range(300)}
    arrays = dict(sorted((arrays | {"naïve": np.zeros(5, np.float32)}).items()))
    shapes = {name: array.shape for name, array in arrays.items()}
    write_bundle(tmp_path / "ours", shapes, iter(arrays.values()))
    theirs = write(tmp_path / "theirs", arrays)
    data = [(tmp_path / f"{name}.data-00000-of-00001").read_bytes() for name in ("ours", "theirs")]
    assert data[0] == data[1]
    assert read_index(tmp_path / "ours.index") == read_index(theirs)
    reader = tf.train.load_checkpoint(str(tmp_path / "ours"))
    assert reader.get_variable_to_shape_map() == {name: list(shape) for name, shape in shapes.items()}
    for name, array in arrays.items():
        np.testing.assert_array_equal(reader.get_tensor(name), array)


def test_a_lazy_tensor_reads_its_own_bytes_and_checks_them(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float32)}
    shapes = {name: array.shape for name, array in arrays.items()}
    write_bundle(tmp_path / "x", shapes, iter(arrays.values()))
    tensors = lazy_tensors(tmp_path / "x", read_index(tmp_path / "x.index"))
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name], array)
    path = tmp_path / "x.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    np.testing.assert_array_equal(tensors["a"], arrays["a"])
    with pytest.raises(ValueError, match="b is damaged"):
        np.asarray(tensors["b"])
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"b is damaged; .* \(11 of 12 bytes are there\)"):
        np.asarray(tensors["b"])


def test_an_array_of_another_shape_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"a has the shape \[3\], expected \[2\]"):
        write_bundle(tmp_path / "x", {"a": (2,)}, iter([np.ones(3)]))
