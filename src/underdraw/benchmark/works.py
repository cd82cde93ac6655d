"""The pieces of work that are timed: a guided step of the UNet, and decoding pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from underdraw.backends.counting import Counting, Work
from underdraw.backends.shapes import Path, Shape
from underdraw.backends.tree import map_arrays
from underdraw.benchmark.peers import Decoding, Stepping, Theirs, of
from underdraw.benchmark.random_weights import (
    HALF_UNET,
    HALF_VAE,
    SD15_UNET,
    SD15_VAE,
    random_network,
)
from underdraw.benchmark.steps import GUIDANCE, TIME, run_of, stepper
from underdraw.benchmark.turns import Call
from underdraw.engines.engine import Engine, Question
from underdraw.models import AutoencoderKL, UNet2DConditionModel
from underdraw.sampling.denoiser import Denoiser

TOKENS = 77


@dataclass
class Networks:
    """What works are made on."""

    unet: Any
    vae: Any
    source: str

    def __post_init__(self) -> None:
        self._peers: dict[int, Any] = {}

    @property
    def factor(self) -> int:
        """Pixels of a side of a latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

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
    return Networks(
        UNet2DConditionModel.from_pretrained(source, subfolder="unet", **how),
        AutoencoderKL.from_pretrained(source, subfolder="vae", **how),
        source,
    )


@dataclass(frozen=True, eq=False)
class Job:
    """A piece of work of one size: ours by an engine, and what others are asked for."""

    ours: Callable[[Engine], Call]
    theirs: Callable[[], Theirs]
    work: Work


def step(networks: Networks, side: int, images: int) -> Job:
    """A call of the UNet and what guidance makes of it, as the loop calls it: keys and values of
    the text and what blocks make of the time are there since the first call. diffusers computes
    them anew each time."""
    unet, nn = networks.unet, networks.unet.nn
    config, guided = unet.config, unet.config.time_cond_proj_dim is None
    side //= networks.factor
    latents = _drawn(unet, 0, (images, config.in_channels, side, side), "float32")
    context = _drawn(unet, 1, (2 * images, TOKENS, config.cross_attention_dim))

    def ours(engine: Engine) -> Call:
        denoise = stepper(unet, context, engine)
        return lambda: denoise(latents, 0)

    def inputs() -> tuple[Any, ...]:
        rows = nn.concat((latents, latents), 0) if guided else latents
        texts = context if guided else context[images:]
        return nn.cast(rows, context), unet._framework.array(TIME, device=unet.device), texts

    def guide(out: Any) -> Any:
        if not guided:
            return nn.float32(out)
        unconditional, conditional = (nn.float32(out)[i * images :][:images] for i in range(2))
        return unconditional + GUIDANCE * (conditional - unconditional)

    def theirs() -> Theirs:
        return Theirs(Stepping(networks.peer(unet)), inputs, guide)

    question = Denoiser(run_of(unet, context)).question(latents, 0)
    return Job(ours, theirs, counted(question))


def decode(networks: Networks, side: int, images: int) -> Job:
    """Latents to pictures."""
    vae = networks.vae
    side //= networks.factor
    latents = _drawn(vae, 2, (images, vae.config.latent_channels, side, side))
    question = Question(type(vae).programs[1], vae, (latents,), vae.nn)

    def theirs() -> Theirs:
        return Theirs(Decoding(networks.peer(vae)), lambda: (latents,), lambda out: out)

    return Job(lambda engine: lambda: engine.run(question), theirs, counted(question))


WORKS: Mapping[str, Callable[[Networks, int, int], Job]] = {"step": step, "decode": decode}
"""By name: what is made of networks, the side in pixels, and how many pictures."""


def counted(question: Question) -> Work:
    """How much arithmetic a question is."""
    nn = Counting({})
    inputs = map_arrays(lambda array: Shape(*array.shape), question.inputs)
    question.program(nn, Path(), question.model.config, *inputs)
    return nn.work


def _drawn(model: Any, seed: int, shape: tuple[int, ...], dtype: str | None = None) -> Any:
    """Normal numbers in the dtype of a network, or another one."""
    numbers = np.random.default_rng(seed).standard_normal(shape, np.float32)
    framework = model._framework
    wanted = model.dtype if dtype is None else framework.resolve_dtype(dtype)
    return framework.array(numbers, wanted, device=model.device)
