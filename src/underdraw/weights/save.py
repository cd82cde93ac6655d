"""Writing weights and their configs so that an interruption leaves what was there before."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from underdraw.errors import InputError
from underdraw.formats.safetensors import DTYPES
from underdraw.formats.stored import NUMPY_DTYPES, StoredTensor, check_sizes, stored
from underdraw.formats.writing import write_file, writing_file
from underdraw.shown import shown
from underdraw.weights import folders
from underdraw.weights.atomic import writing_folder

CODES = {ours: theirs for theirs, ours in DTYPES.items()}
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

Tensors = Mapping[str, "np.ndarray | StoredTensor"]


def save_tensors(
    path: str | os.PathLike[str], tensors: Tensors, metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file, atomically, one tensor in memory at a time.

    `metadata` is text by text; `{"format": "pt"}`, the default, is what diffusers and transformers
    look for.
    """
    named = _as_stored(tensors)
    # Widest types first: every tensor is then aligned to its type. Else by name, as others do.
    order = sorted(named, key=lambda n: (-NUMPY_DTYPES[named[n].dtype].itemsize, n))
    metadata = {"format": "pt"} if metadata is None else dict(metadata)
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise InputError(f"metadata must be text by text; got {metadata!r}")
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name in order:
        tensor = named[name]
        header[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    with writing_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes(name, named[name]))


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a JSON object as diffusers and transformers do (sorted, two spaces), atomically."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_file(path, text.encode())


def save_weights(
    folder: str | os.PathLike[str],
    tensors: Tensors,
    *,
    stem: str = folders.STEMS[0],
    variant: str | None = None,
    max_shard_size: int | str = "10GB",
    config: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write `STEM[.VARIANT].safetensors`, or shards and their index, into a folder, atomically.

    Weights of the same variant that were there (other shards, pickles) go. `stem` is
    "diffusion_pytorch_model" for networks of diffusers, "model" for those of transformers. A
    `config` comes along as `config.json`. Returns the names of the weight files written.
    """
    named = _as_stored(tensors)
    shards = _shards(named, _size(max_shard_size))
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9_]+", variant):
        raise InputError(f"variant={variant!r}; allowed are letters, digits and _")
    with writing_folder(folder) as new:
        if config is not None:
            write_json(new / "config.json", config)
        return _write_weights(new, named, shards, stem, variant)


def _write_weights(
    folder: Path,
    named: dict[str, StoredTensor],
    shards: list[list[str]],
    stem: str,
    variant: str | None,
) -> list[str]:
    base = f"{stem}.{variant}" if variant else stem
    if len(shards) == 1:
        written = [f"{base}.safetensors"]
        save_tensors(folder / written[0], named)
        return written
    count = len(shards)
    written = [f"{base}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    places = {}
    for name, shard in zip(written, shards, strict=True):
        save_tensors(folder / name, {key: named[key] for key in shard})
        places.update(dict.fromkeys(shard, name))
    index = f"{stem}.safetensors.index.{f'{variant}.' if variant else ''}json"
    total = sum(tensor.nbytes for tensor in named.values())
    write_json(folder / index, {"metadata": {"total_size": total}, "weight_map": places})
    return [*written, index]


def _as_stored(tensors: Tensors) -> dict[str, StoredTensor]:
    named = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not name or name == "__metadata__":
            raise InputError(f"{name!r} cannot be the name of a tensor")
        tensor = tensor if isinstance(tensor, StoredTensor) else stored(np.asarray(tensor))
        if tensor.dtype not in CODES:
            raise InputError(f"{name}: safetensors files hold no {tensor.dtype}")
        named[name] = tensor
    check_sizes(named.values())
    return named


def _bytes(name: str, tensor: StoredTensor) -> Any:
    array = tensor.load()
    if array.shape != tensor.shape or array.dtype != NUMPY_DTYPES[tensor.dtype]:
        raise InputError(
            f"{name}: loading gave {array.dtype} {list(array.shape)}, announced was "
            f"{tensor.dtype} {list(tensor.shape)}"
        )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _size(size: int | str) -> int:
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?i?B)\s*", size, re.IGNORECASE)
        number = int(float(found[1]) * UNITS[found[2].upper()]) if found else 0
    else:
        number = size
    if number <= 0:
        raise InputError(f"max_shard_size={shown(size)}; wanted bytes, or a text such as '5GB'")
    return number


def _shards(named: dict[str, StoredTensor], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in named.items():
        if shards[-1] and filled + tensor.nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.nbytes
    return shards
