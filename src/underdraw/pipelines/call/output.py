"""The end of a call: latents become pictures, which are checked, recorded and handed out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.controls.run import Run
from underdraw.models.outputs import Output
from underdraw.pictures.writing import grid, save_png, to_output
from underdraw.pipelines.call.plan import Plan
from underdraw.pipelines.call.record import annotate
from underdraw.pipelines.components.components import Components
from underdraw.shown import html, png

Flags = list[bool] | None
"""Per image, whether the safety checker withheld it; None without a checker."""


@dataclass
class StableDiffusionPipelineOutput(Output):
    """What a call returns."""

    images: list[Image.Image] | Any
    """A list of PIL images, or an array, as `output_type` says."""
    nsfw_content_detected: list[bool] | None = None
    """Per image, whether the safety checker withheld it; None without a checker."""

    def _repr_html_(self) -> str | None:
        return html(self.images)

    def _repr_png_(self) -> bytes | None:
        several = isinstance(self.images, list) and self.images
        return png(grid(self.images)) if several else None

    @checked
    def save(self, pattern: str | Path) -> list[Path]:
        """Write the images as PNG with all that is needed to make them again.

        `pattern` is a file name; several images get `-0`, `-1`, ... before the suffix.
        """
        path, several = Path(pattern), len(self.images) > 1
        paths = [
            path.with_stem(f"{path.stem}-{i}") if several else path for i in range(len(self.images))
        ]
        for image, target in zip(self.images, paths, strict=True):
            save_png(image, target)
        return paths


Made = StableDiffusionPipelineOutput | tuple[Any, Flags]
"""What a call gives, with `return_dict` or without."""


def decode(components: Components, latents: Array, output_type: str) -> tuple[Any, Flags]:
    """Latents `(images, channels, h, w)` of a finished run as the caller wants them, and what a
    safety checker, if any, says of the pictures."""
    if output_type == "latent":
        return latents, None
    framework = components.framework
    with framework.no_grad():
        decoded, flags = check_safety(components, components.decode(latents))
    return to_output(decoded, output_type, framework), flags


def check_safety(components: Components, images: Array) -> tuple[Array, Flags]:
    """Images near [-1, 1], those black which the checker flags; flags are None without a
    checker."""
    checker = components.safety_checker
    if checker is None:
        return images, None
    framework = components.framework
    nn = framework.operations
    pictures = to_output(images, "pil", framework)
    pixels = components.feature_extractor(pictures, return_tensors="np")["pixel_values"]
    with components.borrow(checker):
        pixels = framework.array(pixels, dtype=checker.dtype, device=components.place(checker))
        flags = checker.flags(pixels, components.ask)
    if any(flags):
        where = getattr(images, "device", None)
        keep = framework.array([[[[not flag]]] for flag in flags], device=where)
        images = nn.where(keep, images, nn.cast(keep, images) - 1)
    return images, flags


def hand_out(
    run: Run,
    plan: Plan,
    images: Any,
    flags: Flags,
    own: Mapping[str, Any] | Callable[[int], Mapping[str, Any]],
) -> Made:
    """What a call returns; PIL images get a record of it.

    Args:
        own: the pipeline's arguments besides the shared ones, by name (or a function that gives
            those of an image): numbers and texts are recorded, of others that they were given.
    """
    if plan.request.output_type == "pil":
        annotate(run, plan, images, own)
    if not plan.request.return_dict:
        return images, flags
    return StableDiffusionPipelineOutput(images, flags)
