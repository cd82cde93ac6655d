"""numpy's files: arrays as views of the file, of exactly the size that the file has.

`numpy.load` allocates what a header asks for before it looks whether the numbers are there, and
inflates archives whatever they inflate to.
"""

import io
import zipfile
from math import prod
from typing import Literal

import numpy as np
from numpy.lib import format as npy

from underdraw.errors import WeightError
from underdraw.formats.archives import open_archive, read_entry
from underdraw.formats.opening import Name, map_file
from underdraw.formats.stored import are_indices, looks_like, possible

_HEADER = 10_000


def read_array(path: Name) -> np.ndarray:
    """The array in an `.npy` file, a view that is read when it is looked at; writing to it never
    reaches the file.

    Raises:
        NotFoundError: there is no file.
        WeightError: it holds no array of plain numbers, or not all of it.
    """
    mapped = map_file(path)
    shape, order, dtype, start = _header(io.BytesIO(mapped[: _HEADER + 64]), path, mapped[:512])
    _check_size(path, shape, dtype, len(mapped) - start)
    if not prod(shape):
        return np.empty(shape, dtype)
    return np.frombuffer(mapped, dtype, prod(shape), start).reshape(shape, order=order)


def read_arrays(path: Name) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by name, as `numpy.savez` writes them: not compressed. Raises as
    `read_array`."""
    mapped = map_file(path)
    try:
        archive = open_archive(mapped)
        entries = archive.infolist()
        plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not plain or sum(entry.file_size for entry in entries) > len(mapped):
            raise WeightError(f"{path} is no archive that numpy.savez writes")
        return {
            entry.filename.removesuffix(".npy"): _parsed(read_entry(archive, entry), path)
            for entry in entries
        }
    except zipfile.BadZipFile as error:
        what = looks_like(mapped[:512]) or str(error)
        raise WeightError(f"{path}: damaged, or no archive of arrays (.npz): {what}") from error


def _parsed(content: bytes, path: Name) -> np.ndarray:
    shape, order, dtype, start = _header(io.BytesIO(content), path, content[:512])
    _check_size(path, shape, dtype, len(content) - start)
    return np.frombuffer(bytearray(content), dtype, prod(shape), start).reshape(shape, order=order)


def _header(
    head: io.BytesIO, path: Name, first: bytes
) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype, int]:
    """Shape, order and dtype of an array, and at which byte its numbers begin."""
    try:
        version = npy.read_magic(head)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read(head, max_header_size=_HEADER)
    except Exception as error:  # the header is a text of Python, whose parser raises many kinds
        what = looks_like(first) or str(error).splitlines()[0][:200]
        raise WeightError(f"{path}: not an array of numpy (.npy): {what}") from error
    if dtype.kind not in "biufc" or not are_indices(shape) or not possible(shape):
        raise WeightError(f"{path}: an array of {dtype!s:.80} and shape {shape!r:.80} is not read")
    return shape, "F" if fortran else "C", dtype, head.tell()


def _check_size(path: Name, shape: tuple[int, ...], dtype: np.dtype, there: int) -> None:
    needed = prod(shape) * dtype.itemsize
    if needed != there:
        fault = "truncated" if needed > there else "damaged"
        raise WeightError(f"{path}: {fault}: {needed:,} bytes of numbers wanted, not {there:,}")
