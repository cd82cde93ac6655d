"""PyTorch checkpoints (`torch.save`, zip files and the older form) read without running them.

A pickle is a program. `formats/pickle_machine.py` carries it out over a closed world of plain
values and stubs; this file knows the two containers, and turns what came out into tensors that
are views of the mapped file (storage offsets, strides and shared storages included).
"""

import mmap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from underdraw.errors import WeightError
from underdraw.formats.archives import open_archive, read_entry
from underdraw.formats.opening import map_file
from underdraw.formats.pickle_machine import (
    MAX_PROGRAM,
    Global,
    LazyTensor,
    PickleError,
    Storage,
    Stub,
    run,
)
from underdraw.formats.stored import (
    MAX_NAME,
    NUMPY_DTYPES,
    SMALL,
    Checkpoint,
    Source,
    StoredTensor,
    check_sizes,
    looks_like,
    view,
)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_DEPTH = 128  # of dictionaries inside dictionaries, or objects that stand for some
INFLATED = 8
"""How many times larger than the file what was compressed may be; weights hardly shrink."""


def read_pickle(path: Path, mapped: mmap.mmap) -> Checkpoint:
    """Tensors of a mapped `torch.save` file by name.

    A Lightning checkpoint's `state_dict` is taken out of its wrapping; of other nested
    dictionaries the names are joined by dots (`model.conv_in.weight`).
    """
    try:
        root, locate = _read(path, mapped)
        lazy, metadata = _collect(root)
        source = Source(str(path), len(mapped))
        tensors = {name: _stored(source, name, t, locate) for name, t in lazy.items()}
    except PickleError as error:
        raise WeightError(f"{path}: {error}") from error
    return Checkpoint(tensors, metadata)


def read_values(path: Path, make: Callable[[StoredTensor], Any]) -> Any:
    """All that a `torch.save` file holds, where that is dictionaries, lists, tuples, numbers and
    texts around tensors: a state of training. `make` gives what is to stand for each tensor.

    Raises NotFoundError without a file, WeightError for one that is damaged or holds anything else.
    """
    mapped = map_file(path)
    try:
        root, locate = _read(path, mapped)
        source = Source(str(path), len(mapped))
        tensors = _flatten(root)
        stored = {id(t): _stored(source, name, t, locate) for name, t in tensors.items()}
        check_sizes(stored.values())
        return _Values(lambda tensor: make(stored[id(tensor)])).of(root)
    except PickleError as error:
        raise WeightError(f"{path}: {error}") from error


def _read(path: Path, mapped: mmap.mmap) -> tuple[Any, Any]:
    """The value of the main pickle, and what finds the bytes of a storage."""
    if mapped[:4] == b"PK\x03\x04":
        return _read_zip(mapped)
    if mapped[:1] == b"\x80":
        return _read_legacy(mapped)
    what = looks_like(mapped[:512]) or "something unknown"
    raise WeightError(f"{path}: not a PyTorch checkpoint but {what}")


# ---- containers -------------------------------------------------------------------------------


class _ZipStorages:
    """Finds the bytes of a storage in the archive: in the map itself where they are stored plain,
    inflated at each reading where somebody compressed them."""

    def __init__(self, mapped: mmap.mmap, archive: zipfile.ZipFile, folder: str):
        self.mapped, self.archive, self.folder = mapped, archive, folder
        self.compressed: set[str] = set()
        self.inflated = 0  # bytes of these entries

    def __call__(self, storage: Storage) -> Any:
        name = f"{self.folder}data/{storage.key}"
        try:
            info = self.archive.getinfo(name)
        except KeyError:
            raise PickleError(f"damaged: the archive has no entry {name!r}") from None
        if info.file_size != storage.nbytes:
            raise PickleError(
                f"damaged: {name!r} has {info.file_size:,} bytes, its tensors need "
                f"{storage.nbytes:,}"
            )
        if info.compress_type == zipfile.ZIP_DEFLATED:
            self._check_inflated(info)
            return lambda: (bytearray(_entry(self.archive, name, storage.nbytes)), 0)
        if info.compress_type != zipfile.ZIP_STORED:
            raise PickleError(f"entry {name!r} is compressed in a way that torch never uses")
        start = self._start(info)
        return lambda: (self.mapped, start)

    def _check_inflated(self, info: zipfile.ZipInfo) -> None:
        if info.filename not in self.compressed:
            self.compressed.add(info.filename)
            self.inflated += info.file_size
        if self.inflated > INFLATED * len(self.mapped) + SMALL:
            raise PickleError(
                f"its compressed tensors are over {self.inflated:,} bytes, and the file has "
                f"{len(self.mapped):,}; allowed are {INFLATED} times as many"
            )

    def _start(self, info: zipfile.ZipInfo) -> int:
        # The local header repeats name and extra field with lengths of its own (torch pads there).
        at = info.header_offset
        local = self.mapped[at : at + 30]
        if local[:4] != b"PK\x03\x04":
            raise PickleError(f"damaged: no entry begins where {info.filename!r} should")
        start = at + 30 + int.from_bytes(local[26:28], "little")
        start += int.from_bytes(local[28:30], "little")
        if info.flag_bits & 1 or start + info.file_size > len(self.mapped):
            raise PickleError(f"damaged: entry {info.filename!r} is encrypted or cut off")
        return start


