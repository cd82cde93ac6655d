"""What callers of the familiar methods pass: timesteps in any form, arrays of any backend."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from underdraw import backends, checks
from underdraw.checks import shown
from underdraw.errors import InputError, InputTypeError

LARGEST_TIME = 1e9
LARGEST_SIGMA = 1e6
"""Of noise to signal; above it float32 holds nothing of a signal. Published ones reach 4096."""


def backend_of(array: Any) -> Any:
    """The backend an array belongs to."""
    return backends.of(array)


def check_latents(name: str, array: Any, like: Any = None, at: str = "") -> Any:
    """Latents of any backend, of at least one image; `like` are others, called `at`, of the same
    backend and shape, or of one row.

    Raises:
        InputTypeError, InputError: they are not.
    """
    backend: Any = backends.of(array, name)
    shape = tuple(array.shape)
    if not backend.is_floating(array):
        raise InputTypeError(f"{name} has dtype {array.dtype}; floating-point numbers are needed")
    if "sparse" in str(getattr(array, "layout", "")):
        raise InputTypeError(f"{name} is sparse; a dense array is needed")
    if not shape or 0 in shape:
        raise InputError(f"{name} has shape {shape}; needed is (images, channels, height, width)")
    if like is not None:
        if backends.of(like, at) is not backend:
            raise InputTypeError(f"{name} is of another backend than {at}")
        wanted = tuple(like.shape)
        if shape[1:] != wanted[1:] or shape[0] not in (1, wanted[0]):
            raise InputError(f"{name} has shape {shape}; that of {at} is {wanted}")
        places = [str(getattr(each, "device", "")) for each in (array, like)]
        if places[0] != places[1]:
            raise InputError(f"{name} is on {places[0]}; {at} is on {places[1]}")
    return array


def read_time(timestep: Any) -> float:
    """A timestep: a number, or an array of one.

    Raises:
        InputTypeError: it is something else.
    """
    try:
        plain: Any = timestep.item() if hasattr(timestep, "item") else timestep
    except Exception:  # each framework has its own
        plain = None
    if (
        not checks.is_number(plain) or not -LARGEST_TIME <= plain <= LARGEST_TIME
    ):  # false for NaN, too
        raise InputTypeError(f"timestep={shown(timestep)} must be a number")
    return float(plain)


def read_times(timesteps: Any, images: Any) -> np.ndarray:
    """Timesteps in any form as numbers, one or one per image."""
    listed: Any = timesteps
    try:
        listed = timesteps.tolist() if hasattr(timesteps, "tolist") else timesteps
        times = np.array(listed, dtype=np.float64).reshape(-1)
    except Exception:  # of numpy, of a framework, of a caller's own class
        times = np.array([])
    kinds = listed if isinstance(listed, list | tuple) else [listed]
    if (
        len(times) == 0
        or not (abs(times) <= LARGEST_TIME).all()  # false for NaN, too
        or any(isinstance(each, bool | str) for each in kinds)
    ):
        raise InputTypeError(
            f"timesteps={shown(timesteps)} must be a number, or one number per image"
        )
    if len(times) not in (1, images.shape[0]):
        raise InputError(f"timesteps has {len(times)} entries; allowed: 1 or {images.shape[0]}")
    return times


def single(nn: Any, array: Any) -> Any:
    return nn.float32(array) if str(array.dtype).endswith("float16") else array


def is_integer(timestep: Any) -> bool:
    if isinstance(timestep, numbers.Integral):
        return True
    return "int" in str(getattr(timestep, "dtype", ""))


def per_image(values: np.ndarray, array: Any) -> Any:
    """Numbers per image in the shape, dtype and place of `array`."""
    shape = (-1,) + (1,) * (len(array.shape) - 1)
    values = values.astype(np.float32).reshape(shape)
    made = backend_of(array)
    if made.operations.name == "torch":
        return made.array(values, dtype=array.dtype, device=array.device)
    return made.operations.cast(made.array(values), array)


def check_custom(settings: Any, request: Mapping[str, tuple[float, ...]]) -> None:
    """Custom `timesteps` or `sigmas` of a run.

    Raises:
        InputError: the configuration or their values rule them out.
    """
    if "timesteps" in request:
        switch = settings.grid()
        if switch is not None:
            raise InputError(f"timesteps cannot be given with {switch}=True")
        train = settings.num_train_timesteps
        listed = request["timesteps"]
        if not all(0 <= t < train for t in listed):
            raise InputError(f"timesteps={shown(listed)} must lie between 0 and {train - 1}")
    levels = request.get("sigmas")
    if levels is not None and (len(levels) < 2 or min(levels) < 0):
        raise InputError(f"sigmas={shown(levels)} must hold at least two numbers, none below 0")
    if levels is not None and max(levels) > LARGEST_SIGMA:
        raise InputError(f"sigmas={shown(levels)} must not exceed {LARGEST_SIGMA:g}")
    for key, listed in request.items():
        if any(later >= earlier for earlier, later in pairwise(listed)):
            raise InputError(f"{key}={shown(listed)} must fall from entry to entry")
