"""The model classes users hold, under the names they know."""

from underdraw.models.blip import Blip2QFormerModel
from underdraw.models.blip_processor import BlipImageProcessor
from underdraw.models.clip import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    ContextCLIPTextModel,
)
from underdraw.models.controlnet import ControlNetModel, MultiControlNetModel
from underdraw.models.grounding import Grounding
from underdraw.models.grounding_files import load_grounding, save_grounding
from underdraw.models.image_processor import CLIPImageProcessor
from underdraw.models.image_projection import CLIPImageProjection
from underdraw.models.ip_adapter import IPAdapter, save_ip_adapter
from underdraw.models.safety import StableDiffusionSafetyChecker
from underdraw.models.t2i_adapter import MultiAdapter, T2IAdapter
from underdraw.models.tiny_vae import AutoencoderTiny
from underdraw.models.unet import UNet2DConditionModel
from underdraw.models.vae import AutoencoderKL

__all__ = [
    "AutoencoderKL",
    "AutoencoderTiny",
    "Blip2QFormerModel",
    "BlipImageProcessor",
    "CLIPImageProcessor",
    "CLIPImageProjection",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPVisionModelWithProjection",
    "ContextCLIPTextModel",
    "ControlNetModel",
    "Grounding",
    "IPAdapter",
    "MultiAdapter",
    "MultiControlNetModel",
    "StableDiffusionSafetyChecker",
    "T2IAdapter",
    "UNet2DConditionModel",
    "load_grounding",
    "save_grounding",
    "save_ip_adapter",
]
