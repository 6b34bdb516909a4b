"""GPT-2 as graphs of LiteRT operations: the forward pass of `model/gpt2.py`, with a KV cache of fixed capacity.

A LiteRT graph has fixed shapes, so a file has one graph, called a signature, for each combination of batch, number of
tokens and capacity. All signatures share the weights.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gpt2_tf.hparams import HParams

Op, Type = schema.BuiltinOperator, schema.TensorType
DTYPES = {np.dtype(np.float32): Type.FLOAT32, np.dtype(np.int32): Type.INT32}


class Signature(NamedTuple):
    """The shapes of one graph, and what it computes besides the cache.

    Example:
        >>> Signature(batch=1, seq=1, capacity=256, logits=True).name
        'decode_1x1_256'
    """

    batch: int  # the number of rows
    seq: int  # the number of tokens per row
    capacity: int  # the number of columns of the KV cache
    logits: bool  # whether the graph returns the logits of all its tokens

    @property
    def name(self) -> str:
        """The signature's key in the file."""
        return f"{'decode' if self.logits else 'prefill'}_{self.batch}x{self.seq}_{self.capacity}"


class Weight(NamedTuple):
    """A weight as the graphs see it. Its values lie in the buffer of this number.

    Example:
        >>> Weight(buffer=5, shape=(768,), dtype=Type.FLOAT32).quantization is None
        True
    """

    buffer: int
    shape: tuple[int, ...]
    dtype: int
    quantization: schema.QuantizationParametersT | None = None
    external: bool = False  # whether `buffer` is the number of a part of another file


