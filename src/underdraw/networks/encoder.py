"""The way down and the middle of a UNet: half a UNet, which is also what a ControlNet is made of.

Time and context are embedded here, too, and what each block makes of them, ahead of a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.layout import Layout
from underdraw.networks.class_labels import embed_labels
from underdraw.networks.config import DOWN, MID, Level, UNetConfig
from underdraw.networks.layers import (
    Attended,
    BlockContext,
    KeysValues,
    SideBySide,
    activation,
    keys_values,
    resnet,
    spatial_transformer,
    timestep_embedding,
)
from underdraw.networks.sites import NO_SITES, Extras, Sites, apply, check

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


@dataclass(frozen=True)
class Blocks:
    """The blocks of one call: what all of them take besides hidden states and their parameters."""

    nn: Operations
    config: UNetConfig
    time: Time
    context: Context
    sites: Sites
    mask: Array | None
    """Added to cross-attention scores."""
    run: Run
    extras: Extras | None

    def residual(self, p: Node, x: Array, width: int, place: str, *more: Any) -> Array:
        """A residual block to `width` channels."""
        nn, c = self.nn, self.config
        act, scale_shift = activation(nn, c.act_fn), c.resnet_time_scale_shift == "scale_shift"
        if isinstance(self.time, Mapping):
            shift = self.time[place]
        else:
            shift_width = 2 * width if scale_shift else width
            shift = nn.linear(p.time_emb_proj, act(self.time), shift_width)[:, :, None, None]
        groups, eps = c.norm_num_groups, c.norm_eps
        return self.run(resnet, nn, p, x, width, groups, eps, act, shift, scale_shift, *more)

    def attend(self, p: Node, x: Array, level: Level, place: str, only_cross: bool = False) -> Any:
        """The transformer blocks of one attention."""
        c, context = self.config, self.context
        inside = self.sites if self.sites.in_blocks else NO_SITES
        contexts = [
            _block_context(context, f"{place}.transformer_blocks.{i}", only_cross)
            for i in range(level.depth)
        ]
        if self.sites.attended:
            contexts = _with_known(contexts, self.sites.attended, x, place)
        # Blocks of one shape are one program where no hook asks for their place.
        at = place if inside is not NO_SITES else ""
        linear, heads, groups = c.use_linear_projection, level.heads, c.norm_num_groups
        settings = (heads, groups, linear, at, inside, only_cross, self.mask, self.extras)
        return self.run(spatial_transformer, self.nn, p, x, contexts, *settings)


def down(blocks: Blocks, p: Node, x: Array) -> Iterator[Array]:
    """The way down from what the first convolution gave: what the skip connections hold, `x` first
    and the hidden states of the smallest level last. No more is computed than is asked for."""
    nn, c, sites = blocks.nn, blocks.config, blocks.sites
    top = len(c.levels) - 1
    yield x
    for i, (kind, level) in enumerate(zip(c.down_block_types, c.levels, strict=True)):
        block, place, width = p.down_blocks[i], f"down_blocks.{i}", level.width
        for j in range(level.layers):
            x = blocks.residual(block.resnets[j], x, width, f"{place}.resnets.{j}")
            if kind == DOWN[0]:
                at = f"{place}.attentions.{j}"
                x = blocks.attend(block.attentions[j], x, level, at, level.only_cross)
            if j == level.layers - 1 and sites.down:
                x = apply(nn, sites.down, place, x, blocks.extras)
            yield x
        if i < top:
            # As the autoencoder's: unpadded means padded below and to the right only.
            x = x if c.downsample_padding else nn.pad(x, 1, 1)
            at = block.downsamplers[0].conv
            x = nn.conv2d(at, x, width, 3, stride=2, padding=c.downsample_padding)
            yield x


def skip_places(config: UNetConfig) -> tuple[str, ...]:
    """The layers whose outputs `down` gives, in its order."""
    places, top = ["conv_in"], len(config.levels) - 1
    for i, level in enumerate(config.levels):
        places += [f"down_blocks.{i}.resnets.{j}" for j in range(level.layers)]
        places += [f"down_blocks.{i}.downsamplers.0"] if i < top else []
    return tuple(places)


def skip_widths(config: UNetConfig) -> tuple[int, ...]:
    """Their channels."""
    top, levels = len(config.levels) - 1, config.levels
    inside = (
        width
        for i, level in enumerate(levels)
        for width in [level.width] * (level.layers + (i < top))
    )
    return (config.block_out_channels[0], *inside)


def middle(blocks: Blocks, p: Node, x: Array) -> Array:
    """The middle block, where there is one."""
    c, level = blocks.config, blocks.config.levels[-1]
    if c.mid_block_type is None:
        return x
    mid, width = p.mid_block, level.width
    scale = () if c.mid_block_scale_factor == 1 else (c.mid_block_scale_factor,)
    x = blocks.residual(mid.resnets[0], x, width, "mid_block.resnets.0", *scale)
    if c.mid_block_type == MID[0]:
        x = blocks.attend(mid.attentions[0], x, level, "mid_block.attentions.0")
        x = blocks.residual(mid.resnets[1], x, width, "mid_block.resnets.1", *scale)
    return x


def _block_context(context: Context, block: str, only_cross: bool) -> BlockContext:
    """What one transformer block attends to."""
    if not isinstance(context, Mapping):
        return context
    return (context[f"{block}.attn1"] if only_cross else None), context[f"{block}.attn2"]


def _with_known(
    contexts: Sequence[BlockContext], attended: Mapping[str, Array], x: Array, place: str
) -> list[BlockContext]:
    """The same, with what attention is known to give in place of what it attends to."""
    known: list[BlockContext] = []
    for i, context in enumerate(contexts):
        at = f"{place}.transformer_blocks.{i}.attn2"
        if at not in attended:
            known.append(context)
            continue
        check("attended", at, attended[at], (x.shape[0], x.shape[2] * x.shape[3], x.shape[1]))
        first = context[0] if isinstance(context, tuple) else context
        known.append((first, Attended(attended[at])))
    return known


# -- ahead of the loop
def time_shifts(
    nn: Operations, p: Node, config: UNetConfig, layout: Layout, temb: Array
) -> dict[str, Array]:
    """What each residual block of a network of this layout makes of embedded times `(n, width)`:
    `(n, channels, 1, 1)` by place.

    Depends on the time alone, so it is computed for all calls of a loop before the first one.
    """
    h = activation(nn, config.act_fn)(temb)
    shifts = {}
    for path, leaf in layout.leaves.items():
        place, _, last = path.rpartition(".")
        if last == "time_emb_proj":
            shifts[place] = nn.linear(_at(p, path), h, leaf.shape[0])[:, :, None, None]
    return shifts


def context_constants(
    nn: Operations, p: Node, config: UNetConfig, layout: Layout, context: Array
) -> dict[str, KeysValues]:
    """Keys and values by place of every attention to the context: they do not change between steps.

    These are all `attn2`, and `attn1` where a level attends to nothing else.
    """
    constants = {}
    for path, leaf in layout.leaves.items():
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
