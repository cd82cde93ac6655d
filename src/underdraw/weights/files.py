"""Weight files opened as named tensors that stay on disk until somebody asks for their numbers.

``open_tensors(path)`` reads one ``.safetensors`` file or one PyTorch pickle (``.bin``, ``.ckpt``,
``.pt``, ``.pth``). It costs a header; the numbers are copy-on-write views of the file, so that
reading them takes page cache (shared, reclaimable) and no memory of the process, and writing to
them never reaches the file.
"""

import io
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from underdraw.errors import NotFoundError, WeightError

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
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file (or anywhere): what it is, and how to get its numbers.

    `dtype` is a key of `NUMPY_DTYPES`; `load()` returns an array of `shape` in
    `NUMPY_DTYPES[dtype]` (bfloat16 as its bits in uint16), a view of the file where possible.
    """

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray] = field(repr=False, compare=False)

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
        return StoredTensor(self.dtype, shape, lambda: change(load()))

    def reshape(self, shape: tuple[int, ...]) -> "StoredTensor":
        """The same numbers in another shape of the same size."""
        return self.derive(shape, lambda array: array.reshape(shape))


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


def open_tensors(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Tensors of one weight file by name, without reading their numbers.

    Raises NotFoundError where there is no file, WeightError (naming file and reason) where the
    file is damaged or is not what its name says.
    """
    return open_checkpoint(path).tensors


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """As `open_tensors`, with the metadata: `__metadata__` of a safetensors file, or the plain
    values at the top of a pickle (such as `global_step`)."""
    path = Path(path)
    if path.is_dir():
        raise WeightError(f"{path} is a folder; a weight file was expected")
    if not path.exists():
        raise NotFoundError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise WeightError(
            f"{path}: unknown kind of weight file {suffix!r}; known are {', '.join(SUFFIXES)}"
        )
    mapped = map_file(path)
    if suffix == ".safetensors":
        from underdraw.weights.safetensors import read_safetensors

        return read_safetensors(path, mapped)
    from underdraw.weights.pickles import read_pickle

    return read_pickle(path, mapped)


def map_file(path: Path) -> mmap.mmap:
    """The whole file as copy-on-write memory. Empty and unreadable files are WeightErrors."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise WeightError(f"{path}: the file is empty (0 bytes)")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise WeightError(f"{path}: cannot be read: {error.strerror or error}") from error


def view(buffer: Any, dtype: str, count: int, offset: int) -> np.ndarray:
    """`count` numbers of `buffer` from byte `offset` on, writable without touching the file."""
    kind = NUMPY_DTYPES[dtype]
    if count == 0:
        return np.empty(0, kind)
    array = np.frombuffer(buffer, kind, count, offset)
    # Old writers did not align; frameworks may read such pointers wrongly, so these are copied.
    return array if array.flags.aligned else array.copy()


class Window(io.RawIOBase):
    """Bytes in memory as a file read from `start` on, without a copy of what follows."""

    def __init__(self, data: Any, start: int = 0):
        self.data, self.at = data, start

    def read(self, size: int | None = -1) -> bytes:
        end = len(self.data)
        if size is not None and size >= 0:
            end = min(self.at + size, end)
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
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file (Keras weights)"
    if text.startswith((b"{", b"[")):
        return "a JSON text, not weights"
    if not any(head):
        return "nothing but zero bytes (an unfinished download?)"
    return None


def _safetensors_start(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 28
