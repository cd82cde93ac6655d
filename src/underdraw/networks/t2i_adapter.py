"""T2I-Adapter (Mou et al. 2023): features of a map at each resolution of a UNet, found once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Annotated

from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Path, Shape, Shapes, trace
from underdraw.errors import InputError
from underdraw.networks.config import Channels, Config, Layers, UNetConfig, Widths
from underdraw.networks.program import Program
from underdraw.schema import OneOf, Range, fault

FULL, LIGHT = KINDS = ("full_adapter", "light_adapter")
NARROWER = 4
"""How many times narrower than its output a level of the light kind is inside."""


@dataclass(frozen=True)
class T2IAdapterConfig(Config):
    """`config.json` of a `T2IAdapter`; names and defaults are the published ones."""

    owner = "T2IAdapter config"

    in_channels: Channels = 3
    """Of a map: 3, or 1 of grey ones."""
    channels: Widths = (320, 640, 1280, 1280)
    """Widths of the levels; of the light kind the last level is not among them, and as wide as the
    one before."""
    num_res_blocks: Layers = 2
    downscale_factor: Annotated[int, Range(1, 64)] = 8
    """Pixels of a map per pixel of the first features, along each side."""
    adapter_type: Annotated[str, OneOf(*KINDS)] = FULL

    def check(self) -> None:
        for width in self.channels:
            if self.adapter_type == LIGHT and width % NARROWER:
                raise fault(self.owner, f"channels={width}; allowed: multiples of {NARROWER}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the features, one for each level of a UNet."""
        last = self.channels[-1:] if self.adapter_type == LIGHT else ()
        return (*self.channels, *last)

    @property
    def map_channels(self) -> int:
        """Channels of a map."""
        return self.in_channels

    @property
    def factor(self) -> int:
        """Pixels of a map per latent pixel along each side."""
        return self.downscale_factor

    def require_fit(self, unet: UNetConfig) -> None:
        """Raise an `InputError` unless its features fit the levels of such UNets."""
        if self.widths != unet.block_out_channels:
            raise InputError(
                f"this T2I-Adapter was made for block_out_channels={self.widths}; the UNet has "
                f"{unet.block_out_channels}"
            )


def t2i_adapter(
    nn: Operations, p: Node, config: T2IAdapterConfig, maps: Array
) -> tuple[Array, ...]:
    """The features of maps `(batch, channels, height, width)` in [0, 1], sides multiples of the
    factor: for each level `(batch, width, height / factor / 2^level, ...)`, rounded up."""
    c, p = config, p.adapter
    if maps.shape[1] != c.in_channels:
        raise InputError(
            f"the map is {tuple(maps.shape)}; this T2I-Adapter takes {c.in_channels} channels"
        )
    x = unshuffled(nn, maps, c.downscale_factor)
    light = c.adapter_type == LIGHT
    if not light:
        x = nn.conv2d(p.conv_in, x, c.widths[0], 3)
    features = []
    for i, width in enumerate(c.widths):
        block, inside = p.body[i], width // NARROWER if light else width
        x = halved(nn, x) if i else x
        if light or x.shape[1] != width:
            x = nn.conv2d(block.in_conv, x, inside, 1)
        for j in range(c.num_res_blocks):
            one = block.resnets[j]
            h = nn.clip(nn.conv2d(one.block1, x, inside, 3), 0.0, math.inf)
            x = nn.conv2d(one.block2, h, inside, 3 if light else 1) + x
        x = nn.conv2d(block.out_conv, x, width, 1) if light else x
        features.append(x)
    return tuple(features)


def unshuffled(nn: Operations, x: Array, factor: int) -> Array:
    """Squares of pixels as channels: `(batch, channels * factor^2, height / factor, ...)`."""
    batch, channels, height, width = x.shape
    cells = x.reshape(batch, channels, height // factor, factor, width // factor, factor)
    cells = nn.permute(cells, (0, 1, 3, 5, 2, 4))
    return cells.reshape(batch, channels * factor**2, height // factor, width // factor)


def halved(nn: Operations, x: Array) -> Array:
    """Means of squares of 2 x 2 pixels; at an odd edge of what there is."""
    height, width = x.shape[2:]
    if height % 2:
        x = nn.concat((x, x[:, :, height - 1 :]), 2)
    if width % 2:
        x = nn.concat((x, x[:, :, :, width - 1 :]), 3)
    batch, channels, height, width = x.shape
    return nn.mean(x.reshape(batch, channels, height // 2, 2, width // 2, 2), (3, 5), False)


@cache
def layout(config: T2IAdapterConfig) -> Layout:
    """Names and shapes of the parameters."""
    side = config.downscale_factor * 2 ** len(config.widths)

    def program(nn: Shapes, p: Path) -> None:
        t2i_adapter(nn, p, config, Shape(1, config.in_channels, side, side))

    return trace(program)


ADAPTER = Program("t2i_adapter", t2i_adapter, once=True)
