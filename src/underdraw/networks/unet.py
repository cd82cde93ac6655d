"""The conditional UNet of Stable Diffusion 1.x and 2.x (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import NamedTuple

from underdraw.backends.adapted import NO_DELTAS, adapted
from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.deltas import Deltas
from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Path, Shape, Shapes, trace
from underdraw.errors import ControlError, InputError
from underdraw.networks import decoder, encoder
from underdraw.networks.config import UNetConfig
from underdraw.networks.encoder import Blocks, Context, Run, Time, at_once, embed_time
from underdraw.networks.layers import KeysValues, activation
from underdraw.networks.program import Program
from underdraw.networks.sites import (
    NO_SITES,
    Extra,
    Extras,
    Sites,
    add_residual,
    apply,
    check,
)


def unet(
    nn: Operations,
    p: Node,
    config: UNetConfig,
    x: Array,
    time: Time,
    context: Context,
    sites: Sites = NO_SITES,
    mask: Array | None = None,
    run: Run = at_once,
    extras: Extras | None = None,
) -> Array:
    """The network's output `(batch, out_channels, height, width)`.

    Args:
        x: latents `(batch, in_channels, height, width)`, already scaled for the solver. Any size:
            where it does not halve evenly, the way up meets the sizes of the way down.
        time: from `embed_time` or `time_shifts`.
        context: `(batch, tokens, cross_attention_dim)`, or keys and values from
            `context_constants`.
        mask: added to cross-attention scores, broadcastable to `(batch, heads, queries, tokens)`.
        run: how each block is run; a backend's `recomputed` keeps less for the gradient, an engine
            may compile blocks.
        extras: a list that takes what hooks tell (`sites.Observed`).
    """
    c, p = config, adapted(p, sites.leaves)
    x, context = begun(nn, x, context, sites)
    blocks = Blocks(nn, c, time, context, sites, mask, run, extras)
    features, places = sites.features, encoder.skip_places(c)
    _check_features(c, x, features)
    first = decoder.begun(c, features)
    needed = places[: len(places) - (first or 0)]
    missing = [k for k, at in enumerate(needed) if first is None or at not in features]
    made = list(islice(_way_down(blocks, p, x), missing[-1] + 1)) if missing else []
    if first is None:
        x = encoder.middle(blocks, p, made[-1])
        if sites.mid_residual is not None:
            x = add_residual("mid_residual", x, sites.mid_residual)
    else:
        x = features[decoder.units(c)[first].place]
    skips = _skips(blocks, needed, made)
    del made  # else what the way up has behind it would stay
    x = decoder.up(blocks, p, x, skips)
    x = activation(nn, c.act_fn)(nn.group_norm(p.conv_norm_out, x, c.norm_num_groups, c.norm_eps))
    return nn.conv2d(p.conv_out, x, c.out_channels, c.conv_out_kernel)


def _check_features(config: UNetConfig, x: Array, features: Mapping[str, Array]) -> None:
    """That what is known of a call with these latents has the sizes that it would have."""
    if not features:
        return
    of, units, rows = sizes(config, *x.shape[2:]), decoder.units(config), x.shape[0]
    widths = dict(zip(encoder.skip_places(config), encoder.skip_widths(config), strict=True))
    before = (config.levels[-1], *(unit.level for unit in units))
    widths |= {unit.place: level.width for level, unit in zip(before, units, strict=False)}
    for place, value in features.items():
        if place not in widths:
            raise ControlError(f"features names '{place}'; this UNet has no such place")
        check("features", place, value, (rows, widths[place], *of(place)))


def _way_down(blocks: Blocks, p: Node, x: Array) -> Iterator[Array]:
    """What skip connections hold, from latents."""
    nn, c, sites = blocks.nn, blocks.config, blocks.sites
    if x.shape[1] != c.in_channels and sites.conv_in is None:
        error = ControlError if sites.model_input else InputError
        raise error(
            f"latents at 'conv_in' are {tuple(x.shape)}; this UNet takes {c.in_channels} channels"
        )
    if c.center_input_sample:
        x = 2 * x - 1.0
    if sites.conv_in is None:
        x = nn.conv2d(p.conv_in, x, c.block_out_channels[0], c.conv_in_kernel)
    else:
        hidden = sites.conv_in(nn, p.conv_in, x)
        check(sites.conv_in, "conv_in", hidden, (x.shape[0], c.block_out_channels[0], *x.shape[2:]))
        x = hidden
    yield from encoder.down(blocks, p, x)


def _skips(blocks: Blocks, places: Sequence[str], made: Sequence[Array]) -> list[Array]:
    """What skip connections give to the way up: what is known, or what was `made` with residuals
    added to it."""
    sites, skips = blocks.sites, []
    residuals, count = sites.down_residuals, len(encoder.skip_places(blocks.config))
    if residuals is not None and len(residuals) != count:
        raise ControlError(
            f"down_residuals has {len(residuals)} entries; this UNet has {count} skip connections"
        )
    for k, place in enumerate(places):
        if place in sites.features:
            skips.append(sites.features[place])
            continue
        skip = made[k]
        if residuals is not None:
            skip = add_residual(f"down_residuals.{k}", skip, residuals[k])
        skips.append(apply(blocks.nn, sites.skip, place, skip, blocks.extras))
    return skips


def begun(nn: Operations, x: Array, context: Context, sites: Sites) -> tuple[Array, Context]:
    """Latents and context after the hooks that act before the first convolution."""
    for change in sites.context:
        if isinstance(context, Mapping):
            raise ControlError("keys and values were computed before controls change the context")
        changed = change(nn, context)
        check(change, "context", changed, (context.shape[0], None, context.shape[2]))
        context = changed
    for extend in sites.model_input:
        extended = extend(nn, x)
        check(extend, "model_input", extended, (x.shape[0], None, *x.shape[2:]))
        x = extended
    return x, context


def sizes(config: UNetConfig, height: int, width: int) -> Callable[[str], tuple[int, int]]:
    """What tells height and width of the hidden states at a place, for latents of this size."""
    levels, padding = [(height, width)], config.downsample_padding
    for _ in config.block_out_channels[1:]:
        levels.append(tuple((side + padding) // 2 for side in levels[-1]))  # type: ignore[arg-type]

    def of(place: str) -> tuple[int, int]:
        kind, _, rest = place.partition(".")
        if kind in ENDS:
            return levels[ENDS[kind]]
        block = int(rest.partition(".")[0])
        behind = kind == "down_blocks" and ".downsamplers" in rest
        return levels[block + behind if kind == "down_blocks" else -1 - block]

    return of


class Inputs(NamedTuple):
    """What a call of the network takes, as `unet` names it."""

    x: Array
    time: Time
    context: Context
    sites: Sites = NO_SITES


class Answer(NamedTuple):
    """What a call of the network gives."""

    sample: Array
    """`(batch, out_channels, height, width)`"""
    extras: tuple[Extra, ...] = ()
    """What hooks told, in the order of the network."""


def answer(
    nn: Operations,
    p: Node,
    config: UNetConfig,
    x: Array,
    time: Time,
    context: Context,
    sites: Sites = NO_SITES,
    run: Run = at_once,
) -> Answer:
    """A call of the network with all that its hooks tell; arguments as of `unet`."""
    extras: Extras = []
    sample = unet(nn, p, config, x, time, context, sites, run=run, extras=extras)
    return Answer(sample, tuple(extras))


@cache
def layout(config: UNetConfig) -> Layout:
    """Names and shapes of the parameters."""
    c = config
    side = 2 * c.upscale
    label_width = {
        "projection": c.projection_class_embeddings_input_dim,
        "simple_projection": c.projection_class_embeddings_input_dim,
        "identity": c.time_embedding_dim or 4 * c.block_out_channels[0],
    }.get(c.class_embed_type or "")
    labels = Shape(1, label_width) if label_width else Shape(1)
    cond = Shape(1, c.time_cond_proj_dim) if c.time_cond_proj_dim else None

    def program(nn: Shapes, p: Path) -> None:
        x = Shape(1, c.in_channels, side, side)
        time = embed_time(nn, p, c, Shape(1), x, labels, cond)
        unet(nn, p, c, x, time, Shape(1, 2, c.cross_attention_dim))

    return trace(program)


def time_shifts(nn: Operations, p: Node, config: UNetConfig, temb: Array) -> dict[str, Array]:
    """What each residual block makes of embedded times `(n, width)`: `(n, channels, 1, 1)` by
    place."""
    return encoder.time_shifts(nn, p, config, layout(config), temb)


def call_times(
    nn: Operations,
    p: Node,
    config: UNetConfig,
    timesteps: Array,
    like: Array,
    timestep_cond: Array | None = None,
    leaves: Deltas = NO_DELTAS,
) -> dict[str, Array]:
    """What each residual block makes of the times `(n,)` of a run, by place `(n, channels, 1, 1)`;
    other arguments as of `embed_time`, `leaves` as of `Sites`."""
    p = adapted(p, leaves)
    temb = embed_time(nn, p, config, timesteps, like, timestep_cond=timestep_cond)
    return time_shifts(nn, p, config, temb)


def context_constants(
    nn: Operations, p: Node, config: UNetConfig, context: Array, leaves: Deltas = NO_DELTAS
) -> dict[str, KeysValues]:
    """Keys and values by place of every attention to the context `(batch, tokens, width)`; `leaves`
    as of `Sites`."""
    return encoder.context_constants(nn, adapted(p, leaves), config, layout(config), context)


ENDS = {"conv_in": 0, "mid_block": -1}
"""Places outside of the numbered blocks, and their levels."""
UNET = Program("unet", answer, in_blocks=True)
TIMES = Program("unet.times", call_times, once=True)
CONTEXT = Program("unet.context", context_constants, once=True)
