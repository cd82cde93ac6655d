"""The conditional UNet of Stable Diffusion 1.x and 2.x (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, reduce
from typing import Any, NamedTuple

from underdraw.backends.adapted import NO_DELTAS, adapted
from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.deltas import Deltas
from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Path, Shape, Shapes, trace
from underdraw.errors import ControlError, InputError
from underdraw.networks.class_labels import embed_labels
from underdraw.networks.config import MID, Level, UNetConfig
from underdraw.networks.layers import (
    BlockContext,
    KeysValues,
    SideBySide,
    activation,
    keys_values,
    resnet,
    spatial_transformer,
    timestep_embedding,
)
from underdraw.networks.program import Program
from underdraw.networks.sites import (
    NO_SITES,
    Extra,
    Extras,
    Sites,
    add_residual,
    apply,
    check,
    join,
)

Time = Array | Mapping[str, Array]
"""The embedded time `(batch | 1, width)`, or by place what each residual block makes of it."""

Context = Array | Mapping[str, KeysValues | SideBySide]
"""Text context `(batch, tokens, width)`, or its keys and values for each attention by place."""

Run = Callable[..., Array]
"""`(block, *arguments) -> block(*arguments)`: how a block of the network is run."""


def at_once(block: Callable[..., Array], *arguments: Any) -> Array:
    """The block as it is."""
    return block(*arguments)


def embed_time(
    nn: Operations,
    p: Node,
    config: UNetConfig,
    timesteps: Array,
    like: Array,
    class_labels: Array | None = None,
    timestep_cond: Array | None = None,
) -> Array:
    """Times `(batch,)` to `(batch, width)` in the dtype of `like`, class labels included."""
    c, width = config, config.time_embedding_dim or 4 * config.block_out_channels[0]
    act = activation(nn, c.act_fn)

    def sinusoid(t: Array) -> Array:
        wave = timestep_embedding(nn, t, c.block_out_channels[0], c.flip_sin_to_cos, c.freq_shift)
        return nn.cast(wave, like)

    def mlp(p: Node, x: Array) -> Array:
        return nn.linear(p.linear_2, act(nn.linear(p.linear_1, x, width)), width)

    def after(name: str | None, x: Array) -> Array:
        return x if name is None else activation(nn, name)(x)

    x = sinusoid(timesteps)
    if c.time_cond_proj_dim is not None and timestep_cond is not None:
        x = x + nn.linear(p.time_embedding.cond_proj, timestep_cond, x.shape[-1], bias=False)
    temb = after(c.timestep_post_act, mlp(p.time_embedding, x))
    if c.class_embed_type is not None or c.num_class_embeds is not None:
        temb = temb + embed_labels(nn, p, c, class_labels, temb, sinusoid, mlp)
    return after(c.time_embedding_act_fn, temb)


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
    act, groups, eps = activation(nn, c.act_fn), c.norm_num_groups, c.norm_eps
    scale_shift = c.resnet_time_scale_shift == "scale_shift"
    levels, top = c.levels, len(c.levels) - 1

    inside = sites if sites.in_blocks else NO_SITES

    def residual(p: Node, x: Array, width: int, place: str, *more: Any) -> Array:
        if isinstance(time, Mapping):
            shift = time[place]
        else:
            shift_width = 2 * width if scale_shift else width
            shift = nn.linear(p.time_emb_proj, act(time), shift_width)[:, :, None, None]
        return run(resnet, nn, p, x, width, groups, eps, act, shift, scale_shift, *more)

    def attend(p: Node, x: Array, level: Level, place: str, only_cross: bool = False) -> Array:
        contexts = [_block_context(context, place, i, only_cross) for i in range(level.depth)]
        # Blocks of one shape are one program where no hook asks for their place.
        at = place if inside is not NO_SITES else ""
        linear, heads = c.use_linear_projection, level.heads
        settings = (heads, groups, linear, at, inside, only_cross, mask, extras)
        return run(spatial_transformer, nn, p, x, contexts, *settings)

    x, context = begun(nn, x, context, sites)
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
    skips = [x]
    for i, (kind, level) in enumerate(zip(c.down_block_types, levels, strict=True)):
        block, place, width = p.down_blocks[i], f"down_blocks.{i}", level.width
        for j in range(level.layers):
            x = residual(block.resnets[j], x, width, f"{place}.resnets.{j}")
            if kind == "CrossAttnDownBlock2D":
                at = f"{place}.attentions.{j}"
                x = attend(block.attentions[j], x, level, at, level.only_cross)
            if j == level.layers - 1 and sites.down:
                x = apply(nn, sites.down, place, x, extras)
            skips.append(x)
        if i < top:
            down = block.downsamplers[0].conv
            # As the autoencoder's: unpadded means padded below and to the right only.
            x = x if c.downsample_padding else nn.pad(x, 1, 1)
            x = nn.conv2d(down, x, width, 3, stride=2, padding=c.downsample_padding)
            skips.append(x)

    if sites.down_residuals is not None:
        if len(sites.down_residuals) != len(skips):
            raise ControlError(
                f"down_residuals has {len(sites.down_residuals)} entries; "
                f"this UNet has {len(skips)} skip connections"
            )
        skips = [
            add_residual(f"down_residuals.{k}", skip, extra)
            for k, (skip, extra) in enumerate(zip(skips, sites.down_residuals, strict=True))
        ]

    if c.mid_block_type is not None:
        mid, width = p.mid_block, levels[top].width
        scale = () if c.mid_block_scale_factor == 1 else (c.mid_block_scale_factor,)
        x = residual(mid.resnets[0], x, width, "mid_block.resnets.0", *scale)
        if c.mid_block_type == MID[0]:
            x = attend(mid.attentions[0], x, levels[top], "mid_block.attentions.0")
            x = residual(mid.resnets[1], x, width, "mid_block.resnets.1", *scale)
    if sites.mid_residual is not None:
        x = add_residual("mid_residual", x, sites.mid_residual)

    for i, kind in enumerate(c.up_block_types):
        level = levels[top - i]
        block, place, width = p.up_blocks[i], f"up_blocks.{i}", level.width
        for j in range(level.layers + 1):
            skip = skips.pop()
            x, skip = join(nn, sites.join, place, x, skip)
            x = residual(block.resnets[j], nn.concat((x, skip), 1), width, f"{place}.resnets.{j}")
            if kind == "CrossAttnUpBlock2D":
                at = f"{place}.attentions.{j}"
                x = attend(block.attentions[j], x, level, at, level.only_cross)
        if i < top:
            height, wide = skips[-1].shape[2:]
            x = nn.upsample(x, height, wide)
            x = nn.conv2d(block.upsamplers[0].conv, x, width, 3)

    x = act(nn.group_norm(p.conv_norm_out, x, groups, eps))
    return nn.conv2d(p.conv_out, x, c.out_channels, c.conv_out_kernel)


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


def _block_context(context: Context, place: str, number: int, only_cross: bool) -> BlockContext:
    """What one transformer block attends to."""
    if not isinstance(context, Mapping):
        return context
    block = f"{place}.transformer_blocks.{number}"
    return (context[f"{block}.attn1"] if only_cross else None), context[f"{block}.attn2"]


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
    place.

    Depends on the time alone, so it is computed for all calls of a loop before the first one.
    """
    h = activation(nn, config.act_fn)(temb)
    shifts = {}
    for path, leaf in layout(config).leaves.items():
        place, _, last = path.rpartition(".")
        if last == "time_emb_proj":
            shifts[place] = nn.linear(_at(p, path), h, leaf.shape[0])[:, :, None, None]
    return shifts


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
) -> dict[str, tuple[Array, Array]]:
    """Keys and values by place of every attention to the context: they do not change between steps.

    These are all `attn2`, and `attn1` where a level attends to nothing else. `leaves` as of
    `Sites`.
    """
    p, constants = adapted(p, leaves), {}
    for path, leaf in layout(config).leaves.items():
        place, _, last = path.rpartition(".")
        if last == "to_k":
            level, only_cross = _level(config, path)
            if only_cross or place.endswith(".attn2"):
                attention = _at(p, place)
                constants[place] = keys_values(nn, attention, context, leaf.shape[0], level.heads)
    return constants


def _level(config: UNetConfig, path: str) -> tuple[Level, bool]:
    """The level of a parameter, and whether attentions there see the context only."""
    kind, _, rest = path.partition(".")
    if kind == "mid_block":
        return config.levels[-1], False
    i = int(rest.partition(".")[0])
    level = config.levels[i if kind == "down_blocks" else -1 - i]
    return level, level.only_cross


def _at(p: Node, path: str) -> Any:
    return reduce(getattr, path.split("."), p)


UNET = Program("unet", answer)
TIMES = Program("unet.times", call_times)
CONTEXT = Program("unet.context", context_constants)
