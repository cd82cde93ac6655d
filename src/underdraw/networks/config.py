"""The networks' frozen configs, which read and write the `config.json` of published checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, NamedTuple

from underdraw.errors import InputError
from underdraw.schema import Length, OneOf, Range, Schema, fault, read as read, shown


@dataclass(frozen=True)
class Config(Schema, Mapping[str, Any]):
    """Base of the configs: fields checked by their annotations (`schema.py`), which can also be
    read like a dictionary."""

    is_structure = True  # without a type, or it would be among the fields that are written
    """Programs are written around configs: none of their numbers changes from call to call."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON stores them."""
        return {name: _thaw(getattr(self, name)) for name in self}


def require(owner: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise an `InputError` naming the config field unless `value` is one of `allowed`."""
    if value not in allowed:
        listed = ", ".join(map(repr, allowed))
        raise fault(owner, f"{name}={shown(value)} is not supported; allowed: {listed}")


def require_divisor(owner: str, name: str, value: Any, of: str, width: int) -> None:
    """Raise an `InputError` naming the config field unless `value` splits `width` evenly."""
    if not isinstance(value, int) or value < 1 or width % value:
        raise fault(owner, f"{name}={value!r} is not supported; allowed: divisors of {of}={width}")


def inner_config(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """The part of a config of a whole CLIP that is about one tower; a tower's own has no parts.

    Raises:
        InputError: there is something else under its name.
    """
    inner = raw.get(name) or raw
    if not isinstance(inner, Mapping):
        raise InputError(f"CLIP config: {name}={shown(inner)} is not supported; allowed: an object")
    return dict(inner)


def _thaw(value: Any) -> Any:
    return [_thaw(v) for v in value] if isinstance(value, tuple) else value


ACTIVATIONS = ("silu", "swish", "gelu", "quick_gelu")
"""What `networks.layers.activation` knows."""

DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
UP = ("CrossAttnUpBlock2D", "UpBlock2D")
MID = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")
SHIFTS = ("default", "scale_shift")
ATTENTIONS = ("default", "gated", "gated-text-image")
"""The gated ones say that grounding layers come beside this network; they are not part of it."""
CLASS_EMBEDDINGS = ("timestep", "identity", "projection", "simple_projection")
MOST_BLOCKS = 2000
"""Residual and transformer blocks of a network, ten times those of any that was published."""

# A config may come from anywhere, so its numbers are bounded before anything is made of them.
Channels = Annotated[int, Range(1, 4096)]
Width = Annotated[int, Range(1, 32768)]
Side = Annotated[int, Range(1, 65536)]
Heads = Annotated[int, Range(1, 1024)]
Layers = Annotated[int, Range(1, 256)]
Depth = Annotated[int, Range(0, 256)]
Kernel = Annotated[int, Range(1, 31, odd=True)]
Epsilon = Annotated[float, Range(0, 1)]
Factor = Annotated[float, Range(1e-6, 1e6)]
Token = Annotated[int, Range(-1, 2**31 - 1)]
Activation = Annotated[str, OneOf(*ACTIVATIONS)]
Widths = Annotated[tuple[Width, ...], Length(1, 12)]
Off = Annotated[bool, OneOf(False)]


@dataclass(frozen=True)
class UNetConfig(Config):
    """`config.json` of a `UNet2DConditionModel`; names and defaults are the published ones.

    In this format `attention_head_dim` is the number of heads, per level or for all of them.
    """

    owner = "UNet config"

    sample_size: Side | tuple[Side, Side] | None = None
    in_channels: Channels = 4
    out_channels: Channels = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[float, Range(-1000, 1000)] = 0
    down_block_types: tuple[Annotated[str, OneOf(*DOWN)], ...] = (
        DOWN[0],
        DOWN[0],
        DOWN[0],
        DOWN[1],
    )
    mid_block_type: Annotated[str, OneOf(*MID)] | None = MID[0]
    up_block_types: tuple[Annotated[str, OneOf(*UP)], ...] = (UP[1], UP[0], UP[0], UP[0])
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: Widths = (320, 640, 1280, 1280)
    layers_per_block: Layers | tuple[Layers, ...] = 2
    downsample_padding: Annotated[int, OneOf(0, 1)] = 1
    mid_block_scale_factor: Factor = 1
    dropout: Annotated[float, Range(0, 1)] = 0.0
    act_fn: Activation = "silu"
    norm_num_groups: Width = 32
    norm_eps: Epsilon = 1e-5
    cross_attention_dim: Width = 1280
    transformer_layers_per_block: Depth | tuple[Depth, ...] = 1
    reverse_transformer_layers_per_block: None = None
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    attention_head_dim: Heads | tuple[Heads, ...] = 8
    num_attention_heads: None = None
    dual_cross_attention: Off = False
    use_linear_projection: bool = False
    class_embed_type: Annotated[str, OneOf(*CLASS_EMBEDDINGS)] | None = None
    addition_embed_type: None = None
    num_class_embeds: Annotated[int, Range(1, 2**20)] | None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: Annotated[str, OneOf(*SHIFTS)] = "default"
    # The next two and `cross_attention_norm` are for blocks of other kinds: with these they change
    # nothing in diffusers, and nothing here.
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: Factor = 1.0
    time_embedding_type: Annotated[str, OneOf("positional")] = "positional"
    time_embedding_dim: Width | None = None
    time_embedding_act_fn: Activation | None = None
    timestep_post_act: Activation | None = None
    time_cond_proj_dim: Width | None = None
    conv_in_kernel: Kernel = 3
    conv_out_kernel: Kernel = 3
    projection_class_embeddings_input_dim: Width | None = None
    attention_type: Annotated[str, OneOf(*ATTENTIONS)] = "default"
    class_embeddings_concat: Off = False
    mid_block_only_cross_attention: bool | None = None
    cross_attention_norm: str | None = None

    def check(self) -> None:
        levels, first = len(self.block_out_channels), self.block_out_channels[0]
        for name in (*PER_LEVEL, "down_block_types", "up_block_types"):
            _require_length(self, name, getattr(self, name))
        if self.class_embed_type in ("projection", "simple_projection"):
            name = "projection_class_embeddings_input_dim"
            if not (value := getattr(self, name)):
                raise fault(
                    self.owner,
                    f"{name}={value!r} with class_embed_type={self.class_embed_type!r}; "
                    "allowed: a positive width",
                )
        if first // 2 == self.freq_shift:
            raise fault(
                self.owner,
                f"freq_shift={self.freq_shift} is half of block_out_channels[0]={first}, where "
                "the embedding of times divides by 0; allowed: any other",
            )
        for i, width in enumerate(self.block_out_channels):
            name = f"block_out_channels[{i}]"
            require_divisor(self.owner, "norm_num_groups", self.norm_num_groups, name, width)
            kinds = self.down_block_types[i], self.up_block_types[levels - 1 - i]
            in_middle = self.mid_block_type == MID[0] and i == levels - 1
            if DOWN[0] in kinds or UP[0] in kinds or in_middle:
                heads = self.levels[i].heads
                require_divisor(self.owner, "attention_head_dim", heads, name, width)
        if (blocks := sum(each.layers * (1 + each.depth) for each in self.levels)) > MOST_BLOCKS:
            raise fault(
                self.owner,
                f"layers_per_block={self.layers_per_block} with transformer_layers_per_block="
                f"{self.transformer_layers_per_block} are {blocks} blocks; allowed: at most "
                f"{MOST_BLOCKS}",
            )

    def level(self, name: str, i: int) -> int:
        """A setting that may be given once or per level."""
        value = getattr(self, name)
        return value[i] if isinstance(value, tuple) else value

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The resolutions from the largest to the smallest, with all that is set per level."""
        made = []
        for i, width in enumerate(self.block_out_channels):
            layers, depth, heads, only_cross = (self.level(name, i) for name in PER_LEVEL)
            made.append(Level(width, layers, depth, heads, bool(only_cross)))
        return tuple(made)

    @property
    def upscale(self) -> int:
        """How often the latents are halved on the way down, as a factor."""
        return 2 ** (len(self.block_out_channels) - 1)


PER_LEVEL = (
    "layers_per_block",
    "transformer_layers_per_block",
    "attention_head_dim",
    "only_cross_attention",
)


class Level(NamedTuple):
    """One resolution of a UNet: its width, and `PER_LEVEL`."""

    width: int
    layers: int
    depth: int
    """Transformer blocks of an attention."""
    heads: int
    only_cross: bool


@dataclass(frozen=True)
class VAEConfig(Config):
    """`config.json` of an `AutoencoderKL`; names and defaults are the published ones."""

    owner = "VAE config"

    in_channels: Channels = 3
    out_channels: Channels = 3
    down_block_types: tuple[Annotated[str, OneOf("DownEncoderBlock2D")], ...] = (
        "DownEncoderBlock2D",
    )
    up_block_types: tuple[Annotated[str, OneOf("UpDecoderBlock2D")], ...] = ("UpDecoderBlock2D",)
    block_out_channels: Widths = (64,)
    layers_per_block: Layers = 1
    act_fn: Activation = "silu"
    latent_channels: Channels = 4
    norm_num_groups: Width = 32
    sample_size: Side | tuple[Side, Side] = 32
    scaling_factor: Factor = 0.18215
    shift_factor: Annotated[float, Range(-1e6, 1e6)] | None = None
    latents_mean: tuple[Annotated[float, Range(-1e6, 1e6)], ...] | None = None
    latents_std: tuple[Factor, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def check(self) -> None:
        for width in self.block_out_channels:
            require_divisor(
                self.owner, "norm_num_groups", self.norm_num_groups, "block_out_channels", width
            )
        for name in ("down_block_types", "up_block_types"):
            _require_length(self, name, getattr(self, name))
        for name in ("latents_mean", "latents_std"):
            value = getattr(self, name)
            if value is not None and len(value) != self.latent_channels:
                raise fault(
                    self.owner,
                    f"{name}={shown(value)} has {len(value)} entries; allowed: one for each of "
                    f"latent_channels={self.latent_channels}",
                )

    @cached_property
    def factor(self) -> int:
        """Image pixels per latent pixel along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class CLIPTextConfig(Config):
    """`config.json` of a `CLIPTextModel`; names and defaults are the published ones."""

    owner = "CLIP text config"

    vocab_size: Annotated[int, Range(1, 2**24)] = 49408
    hidden_size: Width = 512
    intermediate_size: Width = 2048
    projection_dim: Width = 512
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 8
    max_position_embeddings: Side = 77
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    pad_token_id: Token | None = 1
    bos_token_id: Token | None = 49406
    eos_token_id: Token = 49407
    use_attention_mask: bool = False

    def check(self) -> None:
        _require_heads(self)


@dataclass(frozen=True)
class CLIPVisionConfig(Config):
    """`config.json` of a `CLIPVisionModel`; names and defaults are the published ones."""

    owner = "CLIP vision config"

    hidden_size: Width = 768
    intermediate_size: Width = 3072
    projection_dim: Width = 512
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 12
    num_channels: Channels = 3
    image_size: Side = 224
    patch_size: Side = 32
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5

    def check(self) -> None:
        _require_heads(self)
        if self.patch_size > self.image_size:
            raise fault(
                self.owner,
                f"patch_size={self.patch_size} is larger than image_size={self.image_size}; "
                "allowed: at most as large",
            )

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


def _require_heads(c: CLIPTextConfig | CLIPVisionConfig) -> None:
    require_divisor(
        c.owner, "num_attention_heads", c.num_attention_heads, "hidden_size", c.hidden_size
    )


def _require_length(c: UNetConfig | VAEConfig, name: str, value: Any) -> None:
    """A list has an entry for each level; a number is for all of them."""
    levels = len(c.block_out_channels)
    if isinstance(value, tuple) and len(value) != levels:
        raise fault(
            c.owner,
            f"{name}={shown(value)} has {len(value)} entries; block_out_channels has {levels}",
        )
