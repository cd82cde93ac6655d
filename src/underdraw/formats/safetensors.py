"""The safetensors format: a JSON header of names, types, shapes and byte ranges, then the bytes.

Read here rather than by the `safetensors` package, because views of one memory map cost nothing
while its numpy interface copies each tensor, and because every fault is to be told in words.
Format: https://github.com/huggingface/safetensors#format
"""

import mmap
from math import prod
from pathlib import Path
from typing import Any

from underdraw.errors import WeightError
from underdraw.formats.json_text import Limits, parse
from underdraw.formats.opening import MB
from underdraw.formats.stored import (
    MAX_NAME,
    NUMPY_DTYPES,
    Checkpoint,
    StoredTensor,
    are_indices,
    looks_like,
    possible,
    view,
)

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
MAX_HEADER = 32 * MB
"""The format allows 100 MB; 10,000 tensors take 1 MB, and the tags of a training set a few."""
LIMITS = Limits(size=MAX_HEADER)


def read_safetensors(path: Path, mapped: mmap.mmap) -> Checkpoint:
    """Check the header of a mapped file to the byte and return its tensors unread."""
    header, start = _header(path, mapped)
    metadata = header.pop("__metadata__", {})
    texts = metadata.values() if isinstance(metadata, dict) else (None,)
    if not all(isinstance(text, str) for text in texts):
        raise WeightError(f"{path}: damaged header: __metadata__ does not map names to texts")
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
    if size < 8 or (what is None and size > 9):
        raise WeightError(f"{path}: not a safetensors file")
    if length + 8 > size:
        raise WeightError(
            f"{path}: truncated: the header alone takes {length:,} bytes, the file has {size:,}"
        )
    if length > MAX_HEADER:
        raise WeightError(f"{path}: a header of {length:,} bytes; allowed are {MAX_HEADER:,}")
    header = parse(mapped[8 : 8 + length], f"{path}: damaged header", LIMITS)
    if not isinstance(header, dict):
        raise WeightError(f"{path}: damaged header: not a mapping")
    return header, 8 + length


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    fault = f"{path}: damaged header: tensor {name[:200]!r} "
    if len(name) > MAX_NAME:
        raise WeightError(f"{fault}has a name of {len(name):,} characters")
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightError(f"{fault}lacks a dtype, a shape or offsets") from error
    told = f"{fault}has shape {shape!r:.80} at bytes {begin!r:.20} to {end!r:.20}"
    lists = isinstance(shape, list) and are_indices(shape) and are_indices((begin, end))
    if not lists or end < begin:
        raise WeightError(told)
    if not isinstance(code, str) or code not in DTYPES:
        raise WeightError(
            f"{path}: tensor {name!r} is of type {code!r:.80}; readable are {', '.join(DTYPES)}"
        )
    dtype = DTYPES[code]
    needed = prod(shape) * NUMPY_DTYPES[dtype].itemsize
    if end - begin != needed:
        raise WeightError(f"{fault}needs {needed:,} bytes and is given {end - begin:,}")
    if not possible(shape):
        raise WeightError(told)
    return dtype, tuple(shape), begin, end


def _tensor(mapped: mmap.mmap, dtype: str, shape: tuple[int, ...], offset: int) -> StoredTensor:
    count = prod(shape)
    return StoredTensor(dtype, shape, lambda: view(mapped, dtype, count, offset).reshape(shape))
