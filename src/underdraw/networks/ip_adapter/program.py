"""An IP-Adapter's own layers: from what is known of pictures to tokens, keys and values (Ye et al.
2023, sections 3.2 and 3.3), under the names of published files."""

from __future__ import annotations

from functools import cache
from typing import Any

from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Path, Shape, Shapes, trace
from underdraw.networks.ip_adapter.config import HEAD, IPAdapterConfig, number
from underdraw.networks.layers import KeysValues, merge_heads, split_heads
from underdraw.networks.program import Program

LORA = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
"""How files call the layers of an attention which their LoRA changes, and how the UNet does."""


def tokens(
    nn: Operations,
    p: Node,
    config: IPAdapterConfig,
    features: Any,
    faces: Any,
    shortcut_scale: float = 1.0,
) -> Array:
    """Tokens `(pictures, n, token_width)` that stand beside those of a text.

    Args:
        p: the root; `p.image_proj` is read.
        features: of the image tower, for kinds that see: projected embeddings `(pictures,
            feature_width)`, or hidden states `(pictures, tokens, feature_width)`; else None.
        faces: of a face recogniser, for kinds that read faces: `(pictures, face_width)`; else None.
        shortcut_scale: kind "face-id-plus" with a shortcut: how much of what the picture adds.
    """
    c, net = config, p.image_proj
    if c.kind == "plain":
        x = nn.linear(net.proj, features, c.tokens * c.token_width)
        return nn.layer_norm(net.norm, x.reshape(-1, c.tokens, c.token_width))
    if c.kind == "full":
        x = _perceptron(nn, net.proj, features, c.hidden_width, c.token_width)
        return nn.layer_norm(net.proj[3], x)
    if c.kind == "face-id":
        x = _perceptron(nn, net.proj, faces, c.hidden_width, c.tokens * c.token_width)
        return nn.layer_norm(net.norm, x.reshape(-1, c.tokens, c.token_width))
    if c.kind == "plus":
        latents = nn.parameter(net, "latents", (1, c.tokens, c.hidden_width))
        latents = nn.expand(latents, (features.shape[0], *latents.shape[1:]))
        return _resampled(nn, net, c, features, latents)
    x = _perceptron(nn, net.proj, faces, c.face_hidden_width, c.tokens * c.hidden_width)
    known = nn.layer_norm(net.norm, x.reshape(-1, c.tokens, c.hidden_width))
    seen = _resampled(nn, net.perceiver_resampler, c, features, known)
    return known + shortcut_scale * seen if c.shortcut else seen


def _perceptron(nn: Operations, p: Node, x: Array, inner: int, width: int) -> Array:
    return nn.linear(p[2], nn.gelu(nn.linear(p[0], x, inner)), width)


def _resampled(nn: Operations, p: Node, c: IPAdapterConfig, x: Array, latents: Array) -> Array:
    """A resampler (Alayrac et al. 2022): latents look at features and at each other, again and
    again."""
    width, x = c.hidden_width, nn.linear(p.proj_in, x, c.hidden_width)
    for i in range(c.depth):
        looks, thinks = p.layers[i][0], p.layers[i][1]
        asking = nn.layer_norm(looks.norm2, latents)
        seen = nn.concat((nn.layer_norm(looks.norm1, x), asking), 1)
        q = nn.linear(looks.to_q, asking, c.inner_width, bias=False)
        kv = nn.linear(looks.to_kv, seen, 2 * c.inner_width, bias=False)
        k, v = kv[:, :, : c.inner_width], kv[:, :, c.inner_width :]
        heads = c.inner_width // HEAD
        h = nn.attention(*(split_heads(nn, one, heads) for one in (q, k, v)))
        latents = latents + nn.linear(looks.to_out, merge_heads(nn, h), width, bias=False)
        h = nn.linear(thinks[1], nn.layer_norm(thinks[0], latents), c.wide, bias=False)
        latents = latents + nn.linear(thinks[3], nn.gelu(h), width, bias=False)
    return nn.layer_norm(p.norm_out, nn.linear(p.proj_out, latents, c.token_width))


def constants(
    nn: Operations,
    p: Node,
    config: IPAdapterConfig,
    features: Any,
    faces: Any,
    shortcut_scale: float,
    pictures: int,
) -> dict[str, KeysValues]:
    """Keys and values `(rows, heads, pictures * n, d)` by place of each cross-attention: they do
    not change in a run.

    Args:
        features, faces, shortcut_scale: as of `tokens`, of the pictures of all rows.
        pictures: how many of them make one row.
    """
    x = tokens(nn, p, config, features, faces, shortcut_scale)
    x = x.reshape(x.shape[0] // pictures, pictures * x.shape[1], config.token_width)
    return keys_values(nn, p, config, x)


def keys_values(
    nn: Operations, p: Node, config: IPAdapterConfig, x: Array
) -> dict[str, KeysValues]:
    """Keys and values of tokens `(rows, n, token_width)` by place."""
    made = {}
    for i, (place, width, heads) in enumerate(config.layers):
        layers = p.ip_adapter[number(i)]
        k, v = (
            split_heads(nn, nn.linear(layer, x, width, bias=False), heads)
            for layer in (layers.to_k_ip, layers.to_v_ip)
        )
        made[f"{place}.attn2"] = (k, v)
    return made


@cache
def layout(config: IPAdapterConfig) -> Layout:
    """Names and shapes of the parameters: `image_proj.*`, `ip_adapter.N.to_k_ip`, ..., and those of
    the LoRA that a file brings along."""

    def program(nn: Shapes, p: Path) -> None:
        c = config
        features = Shape(1, c.feature_width) if c.pooled else Shape(1, 2, c.feature_width)
        constants(nn, p, c, features, Shape(1, c.face_width), 1.0, 1)
        for i, (_, width, _) in enumerate(c.layers if c.lora_rank else ()):
            for at, context in ((2 * i, width), (number(i), c.token_width)):
                for name in LORA:
                    into = context if name in ("to_k", "to_v") else width
                    lora = getattr(p.ip_adapter[at], f"{name}_lora")
                    x = nn.linear(lora.down, Shape(1, 1, into), c.lora_rank, bias=False)
                    nn.linear(lora.up, x, width, bias=False)

    return trace(program)


CONSTANTS = Program("ip_adapter.constants", constants, once=True)
