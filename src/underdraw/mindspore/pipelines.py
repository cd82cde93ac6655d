"""The pipelines on MindSpore, whose calls give tuples."""

# See `networks.py`.
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import Self

from underdraw.arguments import checked, dtype as check_dtype
from underdraw.errors import InputTypeError
from underdraw.mindspore.conventions import Tupling, here, tupled, without_device
from underdraw.mindspore.networks import brought
from underdraw.mindspore.processors import ImageProcessor
from underdraw.models.keywords import HUB
from underdraw.pipelines import (
    auto,
    base,
    blip_diffusion,
    blip_diffusion_controlnet,
    stable_diffusion as text_to_image,
    stable_diffusion_adapter,
    stable_diffusion_controlnet,
    stable_diffusion_controlnet_img2img,
    stable_diffusion_controlnet_inpaint,
    stable_diffusion_diffedit,
    stable_diffusion_gligen,
    stable_diffusion_gligen_text_image,
    stable_diffusion_img2img,
    stable_diffusion_inpaint,
)
from underdraw.pipelines.call.output import Flags, StableDiffusionPipelineOutput
from underdraw.pipelines.components.registry import listed_class
from underdraw.pipelines.diffedit.outputs import DiffEditInversionPipelineOutput
from underdraw.weights import hub as hubs

Calling = Tupling[StableDiffusionPipelineOutput, tuple[Any, Flags]]


