"""The safetensors format: the library reads what we write; damaged files are refused."""

import json
import random

import numpy as np
import pytest

from gpt2_tf.weights import safetensors


def test_the_library_reads_our_files(hf_folder, model):
    library = pytest.importorskip("safetensors", reason="safetensors comes with transformers, in [peers]")
    with library.safe_open(hf_folder / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        ours = safetensors.read_tensors(hf_folder / "model.safetensors")
        assert set(file.keys()) == set(ours)
        for name in ours:
            np.testing.assert_array_equal(file.get_tensor(name), ours[name])


F32 = {"dtype": "F32", "shape": [1]}


def safetensors_file(header: object, size: int) -> bytes:
    """A file with the given header, JSON or bytes, and `size` bytes of tensors."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + bytes(size)


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        (b"[]", 4, "the header is a JSON list, not an object"),
        (b"{", 4, "Expecting property name"),
        (b"[" * 10_000, 4, "recursion"),
        ({"a": {}}, 4, "a lacks a dtype, a shape or data_offsets"),
        ({"a": 3}, 4, "a lacks a dtype, a shape or data_offsets"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, 4, r"a is float32 \[2\], which 4 bytes can't"),
        ({"a": {"dtype": "I16", "shape": [2], "data_offsets": [0, 3]}}, 3, r"a is int16 \[2\], which 3 bytes can't"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 4, "a lies at 4 to 8, but the tensors have 4"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}, 4, "not whole numbers of at least 0"),
        ({"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}, 4, "not whole numbers of at least 0"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, 4, "not whole numbers of at least 0"),
        ({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, 4, "the dtype 'F32' and the shape 1"),
        ({"a": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}, 4, r"the dtype \[\] and the shape \[1\]"),
        ({"a": {**F32, "data_offsets": [0, 4, 8]}}, 8, "a lacks a dtype, a shape or data_offsets"),
        ({"a": {**F32, "data_offsets": [0, 4]}}, 8, "but the header describes"),
        ({"a": {**F32, "data_offsets": [0, 4]}, "b": {**F32, "data_offsets": [0, 4]}}, 4, "b at 0 overlaps the tensor"),
        ({"a": {**F32, "data_offsets": [0, 4]}, "b": {**F32, "data_offsets": [2, 6]}}, 6, "b at 2 overlaps the tensor"),
        ({"a": {**F32, "data_offsets": [0, 4]}, "b": {**F32, "data_offsets": [8, 12]}}, 12, "b at 8 leaves a gap"),
        ({"a": {**F32, "data_offsets": [4, 8]}}, 8, "a at 4 leaves a gap"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            b' "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
            8,
            "a occurs twice",
        ),
        (b'{"a": {"dtype": "F32", "dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}', 4, "dtype occurs twice"),
    ],
)
def test_a_wrong_header_is_refused_with_the_reason(tmp_path, header, size, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_file(header, size))
    with pytest.raises(
        ValueError, match=rf"model\.safetensors is not a complete safetensors file: .*{message}"
    ) as error:
        safetensors.read_tensors(path)
    assert "\n" not in str(error.value)


def test_tensors_in_any_order_and_without_values_are_read(tmp_path):
    """A tensor without values may lie anywhere between the others."""
    header = {"b": {**F32, "data_offsets": [4, 8]}, "a": {**F32, "data_offsets": [0, 4]}}
    header |= {"empty": {"dtype": "F32", "shape": [0, 3], "data_offsets": [4, 4]}}
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_file(header, 0) + np.array([1, 2], np.float32).tobytes())
    tensors = safetensors.read_tensors(path)
    assert [np.asarray(tensors[name]).tolist() for name in ("a", "b", "empty")] == [[1], [2], []]


@pytest.mark.parametrize("content", [b"", b"12", b"\xff" * 8, b"<html>404</html>"])
def test_another_kind_of_file_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        safetensors.read_tensors(path)


def test_a_changed_header_never_gives_a_tensor_the_bytes_of_another(tmp_path):
    """2,000 headers with one to three changed bytes or a moved tensor: an error, or every tensor with its own values.

    A changed name may pass here, and so may two names that are swapped; `huggingface.read_tensors` checks the names.
    """
    path = tmp_path / "model.safetensors"
    arrays = {f"h.{i}.{name}": np.full((2, 3), i, np.float32) for i in range(3) for name in ("w", "b")}
    safetensors.write_tensors(path, {name: array.shape for name, array in arrays.items()}, arrays.values())
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    rng = random.Random(0)
    accepted = 0
    for number in range(2000):
        if number % 2:
            changed = bytearray(content)
            for _ in range(rng.randint(1, 3)):
                changed[rng.randrange(8 + length)] = rng.choice(b'0123456789"[]{},:abwhFI')
        else:  # a tensor gets the place of another, or a place between two others
            header = json.loads(content[8 : 8 + length])
            name, other = rng.sample(sorted(arrays), 2)
            begin, _ = header[other]["data_offsets"]
            begin = max(0, begin + rng.choice([-8, 0, 8]))
            header[name]["data_offsets"] = [begin, begin + 24]
            changed = safetensors_file(header, 0) + content[8 + length :]
        path.write_bytes(changed)
        try:
            tensors = safetensors.read_tensors(path)
        except ValueError as error:
            assert str(path) in str(error)
            continue
        accepted += 1
        for name, array in arrays.items():
            if name in tensors and tensors[name].dtype == "float32":
                assert np.asarray(tensors[name]).ravel().tolist() == array.ravel().tolist()
    assert 0 < accepted < 1000
