"""Weight files opened as named tensors that stay on disk until somebody asks for their numbers.

``open_tensors(path)`` reads one ``.safetensors`` file or one PyTorch pickle (``.bin``, ``.ckpt``,
``.pt``, ``.pth``). It costs a header; the numbers are copy-on-write views of the file, so that
reading them takes page cache (shared, reclaimable) and no memory of the process, and writing to
them never reaches the file.
"""

import os
from pathlib import Path

from underdraw.errors import NotFoundError, WeightError
from underdraw.formats.msgpack import read_msgpack
from underdraw.formats.opening import map_file
from underdraw.formats.pickles import read_pickle
from underdraw.formats.safetensors import read_safetensors
from underdraw.formats.stored import Checkpoint, StoredTensor

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
FLAX = ".msgpack"
"""Weights of one network; names are paths with slashes (`weights.flax`)."""


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
    if os.path.isdir(path):
        raise WeightError(f"{path} is a folder; a weight file was expected")
    if not os.path.exists(path):  # which is False, too, for names that no file can have
        nowhere = " any more; the download is incomplete, run it again" if path.is_symlink() else ""
        raise NotFoundError(f"{path}: no such file{nowhere}")
    suffix = path.suffix.lower()
    if suffix not in (*SUFFIXES, FLAX):
        raise WeightError(
            f"{path}: unknown kind of weight file {suffix!r}; known are {', '.join(SUFFIXES)}"
        )
    mapped = map_file(path)
    if suffix == ".safetensors":
        return read_safetensors(path, mapped)
    if suffix == FLAX:
        found = read_msgpack(path, mapped)
        return Checkpoint({"/".join(names): tensor for names, tensor in found.items()}, {})
    return read_pickle(path, mapped)
