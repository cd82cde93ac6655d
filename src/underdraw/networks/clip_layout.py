"""The parameters of CLIP's text tower, and its projection into the space shared with images."""

from __future__ import annotations

from functools import cache

from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Path, Shape, Shapes, trace
from underdraw.networks.clip import text
from underdraw.networks.config import CLIPTextConfig


def text_projection(nn: Operations, p: Node, config: CLIPTextConfig, pooled: Array) -> Array:
    """Pooled text to the space shared with images, `(batch, projection_dim)`."""
    return nn.linear(p.text_projection, pooled, config.projection_dim, bias=False)


@cache
def text_layout(config: CLIPTextConfig, projection: bool = False) -> Layout:
    """Names and shapes of the text tower's parameters, with its projection or without."""

    def program(nn: Shapes, p: Path) -> None:
        out = text(nn, p, config, Shape(1, 2))
        if projection:
            text_projection(nn, p, config, out.pooled)

    return trace(program)
