"""A grounding part at work inside a UNet call, and the layout of its parameters."""

from __future__ import annotations

from functools import cache

from underdraw.backends.contract import Array, Node
from underdraw.backends.layout import Layout
from underdraw.backends.node import at
from underdraw.backends.shapes import Path, Shape, Shapes, trace
from underdraw.networks.gligen.config import KEYPOINTS, MAPS, GroundingConfig
from underdraw.networks.gligen.grounding import (
    Constants,
    Fusers,
    Strength,
    Tokens,
    box_tokens,
    constants as ready,
    fuse,
)
from underdraw.networks.gligen.maps import (
    FirstConvolution,
    channel_size,
    keypoint_tokens,
    map_channels,
    map_tokens,
)
from underdraw.networks.sites import Sites


def sites(
    p: Node,
    config: GroundingConfig,
    constants: Constants,
    strength: Strength = 1.0,
    extra: Array | None = None,
) -> Sites:
    """What acts inside one UNet call.

    Args:
        strength: at 0 the fusers do not act, and with them goes the first convolution of a map: the
            call is a plain one. That of an inpainting part stays, since the picture comes through
            it.
        extra: input channels for the part's own first convolution; None leaves the UNet's.
    """
    off = not hasattr(strength, "shape") and strength == 0
    fusers = () if off else (Fusers(p, config, constants, strength),)
    if extra is None or (off and config.kind in MAPS):
        return Sites(after_self_attention=fusers)
    return Sites(after_self_attention=fusers, conv_in=FirstConvolution(p, config, extra))


@cache
def layout(config: GroundingConfig) -> Layout:
    """Names and shapes of the parameters: `position_net.*` and the `fuser.*` of each block, and,
    for what adds input channels, `downsample_net.*` and `conv_in`."""
    return trace(lambda nn, p: _everything(nn, p, config))


def _everything(nn: Shapes, p: Path, c: GroundingConfig) -> None:
    known = ready(nn, p, c, _tokens(nn, p, c))
    for place, width, heads in c.fusers:
        fuse(nn, at(p, place).fuser, Shape(1, 4, width), known.keys[place], known.bias, heads)
    if c.kind in MAPS:
        map_channels(nn, p, c, Shape(1, c.map_channels, *channel_size(c, 2, 2)))
    if c.extra_channels:
        latents = Shape(1, c.in_channels, 2, 2)
        FirstConvolution(p, c, Shape(1, c.extra_channels, 2, 2))(nn, p.conv_in, latents)


def _tokens(nn: Shapes, p: Path, c: GroundingConfig) -> Tokens:
    one = Shape(1, 1)
    if c.kind == "keypoints":
        people, joints = Shape(1, 1, c.people), Shape(1, 1, KEYPOINTS)
        return keypoint_tokens(nn, p, c, Shape(1, 1, 2), one, people, joints)
    if c.kind in MAPS:
        side = c.resize
        return map_tokens(nn, p, c, Shape(1, c.map_channels, side, side), Shape(1))
    features = Shape(1, 1, c.phrase_width)
    return box_tokens(nn, p, c, Shape(1, 1, 4), one, features, images=features)
