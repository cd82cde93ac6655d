"""diffusers' GLIGEN pipelines with small random networks, and ours on the same folders."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from pipelines import tiny
from pipelines.peer import oracle
from pipelines.peer.oracle import diffusers
from transformers import (
    CLIPImageProcessor as PeerImageProcessor,
    CLIPProcessor as PeerProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer as PeerTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

import underdraw

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers.pipelines.stable_diffusion.clip_image_project_model import CLIPImageProjection

VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": tiny.WIDTH,
}
KINDS: dict[str, dict[str, Any]] = {
    "text": {"attention_type": "gated"},
    "text, inpainting": {"attention_type": "gated", "in_channels": 9},
    "image": {"attention_type": "gated-text-image"},
    "image, inpainting": {"attention_type": "gated-text-image", "in_channels": 9},
    # SD 2's way: linear projections, heads per level.
    "linear": {
        "attention_type": "gated",
        "use_linear_projection": True,
        "attention_head_dim": (2, 4, 4),
    },
}


def gated(**changes: Any) -> Any:
    """diffusers' UNet with gates that are open: fresh ones are 0, which any two agree on."""
    unet = tiny.shake(diffusers.UNet2DConditionModel(**{**tiny.DEEP, **changes}))
    for name, value in unet.named_parameters():
        if "alpha" in name:
            value.data.fill_(0.3 + torch.rand(()).item())
    return unet


def folder(place: str, kind: str) -> Any:
    """diffusers' pipeline of a kind, and the folder it wrote to `place`."""
    tokens = f"{place}-tokens"
    tiny.tokenizer().save_pretrained(tokens)
    tokenizer = PeerTokenizer.from_pretrained(tokens)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers calls the pipeline deprecated
        torch.manual_seed(1)
        parts: dict[str, Any] = {
            "vae": tiny.shake(diffusers.AutoencoderKL(**tiny.VAE)),
            "text_encoder": tiny.shake(
                CLIPTextModel(CLIPTextConfig(**tiny.text_config(len(tokenizer))))
            ),
            "tokenizer": tokenizer,
            "unet": gated(**KINDS[kind]),
            "scheduler": diffusers.PNDMScheduler(skip_prk_steps=True, **tiny.SCHEDULE),
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
        if not kind.startswith("image"):
            pipe = diffusers.StableDiffusionGLIGENPipeline(**parts)
        else:
            sight = PeerImageProcessor(size={"shortest_edge": 32}, crop_size=32)
            parts["processor"] = PeerProcessor(sight, tokenizer)
            parts["image_encoder"] = tiny.shake(
                CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION))
            )
            parts["image_project"] = tiny.shake(CLIPImageProjection(hidden_size=tiny.WIDTH))
            pipe = diffusers.StableDiffusionGLIGENTextImagePipeline(**parts)
        pipe.save_pretrained(place)
    return oracle.quiet(pipe)


@cache
def pair(kind: str) -> tuple[Any, Any]:
    """diffusers' pipeline and ours, both with the same weights."""
    place = f"{oracle.new_folder()}/{kind}"
    theirs = folder(place, kind)
    ours = getattr(underdraw, type(theirs).__name__).from_pretrained(place)
    return theirs, oracle.quiet(ours)


def picture(size: tuple[int, int] = (64, 64), seed: int = 0) -> Any:
    """A picture of `(width, height)`: smooth, so that resizing keeps something of it."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (5, 7, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
