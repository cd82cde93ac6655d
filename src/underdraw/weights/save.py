"""Writing weights and folders so that an interruption leaves what was there before.

A file is written beside its place under another name, flushed to disk and moved over the old one
in one step. A folder is prepared whole in a staging folder; only then are its files moved in, and
moved back if that fails.
"""

import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from underdraw.errors import InputError
from underdraw.formats.safetensors import DTYPES
from underdraw.formats.stored import NUMPY_DTYPES, StoredTensor, check_sizes, stored
from underdraw.weights import folders

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

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes(name, named[name]))

    _write_atomically(Path(path), write)


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a JSON object as diffusers and transformers do (sorted, two spaces), atomically."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    _write_atomically(Path(path), lambda file: file.write(text.encode()))


def save_weights(
    folder: str | os.PathLike[str],
    tensors: Tensors,
    *,
    stem: str = folders.STEMS[0],
    variant: str | None = None,
    max_shard_size: int | str = "10GB",
) -> list[str]:
    """Write `STEM[.VARIANT].safetensors`, or shards and their index, into a folder.

    Weights of the same variant that were there (other shards, pickles) are removed last, so that
    no reader finds two. `stem` is "diffusion_pytorch_model" for networks of diffusers, "model" for
    those of transformers. Returns the names of the files written.
    """
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9_]+", variant):
        raise InputError(f"variant={variant!r}; allowed are letters, digits and _")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    named = _as_stored(tensors)
    shards = _shards(named, _size(max_shard_size))
    base = f"{stem}.{variant}" if variant else stem
    if len(shards) == 1:
        written = [f"{base}.safetensors"]
        save_tensors(folder / written[0], named)
    else:
        count = len(shards)
        written = [f"{base}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        places = {}
        for name, shard in zip(written, shards, strict=True):
            save_tensors(folder / name, {key: named[key] for key in shard})
            places.update(dict.fromkeys(shard, name))
        index = f"{stem}.safetensors.index.{f'{variant}.' if variant else ''}json"
        total = sum(tensor.nbytes for tensor in named.values())
        write_json(folder / index, {"metadata": {"total_size": total}, "weight_map": places})
        written.append(index)
    for old in _outdated(folder, written):
        old.unlink(missing_ok=True)
    return written


@contextmanager
def writing_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A staging folder that becomes `folder` when the block ends well, and vanishes when not.

    A new folder appears in one step. Into a folder that exists the files are moved one by one,
    index files last; other files in it stay, weights replaced by weights of another form
    (`save_weights`) go. If moving fails or is interrupted (Ctrl-C), everything is moved back. Only
    a process killed outright between two of these renames leaves old and new files side by side,
    each of them whole.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; a folder to write into was expected")
    home = target if target.exists() else target.parent
    home.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.saving-", dir=home))
    try:
        new = staging / "new"
        new.mkdir()
        yield new
        if target.exists():
            _move_into(new, target, staging / "old")
        else:
            os.rename(new, target)
        _sync_folder(home)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_into(new: Path, target: Path, old: Path) -> None:
    files = [path.relative_to(new) for path in new.rglob("*") if path.is_file()]
    files.sort(key=lambda p: (p.name.endswith(".json"), p.name == folders.MODEL_INDEX, str(p)))
    by_folder: dict[Path, list[str]] = {}
    for file in files:
        by_folder.setdefault(file.parent, []).append(file.name)
    outdated = [
        path.relative_to(target)
        for place, names in by_folder.items()
        for path in _outdated(target / place, names)
    ]
    undo: list[Callable[[], None]] = []
    try:
        for file in files:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            if (target / file).exists():
                _keep(target / file, old / file, undo)
            else:
                undo.append(lambda place=target / file: place.unlink(missing_ok=True))
            os.replace(new / file, target / file)
        for file in outdated:
            _keep(target / file, old / file, undo)
            (target / file).unlink()
    except BaseException:
        for step in reversed(undo):
            step()
        raise


def _keep(path: Path, backup: Path, undo: list[Callable[[], None]]) -> None:
    """Give a file that is about to go a second name, from which it can be restored."""
    if not path.exists():
        return
    backup.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, backup)
    except OSError:  # file systems without hard links
        shutil.copy2(path, backup)
    undo.append(lambda: os.replace(backup, path))


def _outdated(folder: Path, written: list[str]) -> list[Path]:
    """Weight files of a folder that stand for the same weights as those just written."""
    kinds = {parsed.variant for parsed in map(folders.parse, written) if parsed}
    if not kinds or not folder.is_dir():
        return []
    return [
        path
        for path in folder.iterdir()
        if path.name not in written
        and (parsed := folders.parse(path.name))
        and parsed.variant in kinds
    ]


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
        raise InputError(f"max_shard_size={size!r}; wanted bytes, or a text such as '5GB'")
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


def _write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    beside = path.with_name(f".{path.name}.saving-{secrets.token_hex(4)}")
    try:
        with open(beside, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
