"""`AutoPipelineFor...`: a task instead of a class. The class is that of Stable Diffusion for it, or
with a ControlNet that for the same along maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, TypeVar

from underdraw.arguments import checked
from underdraw.errors import InputError, InputTypeError
from underdraw.models.keywords import HUB
from underdraw.pipelines.base import DiffusionPipeline
from underdraw.pipelines.components.registry import listed_class
from underdraw.pipelines.stable_diffusion import StableDiffusionPipeline
from underdraw.pipelines.stable_diffusion_controlnet import StableDiffusionControlNetPipeline
from underdraw.pipelines.stable_diffusion_controlnet_img2img import (
    StableDiffusionControlNetImg2ImgPipeline,
)
from underdraw.pipelines.stable_diffusion_controlnet_inpaint import (
    StableDiffusionControlNetInpaintPipeline,
)
from underdraw.pipelines.stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from underdraw.pipelines.stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from underdraw.pipelines.structure.pipelines import ControlNetPipeline
from underdraw.shown import shown
from underdraw.weights import hub as hubs

Made = TypeVar("Made", bound=DiffusionPipeline)


class _Auto(Generic[Made]):
    made: ClassVar[type[Any]]
    """The class for the task, which is `Made`."""
    with_controlnet: ClassVar[type[Any]]
    """The same where a ControlNet is given, or the pipeline has one: a subclass."""

    def __init__(self, *_: Any, **__: Any) -> NoReturn:
        kind = type(self).__name__
        raise InputTypeError(f"{kind} is made with {kind}.from_pretrained or {kind}.from_pipe")

    @classmethod
    def _class(cls, source: Any, options: dict[str, Any]) -> type[Any]:
        """The class for the task and what is given.

        Raises:
            InputError: diffusers would take another class, or the folder is of one that is not
                known.
        """
        if options.pop("enable_pag", None):
            raise InputError(f"enable_pag is not supported by {cls.__name__} of this release")
        if isinstance(source, DiffusionPipeline) or hasattr(source, "components"):
            given = options.get("controlnet", source.components.get("controlnet"))
        else:
            access = {name: options[name] for name in HUB if name in options}
            listed = listed_class(hubs.resolve(source, weights=False, **access))
            given = options.get("controlnet", issubclass(listed, ControlNetPipeline) or None)
        if given is None:
            options.pop("controlnet", None)
            return cls.made
        return cls.with_controlnet

    @classmethod
    @checked
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> Made:
        """Arguments and errors as of `DiffusionPipeline.from_pretrained`."""
        return cls._class(name_or_path, options).from_pretrained(name_or_path, **options)

    @classmethod
    @checked
    def from_pipe(cls, pipeline: DiffusionPipeline, **overrides: Any) -> Made:
        """Arguments and errors as of `DiffusionPipeline.from_pipe`; `controlnet=None` leaves the
        ControlNet of a pipeline out."""
        if not isinstance(getattr(pipeline, "components", None), Mapping):
            raise InputTypeError(f"pipeline={shown(pipeline)} is no pipeline")
        return cls._class(pipeline, overrides).from_pipe(pipeline, **overrides)


class AutoPipelineForText2Image(_Auto[StableDiffusionPipeline]):
    """A text to a picture: `StableDiffusionPipeline`."""

    made = StableDiffusionPipeline
    with_controlnet = StableDiffusionControlNetPipeline


class AutoPipelineForImage2Image(_Auto[StableDiffusionImg2ImgPipeline]):
    """A picture and a text to a picture: `StableDiffusionImg2ImgPipeline`."""

    made = StableDiffusionImg2ImgPipeline
    with_controlnet = StableDiffusionControlNetImg2ImgPipeline


class AutoPipelineForInpainting(_Auto[StableDiffusionInpaintPipeline]):
    """A picture, a mask and a text to a picture: `StableDiffusionInpaintPipeline`."""

    made = StableDiffusionInpaintPipeline
    with_controlnet = StableDiffusionControlNetInpaintPipeline
