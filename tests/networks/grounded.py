"""A grounded UNet call from numpy to numpy, on any backend: tokens, constants, sites, UNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from backends.harness import give, run, take, tree
from networks.configs import BASE, BATCH, SIZE, TOKENS
from networks.programs import Arrays

from underdraw.backends.layout import Layout
from underdraw.networks import unet
from underdraw.networks.config import read
from underdraw.networks.gligen import grounding, maps as grounding_maps, sites as grounding_sites
from underdraw.networks.gligen.config import ATTENTION_TYPES, MAPS, GroundingConfig

WIDTH = BASE["cross_attention_dim"]
SMALL = {
    "resize": 32,
    "people": 3,
    "classes": 5,
    "backbone_widths": (6, 10, 14),
    "backbone_depths": (1, 2, 1),
    "hidden_width": 24,
}


@dataclass(frozen=True)
class Grounded:
    """A UNet and a grounding part for it."""

    kind: str
    published: bool = False
    """With the sizes that diffusers' position networks always have."""
    fields: tuple[tuple[str, Any], ...] = ()

    @property
    def base(self) -> dict[str, Any]:
        return {**BASE, **dict(self.fields)}

    @property
    def unet(self) -> unet.UNetConfig:
        return read(unet.UNetConfig, self.base)

    @property
    def config(self) -> GroundingConfig:
        fields = {} if self.published else SMALL
        return GroundingConfig.for_unet(self.unet, self.kind, **fields)

    @property
    def gated(self) -> dict[str, Any]:
        """The config of diffusers' UNet that holds both."""
        types = {kind: name for name, kind in ATTENTION_TYPES.items()}
        return {**self.base, "attention_type": types[self.kind]}

    @property
    def layout(self) -> Layout:
        """Of both; the part's own first convolution takes the place of the UNet's."""
        return unet.layout(self.unet) | grounding_sites.layout(self.config)


def box_inputs(kind: str, counts: tuple[int, ...], seed: int = 3) -> Arrays:
    """Boxes per row as said, padded to the most; some without phrase, some without picture."""
    random, n = np.random.default_rng(seed), max(counts)
    shape = (len(counts), n)
    low, high = np.sort(random.uniform(0, 1, (2, *shape, 2)), 0)
    present = (np.arange(n)[None] < np.array(counts)[:, None]).astype(np.float32)
    inputs = {
        "boxes": np.concatenate((low, high), 2).astype(np.float32),
        "present": present,
        "phrases": random.standard_normal((*shape, WIDTH)).astype(np.float32),
    }
    if kind == "text-image":
        inputs["images"] = random.standard_normal((*shape, WIDTH)).astype(np.float32)
        inputs["phrase_present"] = present * (random.uniform(0, 1, shape) > 0.3)
        inputs["image_present"] = present * (random.uniform(0, 1, shape) > 0.3)
    return {name: value.astype(np.float32) for name, value in inputs.items()}


def point_inputs(counts: tuple[int, ...], people: int, seed: int = 3) -> Arrays:
    """Points per row as said, of different people and joints."""
    random, n = np.random.default_rng(seed), max(counts)
    slots = np.stack([random.permutation(people * 17)[:n] for _ in counts])
    return {
        "points": random.uniform(0, 1, (len(counts), n, 2)).astype(np.float32),
        "present": (np.arange(n)[None] < np.array(counts)[:, None]).astype(np.float32),
        "person": np.eye(people, dtype=np.float32)[slots // 17],
        "joint": np.eye(17, dtype=np.float32)[slots % 17],
    }


def map_inputs(config: GroundingConfig, size: tuple[int, int] = (37, 50), seed: int = 3) -> Arrays:
    """Maps, those for the latents already brought to their size; the last row has none."""
    random = np.random.default_rng(seed)
    shape = (BATCH, config.map_channels)
    small = grounding_maps.channel_size(config, *SIZE)
    return {
        "maps": random.uniform(-1, 1, (*shape, *size)).astype(np.float32),
        "resized": random.uniform(-1, 1, (*shape, *small)).astype(np.float32),
        "present": np.array([1, 1, 0], np.float32),
    }


def call_inputs(channels: int = 4, batch: int = BATCH) -> Arrays:
    """Latents, times and text of a UNet call."""
    random = np.random.default_rng(7)
    return {
        "sample": random.standard_normal((batch, channels, *SIZE)).astype(np.float32),
        "timesteps": np.linspace(987, 1, batch).astype(np.int64),
        "context": random.standard_normal((batch, TOKENS, WIDTH)).astype(np.float32),
    }


def tokens_of(nn: Any, p: Any, c: GroundingConfig, given: dict[str, Any]) -> Any:
    if c.kind == "keypoints":
        return grounding_maps.keypoint_tokens(nn, p, c, **given)
    if c.kind in MAPS:
        return grounding_maps.map_tokens(nn, p, c, given["maps"], given["present"])
    return grounding.box_tokens(nn, p, c, **given)


def run_grounded(
    name: str,
    case: Grounded,
    tensors: Arrays,
    inputs: Arrays,
    call: Arrays | None = None,
    strength: Any = 1.0,
) -> np.ndarray:
    """The UNet's output with the grounding part at work."""
    p = tree(name, case.layout, tensors)
    given = {key: give(name, value) for key, value in inputs.items()}
    called = {key: give(name, value) for key, value in (call or call_inputs()).items()}

    def program(nn: Any, p: Any, given: Any, called: Any) -> Any:
        c = case.config
        constants = grounding.constants(nn, p, c, tokens_of(nn, p, c, given))
        extra = None
        if c.kind in MAPS:
            extra = grounding_maps.map_channels(nn, p, c, given["resized"])
        sites = grounding_sites.sites(p, c, constants, strength, extra)
        x, context = called["sample"], called["context"]
        time = unet.embed_time(nn, p, case.unet, called["timesteps"], x)
        return unet.unet(nn, p, case.unet, x, time, context, sites)

    return take(name, run(name, program, p, [given, called], compiled=True))


def run_tokens(name: str, case: Grounded, tensors: Arrays, inputs: Arrays) -> Any:
    """Values and counts of the tokens."""
    p = tree(name, case.layout, tensors)
    given = {key: give(name, value) for key, value in inputs.items()}
    counts = []

    def program(nn: Any, p: Any, given: Any) -> Any:
        found = tokens_of(nn, p, case.config, given)
        counts.append(found.counts)
        return found.values

    return take(name, run(name, program, p, [given], compiled=True)), counts[0]
