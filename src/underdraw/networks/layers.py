"""The blocks that UNet, autoencoder and ControlNet share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from underdraw.backends.contract import Array, Node, Operations
from underdraw.networks.sites import NO_SITES, Sites, apply, check, wanting


def timestep_embedding(
    nn: Operations, t: Array, width: int, flip_sin_to_cos: bool, freq_shift: float
) -> Array:
    """Sinusoidal embedding of times `(batch,)`: `(batch, width)` (Ho et al. 2020).

    float32 throughout: near t = 1000 float16 values lie 0.5 apart, so angles would be off by 0.25
        rad.
    """
    half = width // 2
    frequencies = nn.exp(nn.arange(half, t) * (-math.log(10000.0) / (half - freq_shift)))
    angles = nn.float32(t)[:, None] * frequencies[None]
    sin, cos = nn.sin(angles), nn.cos(angles)
    embedding = nn.concat((cos, sin) if flip_sin_to_cos else (sin, cos), 1)
    return nn.concat((embedding, embedding[:, :1] * 0), 1) if width % 2 else embedding


def resnet(
    nn: Operations,
    p: Node,
    x: Array,
    width: int,
    groups: int,
    eps: float,
    act: Callable[[Array], Array],
    temb: Array | None = None,
    scale_shift: bool = False,
) -> Array:
    """Residual block; `temb (batch | 1, width or 2 width, 1, 1)` is what it makes of the time."""
    h = nn.conv2d(p.conv1, act(nn.group_norm(p.norm1, x, groups, eps)), width, 3)
    if temb is not None and not scale_shift:
        h = h + temb
    h = nn.group_norm(p.norm2, h, groups, eps)
    if temb is not None and scale_shift:
        h = h * (1 + temb[:, :width]) + temb[:, width:]
    h = nn.conv2d(p.conv2, act(h), width, 3)
    return h + (x if x.shape[1] == width else nn.conv2d(p.conv_shortcut, x, width, 1))


def split_heads(nn: Operations, x: Array, heads: int) -> Array:
    """`(batch, tokens, heads * d)` -> `(batch, heads, tokens, d)`."""
    batch, tokens, width = x.shape
    return nn.permute(x.reshape(batch, tokens, heads, width // heads), (0, 2, 1, 3))


def merge_heads(nn: Operations, x: Array) -> Array:
    """The inverse of `split_heads`."""
    batch, heads, tokens, d = x.shape
    return nn.permute(x, (0, 2, 1, 3)).reshape(batch, tokens, heads * d)


def keys_values(
    nn: Operations, p: Node, context: Array, width: int, heads: int, bias: bool = False
) -> tuple[Array, Array]:
    """Keys and values of an attention layer, each `(batch, heads, tokens, d)`."""
    k = split_heads(nn, nn.linear(p.to_k, context, width, bias), heads)
    return k, split_heads(nn, nn.linear(p.to_v, context, width, bias), heads)


def attention(
    nn: Operations,
    p: Node,
    x: Array,
    kv: tuple[Array, Array],
    heads: int,
    place: str = "",
    on_probabilities: tuple = (),
    beside: tuple = (),
    bias: bool = False,
    mask: Array | None = None,
) -> Array:
    """Multi-head attention of `x (batch, tokens, width)` over ready keys and values."""
    width = x.shape[-1]
    k, v = kv
    q = split_heads(nn, nn.linear(p.to_q, x, width, bias), heads)
    if on_probabilities:
        on_probabilities = wanting(on_probabilities, x.shape[1])
    if on_probabilities:
        scores = nn.matmul(q * (width // heads) ** -0.5, nn.permute(k, (0, 1, 3, 2)))
        probabilities = nn.softmax(scores if mask is None else scores + mask)
        h = nn.matmul(apply(nn, on_probabilities, place, probabilities), v)
    else:
        h = nn.attention(q, k, v, mask)
    for hook in beside:
        extra = hook(nn, place, q)
        check(hook, place, extra, h.shape)
        h = h + extra
    return nn.linear(p.to_out[0], merge_heads(nn, h), width)


def feed_forward(nn: Operations, p: Node, x: Array) -> Array:
    """Gated GELU network, four times as wide inside (Shazeer 2020)."""
    width = x.shape[-1]
    h = nn.linear(p.net[0].proj, x, 8 * width)
    h = h[:, :, : 4 * width] * nn.gelu(h[:, :, 4 * width :])
    return nn.linear(p.net[2], h, width)


Context = Array | Mapping[str, tuple[Array, Array]]
"""Text context `(batch, tokens, width)`, or its keys and values for each attention by place."""


def context_keys_values(
    nn: Operations, p: Node, context: Context, place: str, width: int, heads: int
) -> tuple[Array, Array]:
    """Looked up where they were computed before the loop, else computed."""
    if isinstance(context, Mapping):
        return context[place]
    return keys_values(nn, p, context, width, heads)


def transformer_block(
    nn: Operations,
    p: Node,
    x: Array,
    context: Context,
    heads: int,
    place: str,
    sites: Sites = NO_SITES,
    only_cross: bool = False,
    mask: Array | None = None,
) -> Array:
    """Self-attention, cross-attention, feed-forward; each normalised and residual."""
    width, first, second = x.shape[-1], f"{place}.attn1", f"{place}.attn2"
    crossing = sites.cross_attention, sites.beside_cross_attention
    h = nn.layer_norm(p.norm1, x)
    if only_cross:
        kv = context_keys_values(nn, p.attn1, context, first, width, heads)
        x = x + attention(nn, p.attn1, h, kv, heads, first, sites.cross_attention)
    else:
        kv = keys_values(nn, p.attn1, h, width, heads)
        x = x + attention(nn, p.attn1, h, kv, heads, first, sites.self_attention)
    del h, kv  # held while fusers work, they cost 15 % more page faults
    if sites.after_self_attention:
        x = apply(nn, sites.after_self_attention, place, x)
    kv = context_keys_values(nn, p.attn2, context, second, width, heads)
    h = nn.layer_norm(p.norm2, x)
    x = x + attention(nn, p.attn2, h, kv, heads, second, *crossing, mask=mask)
    return x + feed_forward(nn, p.ff, nn.layer_norm(p.norm3, x))


def spatial_transformer(
    nn: Operations,
    p: Node,
    x: Array,
    context: Context,
    heads: int,
    depth: int,
    groups: int,
    linear: bool,
    place: str,
    sites: Sites = NO_SITES,
    only_cross: bool = False,
    mask: Array | None = None,
) -> Array:
    """Transformer blocks over the positions of an image `(batch, channels, height, width)`.

    `linear` says whether the projections around them are linear (SD 2) or 1 x 1 convolutions (SD
    1); they compute the same, but their weights are stored in different shapes.
    """
    channels = x.shape[1]
    h = nn.group_norm(p.norm, x, groups, 1e-6)
    h = nn.tokens(h if linear else nn.conv2d(p.proj_in, h, channels, 1))
    if linear:
        h = nn.linear(p.proj_in, h, channels)
    for i in range(depth):
        at = f"{place}.transformer_blocks.{i}"
        block = p.transformer_blocks[i]
        h = transformer_block(nn, block, h, context, heads, at, sites, only_cross, mask)
    if linear:
        h = nn.linear(p.proj_out, h, channels)
    h = nn.image(h, x)
    return x + (h if linear else nn.conv2d(p.proj_out, h, channels, 1))


def activation(nn: Operations, name: str) -> Callable[[Array], Array]:
    """The function a config calls `act_fn` or `hidden_act`."""
    return nn.silu if name == "swish" else getattr(nn, name)
