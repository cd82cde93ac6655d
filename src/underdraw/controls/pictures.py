"""Pictures that controls hold, read once when the control is made."""

from __future__ import annotations

from typing import Any

import numpy as np

from underdraw.errors import InputError, InputTypeError


def _on_the_host(array: Any) -> np.ndarray:
    """An array of a framework, on any device, in any dtype."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    return np.asarray(array)


def as_picture(name: str, image: Any) -> Any:
    """A PIL image in RGB of a PIL image or an array, uint8 or in [0, 1]: one of numpy is `(height,
    width, 3)`, one of a framework `(3, height, width)`, as everywhere.

    Raises:
        InputTypeError: it is no picture.
        InputError: it is empty, has another shape, or values outside its range.
    """
    from PIL import Image

    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise InputError(f"{name} is {image.size[0]} x {image.size[1]} pixels, so empty")
        return image.convert("RGB")
    first = not isinstance(image, np.ndarray) and hasattr(image, "__array__")
    if first:
        image = _on_the_host(image)
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "uf":
        raise InputTypeError(
            f"{name}={type(image).__name__}; allowed: a PIL image, or an array of it"
        )
    if image.ndim != 3 or image.shape[0 if first else 2] != 3 or image.size == 0:
        needed = "(3, height, width)" if first else "(height, width, 3)"
        raise InputError(f"{name} has shape {image.shape}; needed is {needed}")
    image = image.transpose(1, 2, 0) if first else image
    if image.dtype != np.uint8:
        if not (image.min() >= 0 and image.max() <= 1):  # false for NaN, too
            raise InputError(f"{name} has values outside [0, 1], where it is not uint8")
        image = (image * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(image))
