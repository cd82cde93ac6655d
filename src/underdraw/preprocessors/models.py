"""Maps that networks of the package `transformers` make, which is an extra: depth."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from underdraw import checks
from underdraw.errors import InputError, NotFoundError
from underdraw.pictures.reading import as_picture

DEPTH = "Intel/dpt-hybrid-midas"
"""What the published depth ControlNets were trained with."""


def depth(
    image: Any, model: Any = DEPTH, *, metres: bool = False, device: Any = None
) -> Image.Image:
    """Inverse depth of a picture, as a network estimates it: near is white, far is black.

    Args:
        image: a PIL picture of any mode, or an array as everywhere.
        model: a Hub id or a folder of a depth estimator of `transformers`, or a pipeline
            `transformers.pipeline("depth-estimation", ...)` for several pictures.
        metres: whether the model tells distances (ZoeDepth), not inverse depth (DPT, Depth
            Anything).
        device: to which a model is loaded.

    Returns:
        A grey picture ("L") of the same size.

    Raises:
        NotFoundError: `transformers` is not installed.
        InputTypeError, InputError: no such picture, or the model gives no depth.
    """
    picture = as_picture("image", image).convert("RGB")
    if not callable(model):
        checks.path("model", model)
        model = _pipeline(str(model), device)
    told = model(picture)
    if not isinstance(told, dict) or "predicted_depth" not in told:
        raise InputError("model gives no predicted_depth; allowed: depth estimators")
    found = np.asarray(told["predicted_depth"], np.float32).squeeze()
    if found.ndim != 2 or not np.isfinite(found).all():
        raise InputError(f"model gives a depth of shape {found.shape}; needed is (height, width)")
    found = 1 / np.maximum(found, 1e-3) if checks.flag("metres", metres) else found
    near = Image.fromarray((found - found.min()) / max(float(np.ptp(found)), 1e-6))
    sized = np.asarray(near.resize(picture.size, Image.Resampling.BICUBIC))
    return Image.fromarray((np.clip(sized, 0, 1) * 255 + 0.5).astype(np.uint8))


def _pipeline(model: str, device: Any) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise NotFoundError(
            "depth maps need the package transformers: pip install 'underdraw[transformers]'"
        ) from error
    return transformers.pipeline("depth-estimation", model=model, device=device)
