"""Runs graphs by LiteRT's `CompiledModel`: NumPy arrays in, NumPy arrays out, and a KV cache that stays in place."""

import atexit
import contextlib
import functools
import importlib.util
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from gpt2_tf.lazy import discard_stderr, without_stderr
from gpt2_tf.litert.graph import Signature

_stderr_lock = threading.Lock()


@contextlib.contextmanager
def without_litert_noise() -> Iterator[None]:
    """Discard the notices that LiteRT's C++ code writes to stderr.

    Example:
        >>> with without_litert_noise():
        ...     environment() is environment()
        True
    """
    with _stderr_lock, without_stderr():  # two threads could put back each other's stderr
        yield


@functools.cache
def environment() -> object:
    """Return LiteRT's environment, one for the process. Call this inside `without_litert_noise`.

    Example:
        >>> with without_litert_noise():
        ...     environment() is environment()
        True
    """
    from ai_edge_litert.environment import Environment, EnvironmentOptions
    from ai_edge_litert.tensor_buffer import TensorBuffer

    # The first buffer makes a second environment, and writes about it.
    TensorBuffer.create_from_host_memory(np.zeros(16, np.float32)).write(np.zeros(16, np.float32))
    # At the end of the process, C++ writes about the end of the environments, after all of Python has ended.
    atexit.register(discard_stderr)
    package = importlib.util.find_spec("ai_edge_litert").submodule_search_locations[0]
    return Environment.create(options=EnvironmentOptions(runtime_path=package))


class KVCache:
    """The keys and values of a batch: LiteRT's buffers, which a graph reads and writes in place.

    Attributes:
        signature: a signature of the graphs that use the cache.
        buffers: LiteRT's buffers, by the names of the graph's inputs.

    Example:
        >>> cache = engine.decoder.prefill([10, 20, 30], capacity=128)
        >>> cache.read()["kv_cache_k_0"].shape  # [batch, n_head, capacity, head_dim]
        (1, 4, 128, 64)
    """

    def __init__(self, signature: Signature, shapes: Mapping[str, tuple[int, ...]], buffers: Mapping[str, object]):
        self.signature, self.shapes, self.buffers = signature, shapes, buffers

    def read(self) -> dict[str, np.ndarray]:
        """Copy the cache to NumPy arrays: k [batch, n_head, capacity, head_dim], v [..., head_dim, capacity]."""
        return {
            name: buffer.read(int(np.prod(self.shapes[name])), np.float32).reshape(self.shapes[name])
            for name, buffer in self.buffers.items()
        }

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Fill the cache."""
        for name, array in arrays.items():
            self.buffers[name].write(array)


class Program:
    """The graphs of one file, ready to run.

    Args:
        path: the `.tflite` file.
        n_vocab: the number of tokens in the vocabulary.
        threads: how many threads compute.
        weight_cache: XNNPACK's file of packed weights. A missing file is written.

    Example:
        >>> program, signature = engine.decoder.program("decode", 1, 128), Signature(1, 1, 128, logits=True)
        >>> mask = np.full([1, 1, 1, 128], -1e30, np.float32)
        >>> mask[..., 0] = 0
        >>> inputs = {"tokens": np.int32([[10]]), "input_pos": np.int32([0]), "mask": mask}
        >>> program.run(signature, program.new_cache(signature), inputs).shape
        (1, 1, 1024)
    """

    def __init__(self, path: Path, n_vocab: int, threads: int, weight_cache: Path):
        self.n_vocab = n_vocab
        with without_litert_noise():
            from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, Options

            cpu = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=str(weight_cache))
            self.model = CompiledModel.from_file(str(path), environment=environment(), options=Options(cpu_options=cpu))
        self.inputs: dict[str, dict[str, object]] = {}  # of each signature: its own buffers, by name
        self.lock = threading.Lock()  # the buffers are shared, so only one thread runs the graphs at a time

    def new_cache(self, signature: Signature) -> KVCache:
        """Return a cache for this signature and for others of the same batch and capacity, filled with zeros.

        Zeros matter: a masked column is multiplied by 0, which would be NaN for an infinite number.
        """
        shapes = self._shapes(signature.name)
        shapes = {name: shape for name, shape in shapes.items() if name.startswith("kv_cache")}
        buffers = {name: self.model.create_input_buffer_by_name(signature.name, name) for name in shapes}
        cache = KVCache(signature, shapes, buffers)
        cache.write({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
        return cache

    def run(self, signature: Signature, cache: KVCache, inputs: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Run a graph. The cache is extended in place. Returns the logits, float32 [batch, seq, n_vocab], if any."""
        name = signature.name
        with self.lock:
            if name not in self.inputs:
                self.inputs[name] = {key: self.model.create_input_buffer_by_name(name, key) for key in inputs}
                if signature.logits:
                    self.inputs[name]["logits"] = self.model.create_output_buffer_by_name(name, "logits")
            buffers = dict(self.inputs[name])
            outputs = dict(cache.buffers)
            if signature.logits:
                outputs["logits"] = buffers.pop("logits")
            for key, array in inputs.items():
                buffers[key].write(array)
            self.model.run_by_name(name, buffers | cache.buffers, outputs)
            if not signature.logits:
                return None
            shape = [signature.batch, signature.seq, -1]
            size = signature.batch * signature.seq * self.n_vocab
            return outputs["logits"].read(size, np.float32).reshape(shape)

    def _shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        details = self.model.get_input_tensor_details(name)
        return {key: tuple(detail["shape"]) for key, detail in details.items()}
