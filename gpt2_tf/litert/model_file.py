"""Writes models for LiteRT: the weights one tensor at a time, and the graphs of `graph.py` that use them.

A `.tflite` file may hold its weights itself, behind the graphs. The engine's files have the weights apart, in
`weights.bin`, so that a graph of another shape is a small file of its own.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO, NamedTuple

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gpt2_tf.files.atomic import atomic_path
from gpt2_tf.hparams import HParams
from gpt2_tf.litert import graph
from gpt2_tf.litert.graph import Builder, Signature, Type, Weight
from gpt2_tf.litert.kept import WEIGHTS

ALIGNMENT = 64  # bytes; LiteRT demands 16, and vectors of AVX-512 have 64
SIZES = {"float32": 4, "int8": 1}
TYPES = {"float32": Type.FLOAT32, "int8": Type.INT8}


class Stored(NamedTuple):
    """Where and how a weight is stored.

    Example:
        >>> Stored(offset=64, shape=(3, 5), dtype="int8").size
        15
    """

    offset: int  # bytes, from the first weight
    shape: tuple[int, ...]
    dtype: str  # "float32" or "int8"

    @property
    def size(self) -> int:
        """The number of bytes."""
        return math.prod(self.shape) * SIZES[self.dtype]


class SharedQuantization(schema.QuantizationParametersT):
    """The scales of a weight. All graphs share them, so they are written to the file once.

    Example:
        >>> SharedQuantization(scale=np.ones(5, np.float32), zeroPoint=np.zeros(5, np.int64)).quantizedDimension
        0
    """

    def Pack(self, builder):
        """Write the scales, or return where they were written. flatbuffers calls it by this name."""
        if getattr(self, "builder", None) is not builder:
            self.builder, self.position = builder, super().Pack(builder)
        return self.position


def layout(hparams: HParams, weights: str) -> dict[str, Stored]:
    """Say how each weight is stored, by OpenAI's names. A quantized matrix has its scales beside it, as NAME:scale.

    Only matrices are quantized. The positions stay float32, since they are only looked up.

    Example:
        >>> hparams = HParams(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
        >>> layout(hparams, "int8")["model/h0/attn/c_attn/w"].shape  # [out, in]
        (48, 16)
    """
    stored: dict[str, Stored] = {}
    end = 0

    def add(name: str, shape: tuple[int, ...], dtype: str) -> None:
        nonlocal end
        stored[name] = Stored(end, shape, dtype)
        end = align(end + stored[name].size)

    for name, shape in hparams.shapes.items():
        shape = tuple(shape[:0:-1] if name.endswith("/w") else shape)  # [1, in, out] -> [out, in]
        if name.endswith("/w") or name == "model/wte":
            add(name, shape, weights)
            if weights != "float32":
                add(f"{name}:scale", shape[:1], "float32")
        else:
            add(name, shape, "float32")
    return stored


def quantize_int8(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize the rows of a matrix to int8: the values, and a float32 scale per row.

    Example:
        >>> values, scales = quantize_int8(np.float32([[1.27, -0.5]]))
        >>> values.tolist(), f"{scales[0]:.4f}"
        ([[127, -50]], '0.0100')
    """
    scales = np.abs(w).max(axis=1) / np.float32(127)
    scales[scales == 0] = 1  # a row of zeros
    return np.rint(w / scales[:, None]).astype(np.int8), scales


def write_weights(
    file: BinaryIO, start: int, stored: Mapping[str, Stored], read_weight: Callable[[str], np.ndarray]
) -> None:
    """Write all weights to an open file, the first at byte `start`.

    Args:
        file: a file open for writing.
        start: the position of the first weight.
        stored: from `layout`.
        read_weight: returns the weight of OpenAI's name, as float32 in OpenAI's shape.

    Example:
        >>> hparams = HParams(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
        >>> with open("weights.bin", "w+b") as file:
        ...     write_weights(file, 0, layout(hparams, "int8"), lambda name: np.ones(hparams.shapes[name], np.float32))
        ...     read_scales(file, 0, layout(hparams, "int8"))["model/wte"].shape
        (300,)
    """
    for name, tensor in stored.items():
        if name.endswith(":scale"):
            continue
        values = read_weight(name)
        if name.endswith("/w"):
            values = values[0].T
        if tensor.dtype == "int8":
            values, scales = quantize_int8(values)
            _write_array(file, start + stored[f"{name}:scale"].offset, scales)
        _write_array(file, start + tensor.offset, values)
    last = max(stored.values())
    file.truncate(start + align(last.offset + last.size))


def read_scales(file: BinaryIO, start: int, stored: Mapping[str, Stored]) -> dict[str, np.ndarray]:
    """Read the scales that `write_weights` wrote, by the names of their weights.

    Example:
        >>> with open("empty", "w+b") as file:
        ...     read_scales(file, 0, stored={})
        {}
    """
    scales = {}
    for name, tensor in stored.items():
        if name.endswith(":scale"):
            file.seek(start + tensor.offset)
            scales[name.removesuffix(":scale")] = np.frombuffer(file.read(tensor.size), np.float32)
    return scales


def build(
    hparams: HParams,
    stored: Mapping[str, Stored],
    scales: Mapping[str, np.ndarray],
    signatures: Iterable[Signature],
    start: int | None = None,
) -> schema.ModelT:
    """Build the graphs of these signatures.

    Args:
        hparams: the model's sizes.
        stored: from `layout`.
        scales: from `read_scales`.
        signatures: the graphs to build.
        start: the position of the first weight in the same file; None for weights in `weights.bin` beside it.

    Example:
        >>> hparams = HParams(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
        >>> model = build(hparams, layout(hparams, "float32"), {}, [Signature(1, 1, 32, logits=True)])
        >>> pack(model)[4:8]
        bytearray(b'TFL3')
    """
    names = [name for name in stored if not name.endswith(":scale")]
    model = schema.ModelT(version=3, subgraphs=[], signatureDefs=[], buffers=[schema.BufferT()])
    if start is None:
        group = schema.ExternalBufferGroupT()
        group.name = WEIGHTS
        model.externalBufferGroups, model.externalBuffers = [group], []
    weights = {}
    for number, name in enumerate(names, start=1):
        tensor = stored[name]
        quantization = None
        if name in scales:
            zeros = np.zeros(len(scales[name]), np.int64)
            quantization = SharedQuantization(scale=scales[name], zeroPoint=zeros)
        weights[name] = Weight(number, tensor.shape, TYPES[tensor.dtype], quantization, external=start is None)
        if start is None:
            external = schema.ExternalBufferT()
            external.id, external.offset, external.length = number, tensor.offset, tensor.size
            model.externalBuffers.append(external)
        else:
            model.buffers.append(schema.BufferT(offset=start + tensor.offset, size=tensor.size))
    opcodes: list[int] = []
    for number, signature in enumerate(signatures):
        builder = Builder(opcodes, model.buffers, weights)
        definition = graph.gpt2(builder, hparams, signature)
        definition.subgraphIndex = number
        builder.graph.name = signature.name
        model.subgraphs.append(builder.graph)
        model.signatureDefs.append(definition)
    model.operatorCodes = [
        # Old readers look at the first field, which has 7 bits.
        schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=1)
        for code in opcodes
    ]
    return model


