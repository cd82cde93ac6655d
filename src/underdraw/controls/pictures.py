"""Pictures that controls hold, read once when the control is made."""

from __future__ import annotations

from typing import Any

import numpy as np

from underdraw.errors import InputError, InputTypeError


def as_picture(name: str, image: Any) -> Any:
    """A PIL image in RGB of a PIL image or an array `(height, width, 3)`, uint8 or in [0, 1].

    Raises:
        InputTypeError: it is no picture.
        InputError: it is empty, has another shape, or values outside its range.
    """
    from PIL import Image

    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise InputError(f"{name} is {image.size[0]} x {image.size[1]} pixels, so empty")
        return image.convert("RGB")
    if hasattr(image, "detach"):  # a tensor
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "uf":
        raise InputTypeError(
            f"{name}={type(image).__name__}; allowed: a PIL image, or an array of it"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InputError(f"{name} has shape {image.shape}; needed is (height, width, 3)")
    if image.dtype != np.uint8:
        if not (image.min() >= 0 and image.max() <= 1):  # false for NaN, too
            raise InputError(f"{name} has values outside [0, 1], where it is not uint8")
        image = (image * 255).round().astype(np.uint8)
    return Image.fromarray(image)
