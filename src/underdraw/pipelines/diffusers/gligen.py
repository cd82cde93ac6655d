"""diffusers' public methods of the GLIGEN pipelines besides their call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from underdraw import backends, checks
from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.controls.boxes import check_box, check_norm, check_phrase
from underdraw.controls.features import (
    check_phrases,
    check_sight,
    image_features,
    phrase_features,
)
from underdraw.errors import InputError
from underdraw.pictures.cropping import box_mask, cut_to
from underdraw.pictures.reading import as_picture
from underdraw.pipelines.call.latents import LONGEST_SIDE
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
        self.fuser_enabled = checks.flag("enabled", enabled)

    def draw_inpaint_mask_from_boxes(
        self, boxes: Sequence[Sequence[float]], size: tuple[int, int]
    ) -> Any:
        """A PyTorch mask of `size (height, width)`: 0 inside of the boxes, 1 elsewhere."""
        sides = [checks.whole("size", side, 1, LONGEST_SIDE) for side in _of("size", size, 2)]
        corners = [_of("boxes", box, 4) for box in checks.listed("boxes", boxes, "boxes")]
        for box in corners:
            for value in box:
                checks.number("boxes", value, 0.0, 1.0)
        return backends.get("torch").array(1 - box_mask(corners, *sides))

    def crop(self, im: Any, new_width: int, new_height: int) -> Any:
        """The middle of a PIL image."""
        width, height = checks.picture("im", im).size
        checks.whole("new_width", new_width, 1, LONGEST_SIDE)
        checks.whole("new_height", new_height, 1, LONGEST_SIDE)
        left, top = (width - new_width) / 2, (height - new_height) / 2
        return im.crop((left, top, left + new_width, top + new_height))

    def target_size_center_crop(self, im: Any, new_hw: int) -> Any:
        """The largest square in the middle of a PIL image, resized to `new_hw` pixels."""
        side = checks.whole("new_hw", new_hw, 1, LONGEST_SIDE)
        return cut_to(checks.picture("im", im), side, side)


def _of(name: str, value: Any, count: int) -> list[Any]:
    found = checks.listed(name, value, "numbers")
    if len(found) != count:
        raise InputError(f"{name} holds {checks.shown(value)}; needed are {count} numbers")
    return found


class FamiliarTextImage:
    """Methods of the pipeline with images."""

    parts: Components

    def complete_mask(self, has_mask: Any, max_objs: int, device: Any) -> Array:
        """`(1, max_objs)`: the given number, or numbers followed by ones; None is all ones."""
        return self._mask("has_mask", has_mask, max_objs, device)

    def _mask(self, name: str, has_mask: Any, max_objs: int, device: Any) -> Array:
        checks.whole("max_objs", max_objs, 1, LONGEST_SIDE)
        checks.usable("device", device, self.parts.framework)
        if has_mask is None or not isinstance(has_mask, list | tuple):
            given = 1.0 if has_mask is None else checks.numbers(name, [has_mask])[0]
            row = [given] * max_objs
        else:
            given = checks.numbers(name, has_mask) if has_mask else ()
            row = [*given, *[1.0] * (max_objs - len(given))]
        if len(row) != max_objs:
            raise InputError(f"{name} has {len(row)} entries; allowed: at most {max_objs}")
        return self.parts.framework.array([row], dtype=self.parts.text_encoder.dtype, device=device)

    @checked
    def get_clip_feature(
        self, input: Any, normalize_constant: float, device: Any, is_image: bool = False
    ) -> Array | None:
        """Features `(1, width)` of a phrase, or of a picture brought to a length; None of None."""
        shown = checks.flag("is_image", is_image)
        norm = check_norm("normalize_constant", normalize_constant)
        checks.usable("device", device, self.parts.framework)
        if input is None:
            return None
        if shown:
            input = as_picture("input", input)
        else:
            check_phrase("input", input)
        with self.parts.framework.no_grad():
            if shown:
                check_sight(self.parts)
                found = image_features(self.parts, [input]) * norm
            else:
                check_phrases(self.parts, [input])
                found = phrase_features(self.parts, [input])
        return self.parts.framework.array(found, device=device)

    @checked
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
        boxes = checks.listed("gligen_boxes", gligen_boxes, "boxes")
        beside = {"gligen_phrases": gligen_phrases, "gligen_images": gligen_images}
        phrases, pictures = (
            [None] * len(boxes) if given is None else checks.listed(name, given, "entries")
            for name, given in beside.items()
        )
        for picture in pictures:
            if picture is not None:
                as_picture("gligen_images", picture)
        for name, given in (("gligen_phrases", phrases), ("gligen_images", pictures)):
            if len(given) != len(boxes):
                raise InputError(
                    f"{name} has {len(given)} entries; there are {len(boxes)} gligen_boxes"
                )
        if len(boxes) > checks.whole("max_objs", max_objs, 1, LONGEST_SIDE):
            raise InputError(f"gligen_boxes has {len(boxes)} entries; max_objs={max_objs}")
        boxes = [check_box(f"gligen_boxes[{i}]", box, True) for i, box in enumerate(boxes)]
        for i, phrase in enumerate(phrases):
            if phrase is not None:
                check_phrase(f"gligen_phrases[{i}]", phrase)
        width = self.parts.text_encoder.config.hidden_size
        if checks.whole("hidden_size", hidden_size) != width:
            raise InputError(f"hidden_size={hidden_size}; phrases have {width}")
        filled = self.get_cross_attention_kwargs_without_grounded(
            hidden_size, repeat_batch, max_objs, device
        )
        for i, (box, phrase, picture) in enumerate(zip(boxes, phrases, pictures, strict=True)):
            filled["boxes"][:, i] = self.parts.framework.array(box, device=device)
            filled["masks"][:, i] = 1
            for name, given, shown in (("phrases", phrase, False), ("image", picture, True)):
                feature = self.get_clip_feature(given, normalize_constant, device, shown)
                if feature is not None:
                    filled[f"{name}_embeddings"][:, i] = feature
                    filled[f"{name}_masks"][:, i] = 1
        for name, mask in (("phrases", input_phrases_mask), ("images", input_images_mask)):
            row = self._mask(f"input_{name}_mask", mask, max_objs, device)
            filled["image_masks" if name == "images" else "phrases_masks"] *= row
        return filled

    def get_cross_attention_kwargs_without_grounded(
        self, hidden_size: int, repeat_batch: int, max_objs: int, device: Any
    ) -> dict[str, Array]:
        """The same without boxes: all zeros."""
        for name, value in (
            ("hidden_size", hidden_size),
            ("repeat_batch", repeat_batch),
            ("max_objs", max_objs),
        ):
            checks.whole(name, value, 1, LONGEST_SIDE)
        checks.usable("device", device, self.parts.framework)
        sizes = {"boxes": (4,), "masks": (), "phrases_masks": (), "image_masks": ()}
        sizes |= dict.fromkeys(("phrases_embeddings", "image_embeddings"), (hidden_size,))
        zeros = {name: np.zeros((repeat_batch, max_objs, *size)) for name, size in sizes.items()}
        dtype = self.parts.text_encoder.dtype
        return {
            name: self.parts.framework.array(value, dtype=dtype, device=device)
            for name, value in zeros.items()
        }
