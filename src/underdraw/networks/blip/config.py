"""The frozen config of BLIP-Diffusion's subject encoder, as published folders hold it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from underdraw.networks.config import (
    Activation,
    Channels,
    Config,
    Epsilon,
    Heads,
    Layers,
    Side,
    Token,
    Width,
    require_divisor,
)
from underdraw.schema import OneOf, Range, fault

MOST_QUERIES = 1024
"""Tokens of a subject; published weights have 16."""


@dataclass(frozen=True)
class BlipVisionConfig(Config):
    """`vision_config` of a `Blip2QFormerModel`; names and defaults are the published ones."""

    owner = "BLIP vision config"

    hidden_size: Width = 1408
    intermediate_size: Width = 6144
    num_hidden_layers: Layers = 39
    num_attention_heads: Heads = 16
    num_channels: Annotated[Channels, OneOf(3)] = 3
    image_size: Side = 224
    patch_size: Side = 14
    hidden_act: Activation = "gelu"
    layer_norm_eps: Epsilon = 1e-6
    qkv_bias: bool = True

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


@dataclass(frozen=True)
class QFormerConfig(Config):
    """`qformer_config` of a `Blip2QFormerModel`; names and defaults are the published ones."""

    owner = "Q-Former config"

    vocab_size: Annotated[int, Range(1, 2**24)] = 30522
    hidden_size: Width = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 12
    intermediate_size: Width = 3072
    hidden_act: Activation = "gelu"
    max_position_embeddings: Side = 512
    layer_norm_eps: Epsilon = 1e-12
    pad_token_id: Token | None = 0
    position_embedding_type: Annotated[str, OneOf("absolute")] = "absolute"
    cross_attention_frequency: Layers = 2
    encoder_hidden_size: Width = 1408

    def check(self) -> None:
        _require_heads(self)

    def looks(self, layer: int) -> bool:
        """Whether a layer's queries attend to the picture."""
        return layer % self.cross_attention_frequency == 0


@dataclass(frozen=True)
class Blip2Config(Config):
    """`config.json` of a `Blip2QFormerModel`: an image tower, a Q-Former, and how many tokens a
    subject has."""

    owner = "BLIP-2 config"

    vision_config: BlipVisionConfig = field(default_factory=BlipVisionConfig)
    qformer_config: QFormerConfig = field(default_factory=QFormerConfig)
    num_query_tokens: Annotated[int, Range(1, MOST_QUERIES)] = 32

    def check(self) -> None:
        wide, seen = self.vision_config.hidden_size, self.qformer_config.encoder_hidden_size
        if wide != seen:
            raise fault(
                self.owner,
                f"qformer_config.encoder_hidden_size={seen} is not supported; allowed: {wide}, as "
                "vision_config.hidden_size",
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON stores them."""
        plain = {"num_query_tokens": self.num_query_tokens}
        vision, qformer = self.vision_config.to_dict(), self.qformer_config.to_dict()
        return {**plain, "vision_config": vision, "qformer_config": qformer}


def _require_heads(c: BlipVisionConfig | QFormerConfig) -> None:
    require_divisor(
        c.owner, "num_attention_heads", c.num_attention_heads, "hidden_size", c.hidden_size
    )