def _read_zip(mapped: mmap.mmap) -> tuple[Any, Any]:
    try:
        archive = open_archive(mapped)
    except zipfile.BadZipFile as error:
        raise PickleError(
            "truncated or damaged: a zip archive (torch.save) without its list of contents; "
            "download or copy it again"
        ) from error
    names = archive.namelist()
    programs = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    folder = programs[0][: -len("data.pkl")] if len(programs) == 1 else ""
    if len(folder) > MAX_NAME:
        raise PickleError(f"damaged: a folder inside has a name of {len(folder):,} characters")
    if f"{folder}constants.pkl" in names:
        raise PickleError("a TorchScript program (torch.jit.save), not a checkpoint of tensors")
    if len(programs) != 1:
        raise PickleError(f"a zip archive, but not one of torch.save: {len(programs)} data.pkl")
    if f"{folder}byteorder" in names:
        order = _entry(archive, f"{folder}byteorder", 64)
        if order != b"little":
            raise PickleError(f"written on a big-endian machine (byteorder {order[:16]!r})")
    root, _ = run(_entry(archive, programs[0]), 0, _zip_storage)
    return root, _ZipStorages(mapped, archive, folder)


def _entry(archive: zipfile.ZipFile, name: str, limit: int | None = None) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > (MAX_PROGRAM if limit is None else limit):
        raise PickleError(f"entry {name!r} of {info.file_size:,} bytes is no checkpoint's")
    try:
        return read_entry(archive, info)
    except zipfile.BadZipFile as error:
        raise PickleError(f"damaged: entry {name!r} cannot be read: {error}") from error


def _read_legacy(mapped: mmap.mmap) -> tuple[Any, Any]:
    magic, at = run(mapped, 0, _no_storage)
    if magic != LEGACY_MAGIC:
        raise PickleError(
            "a pickle, but not one of torch.save; tensors in other pickles are not read"
        )
    protocol, at = run(mapped, at, _no_storage)
    system, at = run(mapped, at, _no_storage)
    if protocol != LEGACY_PROTOCOL:
        raise PickleError(f"torch.save protocol {protocol!r}; known is {LEGACY_PROTOCOL}")
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise PickleError("written on a big-endian machine")
    sizes: dict[str, Storage] = {}

    def storage(saved: Any) -> Any:
        if isinstance(saved, tuple) and len(saved) == 4 and saved[0] == "module":
            return saved[1]  # a class, with its source code beside it
        found = _legacy_storage(saved)
        return sizes.setdefault(found.key, found)

    root, at = run(mapped, at, storage)
    keys, at = run(mapped, at, _no_storage)
    if not isinstance(keys, list) or not all(type(key) in (str, int) for key in keys):
        raise PickleError("damaged: no list of storages after the tensors")
    starts: dict[str, int] = {}
    for key in map(str, keys):
        if key not in sizes:
            raise PickleError(f"damaged: storage {key!r} belongs to no tensor")
        count = int.from_bytes(mapped[at : at + 8], "little")
        if at + 8 + sizes[key].nbytes > len(mapped):
            raise PickleError("truncated: the file ends inside its tensors; copy it again")
        if count != sizes[key].count:
            raise PickleError(
                f"damaged: storage {key!r} holds {count:,} numbers, "
                f"{sizes[key].count:,} were announced"
            )
        starts[key] = at + 8
        at += 8 + sizes[key].nbytes

    def locate(storage: Storage) -> Any:
        if storage.key not in starts:
            raise PickleError(f"damaged: storage {storage.key!r} is missing")
        start = starts[storage.key]
        return lambda: (mapped, start)

    return root, locate


# ---- what persistent ids mean -----------------------------------------------------------------


def _zip_storage(saved: Any) -> Storage:
    """('storage', type, key, location, count)."""
    if not isinstance(saved, tuple) or len(saved) != 5 or saved[0] != "storage":
        raise PickleError(f"damaged: a persistent id that is no storage: {type(saved).__name__}")
    return Storage.named(saved[1], saved[2], saved[4])


def _legacy_storage(saved: Any) -> Storage:
    """The same and a sixth: None, or (key, offset, count) of a view, which only PyTorch before
    0.4 wrote."""
    if not isinstance(saved, tuple) or len(saved) not in (5, 6) or saved[0] != "storage":
        raise PickleError("damaged or too old: a persistent id that is no storage")
    if len(saved) == 6 and saved[5] is not None:
        raise PickleError("storage views of PyTorch before 0.4 are not read")
    return Storage.named(saved[1], saved[2], saved[4])


