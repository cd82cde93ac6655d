"""diffusers' public methods of the GLIGEN pipelines besides their call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from underdraw import backends
from underdraw.backends.contract import Array
from underdraw.controls.features import image_features, phrase_features
from underdraw.errors import InputError
from underdraw.pictures.cropping import box_mask, cut_to
from underdraw.pipelines.components.components import Components


class FamiliarGLIGEN:
    """Methods of both pipelines."""

    fuser_enabled: bool = True
    """Whether boxes act in the calls of this pipeline."""

    def enable_fuser(self, enabled: bool = True) -> None:
        """Let boxes act in the calls of this pipeline, or not: then they are plain calls.

        Nothing is switched on the UNet, so others that share it notice nothing. (diffusers' calls
        enable it again by themselves.)
        """
        self.fuser_enabled = bool(enabled)

    def draw_inpaint_mask_from_boxes(
        self, boxes: Sequence[Sequence[float]], size: tuple[int, int]
    ) -> Any:
        """A PyTorch mask of `size (height, width)`: 0 inside of the boxes, 1 elsewhere."""
        return backends.get("torch").array(1 - box_mask(boxes, *size))

    def crop(self, im: Any, new_width: int, new_height: int) -> Any:
        """The middle of a PIL image."""
        width, height = im.size
        left, top = (width - new_width) / 2, (height - new_height) / 2
        return im.crop((left, top, left + new_width, top + new_height))

    def target_size_center_crop(self, im: Any, new_hw: int) -> Any:
        """The largest square in the middle of a PIL image, resized to `new_hw` pixels."""
        return cut_to(im, new_hw, new_hw)


class FamiliarTextImage:
    """Methods of the pipeline with images."""

    parts: Components

    def complete_mask(self, has_mask: Any, max_objs: int, device: Any) -> Array:
        """`(1, max_objs)`: the given number, or numbers followed by ones; None is all ones."""
        if has_mask is None or not isinstance(has_mask, list | tuple):
            row = [1.0 if has_mask is None else float(has_mask)] * max_objs
        else:
            row = [*map(float, has_mask), *[1.0] * (max_objs - len(has_mask))]
        if len(row) != max_objs:
            raise InputError(f"has_mask has {len(row)} entries; allowed: at most {max_objs}")
        return self.parts.framework.array([row], dtype=self.parts.text_encoder.dtype, device=device)

    def get_clip_feature(
        self, input: Any, normalize_constant: float, device: Any, is_image: bool = False
    ) -> Array | None:
        """Features `(1, width)` of a phrase, or of a picture brought to a length; None of None."""
        if input is None:
            return None
        with self.parts.framework.no_grad():
            if is_image:
                found = image_features(self.parts, [input]) * normalize_constant
            else:
                found = phrase_features(self.parts, [input])
        return self.parts.framework.array(found, device=device)

    def get_cross_attention_kwargs_with_grounded(
        self,
        hidden_size: int,
        gligen_phrases: Sequence[str | None] | None,
        gligen_images: Sequence[Any] | None,
        gligen_boxes: Sequence[Sequence[float]],
        input_phrases_mask: Any,
        input_images_mask: Any,
        repeat_batch: int,
        normalize_constant: float,
        max_objs: int,
        device: Any,
    ) -> dict[str, Array]:
        """What diffusers' position network takes for the boxes, padded to `max_objs`.

        Calls here do without it; code that builds its own loop may use it.
        """
        count = len(gligen_boxes)
        phrases = list(gligen_phrases or [None] * count)
        pictures = list(gligen_images or [None] * count)
        filled = self.get_cross_attention_kwargs_without_grounded(
            hidden_size, repeat_batch, max_objs, device
        )
        for i, (box, phrase, picture) in enumerate(
            zip(gligen_boxes, phrases, pictures, strict=True)
        ):
            filled["boxes"][:, i] = self.parts.framework.array(box, device=device)
            filled["masks"][:, i] = 1
            for name, given, shown in (("phrases", phrase, False), ("image", picture, True)):
                feature = self.get_clip_feature(given, normalize_constant, device, shown)
                if feature is not None:
                    filled[f"{name}_embeddings"][:, i] = feature
                    filled[f"{name}_masks"][:, i] = 1
        for name, mask in (("phrases", input_phrases_mask), ("image", input_images_mask)):
            filled[f"{name}_masks"] *= self.complete_mask(mask, max_objs, device)
        return filled

    def get_cross_attention_kwargs_without_grounded(
        self, hidden_size: int, repeat_batch: int, max_objs: int, device: Any
    ) -> dict[str, Array]:
        """The same without boxes: all zeros."""
        sizes = {"boxes": (4,), "masks": (), "phrases_masks": (), "image_masks": ()}
        sizes |= dict.fromkeys(("phrases_embeddings", "image_embeddings"), (hidden_size,))
        zeros = {name: np.zeros((repeat_batch, max_objs, *size)) for name, size in sizes.items()}
        dtype = self.parts.text_encoder.dtype
        return {
            name: self.parts.framework.array(value, dtype=dtype, device=device)
            for name, value in zeros.items()
        }