class Builder:
    """Builds one graph, operation by operation. Each operation returns the number of its result.

    Args:
        opcodes: the operations of the file, which a new operation joins.
        buffers: the file's buffers, which a new constant joins.
        weights: the weights by OpenAI's names.

    Example:
        >>> builder = Builder(opcodes=[], buffers=[], weights={})
        >>> x = builder.input([2, 3])
        >>> builder.shape(builder.add(x, builder.constant([1.0], np.float32)))
        [2, 3]
    """

    def __init__(self, opcodes: list[int], buffers: list[schema.BufferT], weights: Mapping[str, Weight]):
        self.opcodes, self.buffers, self.weights = opcodes, buffers, weights
        self.graph = schema.SubGraphT(tensors=[], operators=[], inputs=[], outputs=[])
        self.numbers: dict[object, int] = {}  # of constants and weights that the graph has already

    def tensor(self, shape: Sequence[int], dtype: int = Type.FLOAT32, **fields) -> int:
        """Add a tensor, and return its number."""
        self.graph.tensors.append(schema.TensorT(shape=list(shape), type=dtype, hasRank=True, **fields))
        return len(self.graph.tensors) - 1

    def input(self, shape: Sequence[int], dtype: int = Type.FLOAT32) -> int:
        """Add an input of the graph."""
        self.graph.inputs.append(self.tensor(shape, dtype))
        return self.graph.inputs[-1]

    def weight(self, name: str) -> int:
        """Return the weight of OpenAI's name."""
        if name not in self.numbers:
            buffer, shape, dtype, quantization, external = self.weights[name]
            place = {"externalBuffer" if external else "buffer": buffer}
            self.numbers[name] = self.tensor(shape, dtype, quantization=quantization, name=name, **place)
        return self.numbers[name]

    def constant(self, values: object, dtype: type = np.int32) -> int:
        """Return a small constant."""
        array = np.asarray(values, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.numbers:
            self.buffers.append(schema.BufferT(data=np.frombuffer(array.tobytes(), np.uint8)))
            self.numbers[key] = self.tensor(array.shape, DTYPES[array.dtype], buffer=len(self.buffers) - 1)
        return self.numbers[key]

    def shape(self, tensor: int) -> list[int]:
        """Return the shape of a tensor of this graph."""
        return self.graph.tensors[tensor].shape

    def op(self, code: int, inputs: Sequence[int], shape: Sequence[int], options: object = None) -> int:
        """Add an operation with one float32 result of this shape."""
        return self.ops(code, inputs, [shape], options)[0]

    def ops(self, code: int, inputs: Sequence[int], shapes: Sequence[Sequence[int]], options: object = None) -> list:
        """Add an operation with several float32 results."""
        if code not in self.opcodes:
            self.opcodes.append(code)
        dtype = Type.FLOAT32
        if code in (Op.RESHAPE, Op.SLICE, Op.CONCATENATION):
            dtype = self.graph.tensors[inputs[0]].type
        outputs = [self.tensor(shape, dtype) for shape in shapes]
        operator = schema.OperatorT(opcodeIndex=self.opcodes.index(code), inputs=list(inputs), outputs=outputs)
        if options is not None:
            operator.builtinOptions = options
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        self.graph.operators.append(operator)
        return outputs

    def binary(self, code: int, a: int, b: int) -> int:
        """Add ADD, SUB or MUL, with broadcasting."""
        shape = list(np.broadcast_shapes(tuple(self.shape(a)), tuple(self.shape(b))))
        options = {Op.ADD: schema.AddOptionsT, Op.SUB: schema.SubOptionsT, Op.MUL: schema.MulOptionsT}[code]()
        return self.op(code, [a, b], shape, options)

    def add(self, a: int, b: int) -> int:
        """Add two tensors."""
        return self.binary(Op.ADD, a, b)

    def multiply(self, a: int, b: int) -> int:
        """Multiply two tensors, element by element."""
        return self.binary(Op.MUL, a, b)

    def reshape(self, x: int, shape: Sequence[int]) -> int:
        """Change a tensor's shape."""
        return self.op(Op.RESHAPE, [x, self.constant(shape)], shape, schema.ReshapeOptionsT(newShape=list(shape)))

    def transpose(self, x: int, axes: Sequence[int]) -> int:
        """Permute a tensor's axes."""
        shape = [self.shape(x)[axis] for axis in axes]
        return self.op(Op.TRANSPOSE, [x, self.constant(axes)], shape, schema.TransposeOptionsT())

    def reduce(self, code: int, x: int) -> int:
        """Add MEAN or SUM over the last axis, which remains with size 1."""
        shape = [*self.shape(x)[:-1], 1]
        axis = self.constant([len(shape) - 1])
        return self.op(code, [x, axis], shape, schema.ReducerOptionsT(keepDims=True))

    def linear(self, x: int, w: int, b: int | None = None) -> int:
        """Multiply by a weight, [out, in], and add a bias."""
        shape = [*self.shape(x)[:-1], self.shape(w)[0]]
        options = schema.FullyConnectedOptionsT(keepNumDims=True)
        return self.op(Op.FULLY_CONNECTED, [x, w, -1 if b is None else b], shape, options)

    def matmul(self, a: int, b: int) -> int:
        """Multiply matrices: a [..., m, k], b [..., n, k] -> [..., m, n]."""
        shape = [*self.shape(a)[:-1], self.shape(b)[-2]]
        return self.op(Op.BATCH_MATMUL, [a, b], shape, schema.BatchMatMulOptionsT(adjY=True))

    def softmax(self, x: int) -> int:
        """Softmax over the last axis."""
        return self.op(Op.SOFTMAX, [x], self.shape(x), schema.SoftmaxOptionsT(beta=1.0))


def gpt2(builder: Builder, hparams: HParams, signature: Signature) -> schema.SignatureDefT:
    """Build the graph of a signature. `builder.graph` is the graph, and the result names its inputs and outputs.

    Inputs, where C is the capacity:
        tokens: int32 [batch, seq].
        input_pos: int32 [seq]: the columns of the cache that the tokens take, one after the other.
        positions: int32 [batch, seq]: the rows of `wpe`. A graph for one row has no such input and takes `input_pos`.
        mask: float32 [batch, 1, seq, C]: 0 where a token sees a column, a large negative number elsewhere.
        kv_cache_k_0, ...: float32 [batch, n_head, C, head_dim] per block.
        kv_cache_v_0, ...: float32 [batch, n_head, head_dim, C] per block.

    Outputs:
        the caches, with the tokens' keys and values in their columns.
        logits: float32 [batch, seq, n_vocab], if the signature has them.

    Source: OpenAI's `src/model.py`.

    Example:
        >>> hparams = HParams(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
        >>> weights = {name: Weight(0, shape, Type.FLOAT32) for name, shape in hparams.shapes.items()}
        >>> weights |= {name: w._replace(shape=w.shape[:0:-1]) for name, w in weights.items() if name.endswith("/w")}
        >>> definition = gpt2(Builder([], [], weights), hparams, Signature(1, 1, 32, logits=True))
        >>> [output.name for output in definition.outputs][-1]
        'logits'
    """
    batch, seq, capacity, has_logits = signature
    n_embd, n_head, head_dim = hparams.n_embd, hparams.n_head, hparams.head_dim
    b = builder
    inputs = {"tokens": b.input([batch, seq], Type.INT32), "input_pos": b.input([seq], Type.INT32)}
    if batch > 1:
        inputs["positions"] = b.input([batch, seq], Type.INT32)
    inputs["mask"] = b.input([batch, 1, seq, capacity])
    outputs = {}
    columns = inputs["input_pos"]
    first = b.op(Op.SLICE, [columns, b.constant([0]), b.constant([1])], [1], schema.SliceOptionsT())
    concat = schema.ConcatenationOptionsT(axis=0)
    start_k = b.op(Op.CONCATENATION, [b.constant([0, 0]), first, b.constant([0])], [4], concat)
    start_v = b.op(Op.CONCATENATION, [b.constant([0, 0, 0]), first], [4], concat)

    def norm(x: int, name: str) -> int:
        centred = b.binary(Op.SUB, x, b.reduce(Op.MEAN, x))
        variance = b.reduce(Op.MEAN, b.multiply(centred, centred))
        variance = b.add(variance, b.constant([1e-5], np.float32))
        scale = b.op(Op.RSQRT, [variance], b.shape(variance))
        return b.add(b.multiply(b.multiply(centred, scale), b.weight(f"{name}/g")), b.weight(f"{name}/b"))

    def conv1d(x: int, name: str) -> int:
        return b.linear(x, b.weight(f"{name}/w"), b.weight(f"{name}/b"))

    def split_heads(x: int) -> int:  # [batch seq, n_embd] -> [batch, n_head, seq, head_dim]
        if seq == 1:
            return b.reshape(x, [batch, n_head, 1, head_dim])
        return b.transpose(b.reshape(x, [batch, seq, n_head, head_dim]), [0, 2, 1, 3])

    def update(cache: int, values: int, start: int) -> int:
        return b.op(Op.DYNAMIC_UPDATE_SLICE, [cache, values, start], b.shape(cache))

    def attention(x: int, name: str, k_cache: int, v_cache: int, is_last: bool) -> tuple[int | None, int, int]:
        split = schema.SplitOptionsT(numSplits=3)
        qkv = b.ops(Op.SPLIT, [b.constant(1), conv1d(x, f"{name}/c_attn")], [[batch * seq, n_embd]] * 3, split)
        q, k, v = map(split_heads, qkv)
        v = b.transpose(v, [0, 1, 3, 2]) if seq > 1 else b.reshape(v, [batch, n_head, head_dim, 1])
        k, v = update(k_cache, k, start_k), update(v_cache, v, start_v)
        if is_last:
            return None, k, v
        q = b.multiply(q, b.constant([1 / sqrt(head_dim)], np.float32))
        if seq == 1:  # XNNPACK's product of matrices is slow for one row, so the products are summed
            w = b.reshape(b.reduce(Op.SUM, b.multiply(k, q)), [batch, n_head, 1, capacity])
            w = b.softmax(b.add(w, inputs["mask"]))
            a = b.reduce(Op.SUM, b.multiply(v, w))  # [batch, n_head, head_dim, 1]
        else:
            w = b.softmax(b.add(b.matmul(q, k), inputs["mask"]))  # [batch, n_head, seq, C]
            a = b.transpose(b.matmul(w, v), [0, 2, 1, 3])  # [batch, seq, n_head, head_dim]
        return conv1d(b.reshape(a, [batch * seq, n_embd]), f"{name}/c_proj"), k, v

    def mlp(x: int, name: str) -> int:
        h = conv1d(x, f"{name}/c_fc")
        h = b.op(Op.GELU, [h], b.shape(h), schema.GeluOptionsT(approximate=True))
        return conv1d(h, f"{name}/c_proj")

    tokens = b.reshape(inputs["tokens"], [batch * seq])
    wte, lookup = b.weight("model/wte"), [batch * seq, n_embd]
    if b.weights["model/wte"].quantization is None:
        x = b.op(Op.GATHER, [wte, tokens], lookup, schema.GatherOptionsT())
    else:
        x = b.op(Op.EMBEDDING_LOOKUP, [tokens, wte], lookup)
    rows = b.reshape(inputs["positions"], [batch * seq]) if batch > 1 else columns
    x = b.add(x, b.op(Op.GATHER, [b.weight("model/wpe"), rows], lookup, schema.GatherOptionsT()))
    for i in range(hparams.n_layer):
        name = f"model/h{i}"
        inputs[f"kv_cache_k_{i}"] = b.input([batch, n_head, capacity, head_dim])
        inputs[f"kv_cache_v_{i}"] = b.input([batch, n_head, head_dim, capacity])
        k_cache, v_cache = inputs[f"kv_cache_k_{i}"], inputs[f"kv_cache_v_{i}"]
        # Without logits, nothing reads what the last block writes but its keys and values.
        is_last = not has_logits and i == hparams.n_layer - 1
        a, k, v = attention(norm(x, f"{name}/ln_1"), f"{name}/attn", k_cache, v_cache, is_last)
        outputs[f"kv_cache_k_{i}"], outputs[f"kv_cache_v_{i}"] = k, v
        if a is not None:
            x = b.add(x, a)
            x = b.add(x, mlp(norm(x, f"{name}/ln_2"), f"{name}/mlp"))
    if has_logits:
        logits = b.linear(norm(x, "model/ln_f"), wte)
        outputs["logits"] = b.reshape(logits, [batch, seq, hparams.n_vocab])
    b.graph.outputs = list(outputs.values())
    return schema.SignatureDefT(
        inputs=[schema.TensorMapT(name=name, tensorIndex=tensor) for name, tensor in inputs.items()],
        outputs=[schema.TensorMapT(name=name, tensorIndex=tensor) for name, tensor in outputs.items()],
        signatureKey=signature.name,
    )
