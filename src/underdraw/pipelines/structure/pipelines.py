"""What the pipelines with a ControlNet share, and those with a T2I-Adapter."""

from __future__ import annotations

from typing import Any, ClassVar

from underdraw.models import ControlNetModel, MultiAdapter, MultiControlNetModel, T2IAdapter
from underdraw.pipelines.base import Component
from underdraw.pipelines.components.registry import networks_among
from underdraw.pipelines.latent import LatentPipeline


class WithNets(LatentPipeline):
    """A pipeline one of whose components reads maps."""

    outdated = ()  # diffusers' constructors mend nothing here
    reader: ClassVar[str]
    """The name of that component."""

    def _accept(self, name: str, value: Any) -> Any:
        value = super()._accept(name, value)
        named = {**self.parts.named, name: value}
        if name in (self.reader, "unet") and named.get("unet") is not None:
            for net in networks_among([named.get(self.reader)]):
                net.require_fit(*networks_among([named["unet"]]))
        return value


class ControlNetPipeline(WithNets):
    """A pipeline of latent diffusion and a ControlNet, or several."""

    components_needed = ("vae", "text_encoder", "tokenizer", "unet", "controlnet", "scheduler")
    reader = "controlnet"

    controlnet: Component[ControlNetModel | MultiControlNetModel]

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        controlnet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = True,
        compat: str | None = None,
    ) -> None:
        super().__init__(
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker,
            feature_extractor,
            image_encoder,
            requires_safety_checker,
            compat,
            controlnet=controlnet,
        )


class AdapterPipeline(WithNets):
    """A pipeline of latent diffusion and a T2I-Adapter, or several."""

    components_needed = ("vae", "text_encoder", "tokenizer", "unet", "adapter", "scheduler")
    components_optional = ("safety_checker", "feature_extractor")
    reader = "adapter"

    adapter: Component[T2IAdapter | MultiAdapter]

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        adapter: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        requires_safety_checker: bool = True,
        compat: str | None = None,
    ) -> None:
        super().__init__(
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker,
            feature_extractor,
            None,
            requires_safety_checker,
            compat,
            adapter=adapter,
        )
