"""The way up of a UNet, which meets what the skip connections hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from underdraw.backends.contract import Array, Node
from underdraw.networks.config import UP, Level, UNetConfig
from underdraw.networks.encoder import Blocks
from underdraw.networks.sites import apply, join


class Unit(NamedTuple):
    """A residual block of the way up with its attention; each takes one skip connection."""

    block: int
    layer: int
    level: Level
    attends: bool
    grows: bool
    """Whether hidden states are enlarged behind it."""

    @property
    def place(self) -> str:
        """That of the residual block."""
        return f"up_blocks.{self.block}.resnets.{self.layer}"


def units(config: UNetConfig) -> tuple[Unit, ...]:
    """All of them, in order: the last skip connection is taken first."""
    top = len(config.levels) - 1
    return tuple(
        Unit(i, j, level, kind == UP[0], i < top and j == level.layers)
        for i, kind in enumerate(config.up_block_types)
        for level in (config.levels[top - i],)
        for j in range(level.layers + 1)
    )


def begun(config: UNetConfig, features: Mapping[str, Any]) -> int | None:
    """The last unit before which hidden states are known, by its number; None: there is none."""
    known = [i for i, unit in enumerate(units(config)) if unit.place in features]
    return known[-1] if known else None


def up(blocks: Blocks, p: Node, x: Array, skips: list[Array]) -> Array:
    """The last units of the way up, as many as there are `skips`; these are taken from the list,
    the last one first."""
    nn, c, sites = blocks.nn, blocks.config, blocks.sites
    for unit in units(c)[-len(skips) :]:
        place, level = f"up_blocks.{unit.block}", unit.level
        block, width = p.up_blocks[unit.block], level.width
        if unit.place not in sites.features:  # what is known has been through the hooks
            x = apply(nn, sites.up, unit.place, x, blocks.extras)
        x, skip = join(nn, sites.join, place, x, skips.pop())
        x = nn.concat((x, skip), 1)
        x = blocks.residual(block.resnets[unit.layer], x, width, unit.place)
        if unit.attends:
            at = f"{place}.attentions.{unit.layer}"
            x = blocks.attend(block.attentions[unit.layer], x, level, at, level.only_cross)
        if unit.grows:
            height, wide = skips[-1].shape[2:]
            x = nn.upsample(x, height, wide)
            x = nn.conv2d(block.upsamplers[0].conv, x, width, 3)
    return x
