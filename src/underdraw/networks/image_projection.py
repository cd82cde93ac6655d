"""From CLIP's image space into that of pooled phrases (GLIGEN's projection matrix)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Shape, trace
from underdraw.networks.config import Config, Width
from underdraw.networks.program import Program


@dataclass(frozen=True)
class ImageProjectionConfig(Config):
    """`config.json` of the projection; CLIP ViT-L/14 has 768."""

    owner = "image projection config"

    hidden_size: Width = 768


def project(nn: Operations, p: Node, config: ImageProjectionConfig, x: Array) -> Array:
    """Image embeddings `(batch, hidden_size)` as phrase features of the same shape."""
    return nn.linear(p.project, x, config.hidden_size, bias=False)


@cache
def layout(config: ImageProjectionConfig) -> Layout:
    """Name and shape of the matrix."""
    return trace(lambda nn, p: project(nn, p, config, Shape(1, config.hidden_size)))


PROJECT = Program("image_projection", project)
