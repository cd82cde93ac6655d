"""The conditional UNet of Stable Diffusion 1.x and 2.x (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.layout import Layout
from underdraw.backends.node import at
from underdraw.backends.shapes import Path, Shape, Shapes, trace
from underdraw.errors import ControlError, InputError
from underdraw.networks.config import Config, require, require_divisor
from underdraw.networks.layers import (
    ACTIVATIONS,
    Context,
    activation,
    keys_values,
    resnet,
    spatial_transformer,
    timestep_embedding,
)
from underdraw.networks.sites import NO_SITES, Sites, add_residual, apply, check

DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
UP = ("CrossAttnUpBlock2D", "UpBlock2D")
MID = ("UNetMidBlock2DCrossAttn", None)


@dataclass(frozen=True)
class UNetConfig(Config):
    """`config.json` of a `UNet2DConditionModel`; names and defaults are the published ones.

    In this format `attention_head_dim` is the number of heads, per level or for all of them.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = (DOWN[0], DOWN[0], DOWN[0], DOWN[1])
    mid_block_type: str | None = MID[0]
    up_block_types: tuple[str, ...] = (UP[1], UP[0], UP[0], UP[0])
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    dropout: float = 0.0
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    reverse_transformer_layers_per_block: None = None
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: None = None
    dual_cross_attention: bool = False
    use_linear_projection: bool = False
    class_embed_type: str | None = None
    addition_embed_type: None = None
    num_class_embeds: int | None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    time_embedding_act_fn: None = None
    timestep_post_act: None = None
    time_cond_proj_dim: int | None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    projection_class_embeddings_input_dim: int | None = None
    attention_type: str = "default"
    class_embeddings_concat: bool = False
    mid_block_only_cross_attention: bool | None = None
    cross_attention_norm: None = None

    def __post_init__(self) -> None:
        for kind in self.down_block_types:
            require("UNet", "down_block_types", kind, DOWN)
        for kind in self.up_block_types:
            require("UNet", "up_block_types", kind, UP)
        require("UNet", "mid_block_type", self.mid_block_type, MID)
        require("UNet", "act_fn", self.act_fn, ACTIVATIONS)
        require("UNet", "resnet_time_scale_shift", self.resnet_time_scale_shift, SHIFTS)
        require("UNet", "time_embedding_type", self.time_embedding_type, ("positional",))
        require("UNet", "class_embed_type", self.class_embed_type, CLASS_EMBEDDINGS)
        for name, only in FIXED.items():
            require("UNet", name, getattr(self, name), (only,))
        require("UNet", "attention_type", self.attention_type, ATTENTIONS)
        if self.class_embed_type in ("projection", "simple_projection"):
            name = "projection_class_embeddings_input_dim"
            if not (value := getattr(self, name)):
                raise InputError(
                    f"UNet config: {name}={value!r} with "
                    f"class_embed_type={self.class_embed_type!r}; allowed: a positive width"
                )
        levels = len(self.block_out_channels)
        for name in (*PER_LEVEL, "down_block_types", "up_block_types"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise InputError(
                    f"UNet config: {name}={value!r} has {len(value)} entries; "
                    f"block_out_channels has {levels}"
                )
        for i, width in enumerate(self.block_out_channels):
            name = f"block_out_channels[{i}]"
            require_divisor("UNet", "norm_num_groups", self.norm_num_groups, name, width)
            kinds = self.down_block_types[i], self.up_block_types[levels - 1 - i]
            if DOWN[0] in kinds or UP[0] in kinds or (self.mid_block_type and i == levels - 1):
                heads = self.level("attention_head_dim", i)
                require_divisor("UNet", "attention_head_dim", heads, name, width)

    def level(self, name: str, i: int) -> int:
        """A setting that may be given once or per level."""
        value = getattr(self, name)
        return value[i] if isinstance(value, tuple) else value

    @property
    def upscale(self) -> int:
        """How often the latents are halved on the way down, as a factor."""
        return 2 ** (len(self.block_out_channels) - 1)


SHIFTS = ("default", "scale_shift")
ATTENTIONS = ("default", "gated", "gated-text-image")
"""The gated ones say that grounding layers come beside this network; they are not part of it."""
CLASS_EMBEDDINGS = (None, "timestep", "identity", "projection", "simple_projection")
PER_LEVEL = (
    "layers_per_block",
    "transformer_layers_per_block",
    "attention_head_dim",
    "only_cross_attention",
)
FIXED = {
    "mid_block_scale_factor": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "addition_embed_type": None,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
}

Time = Array | Mapping[str, Array]
"""The embedded time `(batch | 1, width)`, or by place what each residual block makes of it."""


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

    x = sinusoid(timesteps)
    if c.time_cond_proj_dim is not None and timestep_cond is not None:
        x = x + nn.linear(p.time_embedding.cond_proj, timestep_cond, x.shape[-1], bias=False)
    temb = mlp(p.time_embedding, x)
    if c.class_embed_type is None and c.num_class_embeds is None:
        return temb
    if class_labels is None:
        raise InputError(
            "class_labels=None; this UNet was trained with class labels and needs them"
        )
    if c.class_embed_type == "timestep":
        return temb + mlp(p.class_embedding, sinusoid(class_labels))
    if c.class_embed_type == "projection":
        return temb + mlp(p.class_embedding, nn.cast(class_labels, like))
    if c.class_embed_type == "simple_projection":
        return temb + nn.linear(p.class_embedding, nn.cast(class_labels, like), width)
    if c.class_embed_type == "identity":
        return temb + nn.cast(class_labels, like)
    return temb + nn.embedding(p.class_embedding, class_labels, c.num_class_embeds or 0, width)


def unet(
    nn: Operations,
    p: Node,
    config: UNetConfig,
    x: Array,
    time: Time,
    context: Context,
    sites: Sites = NO_SITES,
    mask: Array | None = None,
) -> Array:
    """The network's output `(batch, out_channels, height, width)`.

    Args:
        x: latents `(batch, in_channels, height, width)`, already scaled for the solver. Any size:
            where it does not halve evenly, the way up meets the sizes of the way down.
        time: from `embed_time` or `time_shifts`.
        context: `(batch, tokens, cross_attention_dim)`, or keys and values from
            `context_constants`.
        mask: added to cross-attention scores, broadcastable to `(batch, heads, queries, tokens)`.
    """
    c = config
    act, groups, eps = activation(nn, c.act_fn), c.norm_num_groups, c.norm_eps
    scale_shift = c.resnet_time_scale_shift == "scale_shift"
    top = len(c.block_out_channels) - 1

    def residual(p: Node, x: Array, width: int, place: str) -> Array:
        if isinstance(time, Mapping):
            shift = time[place]
        else:
            shift_width = 2 * width if scale_shift else width
            shift = nn.linear(p.time_emb_proj, act(time), shift_width)[:, :, None, None]
        return resnet(nn, p, x, width, groups, eps, act, shift, scale_shift)

    def attend(p: Node, x: Array, level: int, place: str, only_cross: bool = False) -> Array:
        heads = c.level("attention_head_dim", level)
        depth = c.level("transformer_layers_per_block", level)
        linear = c.use_linear_projection
        return spatial_transformer(
            nn, p, x, context, heads, depth, groups, linear, place, sites, only_cross, mask
        )

    for extend in sites.model_input:
        extended = extend(nn, x)
        check(extend, "model_input", extended, (x.shape[0], extended.shape[1], *x.shape[2:]))
        x = extended
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
    for i, (kind, width) in enumerate(zip(c.down_block_types, c.block_out_channels, strict=True)):
        block, place = p.down_blocks[i], f"down_blocks.{i}"
        only_cross = bool(c.level("only_cross_attention", i))
        layers = c.level("layers_per_block", i)
        for j in range(layers):
            x = residual(block.resnets[j], x, width, f"{place}.resnets.{j}")
            if kind == "CrossAttnDownBlock2D":
                x = attend(block.attentions[j], x, i, f"{place}.attentions.{j}", only_cross)
            if j == layers - 1 and sites.down:
                x = apply(nn, sites.down, place, x)
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
        mid, width = p.mid_block, c.block_out_channels[-1]
        x = residual(mid.resnets[0], x, width, "mid_block.resnets.0")
        x = attend(mid.attentions[0], x, top, "mid_block.attentions.0")
        x = residual(mid.resnets[1], x, width, "mid_block.resnets.1")
    if sites.mid_residual is not None:
        x = add_residual("mid_residual", x, sites.mid_residual)

    for i, kind in enumerate(c.up_block_types):
        level = top - i
        width = c.block_out_channels[level]
        block, place = p.up_blocks[i], f"up_blocks.{i}"
        only_cross = bool(c.level("only_cross_attention", level))
        for j in range(c.level("layers_per_block", level) + 1):
            skip = skips.pop()
            for join in sites.join:
                hidden, skipped = join(nn, place, x, skip)
                check(join, place, hidden, x.shape)
                check(join, place, skipped, skip.shape)
                x, skip = hidden, skipped
            x = residual(block.resnets[j], nn.concat((x, skip), 1), width, f"{place}.resnets.{j}")
            if kind == "CrossAttnUpBlock2D":
                x = attend(block.attentions[j], x, level, f"{place}.attentions.{j}", only_cross)
        if level:
            height, wide = skips[-1].shape[2:]
            x = nn.upsample(x, height, wide)
            x = nn.conv2d(block.upsamplers[0].conv, x, width, 3)

    x = act(nn.group_norm(p.conv_norm_out, x, groups, eps))
    return nn.conv2d(p.conv_out, x, c.out_channels, c.conv_out_kernel)


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
    leaves = layout(config).leaves
    return {
        path.removesuffix(".time_emb_proj"): nn.linear(at(p, path), h, leaves[path].shape[0])[
            :, :, None, None
        ]
        for path in layout(config).paths_ending("time_emb_proj")
    }


def context_constants(
    nn: Operations, p: Node, config: UNetConfig, context: Array
) -> dict[str, tuple[Array, Array]]:
    """Keys and values of every cross-attention, by place; they do not change between steps."""
    leaves = layout(config).leaves
    constants = {}
    for path in _cross_attentions(config):
        width = leaves[f"{path}.to_k"].shape[0]
        heads = _heads(config, path)
        constants[path] = keys_values(nn, at(p, path), context, width, heads)
    return constants


@cache
def _cross_attentions(config: UNetConfig) -> tuple[str, ...]:
    """Paths of the attentions whose keys come from the context: all `attn2`, and `attn1` where a
    level attends to nothing else."""
    paths = [path.removesuffix(".to_k") for path in layout(config).paths_ending("to_k")]
    return tuple(p for p in paths if p.endswith(".attn2") or _only_cross(config, p))


def _level(config: UNetConfig, path: str) -> int:
    top = len(config.block_out_channels) - 1
    kind, _, rest = path.partition(".")
    if kind == "mid_block":
        return top
    i = int(rest.split(".")[0])
    return i if kind == "down_blocks" else top - i


def _only_cross(config: UNetConfig, path: str) -> bool:
    in_middle = path.startswith("mid_block")
    return not in_middle and bool(config.level("only_cross_attention", _level(config, path)))


def _heads(config: UNetConfig, path: str) -> int:
    return config.level("attention_head_dim", _level(config, path))
