"""The tiny autoencoder (Bohan 2023, TAESD): convolutions alone, a fiftieth of the work of the KL
autoencoder's decoder, on the same latents times its scaling factor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Any

from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Path, Shape, Shapes, trace
from underdraw.errors import InputError
from underdraw.networks.config import (
    ACTIVATIONS,
    Channels,
    Config,
    Depth,
    Factor,
    Off,
    Widths,
    fault,
    shown,
)
from underdraw.networks.layers import activation
from underdraw.networks.program import Program
from underdraw.schema import Length, OneOf, Range

RELU = "relu"
Blocks = Annotated[tuple[Depth, ...], Length(1, 12)]


@dataclass(frozen=True)
class TinyVAEConfig(Config):
    """`config.json` of an `AutoencoderTiny`; names and defaults are the published ones."""

    owner = "tiny VAE config"

    in_channels: Channels = 3
    out_channels: Channels = 3
    encoder_block_out_channels: Widths = (64, 64, 64, 64)
    decoder_block_out_channels: Widths = (64, 64, 64, 64)
    act_fn: Annotated[str, OneOf(RELU, *ACTIVATIONS)] = RELU
    upsample_fn: Annotated[str, OneOf("nearest")] = "nearest"
    latent_channels: Channels = 4
    upsampling_scaling_factor: Annotated[int, OneOf(2)] = 2
    num_encoder_blocks: Blocks = (1, 3, 3, 3)
    num_decoder_blocks: Blocks = (3, 3, 3, 1)
    latent_magnitude: Annotated[float, Range(above=0, high=1e6)] = 3
    latent_shift: Annotated[float, Range(-1e6, 1e6)] = 0.5
    force_upcast: Off = False
    scaling_factor: Factor = 1.0
    shift_factor: Annotated[float, Range(-1e6, 1e6)] = 0.0
    encodes: bool = True
    """Ours: False where a file had the decoder alone, which is enough for text to image and for
    previews."""

    def check(self) -> None:
        for half in ("encoder", "decoder"):
            widths, blocks = f"{half}_block_out_channels", f"num_{half}_blocks"
            value, count = getattr(self, widths), len(getattr(self, blocks))
            if len(value) != count:
                raise fault(
                    self.owner,
                    f"{widths}={shown(value)} has {len(value)} entries; {blocks} has {count}",
                )
            if len(set(value)) > 1:
                raise fault(
                    self.owner, f"{widths}={shown(value)}; allowed: one width for all entries"
                )
        if len(self.num_encoder_blocks) != len(self.num_decoder_blocks):
            raise fault(
                self.owner,
                f"num_encoder_blocks={shown(self.num_encoder_blocks)} halve pictures more or less "
                f"often than num_decoder_blocks={shown(self.num_decoder_blocks)} double them",
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON stores them; of ours only what differs."""
        fields = super().to_dict()
        if fields["encodes"]:
            del fields["encodes"]
        return fields

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        """What code written for diffusers counts levels by."""
        return self.decoder_block_out_channels

    @cached_property
    def factor(self) -> int:
        """Image pixels per latent pixel along each side."""
        return self.upsampling_scaling_factor ** (len(self.num_decoder_blocks) - 1)


def encode(nn: Operations, p: Node, config: TinyVAEConfig, image: Array) -> Array:
    """Latents `(batch, latent_channels, height / factor, width / factor)` of images
    `(batch, 3, height, width)` in [-1, 1].

    Raises:
        InputError: there is no encoder.
    """
    c, act = config, _activation(nn, config.act_fn)
    if not c.encodes:
        raise InputError("image: this tiny autoencoder has its decoder alone, and encodes nothing")
    layers, index = p.encoder.layers, 0
    width, x = c.encoder_block_out_channels[0], (image + 1) / 2
    for i, blocks in enumerate(c.num_encoder_blocks):
        x = nn.conv2d(layers[index], x, width, 3, stride=2 if i else 1, bias=not i)
        for j in range(blocks):
            x = _block(nn, layers[index + 1 + j], x, width, act)
        index += 1 + blocks
    return nn.conv2d(layers[index], x, c.latent_channels, 3)


def decode(nn: Operations, p: Node, config: TinyVAEConfig, latents: Array) -> Array:
    """Latents, divided by the scaling factor, to images `(batch, 3, height, width)`, -1 .. 1."""
    c, act = config, _activation(nn, config.act_fn)
    layers, last = p.decoder.layers, len(config.num_decoder_blocks) - 1
    width, x = c.decoder_block_out_channels[0], nn.tanh(latents / 3) * 3
    x, index = act(nn.conv2d(layers[0], x, width, 3)), 2  # 1 is the activation
    for i, blocks in enumerate(c.num_decoder_blocks):
        for j in range(blocks):
            x = _block(nn, layers[index + j], x, width, act)
        index += blocks
        if i < last:
            x = nn.upsample(x, 2 * x.shape[2], 2 * x.shape[3])
            x = nn.conv2d(layers[index + 1], x, width, 3, bias=False)
            index += 2
    return nn.conv2d(layers[index], x, c.out_channels, 3) * 2 - 1


def _block(nn: Operations, p: Node, x: Array, width: int, act: Callable[[Array], Array]) -> Array:
    h = act(nn.conv2d(p.conv[0], x, width, 3))
    h = act(nn.conv2d(p.conv[2], h, width, 3))
    return _relu(nn, nn.conv2d(p.conv[4], h, width, 3) + x)


def _relu(nn: Operations, x: Array) -> Array:
    return nn.clip(x, 0.0, math.inf)


def _activation(nn: Operations, name: str) -> Callable[[Array], Array]:
    return (lambda x: _relu(nn, x)) if name == RELU else activation(nn, name)


@cache
def layout(config: TinyVAEConfig) -> Layout:
    """Names and shapes of the parameters, of the decoder alone where there is no encoder."""
    side = 2 * config.factor

    def encoder(nn: Shapes, p: Path) -> None:
        encode(nn, p, config, Shape(1, config.in_channels, side, side))

    def decoder(nn: Shapes, p: Path) -> None:
        decode(nn, p, config, Shape(1, config.latent_channels, 2, 2))

    return trace(encoder) | trace(decoder) if config.encodes else trace(decoder)


ENCODE = Program("tiny_vae.encode", encode)
DECODE = Program("tiny_vae.decode", decode)
