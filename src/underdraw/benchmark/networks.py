"""What works are made of: networks of ours, diffusers' on the same parameters, a schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from underdraw.benchmark.peers import of
from underdraw.benchmark.random_weights import (
    HALF_UNET,
    HALF_VAE,
    SD15_UNET,
    SD15_VAE,
    random_network,
)
from underdraw.models import AutoencoderKL, UNet2DConditionModel
from underdraw.schedulers import DDIMScheduler
from underdraw.weights.architecture import scheduler_config


def published_schedule() -> DDIMScheduler:
    """DDIM along the noise levels of Stable Diffusion 1.5."""
    return DDIMScheduler.from_config(scheduler_config("epsilon"))


@dataclass
class Networks:
    """What works are made on."""

    unet: Any
    vae: Any
    source: str
    reading: Callable[[], DDIMScheduler] = published_schedule
    """Gives `schedule`, which runs alone need: a folder may have none."""

    def __post_init__(self) -> None:
        self._peers: dict[int, Any] = {}

    @property
    def factor(self) -> int:
        """Pixels of a side of a latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @cached_property
    def schedule(self) -> DDIMScheduler:
        """Of whole pictures: one call of the UNet a step, and no noise is drawn."""
        return self.reading()

    @cached_property
    def quantised(self) -> Networks:
        """The same with the UNet's matrices in 8 bits, as `pipe.quantize("int8")` leaves them."""
        return replace(self, unet=self.unet.quantized("int8"))

    def peer(self, model: Any) -> Any:
        """diffusers' one of the same parameters, made once."""
        if id(model) not in self._peers:
            self._peers[id(model)] = of(model)
        return self._peers[id(model)]


def random_networks(full_size: bool, dtype: str, device: str) -> Networks:
    """Of Stable Diffusion 1.5, or with half of its widths; random weights."""
    unet, vae = (SD15_UNET, SD15_VAE) if full_size else (HALF_UNET, HALF_VAE)
    size = "Stable Diffusion 1.5" if full_size else "half the widths of Stable Diffusion 1.5"
    return Networks(
        random_network(UNet2DConditionModel, unet, dtype, device),
        random_network(AutoencoderKL, vae, dtype, device),
        f"random weights, {size}",
    )


def networks_of(source: str, dtype: str, device: str) -> Networks:
    """Of a pipeline's folder or a Hub id."""
    how: dict[str, Any] = {"dtype": dtype, "device": device}
    same = {"clip_sample": False, "steps_offset": 1}  # what pipelines set in old configs, too
    return Networks(
        UNet2DConditionModel.from_pretrained(source, subfolder="unet", **how),
        AutoencoderKL.from_pretrained(source, subfolder="vae", **how),
        source,
        partial(DDIMScheduler.from_pretrained, source, subfolder="scheduler", **same),
    )


def drawn(model: Any, seed: int, shape: tuple[int, ...], dtype: str | None = None) -> Any:
    """Normal numbers in the dtype of a network, or another one."""
    numbers = np.random.default_rng(seed).standard_normal(shape, np.float32)
    framework = model._framework
    wanted = model.dtype if dtype is None else framework.resolve_dtype(dtype)
    return framework.array(numbers, wanted, device=model.device)
