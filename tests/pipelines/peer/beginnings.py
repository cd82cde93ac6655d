"""Both libraries' pipelines that begin with pictures, on the same weights, and their arguments."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from pipelines import tiny
from pipelines.peer import oracle

import underdraw

PEERS: dict[str, tuple[Any, Any]] = {
    "img2img": (
        diffusers.StableDiffusionImg2ImgPipeline,
        underdraw.StableDiffusionImg2ImgPipeline,
    ),
    "inpaint": (
        diffusers.StableDiffusionInpaintPipeline,
        underdraw.StableDiffusionInpaintPipeline,
    ),
}


@cache
def pair(name: str, compat: str | None = None, channels: int = 4) -> tuple[Any, Any]:
    """diffusers' pipeline and ours, which adopts its networks."""
    text, _ = oracle.pair("sd1")
    parts = dict(text.components)
    if channels != 4:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            config = {**tiny.DEEP, "in_channels": channels}
            parts["unet"] = tiny.shake(diffusers.UNet2DConditionModel(**config))
    theirs, ours = PEERS[name]
    mine = ours.from_pipe(oracle.pair("sd1")[1], unet=parts["unet"], compat=compat)
    if channels == 4:
        mine = ours.from_pipe(oracle.pair("sd1")[1], compat=compat)
    peer = theirs(**parts, requires_safety_checker=False)
    return oracle.quiet(peer), oracle.quiet(mine)


def pictures(count: int = 1, height: int = 48, width: int = 72, seed: int = 0) -> Any:
    """PIL pictures of smooth colours; one alone, or a list."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8))
        made.append(small.resize((width, height), Image.Resampling.BICUBIC))
    return made if count > 1 else made[0]


def masks(count: int = 1, height: int = 48, width: int = 72) -> Any:
    """PIL masks of one rectangle each; one alone, or a list."""
    made = []
    for i in range(count):
        mask = np.zeros((height, width), np.uint8)
        mask[8 + 8 * i : 32, 16 : 48 - 8 * i] = 255
        made.append(Image.fromarray(mask))
    return made if count > 1 else made[0]


def as_numpy(pictures: Any) -> np.ndarray:
    listed = pictures if isinstance(pictures, list) else [pictures]
    return np.stack([np.asarray(one, np.float32) / 255 for one in listed])


def as_tensor(pictures: Any) -> torch.Tensor:
    pixels = as_numpy(pictures)
    return torch.from_numpy(pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2))
