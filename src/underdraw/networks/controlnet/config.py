"""What a ControlNet (Zhang et al. 2023) is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any

from underdraw.errors import InputError
from underdraw.networks.config import (
    CLASS_EMBEDDINGS,
    DOWN,
    MID,
    SHIFTS,
    UP,
    Activation,
    Channels,
    Config,
    Depth,
    Epsilon,
    Factor,
    Heads,
    Layers,
    UNetConfig,
    Width,
    Widths,
)
from underdraw.schema import OneOf, Range

HINT_CHANNELS = (16, 32, 96, 256)
"""Of the published nets: three halvings, from pixels to latents."""


@dataclass(frozen=True)
class EncoderConfig(UNetConfig):
    """The half of a UNet inside a ControlNet, as a UNet's config; its way up is never built."""

    owner = "ControlNet config"


@dataclass(frozen=True)
class ControlNetConfig(Config):
    """`config.json` of a `ControlNetModel`; names and defaults are the published ones.

    As in a UNet's, `attention_head_dim` is the number of heads, per level or for all of them; so
    may `layers_per_block` be.
    """

    owner = "ControlNet config"

    in_channels: Channels = 4
    conditioning_channels: Channels = 3
    """Of a map: 3 for pictures."""
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[float, Range(-1000, 1000)] = 0
    down_block_types: tuple[Annotated[str, OneOf(*DOWN)], ...] = (
        DOWN[0],
        DOWN[0],
        DOWN[0],
        DOWN[1],
    )
    mid_block_type: Annotated[str, OneOf(*MID)] | None = MID[0]
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: Widths = (320, 640, 1280, 1280)
    layers_per_block: Layers | tuple[Layers, ...] = 2
    downsample_padding: Annotated[int, OneOf(0, 1)] = 1
    mid_block_scale_factor: Factor = 1
    act_fn: Activation = "silu"
    norm_num_groups: Width = 32
    norm_eps: Epsilon = 1e-5
    cross_attention_dim: Width = 1280
    transformer_layers_per_block: Depth | tuple[Depth, ...] = 1
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    attention_head_dim: Heads | tuple[Heads, ...] = 8
    num_attention_heads: None = None
    use_linear_projection: bool = False
    class_embed_type: Annotated[str, OneOf(*CLASS_EMBEDDINGS)] | None = None
    addition_embed_type: None = None
    addition_time_embed_dim: None = None
    num_class_embeds: Annotated[int, Range(1, 2**20)] | None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: Annotated[str, OneOf(*SHIFTS)] = "default"
    projection_class_embeddings_input_dim: Width | None = None
    controlnet_conditioning_channel_order: Annotated[str, OneOf("rgb", "bgr")] = "rgb"
    """Of the maps it was trained with; callers give red first in any case."""
    conditioning_embedding_out_channels: Widths = HINT_CHANNELS
    """Widths of the layers that bring a map to the size of the latents: each further one halves
    it."""
    global_pool_conditions: bool = False
    """Whether the residuals are means over all places (shuffle)."""
    addition_embed_type_num_heads: Heads = 64

    def check(self) -> None:
        assert self.encoder  # which checks what levels say together

    @cached_property
    def encoder(self) -> UNetConfig:
        """The half of a UNet inside."""
        ups = tuple(UP[DOWN.index(kind)] for kind in reversed(self.down_block_types))
        return EncoderConfig(**_common(self), up_block_types=ups)

    @property
    def map_channels(self) -> int:
        """Channels of a map."""
        return self.conditioning_channels

    @property
    def factor(self) -> int:
        """Pixels of a map per latent pixel along each side."""
        return 2 ** (len(self.conditioning_embedding_out_channels) - 1)

    @classmethod
    def of_unet(cls, unet: UNetConfig, **changes: Any) -> ControlNetConfig:
        """Of a ControlNet whose half of a UNet is that of `unet`."""
        return cls(**{**_common(unet), **changes})

    def require_fit(self, unet: UNetConfig) -> None:
        """Raise an `InputError` unless its residuals fit the skip connections of such UNets, and it
        reads their latents and texts."""
        for name in ("block_out_channels", "cross_attention_dim", "in_channels"):
            own, theirs = getattr(self, name), getattr(unet, name)
            if name == "in_channels":  # an inpainting UNet takes more beside the latents
                theirs = min(own, theirs)
            if own != theirs:
                raise InputError(
                    f"this ControlNet was made for {name}={own}; the UNet has {theirs}"
                )
        layers, theirs = ([x.layers for x in c.levels] for c in (self.encoder, unet))
        if layers != theirs:
            raise InputError(
                f"this ControlNet has {layers} residual blocks per level; the UNet has {theirs}"
            )


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the configs of UNets and of ControlNets both say."""
    shared = {f.name for f in fields(UNetConfig)} & {f.name for f in fields(ControlNetConfig)}
    return {name: config[name] for name in shared}
