"""The blocks that UNet, autoencoder and ControlNet share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from underdraw.backends.contract import Array, Node, Operations
from underdraw.networks.sites import NO_SITES, Extras, Hook, OnRows, Sites, apply, check, wanting

KeysValues = tuple[Array, Array]
"""Keys and values `(batch, heads, tokens, d)` of an attention."""


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
    scale: float = 1,
) -> Array:
    """Residual block, divided by `scale`; `temb (batch | 1, width or 2 width, 1, 1)` is what it
    makes of the time."""
    h = nn.conv2d(p.conv1, act(nn.group_norm(p.norm1, x, groups, eps)), width, 3)
    if temb is not None and not scale_shift:
        h = h + temb
    h = nn.group_norm(p.norm2, h, groups, eps)
    if temb is not None and scale_shift:
        h = h * (1 + temb[:, :width]) + temb[:, width:]
    h = nn.conv2d(p.conv2, act(h), width, 3)
    x = h + (x if x.shape[1] == width else nn.conv2d(p.conv_shortcut, x, width, 1))
    return x if scale == 1 else x / scale


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


@dataclass(frozen=True)
class SideBySide:
    """Keys and values of several runs in one call, whose numbers of tokens differ."""

    parts: tuple[KeysValues, ...]
    """Of consecutive rows."""

    def rows(self, start: int, stop: int) -> KeysValues:
        """Those of some rows, all of one part."""
        first = 0
        for k, v in self.parts:
            last = first + k.shape[0]
            if first <= start and stop <= last:
                return k[start - first : stop - first], v[start - first : stop - first]
            first = last
        raise ValueError(f"rows {start} to {stop} lie in no single part")

    def starts(self) -> list[int]:
        """The first row of each part."""
        return [sum(k.shape[0] for k, _ in self.parts[:i]) for i in range(len(self.parts))]


class Attended(NamedTuple):
    """In place of keys and values: what attention to them gives is known."""

    output: Array
    """`(batch, tokens, width)`"""


def attention(
    nn: Operations,
    p: Node,
    x: Array,
    kv: KeysValues | SideBySide,
    heads: int,
    place: str = "",
    on_probabilities: tuple[Hook, ...] = (),
    beside: tuple[Hook, ...] = (),
    bias: bool = False,
    mask: Array | None = None,
    extras: Extras | None = None,
) -> Array:
    """Multi-head attention of `x (batch, tokens, width)` over ready keys and values."""
    width = x.shape[-1]
    q = split_heads(nn, nn.linear(p.to_q, x, width, bias), heads)
    hooks = wanting(on_probabilities, x.shape[1]) if on_probabilities else ()
    # A hook on all rows sees all of them at once: it may compare them.
    by_rows = bool(hooks) and mask is None and all(isinstance(hook, OnRows) for hook in hooks)
    if isinstance(kv, SideBySide) or by_rows:
        h = _attend_by_rows(nn, q, kv, place, hooks, extras)
    else:
        h = _attend(nn, q, kv, place, hooks, mask, extras)
    for hook in beside:
        extra = hook(nn, place, q)
        if extra is not None:  # nothing is added here
            check(hook, place, extra, h.shape)
            h = h + extra
    return nn.linear(p.to_out[0], merge_heads(nn, h), width)


def _attend(
    nn: Operations,
    q: Array,
    kv: KeysValues,
    place: str,
    hooks: tuple[Hook, ...],
    mask: Array | None,
    extras: Extras | None,
) -> Array:
    """`(batch, heads, queries, d)`; where hooks act, the probabilities are laid open."""
    k, v = kv
    if not hooks:
        return nn.attention(q, k, v, mask)
    scores = nn.matmul(q * q.shape[-1] ** -0.5, nn.permute(k, (0, 1, 3, 2)))
    probabilities = nn.softmax(scores if mask is None else scores + mask)
    return nn.matmul(apply(nn, hooks, place, probabilities, extras), v)


def _attend_by_rows(
    nn: Operations,
    q: Array,
    kv: KeysValues | SideBySide,
    place: str,
    hooks: tuple[Hook, ...],
    extras: Extras | None,
) -> Array:
    """Rows of several runs attend by themselves: to as many tokens as their run has, with its
    hooks. The products around attention, which cost more, are those of all rows together."""
    rows = q.shape[0]
    borders = {0, rows, *(kv.starts() if isinstance(kv, SideBySide) else ())}
    borders |= {at for hook in hooks if isinstance(hook, OnRows) for at in (hook.start, hook.stop)}
    parts = []
    for start, stop in pairwise(sorted(borders)):
        here = kv.rows(start, stop) if isinstance(kv, SideBySide) else _rows(kv, start, stop)
        acting = tuple(_of_rows(hook, start, stop) for hook in hooks)
        acting = tuple(hook for hook in acting if hook is not None)
        parts.append(_attend(nn, q[start:stop], here, place, acting, None, extras))
    return nn.concat(parts, 0)


def _rows(kv: KeysValues, start: int, stop: int) -> KeysValues:
    return kv[0][start:stop], kv[1][start:stop]


def _of_rows(hook: Hook, start: int, stop: int) -> Any:
    """What of a hook acts on these rows, all or none of which are its own."""
    if not isinstance(hook, OnRows):
        return hook
    return hook.hook if hook.start <= start and stop <= hook.stop else None


def feed_forward(nn: Operations, p: Node, x: Array) -> Array:
    """Gated GELU network, four times as wide inside (Shazeer 2020)."""
    width = x.shape[-1]
    h = nn.linear(p.net[0].proj, x, 8 * width)
    h = h[:, :, : 4 * width] * nn.gelu(h[:, :, 4 * width :])
    return nn.linear(p.net[2], h, width)


BlockContext = Array | tuple[Any, KeysValues | SideBySide | Attended]
"""Text context `(batch, tokens, width)`, or what a block's two attentions to it need of it: the
same, or keys and values; None where the first attends to the picture."""


def transformer_block(
    nn: Operations,
    p: Node,
    x: Array,
    context: BlockContext,
    heads: int,
    place: str,
    sites: Sites = NO_SITES,
    only_cross: bool = False,
    mask: Array | None = None,
    extras: Extras | None = None,
) -> Array:
    """Self-attention, cross-attention, feed-forward; each normalised and residual.

    The context may have several times as many rows as `x`, which is then the same for all of them
    until they attend to it."""
    width, first, second = x.shape[-1], f"{place}.attn1", f"{place}.attn2"

    def to_context(p: Node, number: int) -> Any:
        one = context[number] if isinstance(context, tuple) else context
        known = isinstance(one, tuple | SideBySide)
        return one if known else keys_values(nn, p, one, width, heads)

    h = nn.layer_norm(p.norm1, x)
    if only_cross:
        kv = to_context(p.attn1, 0)
        x, h = for_rows_of(nn, kv, x), for_rows_of(nn, kv, h)
    else:
        kv = keys_values(nn, p.attn1, _seen(nn, sites, first, h), width, heads)
    hooks = sites.cross_attention if only_cross else sites.self_attention
    x = x + attention(nn, p.attn1, h, kv, heads, first, hooks, extras=extras)
    del h, kv  # held while fusers work, they cost 15 % more page faults
    if sites.after_self_attention:
        x = apply(nn, sites.after_self_attention, place, x, extras)
    kv = to_context(p.attn2, 1)
    x = for_rows_of(nn, kv, x)
    if isinstance(kv, Attended):
        x = x + kv.output
    else:
        h = nn.layer_norm(p.norm2, x)
        hooks, beside = sites.cross_attention, sites.beside_cross_attention
        h = attention(nn, p.attn2, h, kv, heads, second, hooks, beside, mask=mask, extras=extras)
        x = x + apply(nn, sites.cross_attention_output, second, h, extras)
        del h
    return x + feed_forward(nn, p.ff, nn.layer_norm(p.norm3, x))


def _seen(nn: Operations, sites: Sites, place: str, x: Array) -> Array:
    """The tokens that self-attention attends to."""
    if sites.keys is None or wanting(sites.self_attention, x.shape[1]):
        return x
    seen = sites.keys(nn, place, x)
    check(sites.keys, place, seen, (x.shape[0], None, x.shape[2]))
    return seen


def spatial_transformer(
    nn: Operations,
    p: Node,
    x: Array,
    contexts: Sequence[BlockContext],
    heads: int,
    groups: int,
    linear: bool,
    place: str,
    sites: Sites = NO_SITES,
    only_cross: bool = False,
    mask: Array | None = None,
    extras: Extras | None = None,
) -> Array:
    """Transformer blocks over the positions of an image `(batch, channels, height, width)`, one for
    each of `contexts`.

    `linear` says whether the projections around them are linear (SD 2) or 1 x 1 convolutions (SD
    1); they compute the same, but their weights are stored in different shapes.
    """
    channels = x.shape[1]
    h = nn.group_norm(p.norm, x, groups, 1e-6)
    h = nn.tokens(h if linear else nn.conv2d(p.proj_in, h, channels, 1))
    if linear:
        h = nn.linear(p.proj_in, h, channels)
    for i, context in enumerate(contexts):
        at = f"{place}.transformer_blocks.{i}"
        block = p.transformer_blocks[i]
        h = transformer_block(nn, block, h, context, heads, at, sites, only_cross, mask, extras)
    if linear:
        h = nn.linear(p.proj_out, h, channels)
    h = nn.image(h, x)
    h = h if linear else nn.conv2d(p.proj_out, h, channels, 1)
    return repeated(nn, x, h.shape[0]) + h


def for_rows_of(nn: Operations, kv: KeysValues | SideBySide | Attended, x: Array) -> Array:
    """`x` as often as it takes for the rows of keys and values."""
    return x if isinstance(kv, SideBySide) else repeated(nn, x, kv[0].shape[0])


def repeated(nn: Operations, x: Array, rows: int) -> Array:
    """All rows again and again, until there are so many."""
    return x if x.shape[0] == rows else nn.concat((x,) * (rows // x.shape[0]), 0)


def activation(nn: Operations, name: str) -> Callable[[Array], Array]:
    """The function a config calls `act_fn` or `hidden_act`."""
    return nn.silu if name == "swish" else getattr(nn, name)
