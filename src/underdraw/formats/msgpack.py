"""Flax's checkpoints: MessagePack maps of names, down to arrays.

An array is an extension of type 1 that holds `(shape, dtype, bytes)`, a scalar one of type 3; very
large arrays are maps of parts. Only heads are read here, by the `msgpack` package and a kilobyte at
a time: numbers stay in the file until somebody asks for them, and nothing that a file says is run.
Format: `flax.serialization`; https://github.com/msgpack/msgpack/blob/master/spec.md
"""

import mmap
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from underdraw.errors import InputError, WeightError
from underdraw.formats.stored import (
    MAX_NAME,
    NUMPY_DTYPES,
    StoredTensor,
    are_indices,
    looks_like,
    possible,
    view,
)

Flat = dict[tuple[str, ...], StoredTensor]
"""Tensors by the names that lead to them."""

HEAD = 1 << 12
"""Bytes that hold any head: a name, or shape and dtype of an array."""
DEPTH, ENTRIES = 64, 1 << 20
"""The most maps inside each other, and names in a file."""
ARRAY, SCALAR = 1, 3
FIXED = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
LENGTHS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
"""By the first byte of an extension its size, or how many bytes tell it."""
BINARY = {0xC4: 1, 0xC5: 2, 0xC6: 4}
"""By the first byte of a run of bytes how many bytes tell its size."""
CHUNKED, CHUNK = "__msgpack_chunked_array__", 1 << 30
"""The name that tells a map of parts, and the most bytes of an array in one piece."""


def packing() -> Any:
    """The `msgpack` package.

    Raises:
        InputError: it is not installed.
    """
    try:
        import msgpack
    except ImportError:
        raise InputError(
            "Flax's .msgpack files need the package msgpack: pip install 'underdraw[jax]'"
        ) from None
    return msgpack


# -- reading -----------------------------------------------------------------------------------
def read_msgpack(path: Path, mapped: mmap.mmap) -> Flat:
    """The tensors of a mapped file, unread.

    Raises:
        WeightError: it is damaged, or holds what no checkpoint does.
        InputError: the package `msgpack` is not installed.
    """
    what = looks_like(mapped[:512])
    if what:
        raise WeightError(f"{path}: not a MessagePack file but {what}")
    return _Reader(path, mapped).read()


