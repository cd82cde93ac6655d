"""Weights of 8-bit floats as the numbers they stand for; weights quantised otherwise are told.

A file may hold float8 numbers alone, or numbers and a scale for each weight beside them, by which
they are to be multiplied. ComfyUI writes `X.scale_weight` (until 2025) or `X.weight_scale`, and
marks that say so.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from underdraw.errors import WeightError
from underdraw.formats.json_text import parse
from underdraw.formats.stored import StoredTensor

FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
SCALES = (".weight_scale", ".scale_weight")
# For products of 8-bit floats, which nothing here computes.
_INPUTS = (".input_scale", ".scale_input")
_NOTE = ".comfy_quant"  # JSON in bytes
_NOTES = {"format", "full_precision_matrix_mult", "orig_dtype", "orig_shape"}
_OTHERS = (
    (
        r".*\.quant_state\.bitsandbytes__\w+|.*\.(nested_)?(absmax|quant_map)|.*\.SCB",
        "bitsandbytes",
    ),
    (r".*\._(data|scale|zeropoint|shift)", "quanto"),
    (r".*\.(qweight|qzeros|g_idx)", "GPTQ or AWQ"),
    (r".*\.weight_scale_2", "NVFP4"),
    (r".*\.weight_scale_inv", "blocks with scales"),
)
_READABLE = "readable are floats of 8 to 64 bits: take the file in float16, bfloat16 or float8"


def as_floats(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors with each 8-bit float weight times its scale, in float32 and still unread; scales
    and marks are gone. Float8 weights without a scale stay as they are.

    Raises:
        WeightError: weights are quantised otherwise (8-bit integers, 4 bits, rotated), or a scale
            does not fit its weight.
    """
    for name in tensors:
        for pattern, kind in _OTHERS:
            if re.fullmatch(pattern, name):
                raise WeightError(f"the weights are quantised ({kind}: {name}); {_READABLE}")
    result = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.dtype in ("int8", "uint8") and tensor.shape:
            raise WeightError(_integers(name, tensors))
        module, _, last = name.rpartition(".")
        beside = tensors.get(f"{module}.weight")
        if last == "scaled_fp8":
            del result[name]
        if beside is None or beside.dtype not in FLOAT8:
            continue
        if name.endswith(_NOTE):
            _check_note(name, tensor)
        elif name.endswith(SCALES):
            result[f"{module}.weight"] = _scaled(f"{module}.weight", beside, name, tensor)
        elif not name.endswith(_INPUTS):
            continue
        del result[name]
    return result


def widened(tensor: StoredTensor) -> StoredTensor:
    """Float8 numbers in float16, which holds each of them exactly; others as they are."""
    if tensor.dtype not in FLOAT8:
        return tensor
    table, load = _table(tensor.dtype), tensor.load
    return StoredTensor("float16", tensor.shape, lambda: table[load()])


def numbers(tensor: StoredTensor) -> np.ndarray:
    """Float32 numbers of a tensor of floats of any kind."""
    array = widened(tensor).load()
    if tensor.dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


@cache
def _table(dtype: str) -> np.ndarray:
    """What each byte stands for (Micikevicius et al. 2022, table 1)."""
    bits = np.arange(256, dtype=np.uint16)
    if dtype == "float8_e5m2":  # the upper half of a float16
        return (bits << 8).view(np.float16)
    exponent, fraction = (bits >> 3) & 15, bits & 7
    small, large = fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent.astype(int) - 10)
    values = np.where(exponent == 0, small, large)
    values[(bits & 127) == 127] = np.nan  # all bits set; there is no infinity
    return np.where(bits & 128, -values, values).astype(np.float16)


def _scaled(name: str, weight: StoredTensor, beside: str, scale: StoredTensor) -> StoredTensor:
    if "float" not in scale.dtype:
        raise WeightError(f"{beside} holds {scale.dtype}; a scale is of floats")
    shape, rows = scale.shape, weight.shape[:1]
    if scale.size == 1:
        shape = ()
    elif shape[:1] == rows and all(n == 1 for n in shape[1:]):
        shape = (*rows, *(1,) * (len(weight.shape) - 1))
    else:
        raise WeightError(
            f"{beside} has shape {list(scale.shape)} beside {name} of {list(weight.shape)}; "
            "readable are one scale, or one for each row"
        )
    return StoredTensor(
        "float32", weight.shape, lambda: numbers(weight) * numbers(scale).reshape(shape)
    )


def _integers(name: str, tensors: Mapping[str, StoredTensor]) -> str:
    module = name.removesuffix(".weight")
    scale = next((module + end for end in SCALES if module + end in tensors), None)
    note = tensors.get(module + _NOTE)
    told = f" (format {_note(note).get('format')!r})" if note is not None else ""
    count = sum(
        n.endswith(".weight") and t.dtype == tensors[name].dtype for n, t in tensors.items()
    )
    return (
        f"{count} weights are quantised to {tensors[name].dtype}{told}, such as {name}"
        + (f" with its scale {scale}" if scale else "")
        + f"; {_READABLE}"
    )


def _check_note(name: str, tensor: StoredTensor) -> None:
    note = _note(tensor)
    kind = str(note.get("format"))
    more = sorted(key for key, value in note.items() if key not in _NOTES and value)
    if more or not kind.startswith("float8_e"):
        raise WeightError(
            f"{name} says format {kind!r}" + (f" with {', '.join(more)}" if more else "")
            + f", which is not read here; {_READABLE}"
        )  # fmt: skip


def _note(tensor: StoredTensor) -> dict[str, Any]:
    try:
        found = parse(tensor.load().tobytes(), "a note on a tensor")
    except WeightError:
        found = None
    return found if isinstance(found, dict) else {}