class DiffusionPipeline(base.DiffusionPipeline):
    """Base of the pipelines. Components of other backends are copied to MindSpore.

    A `generator` may be a `np.random.Generator`, or a list with one per image.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("encode_prompt", "prepare_latents", "prepare_image_latents"):
            if hasattr(cls, name):
                setattr(cls, name, without_device(getattr(cls, name)))

    @classmethod
    @checked
    def from_pretrained(
        cls, name_or_path: str | Path, *, mindspore_dtype: Any = None, **options: Any
    ) -> Self:
        """A pipeline from a folder, a Hub id, or `"underdraw/scenes"`; `mindspore_dtype` is
        `dtype`, arguments and errors are else those of the pipelines in `underdraw`.

        `DiffusionPipeline.from_pretrained` gives one of the class which `model_index.json` names.
        """
        how = here(mindspore_dtype, options)
        if cls is DiffusionPipeline:
            access = {name: options[name] for name in HUB if name in options}
            listed = listed_class(hubs.resolve(name_or_path, weights=False, **access))
            kind: Any = CLASSES[listed.__name__]
            return kind.from_pretrained(name_or_path, **how)
        return super().from_pretrained(name_or_path, **how)

    @classmethod
    @checked
    def from_single_file(
        cls, source: str | Path, *, mindspore_dtype: Any = None, **options: Any
    ) -> Self:
        """A pipeline from an original one-file checkpoint; arguments and errors are those of the
        pipelines in `underdraw`, and `mindspore_dtype` is `dtype`."""
        if cls is DiffusionPipeline:
            raise InputTypeError(
                "a single file does not name its pipeline; use one's own from_single_file, as "
                "StableDiffusionPipeline.from_single_file"
            )
        return super().from_single_file(source, **here(mindspore_dtype, options))

    @classmethod
    @checked
    def from_pipe(
        cls, pipeline: base.DiffusionPipeline, *, mindspore_dtype: Any = None, **options: Any
    ) -> Self:
        """This kind of pipeline on the components of another on any backend: shared where they
        are on MindSpore, else copied. Arguments are else those of the pipelines in `underdraw`."""
        if mindspore_dtype is not None:
            options["dtype"] = check_dtype("mindspore_dtype", mindspore_dtype)
        if cls is DiffusionPipeline and isinstance(pipeline, base.DiffusionPipeline):
            kind: Any = CLASSES[type(pipeline).__name__]
            return kind.from_pipe(pipeline, **options)
        return super().from_pipe(pipeline, **options)

    @property
    def image_processor(self) -> ImageProcessor:
        """Pictures in and out."""
        parts = self.parts
        return ImageProcessor(parts.framework, parts.vae.config.factor, parts.device)

    def _accept(self, name: str, value: Any) -> Any:
        return brought(super()._accept(name, value))


class StableDiffusionPipeline(DiffusionPipeline, text_to_image.StableDiffusionPipeline):
    """`underdraw.StableDiffusionPipeline` on MindSpore: `pipe(prompt)[0][0]` is a picture."""

    __call__: Calling = tupled(text_to_image.StableDiffusionPipeline.__call__)


class StableDiffusionImg2ImgPipeline(
    DiffusionPipeline, stable_diffusion_img2img.StableDiffusionImg2ImgPipeline
):
    """`underdraw.StableDiffusionImg2ImgPipeline` on MindSpore."""

    __call__: Calling = tupled(stable_diffusion_img2img.StableDiffusionImg2ImgPipeline.__call__)


class StableDiffusionInpaintPipeline(
    DiffusionPipeline, stable_diffusion_inpaint.StableDiffusionInpaintPipeline
):
    """`underdraw.StableDiffusionInpaintPipeline` on MindSpore."""

    __call__: Calling = tupled(stable_diffusion_inpaint.StableDiffusionInpaintPipeline.__call__)


class StableDiffusionGLIGENPipeline(
    DiffusionPipeline, stable_diffusion_gligen.StableDiffusionGLIGENPipeline
):
    """`underdraw.StableDiffusionGLIGENPipeline` on MindSpore."""

    __call__: Calling = tupled(stable_diffusion_gligen.StableDiffusionGLIGENPipeline.__call__)


class StableDiffusionGLIGENTextImagePipeline(
    DiffusionPipeline, stable_diffusion_gligen_text_image.StableDiffusionGLIGENTextImagePipeline
):
    """`underdraw.StableDiffusionGLIGENTextImagePipeline` on MindSpore."""

    __call__: Calling = tupled(
        stable_diffusion_gligen_text_image.StableDiffusionGLIGENTextImagePipeline.__call__
    )


class StableDiffusionDiffEditPipeline(
    DiffusionPipeline, stable_diffusion_diffedit.StableDiffusionDiffEditPipeline
):
    """`underdraw.StableDiffusionDiffEditPipeline` on MindSpore."""

    __call__: Calling = tupled(stable_diffusion_diffedit.StableDiffusionDiffEditPipeline.__call__)
    invert: Tupling[DiffEditInversionPipelineOutput, tuple[Any, Any]] = tupled(
        stable_diffusion_diffedit.StableDiffusionDiffEditPipeline.invert
    )


class StableDiffusionControlNetPipeline(
    DiffusionPipeline, stable_diffusion_controlnet.StableDiffusionControlNetPipeline
):
    """`underdraw.StableDiffusionControlNetPipeline` on MindSpore."""

    __call__: Calling = tupled(
        stable_diffusion_controlnet.StableDiffusionControlNetPipeline.__call__
    )


class StableDiffusionControlNetImg2ImgPipeline(
    DiffusionPipeline,
    stable_diffusion_controlnet_img2img.StableDiffusionControlNetImg2ImgPipeline,
):
    """`underdraw.StableDiffusionControlNetImg2ImgPipeline` on MindSpore."""

    __call__: Calling = tupled(
        stable_diffusion_controlnet_img2img.StableDiffusionControlNetImg2ImgPipeline.__call__
    )


class StableDiffusionControlNetInpaintPipeline(
    DiffusionPipeline,
    stable_diffusion_controlnet_inpaint.StableDiffusionControlNetInpaintPipeline,
):
    """`underdraw.StableDiffusionControlNetInpaintPipeline` on MindSpore."""

    __call__: Calling = tupled(
        stable_diffusion_controlnet_inpaint.StableDiffusionControlNetInpaintPipeline.__call__
    )


class StableDiffusionAdapterPipeline(
    DiffusionPipeline, stable_diffusion_adapter.StableDiffusionAdapterPipeline
):
    """`underdraw.StableDiffusionAdapterPipeline` on MindSpore."""

    __call__: Calling = tupled(stable_diffusion_adapter.StableDiffusionAdapterPipeline.__call__)


class BlipDiffusionPipeline(DiffusionPipeline, blip_diffusion.BlipDiffusionPipeline):
    """`underdraw.BlipDiffusionPipeline` on MindSpore."""

    __call__: Calling = tupled(blip_diffusion.BlipDiffusionPipeline.__call__)


class BlipDiffusionControlNetPipeline(
    DiffusionPipeline, blip_diffusion_controlnet.BlipDiffusionControlNetPipeline
):
    """`underdraw.BlipDiffusionControlNetPipeline` on MindSpore."""

    __call__: Calling = tupled(blip_diffusion_controlnet.BlipDiffusionControlNetPipeline.__call__)


class AutoPipelineForText2Image(auto.AutoPipelineForText2Image):
    """`underdraw.AutoPipelineForText2Image` on MindSpore."""

    made = StableDiffusionPipeline
    with_controlnet = StableDiffusionControlNetPipeline


class AutoPipelineForImage2Image(auto.AutoPipelineForImage2Image):
    """`underdraw.AutoPipelineForImage2Image` on MindSpore."""

    made = StableDiffusionImg2ImgPipeline
    with_controlnet = StableDiffusionControlNetImg2ImgPipeline


class AutoPipelineForInpainting(auto.AutoPipelineForInpainting):
    """`underdraw.AutoPipelineForInpainting` on MindSpore."""

    made = StableDiffusionInpaintPipeline
    with_controlnet = StableDiffusionControlNetInpaintPipeline


CLASSES: Mapping[str, type[DiffusionPipeline]] = {
    kind.__name__: kind
    for kind in (
        BlipDiffusionControlNetPipeline,
        BlipDiffusionPipeline,
        StableDiffusionAdapterPipeline,
        StableDiffusionControlNetImg2ImgPipeline,
        StableDiffusionControlNetInpaintPipeline,
        StableDiffusionControlNetPipeline,
        StableDiffusionDiffEditPipeline,
        StableDiffusionGLIGENPipeline,
        StableDiffusionGLIGENTextImagePipeline,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionInpaintPipeline,
        StableDiffusionPipeline,
    )
}