def _no_storage(saved: Any) -> Storage:
    raise PickleError("damaged: a tensor where none can be")


# ---- from values to named tensors -------------------------------------------------------------


def _collect(root: Any) -> tuple[dict[str, LazyTensor], dict[str, Any]]:
    metadata: dict[str, Any] = {}
    root = _items(root)
    if isinstance(root, dict):
        plain = (str, int, float, bool)
        metadata = {k: v for k, v in root.items() if type(k) is str and type(v) in plain}
        inner = _items(root.get("state_dict"))
        if isinstance(inner, dict):
            root = inner
    elif isinstance(root, LazyTensor):
        return {"": root}, metadata
    tensors = {} if isinstance(root, Stub) else _flatten(root)
    if not tensors:
        kind = f"an object of {root.name!r}" if isinstance(root, Stub) else "no named tensors"
        raise PickleError(f"holds {kind}; a dictionary of tensors (a state dict) was expected")
    return tensors, metadata


def _items(value: Any) -> Any:
    """Subclasses of dict come as stubs with items; what they hold counts, not what they are."""
    return value.items if isinstance(value, Stub) and value.items else value


def _flatten(root: Any) -> dict[str, LazyTensor]:
    """Walk dictionaries, lists and what stubs were given; each container once, so that loops and
    towers of references end, and one at a time, so that names are not made of what names nothing.
    """
    tensors: dict[str, LazyTensor] = {}
    seen: set[int] = set()
    stack: list[Iterator[tuple[str, Any]]] = [iter([("", root)])]
    while stack:
        for name, value in stack[-1]:
            if not isinstance(value, LazyTensor | Stub | dict | list | tuple):
                continue
            if len(name) > MAX_NAME:
                raise PickleError(f"damaged: a name of over {MAX_NAME:,} characters")
            if isinstance(value, LazyTensor):
                if name in tensors:
                    raise PickleError(f"two tensors are called {name!r}")
                tensors[name] = value
            elif id(value) not in seen and len(stack) <= MAX_DEPTH:
                seen.add(id(value))
                stack.append(_children(name, value))
                break
        else:
            stack.pop()
    return tensors


def _children(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Stub):  # which adds nothing to the names of its parts
        return ((name, part) for part in value.parts())
    prefix = f"{name}." if name else ""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return ((f"{prefix}{key}", part) for key, part in items)


class _Values:
    """Copies a tree of plain values; what occurs in several places is copied once."""

    def __init__(self, make: Callable[[LazyTensor], Any]):
        self.make = make
        self.done: dict[int, Any] = {}
        self.doing: set[int] = set()

    def of(self, value: Any) -> Any:
        if isinstance(value, Stub | Global | Storage):
            raise PickleError(f"holds {value!r:.80}, which is no plain value")
        if not isinstance(value, LazyTensor | dict | list | tuple):
            return value
        if id(value) not in self.done:
            if id(value) in self.doing or len(self.doing) > MAX_DEPTH:
                raise PickleError("damaged: values inside of one another without an end")
            self.doing.add(id(value))
            self.done[id(value)] = self._copy(value)
            self.doing.discard(id(value))
        return self.done[id(value)]

    def _copy(self, value: Any) -> Any:
        if isinstance(value, LazyTensor):
            return self.make(value)
        if isinstance(value, dict):
            return {key: self.of(part) for key, part in value.items()}
        parts = [self.of(part) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts


def _stored(source: Source, name: str, tensor: LazyTensor, locate: Any) -> StoredTensor:
    storage, dtype = tensor.storage, tensor.dtype
    itemsize = NUMPY_DTYPES[dtype].itemsize
    count = storage.nbytes // itemsize
    size, stride, first = tensor.size, tensor.stride, tensor.offset
    empty = 0 in size
    last = first + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if not empty and last >= count:
        raise PickleError(
            f"damaged: tensor {name!r} of shape {list(size)} reaches number {last:,} of a "
            f"storage of {count:,}"
        )
    find = locate(storage)

    def load() -> np.ndarray:
        if empty:
            return np.empty(size, NUMPY_DTYPES[dtype])
        try:
            buffer, start = find()
        except PickleError as error:  # only compressed entries are read this late
            raise WeightError(f"{source.name}: {error}") from error
        # Only the span this tensor touches: a copy of unaligned numbers then stays small.
        flat = view(buffer, dtype, last - first + 1, start + first * itemsize)
        # Along a side of 1 any stride will do, and a file may name one that numpy cannot hold.
        strides = tuple(
            step * itemsize if n > 1 else itemsize for n, step in zip(size, stride, strict=True)
        )
        return np.lib.stride_tricks.as_strided(flat, size, strides)

    return StoredTensor(dtype, size, load, source)
