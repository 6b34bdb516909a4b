"""A tensor whose values are read from its file when they are needed."""

import dataclasses
import math
from pathlib import Path

import google_crc32c
import ml_dtypes  # noqa: F401 - registers "bfloat16" and the 8-bit floats with NumPy
import numpy as np

HALF_PRECISION = ("float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file. `np.asarray(tensor)` reads its values.

    Values of float16 and bfloat16 are returned as float32; other values keep the file's dtype.

    Attributes:
        path: the file.
        name: the tensor's name in the file, for error messages.
        dtype: NumPy's name of the dtype in the file, as "float32"; "bfloat16" is that of `ml_dtypes`.
        shape: the dimensions.
        offset: the position of the first byte in the file.
        size: the count of bytes.
        crc32c: the CRC32C of the bytes; None where the format stores no checksum.

    Raises:
        OSError: on reading, where the file can't be read.
        ValueError: on reading, where the file ends too early or the bytes fail the checksum.

    Example:
        >>> _ = Path("numbers").write_bytes(np.arange(6, dtype=np.float32).tobytes())
        >>> tensor = LazyTensor(Path("numbers"), "x", "float32", (2, 3), offset=0, size=24)
        >>> np.asarray(tensor)
        array([[0., 1., 2.],
               [3., 4., 5.]], dtype=float32)
        >>> tensor.read_range(4, 6)
        array([4., 5.], dtype=float32)
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    crc32c: int | None = None

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        content = self._read(self.offset, self.size)
        # google_crc32c accepts the array itself, so its bytes are not copied.
        if self.crc32c is not None and google_crc32c.value(content) != self.crc32c:
            raise self._damaged("its bytes fail the checksum")
        values = self._values(content).reshape(self.shape)
        return values if dtype is None else values.astype(dtype, copy=False)

    @property
    def count(self) -> int:
        """The count of values."""
        return math.prod(self.shape)

    def reshape(self, shape: tuple[int, ...]) -> "LazyTensor":
        """Return the same tensor with another shape of as many values."""
        return dataclasses.replace(self, shape=shape)

    def read_range(self, start: int, stop: int) -> np.ndarray:
        """Read the values `start` to `stop` of the flattened tensor, without checking the checksum: [stop - start]."""
        itemsize = np.dtype(self.dtype).itemsize
        return self._values(self._read(self.offset + start * itemsize, (stop - start) * itemsize))

    def _read(self, offset: int, size: int) -> np.ndarray:
        content = np.fromfile(self.path, np.uint8, count=size, offset=offset)
        if len(content) != size:
            raise self._damaged(f"{len(content):,} of {size:,} bytes are there")
        return content

    def _values(self, content: np.ndarray) -> np.ndarray:
        values = content.view(self.dtype)
        return values.astype(np.float32) if self.dtype in HALF_PRECISION else values

    def _damaged(self, reason: str) -> ValueError:
        return ValueError(f"{self.path}: {self.name} is damaged; fetch the file again ({reason})")
