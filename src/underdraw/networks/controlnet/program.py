"""ControlNet (Zhang et al. 2023): a copy of the encoder half of a UNet that sees a map, too.

What it gives are residuals: one for each skip connection of the UNet and one for its middle,
through convolutions that were zero when training began.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from underdraw.backends.adapted import NO_DELTAS, adapted
from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.deltas import Deltas
from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Path, Shape, Shapes, trace
from underdraw.errors import InputError
from underdraw.networks import encoder
from underdraw.networks.controlnet.config import ControlNetConfig
from underdraw.networks.encoder import Blocks, Context, Run, Time, at_once, embed_time
from underdraw.networks.layers import KeysValues, repeated
from underdraw.networks.program import Program
from underdraw.networks.sites import NO_SITES

WEAKEST = 0.1
"""Under guess mode, the part of the residual of the first skip connection that is added; from there
on parts grow in equal ratios to 1 in the middle."""


ZEROS = ("controlnet_cond_embedding.conv_out", "controlnet_down_blocks", "controlnet_mid_block")
"""Convolutions that are zero when training begins."""


class Residuals(NamedTuple):
    """What a ControlNet adds to a UNet."""

    down: tuple[Array, ...]
    """One for each skip connection, `(batch, channels, height, width)`; pooled ones have one pixel.
    """
    mid: Array


def embed_hint(nn: Operations, p: Node, config: ControlNetConfig, hint: Array) -> Array:
    """What is added behind the first convolution for a map `(batch, channels, height, width)` in
    [0, 1]: `(batch, width, height / factor, width / factor)`. It is the same at every step."""
    c, widths = config, config.conditioning_embedding_out_channels
    if hint.shape[1] != c.conditioning_channels:
        raise InputError(
            f"the map is {tuple(hint.shape)}; this ControlNet takes {c.conditioning_channels} "
            "channels"
        )
    if c.controlnet_conditioning_channel_order == "bgr":
        channels = [hint[:, i : i + 1] for i in reversed(range(hint.shape[1]))]
        hint = nn.concat(channels, 1)
    p = p.controlnet_cond_embedding
    x = nn.silu(nn.conv2d(p.conv_in, hint, widths[0], 3))
    for i, width in enumerate(widths[1:]):
        x = nn.silu(nn.conv2d(p.blocks[2 * i], x, widths[i], 3))
        x = nn.silu(nn.conv2d(p.blocks[2 * i + 1], x, width, 3, stride=2))
    return nn.conv2d(p.conv_out, x, c.block_out_channels[0], 3)


def controlnet(
    nn: Operations,
    p: Node,
    config: ControlNetConfig,
    x: Array,
    time: Time,
    context: Context,
    hint: Array,
    scale: Any = 1.0,
    guess: bool = False,
    leaves: Deltas = NO_DELTAS,
    mask: Array | None = None,
    run: Run = at_once,
) -> Residuals:
    """The residuals for one call of the UNet.

    Args:
        x: latents `(batch, in_channels, height, width)` as the UNet sees them; where the halves of
            a guided call have the same, those of one half, and all is computed once until the
            first attention to the text.
        time: from `embed_time` of the encoder, or `call_times`.
        context: `(batch, tokens, cross_attention_dim)`, or keys and values from `call_context`.
        hint: from `embed_hint`, `(1 or as many as x, width, height, width)`.
        scale: factor on all residuals; a number, or `(as many as x, 1, 1, 1)`.
        guess: whether deeper residuals count more (guess mode).
        leaves: differences to layers, by their path.
        mask: added to cross-attention scores.
    """
    c, p = config.encoder, adapted(p, leaves)
    if x.shape[1] != c.in_channels:
        raise InputError(
            f"latents are {tuple(x.shape)}; this ControlNet takes {c.in_channels} channels"
        )
    blocks = Blocks(nn, c, time, context, NO_SITES, mask, run, None)
    x = nn.conv2d(p.conv_in, x, c.block_out_channels[0], 3)
    if tuple(hint.shape[2:]) != tuple(x.shape[2:]):
        raise InputError(
            f"the embedded map is {tuple(hint.shape)}; latents are {tuple(x.shape[2:])}"
        )
    images = x.shape[0]
    skips = list(encoder.down(blocks, p, x + hint))
    x = encoder.middle(blocks, p, skips[-1])
    rows = x.shape[0]
    pool = config.global_pool_conditions
    # Pooled residuals are all of one strength, as in diffusers.
    ratios = _ratios(len(skips) + 1) if guess and not pool else [1.0] * (len(skips) + 1)

    def through(p: Node, x: Array, ratio: float) -> Array:
        y = nn.conv2d(p, x, x.shape[1], 1)
        y = y if ratio == 1 else y * ratio
        of_rows = len(getattr(scale, "shape", ())) == 4 and y.shape[0] != images
        y = nn.cast(y * (repeated(nn, scale, y.shape[0]) if of_rows else scale), y)
        return repeated(nn, nn.mean(y, (2, 3)) if pool else y, rows)

    zeros = p.controlnet_down_blocks
    down = tuple(through(zeros[i], skip, ratios[i]) for i, skip in enumerate(skips))
    return Residuals(down, through(p.controlnet_mid_block, x, ratios[-1]))


def _ratios(count: int) -> list[float]:
    """From `WEAKEST` to 1."""
    return [WEAKEST ** (1 - i / (count - 1)) for i in range(count)]


def call_times(
    nn: Operations,
    p: Node,
    config: ControlNetConfig,
    timesteps: Array,
    like: Array,
    leaves: Deltas = NO_DELTAS,
) -> dict[str, Array]:
    """What each residual block makes of the times `(n,)` of a run: by place
    `(n, channels, 1, 1)`."""
    p, c = adapted(p, leaves), config.encoder
    return encoder.time_shifts(nn, p, c, layout(config), embed_time(nn, p, c, timesteps, like))


def call_context(
    nn: Operations,
    p: Node,
    config: ControlNetConfig,
    context: Array,
    leaves: Deltas = NO_DELTAS,
) -> Mapping[str, KeysValues]:
    """Keys and values by place of every attention to the context `(batch, tokens, width)`."""
    p = adapted(p, leaves)
    return encoder.context_constants(nn, p, config.encoder, layout(config), context)


@cache
def layout(config: ControlNetConfig) -> Layout:
    """Names and shapes of the parameters."""
    c, side = config.encoder, 2 * config.encoder.upscale

    def program(nn: Shapes, p: Path) -> None:
        x = Shape(1, c.in_channels, side, side)
        pixels = (1, config.conditioning_channels, side * config.factor, side * config.factor)
        labels_width = {
            "projection": c.projection_class_embeddings_input_dim,
            "simple_projection": c.projection_class_embeddings_input_dim,
            "identity": 4 * c.block_out_channels[0],
        }.get(c.class_embed_type or "")
        labels = Shape(1, labels_width) if labels_width else Shape(1)
        time = embed_time(nn, p, c, Shape(1), x, labels)
        hint = embed_hint(nn, p, config, Shape(*pixels))
        controlnet(nn, p, config, x, time, Shape(1, 2, c.cross_attention_dim), hint)

    # Before training a ControlNet changes nothing.
    return trace(program).starting(0.0, *ZEROS)


CONTROLNET = Program("controlnet", controlnet, in_blocks=True)
HINT = Program("controlnet.hint", embed_hint, once=True)
TIMES = Program("controlnet.times", call_times, once=True)
CONTEXT = Program("controlnet.context", call_context, once=True)
