"""`AutoPipelineFor...`: a task instead of a class. The class is that of Stable Diffusion for it."""

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
from underdraw.pipelines.stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from underdraw.pipelines.stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from underdraw.shown import shown
from underdraw.weights import hub as hubs

Made = TypeVar("Made", bound=DiffusionPipeline)


class _Auto(Generic[Made]):
    made: ClassVar[type[Any]]
    """The class for the task, which is `Made`."""

    def __init__(self, *_: Any, **__: Any) -> NoReturn:
        kind = type(self).__name__
        raise InputTypeError(f"{kind} is made with {kind}.from_pretrained or {kind}.from_pipe")

    @classmethod
    def _check(cls, source: Any, options: dict[str, Any]) -> None:
        """Raise an InputError where diffusers would take another class, or the folder is of one
        that is not known."""
        for name in ("controlnet", "enable_pag"):
            if options.pop(name, None):
                raise InputError(f"{name} is not supported by {cls.__name__} of this release")
        if isinstance(source, DiffusionPipeline) or hasattr(source, "components"):
            return
        access = {name: options[name] for name in HUB if name in options}
        listed_class(hubs.resolve(source, weights=False, **access))

    @classmethod
    @checked
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> Made:
        """Arguments and errors as of `DiffusionPipeline.from_pretrained`."""
        cls._check(name_or_path, options)
        return cls.made.from_pretrained(name_or_path, **options)

    @classmethod
    @checked
    def from_pipe(cls, pipeline: DiffusionPipeline, **overrides: Any) -> Made:
        """Arguments and errors as of `DiffusionPipeline.from_pipe`."""
        if not isinstance(getattr(pipeline, "components", None), Mapping):
            raise InputTypeError(f"pipeline={shown(pipeline)} is no pipeline")
        cls._check(pipeline, overrides)
        return cls.made.from_pipe(pipeline, **overrides)


class AutoPipelineForText2Image(_Auto[StableDiffusionPipeline]):
    """A text to a picture: `StableDiffusionPipeline`."""

    made = StableDiffusionPipeline


class AutoPipelineForImage2Image(_Auto[StableDiffusionImg2ImgPipeline]):
    """A picture and a text to a picture: `StableDiffusionImg2ImgPipeline`."""

    made = StableDiffusionImg2ImgPipeline


class AutoPipelineForInpainting(_Auto[StableDiffusionInpaintPipeline]):
    """A picture, a mask and a text to a picture: `StableDiffusionInpaintPipeline`."""

    made = StableDiffusionInpaintPipeline
