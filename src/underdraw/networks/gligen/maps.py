"""GLIGEN's other modalities: people by keypoints, and maps (edges, depth, normals, classes).

Keypoints become tokens as boxes do. A map becomes tokens through a convolutional image encoder
(ConvNeXt, Liu et al. 2022), and also channels beside the latents, read by a first convolution of
the grounding part's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from underdraw.backends.contract import Array, Node, Operations
from underdraw.errors import ControlError
from underdraw.networks.gligen.config import KEYPOINTS, GroundingConfig
from underdraw.networks.gligen.grounding import Tokens, fourier, mlp, or_null, with_null
from underdraw.networks.program import Program


def keypoint_tokens(
    nn: Operations,
    p: Node,
    config: GroundingConfig,
    points: Array,
    present: Array,
    person: Array,
    joint: Array,
) -> Tokens:
    """Tokens of the points that are seen.

    Args:
        points: `(rows, n, 2)` as x, y in [0, 1]; n is 0 .. `config.null_limit`, the most any row
            has.
        present: `(rows, n)`, 1 where there is a point.
        person: `(rows, n, people)`, 1 at the person a point belongs to, else 0.
        joint: `(rows, n, 17)`, 1 at the point of the body, else 0.
    """
    c, net = config, p.position_net
    rows, n = points.shape[:2]
    padded = n < c.null_limit
    whose = nn.parameter(net, "person_embeddings", (c.people, c.token_width), 0.0)
    which = nn.parameter(net, "keypoint_embeddings", (KEYPOINTS, c.token_width), 0.0)
    nobody = nn.parameter(net, "null_person_feature", (c.token_width,), 0.0)
    nowhere = nn.parameter(net, "null_xy_feature", (4 * c.frequencies,), 0.0)
    who, where = None, None
    if n:
        who = nn.matmul(nn.cast(person, whose), whose) + nn.matmul(nn.cast(joint, which), which)
        who = or_null(nn, who, present, nobody)
        where = or_null(nn, fourier(nn, points, c.frequencies), present, nowhere)
    who = with_null(nn, who, nobody, rows, padded)
    where = with_null(nn, where, nowhere, rows, padded)
    counts = (1,) * n + (c.null_limit - n,) * padded
    return Tokens(mlp(nn, net.linears, nn.concat((who, where), 2), c), counts)


def map_tokens(
    nn: Operations, p: Node, config: GroundingConfig, maps: Array, present: Array
) -> Tokens:
    """Tokens of maps, one for each patch.

    Args:
        maps: `(rows, map_channels, height, width)` in [-1, 1], or one channel per class; any size:
            they are brought to `resize` x `resize` (nearest neighbour, as in training).
        present: `(rows,)`, 1 where there is a map; 0 makes a row unconditional.
    """
    c, net = config, p.position_net
    rows = maps.shape[0]
    x = nn.upsample(maps, c.resize, c.resize)
    if c.kind == "semantic":
        x = nn.conv2d(net.in_conv, x, 3, 3)
    x = convnext(nn, net.convnext_tiny_backbone, x, c.backbone_widths, c.backbone_depths)
    width = c.backbone_widths[-1]
    x = nn.permute(x.reshape(rows, width, c.map_tokens), (0, 2, 1))
    null = nn.parameter(net, "null_feature", (width,), 0.0)
    x = or_null(nn, x, nn.expand(present[:, None], (rows, c.map_tokens)), null)
    x = x + nn.parameter(net, "pos_embedding", (1, c.map_tokens, width), 0.0)
    return Tokens(mlp(nn, net.linears, x, c), (1,) * c.map_tokens)


def convnext(
    nn: Operations, p: Node, x: Array, widths: Sequence[int], depths: Sequence[int]
) -> Array:
    """Features `(rows, widths[-1], h / s, w / s)`, s being `2 * 2 ** len(widths)`."""

    def norm(p: Node, x: Array) -> Array:
        return nn.permute(nn.layer_norm(p, nn.permute(x, (0, 2, 3, 1)), 1e-6), (0, 3, 1, 2))

    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        down = p.downsample_layers[i]
        if i == 0:
            x = norm(down[1], nn.conv2d(down[0], x, width, 4, stride=4, padding=0))
        else:
            x = nn.conv2d(down[1], norm(down[0], x), width, 2, stride=2, padding=0)
        for j in range(depth):
            block = p.stages[i][j]
            h = nn.conv2d(block.dwconv, x, width, 7, groups=width)
            h = nn.layer_norm(block.norm, nn.permute(h, (0, 2, 3, 1)), 1e-6)
            h = nn.linear(block.pwconv2, nn.gelu(nn.linear(block.pwconv1, h, 4 * width)), width)
            h = nn.parameter(block, "gamma", (width,), 1e-6) * h
            x = x + nn.permute(h, (0, 3, 1, 2))
    return x


def map_channels(nn: Operations, p: Node, config: GroundingConfig, maps: Array) -> Array:
    """What maps of size `channel_size` add to the latents: `(rows, extra_channels, h, w)`."""
    c = config
    if c.kind == "hed":
        return maps[:, :1]
    inside = 16 if c.kind == "semantic" else 4
    x = maps if c.kind in ("normal", "semantic") else maps[:, :1]
    layers = p.downsample_net.layers
    x = nn.silu(nn.conv2d(layers[0], x, inside, 4, stride=2, padding=1))
    return nn.conv2d(layers[2], x, c.extra_channels, 4, stride=2, padding=1)


def channel_size(config: GroundingConfig, height: int, width: int) -> tuple[int, int]:
    """The size of the map from which channels for latents of this size are made.

    The original fixes it at 256 x 256 for its 64 x 64 latents; this is the same at any size.
    """
    scale = 1 if config.kind == "hed" else 4
    return height * scale, width * scale


def bicubic(size: int, wanted: int) -> list[list[float]]:
    """The matrix `(wanted, size)` of cubic interpolation (Keys 1981, a = -0.75) along an axis.

    Pixels are squares, borders are repeated, nothing is smoothed when it shrinks: as in training.
    """
    a = -0.75

    def weight(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return ((a + 2) * x - (a + 3)) * x * x + 1
        return ((x - 5) * x + 8) * x * a - 4 * a

    matrix = [[0.0] * size for _ in range(wanted)]
    for i, row in enumerate(matrix):
        centre = (i + 0.5) * size / wanted - 0.5
        first = math.floor(centre) - 1
        for j in range(first, first + 4):
            row[min(max(j, 0), size - 1)] += weight(centre - j)
    return matrix


@dataclass(frozen=True)
class FirstConvolution:
    """The hook `conv_in`: the grounding part's own first convolution, over latents and `extra`."""

    p: Node
    config: GroundingConfig
    extra: Array
    """`(rows, extra_channels, height, width)`; one row serves all."""

    def __call__(self, nn: Operations, plain: Node, x: Array) -> Array:
        c, extra = self.config, nn.cast(self.extra, x)
        if extra.shape[0] == 1:
            extra = nn.expand(extra, (x.shape[0], *extra.shape[1:]))
        if extra.shape[1] != c.extra_channels or extra.shape[2:] != x.shape[2:]:
            raise ControlError(
                f"{self!r} adds {tuple(extra.shape)} to latents of {tuple(x.shape)}; needed are "
                f"{c.extra_channels} channels of the latents' size"
            )
        return nn.conv2d(self.p.conv_in, nn.concat((x, extra), 1), c.first_width, c.first_kernel)

    def __repr__(self) -> str:
        return f"FirstConvolution({self.config.kind})"


KEYPOINT_TOKENS = Program("gligen.keypoint_tokens", keypoint_tokens, once=True)
MAP_TOKENS = Program("gligen.map_tokens", map_tokens)
MAP_CHANNELS = Program("gligen.map_channels", map_channels)
