"""The networks' frozen configs, which read and write the `config.json` of published checkpoints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from underdraw.errors import InputError


@dataclass(frozen=True)
class Config(Mapping[str, Any]):
    """Base of the configs: typed fields, which can also be read like a dictionary."""

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


AnyConfig = TypeVar("AnyConfig", bound=Config)


def read(cls: type[AnyConfig], raw: Mapping[str, Any]) -> AnyConfig:
    """A config from parsed JSON. Keys it does not know are left out, lists become tuples."""
    names = {f.name for f in dataclasses.fields(cls)}
    return cls(**{k: _freeze(v) for k, v in raw.items() if k in names})


def require(owner: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise an `InputError` naming the config field unless `value` is one of `allowed`."""
    if value not in allowed:
        shown = ", ".join(repr(a) for a in allowed)
        raise InputError(f"{owner} config: {name}={value!r} is not supported; allowed: {shown}")


def require_positive(owner: str, name: str, value: Any) -> None:
    """Raise an `InputError` naming the config field unless it is a finite number above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 < value < math.inf):
        raise InputError(
            f"{owner} config: {name}={value!r} is not supported; allowed: numbers above 0"
        )


def require_divisor(owner: str, name: str, value: Any, of: str, width: int) -> None:
    """Raise an `InputError` naming the config field unless `value` splits `width` evenly."""
    if not isinstance(value, int) or value < 1 or width % value:
        raise InputError(
            f"{owner} config: {name}={value!r} is not supported; allowed: divisors of {of}={width}"
        )


def _freeze(value: Any) -> Any:
    return tuple(_freeze(v) for v in value) if isinstance(value, list | tuple) else value


def _thaw(value: Any) -> Any:
    return [_thaw(v) for v in value] if isinstance(value, tuple) else value


ACTIVATIONS = ("silu", "swish", "gelu", "quick_gelu")
"""What `networks.layers.activation` knows."""

DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
UP = ("CrossAttnUpBlock2D", "UpBlock2D")
MID = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)


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
    time_embedding_act_fn: str | None = None
    timestep_post_act: str | None = None
    time_cond_proj_dim: int | None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    projection_class_embeddings_input_dim: int | None = None
    attention_type: str = "default"
    class_embeddings_concat: bool = False
    mid_block_only_cross_attention: bool | None = None
    cross_attention_norm: str | None = None

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
        for name in ("time_embedding_act_fn", "timestep_post_act"):
            require("UNet", name, getattr(self, name), (None, *ACTIVATIONS))
        require_positive("UNet", "mid_block_scale_factor", self.mid_block_scale_factor)
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
            in_middle = self.mid_block_type == MID[0] and i == levels - 1
            if DOWN[0] in kinds or UP[0] in kinds or in_middle:
                heads = self.levels[i].heads
                require_divisor("UNet", "attention_head_dim", heads, name, width)

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


class Level(NamedTuple):
    """One resolution of a UNet: its width, and `PER_LEVEL`."""

    width: int
    layers: int
    depth: int
    """Transformer blocks of an attention."""
    heads: int
    only_cross: bool


# Of diffusers' options `resnet_skip_time_act`, `resnet_out_scale_factor` and `cross_attention_norm`
# are for blocks of other kinds: with these they change nothing there, and nothing here.
FIXED = {
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "addition_embed_type": None,
    "class_embeddings_concat": False,
}


@dataclass(frozen=True)
class VAEConfig(Config):
    """`config.json` of an `AutoencoderKL`; names and defaults are the published ones."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        require("VAE", "act_fn", self.act_fn, ACTIVATIONS)
        for width in self.block_out_channels:
            require_divisor(
                "VAE", "norm_num_groups", self.norm_num_groups, "block_out_channels", width
            )
        for name, only in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            kinds = getattr(self, name)
            for kind in kinds:
                require("VAE", name, kind, (only,))
            if len(kinds) != len(self.block_out_channels):
                raise InputError(
                    f"VAE config: {name}={kinds!r} has {len(kinds)} entries; "
                    f"block_out_channels has {len(self.block_out_channels)}"
                )

    @cached_property
    def factor(self) -> int:
        """Image pixels per latent pixel along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class CLIPTextConfig(Config):
    """`config.json` of a `CLIPTextModel`; names and defaults are the published ones."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    use_attention_mask: bool = False

    def __post_init__(self) -> None:
        require("CLIP text", "hidden_act", self.hidden_act, ACTIVATIONS)
        _require_heads("CLIP text", self)


@dataclass(frozen=True)
class CLIPVisionConfig(Config):
    """`config.json` of a `CLIPVisionModel`; names and defaults are the published ones."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        require("CLIP vision", "hidden_act", self.hidden_act, ACTIVATIONS)
        _require_heads("CLIP vision", self)

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


def _require_heads(owner: str, c: CLIPTextConfig | CLIPVisionConfig) -> None:
    require_divisor(
        owner, "num_attention_heads", c.num_attention_heads, "hidden_size", c.hidden_size
    )
