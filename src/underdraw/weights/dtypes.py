"""Weights in another dtype, one tensor at a time and without a framework."""

from __future__ import annotations

import numpy as np

from underdraw.errors import WeightError
from underdraw.formats.stored import NUMPY_DTYPES, StoredTensor
from underdraw.weights import quantised

FLOATS = ("float64", "float32", "float16", "bfloat16")


def cast(name: str, tensor: StoredTensor, dtype: str) -> StoredTensor:
    """`tensor` in `dtype`, still unread; what is not floating-point stays as it is.

    When it is loaded, WeightError names a tensor whose numbers do not fit.
    """
    tensor = quantised.widened(tensor)
    if tensor.dtype == dtype or tensor.dtype not in FLOATS:
        return tensor

    def load() -> np.ndarray:
        wide = widened(tensor)
        if dtype == "bfloat16":
            made = to_bfloat16(wide)
        else:
            with np.errstate(over="ignore"):
                made = wide.astype(NUMPY_DTYPES[dtype])
            if dtype == "float16" and (np.isinf(made) & np.isfinite(wide)).any():
                most = float(np.abs(wide[np.isfinite(wide)]).max())
                raise WeightError(
                    f"{name} holds {most:.4g}, float16 ends at 65504; use bfloat16 or float32"
                )
        return made

    return StoredTensor(dtype, tensor.shape, load)


def widened(tensor: StoredTensor) -> np.ndarray:
    """Its numbers as float32 (float64 as it is)."""
    array = tensor.load()
    if tensor.dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array if array.dtype.itemsize == 8 else array.astype(np.float32, copy=False)


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """The bits of float32 numbers rounded to bfloat16, to the nearest, ties to even."""
    array = np.ascontiguousarray(array, np.float32)
    bits = array.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    quiet = np.uint16(0x7FC0)  # rounding up the bits of a NaN would make another number of it
    return np.where(np.isnan(array), quiet, rounded).reshape(array.shape)


def numbers_of(tensor: StoredTensor) -> np.ndarray:
    """The numbers of a tensor of any floating-point dtype as float32 (float64 as it is)."""
    return widened(quantised.widened(tensor))
