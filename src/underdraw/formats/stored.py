"""Tensors that stay in their file until somebody asks for their numbers."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from underdraw.errors import WeightError

# What `StoredTensor.dtype` may say, and the numpy type its `load()` gives. numpy has no bfloat16
# and no 8-bit floats: their bits come as unsigned integers of the same width.
NUMPY_DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float8_e4m3fn": np.dtype("u1"),
    "float8_e5m2": np.dtype("u1"),
    "complex64": np.dtype("<c8"),
    "complex128": np.dtype("<c16"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint64": np.dtype("<u8"),
    "uint32": np.dtype("<u4"),
    "uint16": np.dtype("<u2"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}


MAX_NAME = 1000
"""The longest name of a tensor; published ones have up to 200 characters."""
MAX_AXES = 32  # numpy's limit in its first versions


def are_indices(numbers: Sequence[Any]) -> bool:
    """Whether these can be the sides or strides of an array: few, whole, not negative."""
    return len(numbers) <= MAX_AXES and all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)


def possible(shape: Sequence[int]) -> bool:
    """Whether numpy makes arrays of such sides: it refuses those with too many numbers, also where
    a side of 0 leaves none."""
    return prod(n or 1 for n in shape) < 1 << 59


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file (or anywhere): what it is, and how to get its numbers.

    `dtype` is a key of `NUMPY_DTYPES`; `load()` returns an array of `shape` in
    `NUMPY_DTYPES[dtype]` (bfloat16 as its bits in uint16), a view of the file where possible.
    `source` is told where the numbers of a file may stand in several tensors, or several times in
    one: `check_sizes` then sees to it that a small file does not become large arrays.
    """

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray] = field(repr=False, compare=False)
    source: "Source | None" = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes they take when written contiguously."""
        return self.size * NUMPY_DTYPES[self.dtype].itemsize

    def derive(
        self, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]
    ) -> "StoredTensor":
        """The tensor that `change` makes of this one (a slice, another shape), still unread."""
        load = self.load
        return StoredTensor(self.dtype, shape, lambda: change(load()), self.source)

    def reshape(self, shape: tuple[int, ...]) -> "StoredTensor":
        """The same numbers in another shape of the same size."""
        return self.derive(shape, lambda array: array.reshape(shape))


@dataclass(frozen=True, eq=False)
class Source:
    """A file in which tensors may share numbers."""

    name: str
    nbytes: int


def check_sizes(tensors: Iterable[StoredTensor]) -> None:
    """To be called before numbers are copied: refuses tensors that are together far larger than
    the files they are in, as views of one number as a terabyte are, or the same storage a thousand
    times. Some are always shared: tied weights, expanded buffers, zeros that were compressed.

    Raises WeightError with the name of the file.
    """
    shown: dict[Source, int] = {}
    for tensor in tensors:
        if (source := tensor.source) is not None:
            shown[source] = shown.get(source, 0) + tensor.nbytes
    for source, nbytes in shown.items():
        if nbytes > SHARED * source.nbytes + SMALL:
            raise WeightError(
                f"{source.name}: its tensors are views of {nbytes:,} bytes together, and the file "
                f"has {source.nbytes:,}; allowed are {SHARED} times as many"
            )


SHARED = 4
SMALL = 1 << 28
"""Bytes that tensors may have together in any file."""


def stored(array: np.ndarray, dtype: str | None = None) -> StoredTensor:
    """Wrap a numpy array. `dtype` is needed only where numpy cannot say it (bfloat16 bits)."""
    name = dtype or array.dtype.name
    if name not in NUMPY_DTYPES:
        known = ", ".join(NUMPY_DTYPES)
        raise WeightError(f"an array of dtype {name!r} cannot be a weight; known are {known}")
    wanted = NUMPY_DTYPES[name]
    if array.dtype != wanted:  # ml_dtypes' bfloat16, or big-endian numbers
        same_bits = array.dtype.itemsize == wanted.itemsize and array.dtype.kind == "V"
        array = array.view(wanted) if same_bits else array.astype(wanted)
    return StoredTensor(name, array.shape, lambda: array)


@dataclass(frozen=True)
class Checkpoint:
    """An opened file: tensors by name, and whatever text and numbers came beside them."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, Any]


def view(buffer: Any, dtype: str, count: int, offset: int) -> np.ndarray:
    """`count` numbers of `buffer` from byte `offset` on, writable without touching the file."""
    kind = NUMPY_DTYPES[dtype]
    if count == 0:
        return np.empty(0, kind)
    array = np.frombuffer(buffer, kind, count, offset)
    # Old writers did not align; frameworks may read such pointers wrongly, so these are copied.
    return array if array.flags.aligned else array.copy()


class Window(io.RawIOBase):
    """Bytes in memory as a file read from `start` on, without a copy of what follows. A single
    read of more than `most` bytes raises ValueError."""

    def __init__(self, data: Any, start: int = 0, most: int | None = None):
        self.data, self.at, self.most = data, start, most

    def read(self, size: int | None = -1) -> bytes:
        end = len(self.data)
        if size is not None and size >= 0:
            end = min(self.at + size, end)
        if self.most is not None and end - self.at > self.most:
            raise ValueError(f"a part of {end - self.at:,} bytes; allowed are {self.most:,}")
        chunk = bytes(self.data[self.at : end])
        self.at += len(chunk)
        return chunk

    def readline(self, size: int | None = -1) -> bytes:
        end = self.data.find(b"\n", self.at, self.at + (1 << 20)) + 1
        return self.read(end - self.at if end else 0)

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = max(0, offset + (0, self.at, len(self.data))[whence])
        return self.at

    def tell(self) -> int:
        return self.at

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def looks_like(head: bytes) -> str | None:
    """What a file that begins with `head` really is, in words; None where nobody can tell."""
    text = head.lstrip()[:64].lower()
    if _safetensors_start(head):  # first: its length bytes may look like anybody's magic number
        return "a safetensors file"
    if head.startswith(b"version https://git-lfs"):
        return (
            "a Git LFS pointer (a text of a few lines), not the weights: "
            "run `git lfs pull` in that folder, or download the file itself"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not weights: the download gave an HTML page (a login or an error?)"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "a zip archive (the way PyTorch writes .bin, .ckpt, .pt and .pth files)"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle (the way old PyTorch wrote .bin, .ckpt, .pt and .pth files)"
    if head.startswith(b"\x1f\x8b"):
        return "a gzip archive: unpack it first"
    if head.startswith(b"GGUF"):
        return "a GGUF file (quantised weights of llama.cpp), which is not read"
    if head.startswith(b"7z\xbc\xaf") or head[257:262] == b"ustar":
        return "an archive (7z or tar): unpack it first"
    if head.startswith(b"\x93NUMPY"):
        return "an array of numpy (.npy)"
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")):
        return "a picture"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file (Keras weights)"
    if text.startswith((b"{", b"[")):
        return "a JSON text, not weights"
    if not any(head):
        return "nothing but zero bytes (an unfinished download?)"
    return None


def _safetensors_start(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 28