def pack(model: schema.ModelT) -> bytearray:
    """Serialize graphs as the content of a `.tflite` file, without the weights.

    Example:
        >>> pack(schema.ModelT(version=3))[4:8]
        bytearray(b'TFL3')
    """
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return builder.Output()


def write_model(
    path: str | os.PathLike,
    hparams: HParams,
    read_weight: Callable[[str], np.ndarray],
    signatures: Iterable[Signature],
    weights: str = "float32",
) -> None:
    """Write a `.tflite` file with its weights.

    Args:
        path: the new file.
        hparams: the model's sizes.
        read_weight: returns the weight of OpenAI's name, as float32 in OpenAI's shape.
        signatures: the graphs to write.
        weights: "float32" or "int8".

    Example:
        >>> hparams = HParams(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
        >>> weights = {name: np.ones(shape, np.float32) for name, shape in hparams.shapes.items()}
        >>> write_model("small.tflite", hparams, weights.__getitem__, [Signature(1, 1, 32, logits=True)])
        >>> os.path.getsize("small.tflite") > 4 * hparams.n_params
        True
    """
    signatures, stored = list(signatures), layout(hparams, weights)
    # The graphs hold the scales and the positions of the weights, but their size depends on neither.
    scales = {name: np.ones(stored[name].shape[0], np.float32) for name in stored if f"{name}:scale" in stored}
    start = align(len(pack(build(hparams, stored, scales, signatures, start=ALIGNMENT))))
    with atomic_path(path) as temporary, open(temporary, "w+b") as file:
        write_weights(file, start, stored, read_weight)
        content = pack(build(hparams, stored, read_scales(file, start, stored), signatures, start))
        assert align(len(content)) == start
        file.seek(0)
        file.write(content)


def align(size: int) -> int:
    """Round up to ALIGNMENT.

    Example:
        >>> align(65)
        128
    """
    return -(-size // ALIGNMENT) * ALIGNMENT


def _write_array(file: BinaryIO, position: int, values: np.ndarray) -> None:
    file.seek(position)
    file.write(np.ascontiguousarray(values))
