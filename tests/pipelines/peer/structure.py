"""Both libraries' pipelines along maps, on the same weights, and their arguments."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from pipelines import tiny
from pipelines.peer import oracle
from pipelines.peer.beginnings import masks, pictures
from pipelines.peer.oracle import apart as deviation

import underdraw

PEERS: dict[str, tuple[Any, Any]] = {
    "text": (
        diffusers.StableDiffusionControlNetPipeline,
        underdraw.StableDiffusionControlNetPipeline,
    ),
    "img2img": (
        diffusers.StableDiffusionControlNetImg2ImgPipeline,
        underdraw.StableDiffusionControlNetImg2ImgPipeline,
    ),
    "inpaint": (
        diffusers.StableDiffusionControlNetInpaintPipeline,
        underdraw.StableDiffusionControlNetInpaintPipeline,
    ),
    "adapter": (
        diffusers.StableDiffusionAdapterPipeline,
        underdraw.StableDiffusionAdapterPipeline,
    ),
}


def adapter(unet: Any, **fields: Any) -> Any:
    return tiny.adapter(**{"channels": unet.config.block_out_channels, **fields})


NETS: dict[str, Any] = {
    "one": lambda unet: tiny.controlnet(unet),
    "shuffle": lambda unet: tiny.controlnet(unet, global_pool_conditions=True),
    "two": lambda unet: [tiny.controlnet(unet), tiny.controlnet(unet, 6)],
    "full": lambda unet: adapter(unet),
    "light": lambda unet: adapter(unet, **{**tiny.LIGHT, "channels": (16, 32)}),
    "grey": lambda unet: adapter(unet, in_channels=1),
    "both": lambda unet: [adapter(unet), adapter(unet, seed=6)],
}


def theirs(net: Any) -> Any:
    """diffusers' network with the same weights."""
    if isinstance(net, list):
        held = [theirs(one) for one in net]
        several = hasattr(held[0], "controlnet_mid_block")
        return diffusers.MultiControlNetModel(held) if several else diffusers.MultiAdapter(held)
    kind = getattr(diffusers, type(net).__name__)
    with torch.device("meta"):
        made = kind.from_config(net.config.to_dict())
    made.load_state_dict(net.state_dict(), assign=True)
    return made.eval().requires_grad_(False)


@cache
def pair(name: str, nets: str = "one", kind: str = "sd1", compat: str | None = None) -> Any:
    """diffusers' pipeline and ours, which adopts its networks."""
    text, mine = oracle.pair(kind)
    peer, ours = PEERS[name]
    reader = "adapter" if name == "adapter" else "controlnet"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = {key: value for key, value in text.components.items() if key != "image_encoder"}
        net = theirs(NETS[nets](mine.unet))
        made = peer(**parts, **{reader: net}, requires_safety_checker=False)
    return oracle.quiet(made), oracle.quiet(ours.from_pipe(mine, **{reader: net}, compat=compat))


def maps(count: int = 1, height: int = 48, width: int = 72) -> Any:
    """PIL maps of lines; one alone, or a list."""
    random = np.random.default_rng(1)
    made = []
    for _ in range(count):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[random.integers(0, height, 4)] = 255
        pixels[:, random.integers(0, width, 4)] = 255
        made.append(Image.fromarray(pixels))
    return made if count > 1 else made[0]


__all__ = ["deviation", "maps", "masks", "pair", "pictures", "theirs"]
