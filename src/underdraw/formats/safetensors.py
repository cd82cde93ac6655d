"""The safetensors format: a JSON header of names, types, shapes and byte ranges, then the bytes.

Read here rather than by the `safetensors` package, because views of one memory map cost nothing
while its numpy interface copies each tensor, and because every fault is to be told in words.
Format: https://github.com/huggingface/safetensors#format
"""

import json
import mmap
from math import prod
from pathlib import Path
from typing import Any

from underdraw.errors import WeightError
from underdraw.formats.stored import NUMPY_DTYPES, Checkpoint, StoredTensor, looks_like, view

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
MAX_HEADER = 100_000_000  # the format's own limit


def read_safetensors(path: Path, mapped: mmap.mmap) -> Checkpoint:
    """Check the header of a mapped file to the byte and return its tensors unread."""
    header, start = _header(path, mapped)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise WeightError(f"{path}: damaged header: __metadata__ is not a mapping")
    data_size = len(mapped) - start
    tensors: dict[str, StoredTensor] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(path, name, entry)
        tensors[name] = _tensor(mapped, dtype, shape, start + begin)
        ranges.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(ranges):
        if begin != position:
            fault = "overlaps the one before it" if begin < position else "leaves a gap before it"
            raise WeightError(f"{path}: damaged header: tensor {name!r} {fault}")
        position = end
    if position > data_size:
        raise WeightError(
            f"{path}: truncated: the header promises {position:,} bytes of numbers, "
            f"the file holds {data_size:,}; download or copy it again"
        )
    if position < data_size:
        raise WeightError(
            f"{path}: damaged: {data_size - position:,} bytes after the last tensor belong to none"
        )
    return Checkpoint(tensors, metadata)


def _header(path: Path, mapped: mmap.mmap) -> tuple[dict[str, Any], int]:
    size = len(mapped)
    length = int.from_bytes(mapped[:8], "little")
    what = looks_like(mapped[:512])
    if what and what != "a safetensors file":
        raise WeightError(f"{path}: not a safetensors file but {what}")
    if size < 8 or length > MAX_HEADER or (what is None and size > 9):
        raise WeightError(f"{path}: not a safetensors file")
    if length + 8 > size:
        raise WeightError(
            f"{path}: truncated: the header alone takes {length:,} bytes, the file has {size:,}"
        )
    try:
        header = json.loads(mapped[8 : 8 + length], object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise WeightError(f"{path}: damaged header: {error}") from error
    if not isinstance(header, dict):
        raise WeightError(f"{path}: damaged header: not a mapping")
    return header, 8 + length


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return mapping


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    fault = f"{path}: damaged header: tensor {name!r} "
    try:
        code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightError(f"{fault}lacks a dtype, a shape or offsets") from error
    numbers = (*shape, begin, end)
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers) or end < begin:
        raise WeightError(f"{fault}has shape {list(shape)} at bytes {begin} to {end}")
    if not isinstance(code, str) or code not in DTYPES:
        raise WeightError(
            f"{path}: tensor {name!r} is of type {code!r}; readable are {', '.join(DTYPES)}"
        )
    dtype = DTYPES[code]
    needed = prod(shape) * NUMPY_DTYPES[dtype].itemsize
    if end - begin != needed:
        raise WeightError(f"{fault}needs {needed:,} bytes and is given {end - begin:,}")
    return dtype, shape, begin, end


def _tensor(mapped: mmap.mmap, dtype: str, shape: tuple[int, ...], offset: int) -> StoredTensor:
    count = prod(shape)
    return StoredTensor(dtype, shape, lambda: view(mapped, dtype, count, offset).reshape(shape))
