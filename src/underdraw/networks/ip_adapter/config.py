"""What an IP-Adapter (Ye et al. 2023) is made for, and of what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from underdraw.errors import InputError
from underdraw.networks.config import (
    MOST_BLOCKS,
    Config,
    Depth,
    Heads,
    UNetConfig,
    Width,
    require_divisor,
)
from underdraw.networks.gligen.config import Place, transformer_blocks
from underdraw.schema import Length, OneOf, Range, fault

POOLED, HIDDEN = ("plain",), ("full", "plus", "face-id-plus")
"""Kinds that read the image tower's projected embedding, and its hidden states but the last."""
FACES = ("face-id", "face-id-plus")
"""Kinds that read features of a face recogniser."""
KINDS = ("plain", "full", "plus", *FACES)
HEAD = 64
"""Width of a head of the resamplers; all that were published have it."""


@dataclass(frozen=True)
class IPAdapterConfig(Config):
    """`config.json` of an `IPAdapter`. Defaults are the sizes of the plain one for Stable Diffusion
    1.x; fields that a kind has no use for keep theirs."""

    owner = "IP-Adapter config"

    kind: Annotated[str, OneOf(*KINDS)] = "plain"
    layers: Annotated[tuple[tuple[Place, Width, Heads], ...], Length(0, MOST_BLOCKS)] = ()
    """For each cross-attention of the UNet the place of its block, its width and number of heads,
    in the order in which files number them: the way down, the way up, the middle."""
    token_width: Width = 768
    """That of the UNet's context."""
    tokens: Annotated[int, Range(1, 4096)] = 4
    """Of a picture; of kind "full" there are as many as the image tower has."""
    feature_width: Width = 1024
    """Of what the image tower gives: embeddings or hidden states."""
    face_width: Width = 512
    hidden_width: Width = 1024
    """Between the two layers of a perceptron, or inside a resampler."""
    face_hidden_width: Width = 1024
    """Kind "face-id-plus": between the two layers that read faces."""
    inner_width: Width = 768
    """Of all heads of a resampler's attention."""
    wide: Width = 3072
    """Of a resampler's feed-forward networks."""
    depth: Depth = 4
    """Blocks of a resampler."""
    lora_rank: Annotated[int, Range(0, 4096)] = 0
    """Of the differences to all attentions of the UNet which files of "face-id" bring; 0: none."""
    shortcut: bool = False
    """Kind "face-id-plus": the resampler's output is added to the tokens of the face (version 2).
    Names and shapes do not tell."""

    def check(self) -> None:
        for place, width, heads in self.layers:
            require_divisor(self.owner, f"heads of {place}", heads, "its width", width)
        if self.resamples:
            require_divisor(self.owner, "width of a head", HEAD, "inner_width", self.inner_width)
        if self.shortcut and (self.kind != "face-id-plus" or self.hidden_width != self.token_width):
            raise fault(
                self.owner,
                "shortcut=True is not supported; allowed: False, but for kind='face-id-plus' with "
                "hidden_width as wide as token_width",
            )

    @property
    def resamples(self) -> bool:
        """Whether a resampler makes its tokens."""
        return self.kind in ("plus", "face-id-plus")

    @property
    def sees(self) -> bool:
        """Whether it reads pictures, or what an image tower makes of them."""
        return self.kind != "face-id"

    @property
    def reads_faces(self) -> bool:
        """Whether it reads features of faces."""
        return self.kind in FACES

    @property
    def pooled(self) -> bool:
        """Whether it reads the tower's projected embedding instead of its hidden states."""
        return self.kind in POOLED

    def require_fit(self, unet: UNetConfig) -> None:
        """Raise an `InputError` unless this adapter was made for such a UNet."""
        there = tuple(cross_attentions(unet))
        if self.layers != there or self.token_width != unet.cross_attention_dim:
            raise InputError(
                "the IP-Adapter was made for another UNet: "
                f"{_told(self.layers, self.token_width)}; this one has "
                f"{_told(there, unet.cross_attention_dim)}"
            )


def cross_attentions(unet: UNetConfig) -> Iterator[tuple[str, int, int]]:
    """Place of the block, width and heads of each cross-attention that looks at the text only, in
    the order in which files of IP-Adapters number them."""
    blocks = list(transformer_blocks(unet))
    middle = [block for block in blocks if block[0].startswith("mid_block")]
    yield from (block for block in blocks if not block[0].startswith("mid_block"))
    yield from middle


def number(index: int) -> int:
    """Under which number files have a cross-attention of this index: self-attentions are counted,
    too, and each stands before its neighbour."""
    return 2 * index + 1


def _told(layers: tuple[tuple[str, int, int], ...], context: int) -> str:
    widths = ", ".join(str(width) for width in sorted({width for _, width, _ in layers}))
    return f"{len(layers)} cross-attentions of widths {widths} to a context of {context}"
