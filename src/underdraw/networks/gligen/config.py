"""What a grounding part (GLIGEN, Li et al. 2023) is made for, and of what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from underdraw.errors import InputError
from underdraw.networks.config import (
    MID,
    MOST_BLOCKS,
    Channels,
    Config,
    Heads,
    Kernel,
    Layers,
    UNetConfig,
    Width,
    Widths,
    require,
    require_divisor,
)
from underdraw.schema import Length, Matching, OneOf, Range, fault

BOXES = ("text", "text-image")
MAPS = ("hed", "canny", "depth", "normal", "semantic")
KINDS = (*BOXES, "keypoints", *MAPS)
ATTENTION_TYPES = {"gated": "text", "gated-text-image": "text-image"}
"""What `attention_type` of a published UNet says about the grounding part in the same file."""

KEYPOINTS = 17
"""Points of a person, in the order of COCO."""
INPAINTING_CHANNELS = 5
"""Masked image (4) and mask (1), which an inpainting UNet takes beside the noisy latents."""
MAP_CHANNELS = {"hed": 1}
"""Channels a map adds to the latents; 8 for those not named."""

Place = Annotated[
    str, Matching(r"[A-Za-z]\w*(\.\w+)*", "names with points between them"), Length(1, 200)
]
"""A path of the parameter tree."""


@dataclass(frozen=True)
class GroundingConfig(Config):
    """`config.json` of a `Grounding`. Defaults are the published sizes for Stable Diffusion 1.x."""

    owner = "grounding config"

    kind: Annotated[str, OneOf(*KINDS)] = "text"
    """What a token stands for; one of `KINDS`."""
    fusers: Annotated[tuple[tuple[Place, Width, Heads], ...], Length(0, MOST_BLOCKS)] = ()
    """For each transformer block of the UNet its place, width and number of heads."""
    token_width: Width = 768
    phrase_width: Width = 768
    """Width of phrase and image features: that of the text encoder."""
    limit: Annotated[int, Range(1, 10_000)] = 30
    """Tokens of each sort (boxes, or points) seen in training; where fewer are given, null tokens
    stand for the rest."""
    hidden_width: Width = 512
    frequencies: Annotated[int, Range(1, 64)] = 8
    people: Annotated[int, Range(1, 1000)] = 8
    resize: Annotated[int, Range(1, 4096)] = 256
    """Side to which maps are brought before the image encoder."""
    classes: Channels = 152
    """Channels of a semantic map."""
    backbone_widths: Widths = (96, 192, 384, 768)
    backbone_depths: Annotated[tuple[Layers, ...], Length(1, 12)] = (3, 3, 9, 3)
    in_channels: Channels = 4
    extra_channels: Annotated[int, Range(0, 4096)] = 0
    """Input channels beside the `in_channels` of the base, read by a first convolution of the
    grounding part's own; 0: there is none."""
    first_width: Width = 320
    first_kernel: Kernel = 3

    def check(self) -> None:
        for place, width, heads in self.fusers:
            require_divisor(self.owner, f"heads of {place}", heads, "its width", width)
        places = [place for place, _, _ in self.fusers]
        if len(set(places)) < len(places):
            twice = next(place for place in places if places.count(place) > 1)
            raise fault(self.owner, f"fusers name {twice!r} twice; allowed: each block once")
        if self.kind in MAPS:
            if len(self.backbone_widths) != len(self.backbone_depths):
                raise fault(
                    self.owner,
                    f"backbone_widths={self.backbone_widths!r} and "
                    f"backbone_depths={self.backbone_depths!r} differ in length",
                )
            require_divisor(self.owner, "side of a patch", self.patch, "resize", self.resize)

    @property
    def null_limit(self) -> int:
        """How many tokens of each sort training padded to."""
        return self.people * KEYPOINTS if self.kind == "keypoints" else self.limit

    @property
    def patch(self) -> int:
        """Side of what one token of a map sees, in pixels of the resized map."""
        return 2 * 2 ** len(self.backbone_widths)

    @property
    def map_tokens(self) -> int:
        """Tokens of a map."""
        return (self.resize // self.patch) ** 2

    @property
    def map_channels(self) -> int:
        """Channels of the map itself: one per class, else red, green, blue."""
        return self.classes if self.kind == "semantic" else 3

    @property
    def attention_type(self) -> str | None:
        """How a published UNet config calls this kind; None for those no UNet folder can hold."""
        return next((name for name, kind in ATTENTION_TYPES.items() if kind == self.kind), None)

    @classmethod
    def for_unet(cls, unet: UNetConfig, kind: str | None = None, **fields: Any) -> GroundingConfig:
        """The grounding part for a UNet of this config.

        Args:
            kind: one of `KINDS`; None takes what `attention_type` of the UNet says.
            fields: others of this config, such as `limit`.

        Raises:
            InputError: the kind is not known, or the UNet names none.
        """
        if kind is None:
            if unet.attention_type not in ATTENTION_TYPES:
                raise InputError(
                    f"this UNet has attention_type={unet.attention_type!r}, so no grounding layers "
                    f"(GLIGEN checkpoints have {' or '.join(map(repr, ATTENTION_TYPES))}); "
                    "attach grounding weights, for example with load_grounding"
                )
            kind = ATTENTION_TYPES[unet.attention_type]
        require(GroundingConfig.owner, "kind", kind, KINDS)
        width = unet.cross_attention_dim
        extra = MAP_CHANNELS.get(kind, 8) if kind in MAPS else 0
        fields = {"extra_channels": extra, "token_width": width, "phrase_width": width, **fields}
        if fields["extra_channels"]:
            first = {"first_width": unet.block_out_channels[0], "first_kernel": unet.conv_in_kernel}
            fields = {"in_channels": unet.in_channels, **first, **fields}
        return cls(kind, tuple(transformer_blocks(unet)), **fields)

    def require_fit(self, unet: UNetConfig) -> None:
        """Raise an `InputError` unless this grounding part was made for such a UNet."""
        there = tuple(transformer_blocks(unet))
        faults = []
        if set(self.fusers) != set(there):
            faults.append(
                f"{_widths(self.fusers)} in {len(self.fusers)} transformer blocks; this UNet has "
                f"{_widths(there)} in {len(there)}"
            )
        if self.kind in BOXES and self.phrase_width != unet.cross_attention_dim:
            faults.append(
                f"phrases of width {self.phrase_width}; this UNet's text encoder gives "
                f"{unet.cross_attention_dim}"
            )
        # A base that takes all channels itself keeps its own first convolution.
        whole = self.kind not in MAPS and unet.in_channels == self.in_channels + self.extra_channels
        if self.extra_channels and (
            not (whole or unet.in_channels == self.in_channels)
            or (self.first_width, self.first_kernel)
            != (unet.block_out_channels[0], unet.conv_in_kernel)
        ):
            faults.append(
                f"a first convolution {self.in_channels}+{self.extra_channels} -> "
                f"{self.first_width}; this UNet's is {unet.in_channels} -> "
                f"{unet.block_out_channels[0]}"
            )
        if faults:
            raise InputError(
                "the grounding weights were trained for another UNet: " + "; and ".join(faults)
            )


def transformer_blocks(unet: UNetConfig) -> Iterator[tuple[str, int, int]]:
    """Place, width and heads of each transformer block, in the order of the program."""
    levels = unet.levels

    def blocks(at: str, level: Any) -> Iterator[tuple[str, int, int]]:
        for k in range(level.depth):
            yield f"{at}.transformer_blocks.{k}", level.width, level.heads

    for i, (kind, level) in enumerate(zip(unet.down_block_types, levels, strict=True)):
        if kind.startswith("CrossAttn"):
            for j in range(level.layers):
                yield from blocks(f"down_blocks.{i}.attentions.{j}", level)
    if unet.mid_block_type == MID[0]:
        yield from blocks("mid_block.attentions.0", levels[-1])
    for i, (kind, level) in enumerate(zip(unet.up_block_types, reversed(levels), strict=True)):
        if kind.startswith("CrossAttn"):
            for j in range(level.layers + 1):
                yield from blocks(f"up_blocks.{i}.attentions.{j}", level)


def _widths(fusers: tuple[tuple[str, int, int], ...]) -> str:
    """`widths 320, 640 (8 heads)`: enough to recognise a family by."""
    kinds = sorted({(width, heads) for _, width, heads in fusers})
    return "widths " + ", ".join(f"{width} ({heads} heads)" for width, heads in kinds)
