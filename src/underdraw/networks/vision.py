"""CLIP's image tower (Radford et al. 2021)."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Path, Shape, Shapes, trace
from underdraw.networks.clip import transformer_layer
from underdraw.networks.config import CLIPVisionConfig
from underdraw.networks.program import Program


class VisionOutput(NamedTuple):
    """What the image tower gives."""

    hidden_states: tuple[Array, ...]
    last: Array
    """The last layer, not normalised, `(batch, tokens, hidden_size)`."""
    pooled: Array
    """Its class token after the last layer norm, `(batch, hidden_size)`."""


def vision(nn: Operations, p: Node, config: CLIPVisionConfig, image: Array) -> VisionOutput:
    """The image tower on `(batch, 3, image_size, image_size)`, as CLIP's processor gives it."""
    c, v = config, p.vision_model
    patches = nn.conv2d(
        v.embeddings.patch_embedding,
        image,
        c.hidden_size,
        c.patch_size,
        c.patch_size,
        0,
        bias=False,
    )
    batch, width, rows, columns = patches.shape
    patches = nn.permute(patches.reshape(batch, width, rows * columns), (0, 2, 1))
    token = nn.parameter(v.embeddings, "class_embedding", (width,))
    token = nn.expand(token[None, None], (batch, 1, width))
    positions = nn.parameter(v.embeddings.position_embedding, "weight", (c.tokens, width))
    x = nn.concat((token, patches), 1) + positions[None]
    x = nn.layer_norm(v.pre_layrnorm, x, c.layer_norm_eps)
    states = [x]
    for i in range(c.num_hidden_layers):
        x = transformer_layer(nn, v.encoder.layers[i], c, x, None)
        states.append(x)
    pooled = nn.layer_norm(v.post_layernorm, x[:, 0], c.layer_norm_eps)
    return VisionOutput(tuple(states), x, pooled)


def visual_projection(nn: Operations, p: Node, config: CLIPVisionConfig, pooled: Array) -> Array:
    """Pooled image to the space shared with text, `(batch, projection_dim)`."""
    return nn.linear(p.visual_projection, pooled, config.projection_dim, bias=False)


@cache
def vision_layout(config: CLIPVisionConfig, projection: bool = True) -> Layout:
    """Names and shapes of the image tower's parameters, with its projection or without."""

    def program(nn: Shapes, p: Path) -> None:
        image = Shape(1, config.num_channels, config.image_size, config.image_size)
        out = vision(nn, p, config, image)
        if projection:
            visual_projection(nn, p, config, out.pooled)

    return trace(program)


VISION = Program("vision", vision)
VISUAL_PROJECTION = Program("vision.projection", visual_projection)
