"""The KL autoencoder between images and latents (Rombach et al. 2022, section 3.1)."""

from __future__ import annotations

from functools import cache

from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Path, Shape, Shapes, trace
from underdraw.networks.config import VAEConfig
from underdraw.networks.layers import activation, attention, keys_values, resnet
from underdraw.networks.program import Program

EPS = 1e-6


def encode(nn: Operations, p: Node, config: VAEConfig, image: Array) -> Array:
    """Moments of the latent distribution: image `(batch, 3, height, width)` in [-1, 1] to
    `(batch, 2 * latent_channels, height / factor, width / factor)`, mean then log-variance."""
    c, e = config, p.encoder
    act, groups = activation(nn, c.act_fn), c.norm_num_groups
    x = nn.conv2d(e.conv_in, image, c.block_out_channels[0], 3)
    for i, width in enumerate(c.block_out_channels):
        block = e.down_blocks[i]
        for j in range(c.layers_per_block):
            x = resnet(nn, block.resnets[j], x, width, groups, EPS, act)
        if i < len(c.block_out_channels) - 1:
            # Padded below and to the right only: that is how the published weights were trained.
            down = block.downsamplers[0].conv
            x = nn.conv2d(down, nn.pad(x, 1, 1), width, 3, stride=2, padding=0)
    x = _middle(nn, e.mid_block, c, x)
    # SiLU here, and at the end of `decode`, whatever `act_fn` says: so does diffusers.
    x = nn.silu(nn.group_norm(e.conv_norm_out, x, groups, EPS))
    moments = nn.conv2d(e.conv_out, x, 2 * c.latent_channels, 3)
    return (
        nn.conv2d(p.quant_conv, moments, 2 * c.latent_channels, 1) if c.use_quant_conv else moments
    )


def decode(nn: Operations, p: Node, config: VAEConfig, latents: Array) -> Array:
    """Latents, divided by the scaling factor, to images `(batch, 3, height, width)`, -1 .. 1."""
    c, d = config, p.decoder
    act, groups = activation(nn, c.act_fn), c.norm_num_groups
    x = (
        nn.conv2d(p.post_quant_conv, latents, c.latent_channels, 1)
        if c.use_post_quant_conv
        else latents
    )
    x = nn.conv2d(d.conv_in, x, c.block_out_channels[-1], 3)
    x = _middle(nn, d.mid_block, c, x)
    for i, width in enumerate(reversed(c.block_out_channels)):
        block = d.up_blocks[i]
        for j in range(c.layers_per_block + 1):
            x = resnet(nn, block.resnets[j], x, width, groups, EPS, act)
        if i < len(c.block_out_channels) - 1:
            x = nn.upsample(x, 2 * x.shape[2], 2 * x.shape[3])
            x = nn.conv2d(block.upsamplers[0].conv, x, width, 3)
    x = nn.silu(nn.group_norm(d.conv_norm_out, x, groups, EPS))
    return nn.conv2d(d.conv_out, x, c.out_channels, 3)


def _middle(nn: Operations, p: Node, c: VAEConfig, x: Array) -> Array:
    """Two residual blocks around one attention of a single head over all positions."""
    act, groups, width = activation(nn, c.act_fn), c.norm_num_groups, c.block_out_channels[-1]
    x = resnet(nn, p.resnets[0], x, width, groups, EPS, act)
    if c.mid_block_add_attention:
        batch, channels, height, wide = x.shape
        layer = p.attentions[0]
        h = nn.group_norm(layer.group_norm, x, groups, EPS)
        h = nn.permute(h.reshape(batch, channels, height * wide), (0, 2, 1))
        h = attention(nn, layer, h, keys_values(nn, layer, h, width, 1, bias=True), 1, bias=True)
        # In this order PyTorch keeps the attention's memory layout from here on, as diffusers does.
        x = nn.permute(h, (0, 2, 1)).reshape(batch, channels, height, wide) + x
    return resnet(nn, p.resnets[1], x, width, groups, EPS, act)


@cache
def layout(config: VAEConfig) -> Layout:
    """Names and shapes of the parameters of both entries."""
    side = 2 * config.factor

    def encoder(nn: Shapes, p: Path) -> None:
        encode(nn, p, config, Shape(1, config.in_channels, side, side))

    def decoder(nn: Shapes, p: Path) -> None:
        decode(nn, p, config, Shape(1, config.latent_channels, 2, 2))

    return trace(encoder) | trace(decoder)


ENCODE = Program("vae.encode", encode)
DECODE = Program("vae.decode", decode)
