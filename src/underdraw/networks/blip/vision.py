"""The image tower of BLIP-2 (Li et al. 2023, "BLIP-2"): a ViT with one fused projection to queries,
keys and values."""

from __future__ import annotations

from typing import NamedTuple

from underdraw.backends.contract import Array, Node, Operations
from underdraw.networks.blip.config import BlipVisionConfig
from underdraw.networks.layers import activation, merge_heads, split_heads


class VisionOutput(NamedTuple):
    """What the image tower gives."""

    last: Array
    """The last layer, normalised, `(batch, tokens, hidden_size)`, class token first."""
    pooled: Array
    """Its class token, normalised once more as published, `(batch, hidden_size)`."""


def vision(nn: Operations, p: Node, config: BlipVisionConfig, image: Array) -> VisionOutput:
    """The image tower on `(batch, 3, image_size, image_size)`, normalised per channel."""
    c, e = config, p.embeddings
    patches = nn.conv2d(
        e.patch_embedding, image, c.hidden_size, c.patch_size, c.patch_size, 0, bias=False
    )
    patches = nn.tokens(patches)
    batch, _, width = patches.shape
    token = nn.parameter(e, "class_embedding", (1, 1, width))
    x = nn.concat((nn.expand(token, (batch, 1, width)), patches), 1)
    x = x + nn.parameter(e, "position_embedding", (1, c.tokens, width))
    x = nn.layer_norm(p.pre_layernorm, x, c.layer_norm_eps)
    for i in range(c.num_hidden_layers):
        x = _layer(nn, p.encoder.layers[i], c, x)
    last = nn.layer_norm(p.post_layernorm, x, c.layer_norm_eps)
    return VisionOutput(last, nn.layer_norm(p.post_layernorm, last[:, 0], c.layer_norm_eps))


def _layer(nn: Operations, p: Node, c: BlipVisionConfig, x: Array) -> Array:
    """One pre-norm transformer layer."""
    width, heads = c.hidden_size, c.num_attention_heads
    h = nn.layer_norm(p.layer_norm1, x, c.layer_norm_eps)
    h = nn.linear(p.self_attn.qkv, h, 3 * width, bias=c.qkv_bias)
    q, k, v = (split_heads(nn, h[:, :, at : at + width], heads) for at in (0, width, 2 * width))
    x = x + nn.linear(p.self_attn.projection, merge_heads(nn, nn.attention(q, k, v)), width)
    h = nn.layer_norm(p.layer_norm2, x, c.layer_norm_eps)
    h = activation(nn, c.hidden_act)(nn.linear(p.mlp.fc1, h, c.intermediate_size))
    return x + nn.linear(p.mlp.fc2, h, width)
