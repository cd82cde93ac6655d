"""What brings pictures to tensors of MindSpore, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from underdraw import backends, checks
from underdraw.arguments import numeric
from underdraw.backends.contract import Array
from underdraw.errors import InputError
from underdraw.mindspore.conventions import BACKEND, plain_type
from underdraw.pipelines.diffusers import compatible, image_processor


class ImageProcessor(compatible.ImageProcessor):
    """That of a pipeline, with "ms" among its output types."""

    def postprocess(self, image: Array, output_type: str = "pil") -> Any:
        """Decoded images `(images, 3, height, width)` near [-1, 1] as "pil", "np", "ms" (or "pt"),
        "latent" (as they are)."""
        return super().postprocess(image, plain_type(output_type))


class VaeImageProcessor(image_processor.VaeImageProcessor):
    """`underdraw.VaeImageProcessor` on MindSpore."""

    backend = BACKEND

    def postprocess(
        self, image: Array, output_type: str = "pil", do_denormalize: list[bool] | None = None
    ) -> Any:
        """Images `(images, channels, height, width)` near [-1, 1] as "pil", "np", "ms" (or "pt"),
        or "latent" (as they are); `do_denormalize` as there."""
        return super().postprocess(image, plain_type(output_type), do_denormalize)

    @staticmethod
    def numpy_to_ms(images: np.ndarray) -> Array:
        """A tensor `(images, channels, height, width)` of an array with channels last."""
        if numeric("images", images).ndim not in (3, 4):
            raise InputError(f"images has shape {images.shape}; needed are 3 or 4 axes")
        whole = images if images.ndim == 4 else images[..., None]
        return backends.get(BACKEND).array(whole.transpose(0, 3, 1, 2))

    @staticmethod
    def ms_to_numpy(images: Array) -> np.ndarray:
        """An array with channels last of a tensor `(images, channels, height, width)`."""
        framework = backends.get(BACKEND)
        checks.shaped("images", images, (None, None, None, None), framework)
        return checks.readable("images", images, framework.to_numpy).transpose(0, 2, 3, 1)


class IPAdapterMaskProcessor(image_processor.IPAdapterMaskProcessor):
    """`underdraw.IPAdapterMaskProcessor` on MindSpore."""

    backend = BACKEND