class _Reader:
    """Walks over the heads of a file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size = path, data, len(data)
        self.package, self.entries = packing(), 0

    def read(self) -> Flat:
        found: Flat = {}
        at = self.map(0, (), found)
        if at != self.size:
            raise self.fault(f"{self.size - at:,} bytes after the last tensor belong to none")
        return found

    def map(self, at: int, path: tuple[str, ...], found: Flat) -> int:
        """Read the map at a place; where it ends."""
        count, at = self.head(at, "read_map_header", "a map of names")
        self.entries += count
        if len(path) >= DEPTH or self.entries > ENTRIES:
            raise self.fault(f"over {DEPTH} maps inside each other, or {ENTRIES:,} names")
        inside: Flat = {}
        for _ in range(count):
            name, at = self.head(at, "unpack", "a name")
            if not isinstance(name, str) or len(name) > MAX_NAME:
                raise self.fault(f"a name {name!r:.80}")
            here = (*path, name)
            first = self.byte(at)
            if first in FIXED or first in LENGTHS:
                tensor, at = self.array(at, here)
                if inside.setdefault(here, tensor) is not tensor:
                    raise self.fault(f"{'/'.join(here)!r} twice")
            elif name == CHUNKED:
                flag, at = self.head(at, "unpack", "a switch")
                return self.parts(at, path, found, count, bool(flag))
            elif first == 0xC0:  # nothing, for a part that a network does not have
                at += 1
            else:
                at = self.map(at, here, inside)
        for here, tensor in inside.items():
            if here in found:
                raise self.fault(f"{'/'.join(here)!r} twice")
            found[here] = tensor
        return at

    def parts(self, at: int, path: tuple[str, ...], found: Flat, count: int, flag: bool) -> int:
        """Read what follows the switch of an array in parts; where it ends."""
        sides: list[int] = []
        pieces: list[StoredTensor] = []
        for expected in ("shape", "chunks"):
            name, at = self.head(at, "unpack", "a name")
            entries, at = self.head(at, "read_map_header", "a map of parts")
            if name != expected or count != 3 or not flag or entries > ENTRIES:
                raise self.fault(f"{'/'.join(path)!r} is no array in parts")
            for number in range(entries):
                key, at = self.head(at, "unpack", "a number")
                if key != str(number):
                    raise self.fault(f"{'/'.join(path)!r} is no array in parts")
                if expected == "shape":
                    side, at = self.head(at, "unpack", "a side")
                    sides.append(side)
                else:
                    piece, at = self.array(at, path)
                    pieces.append(piece)
        dtypes = {piece.dtype for piece in pieces}
        whole = are_indices(sides) and possible(sides) and len(dtypes) == 1
        if not whole or sum(piece.size for piece in pieces) != prod(sides):
            raise self.fault(f"{'/'.join(path)!r} of shape {sides!r:.80} has other parts")

        def load() -> np.ndarray:
            return np.concatenate([piece.load().reshape(-1) for piece in pieces]).reshape(sides)

        if path in found:
            raise self.fault(f"{'/'.join(path)!r} twice")
        found[path] = StoredTensor(dtypes.pop(), tuple(sides), load)
        return at

    def array(self, at: int, path: tuple[str, ...]) -> tuple[StoredTensor, int]:
        """The array at a place, unread, and where it ends."""
        name, first = "/".join(path)[:200], self.byte(at)
        known = LENGTHS.get(first, 0)
        size = FIXED.get(first) or int.from_bytes(self.data[at + 1 : at + 1 + known], "big")
        code, begin = self.byte(at + 1 + known), at + 2 + known
        end = begin + size
        if end > self.size:
            raise self.fault(f"truncated: {name!r} needs bytes up to {end:,} of {self.size:,}")
        if code not in (ARRAY, SCALAR):
            raise self.fault(f"{name!r} is an extension of type {code}; readable are arrays")
        count, at = self.head(begin, "read_array_header", "an array")
        shape, at = self.head(at, "unpack", "a shape")
        dtype, at = self.head(at, "unpack", "a dtype")
        width = BINARY.get(self.byte(at), 0)
        length = int.from_bytes(self.data[at + 1 : at + 1 + width], "big")
        at += 1 + width
        told = f"{name!r} of dtype {dtype!r:.40} and shape {shape!r:.80}"
        if not isinstance(dtype, str) or dtype not in NUMPY_DTYPES:
            raise self.fault(f"{told}; readable are {', '.join(NUMPY_DTYPES)}")
        kind: str = dtype
        listed = isinstance(shape, list) and are_indices(shape) and possible(shape)
        needed = prod(shape) * NUMPY_DTYPES[kind].itemsize if listed else -1
        if count != 3 or not width or length != needed or at + length != end:
            raise self.fault(f"{told} has {length:,} bytes")
        sides, numbers = tuple(shape), prod(shape)
        return (
            StoredTensor(kind, sides, lambda: view(self.data, kind, numbers, at).reshape(sides)),
            end,
        )

    def head(self, at: int, method: str, what: str) -> tuple[Any, int]:
        """What the package reads at a place by one of its methods, and where it ends."""
        package = self.package
        # No value that is read whole is a map or bytes; of a map the head alone is read.
        most = ENTRIES if method == "read_map_header" else 0
        unpacker = package.Unpacker(
            max_buffer_size=HEAD, max_map_len=most, max_ext_len=0, max_bin_len=0
        )
        unpacker.feed(self.data[at : at + HEAD])
        try:
            value = getattr(unpacker, method)()
        except (package.exceptions.UnpackException, ValueError) as error:
            raise self.fault(f"damaged at byte {at:,}: {what} was expected") from error
        return value, at + unpacker.tell()

    def byte(self, at: int) -> int:
        if at >= self.size:
            raise self.fault(f"truncated after {self.size:,} bytes")
        return self.data[at]

    def fault(self, what: str) -> WeightError:
        return WeightError(f"{self.path}: {what}")


# -- writing -----------------------------------------------------------------------------------
def write_msgpack(file: BinaryIO, tree: Mapping[str, Any]) -> None:
    """Write maps of names down to `StoredTensor`s, one tensor in memory at a time."""
    packer = packing().Packer()
    for part in _packed(packer, tree):
        file.write(part)


def _packed(packer: Any, tree: Mapping[str, Any]) -> Iterator[Any]:
    yield packer.pack_map_header(len(tree))
    for name, value in tree.items():
        yield packer.pack(name)
        if isinstance(value, Mapping):
            yield from _packed(packer, value)
        elif value.nbytes > CHUNK:
            yield from _in_parts(packer, value)
        else:
            yield from _array(packer, value.dtype, value.shape, value.load())


def _in_parts(packer: Any, tensor: StoredTensor) -> Iterator[Any]:
    flat, step = tensor.load().reshape(-1), CHUNK // NUMPY_DTYPES[tensor.dtype].itemsize
    sides = {str(i): side for i, side in enumerate(tensor.shape)}
    yield packer.pack_map_header(3)
    yield packer.pack(CHUNKED) + packer.pack(True) + packer.pack("shape") + packer.pack(sides)
    yield packer.pack("chunks") + packer.pack_map_header(-(-flat.size // step))
    for i, start in enumerate(range(0, flat.size, step)):
        part = flat[start : start + step]
        yield packer.pack(str(i))
        yield from _array(packer, tensor.dtype, part.shape, part)


def _array(packer: Any, dtype: str, shape: tuple[int, ...], values: np.ndarray) -> Iterator[Any]:
    """The extension of an array, without a copy of its numbers beside it."""
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    head = packer.pack_array_header(3) + packer.pack(list(shape)) + packer.pack(dtype)
    code, width = next(
        (code, width) for code, width in BINARY.items() if len(raw) < 1 << (8 * width)
    )
    head += bytes([code]) + len(raw).to_bytes(width, "big")
    yield _extension(len(head) + len(raw)) + head
    yield raw


def _extension(size: int) -> bytes:
    """The head of an extension of this size."""
    fixed = next((code for code, length in FIXED.items() if length == size), None)
    if fixed is not None:
        return bytes([fixed, ARRAY])
    code, width = next((c, w) for c, w in LENGTHS.items() if size < 1 << (8 * w))
    return bytes([code]) + size.to_bytes(width, "big") + bytes([ARRAY])
