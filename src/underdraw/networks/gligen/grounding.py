"""Grounding: a frozen UNet learns where things go (GLIGEN, Li et al. 2023, section 4).

Position networks make tokens of boxes and what belongs there; in each transformer block a *fuser*
lets the picture attend to them, behind gates that are closed at the start of training. Nothing here
is part of the UNet's program: a fuser acts at the site `after_self_attention`.

Before the loop: `box_tokens` (`keypoint_tokens`, `map_tokens`), then `constants`. At each call:
`grounding_sites.sites`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.node import at
from underdraw.networks.gligen.config import GroundingConfig
from underdraw.networks.layers import attention, feed_forward, keys_values
from underdraw.networks.program import Program

Strength = float | Array
"""Factor on the gates: a number, or one per row `(rows, 1, 1)`; 0 leaves the UNet as it is."""


class Tokens(NamedTuple):
    """Grounding tokens `(rows, n, token_width)`."""

    values: Array
    counts: tuple[int, ...]
    """For how many equal tokens each of the `n` stands.

    In training every image had `limit` tokens, null tokens where it had fewer boxes. Equal keys
    that occur `c` times weigh the same in a softmax as one whose score is raised by `log(c)`, so
    one null token serves for all that are common to the rows."""


@dataclass(frozen=True)
class Constants:
    """What fusers need to know about the tokens; it does not change between the steps of a run."""

    keys: Mapping[str, tuple[Array, Array]]
    """By place, keys and values `(rows, heads, n, d)` of the tokens."""
    bias: Array | None
    """Added to the scores of the tokens `(n,)`; None where all counts are 1."""
    counts: tuple[int, ...] = ()
    """As of the tokens."""

    def rows(self, start: int, stop: int) -> Constants:
        """Those of some rows, as when guidance ends and the unconditional half goes."""
        kept = {place: (k[start:stop], v[start:stop]) for place, (k, v) in self.keys.items()}
        return replace(self, keys=kept)


def fourier(nn: Operations, x: Array, frequencies: int) -> Array:
    """Coordinates `(rows, n, k)` in [0, 1] to `(rows, n, 2 * frequencies * k)`, float32.

    Sines and cosines of `100 ** (i / frequencies) * x` (section 4.1; Mildenhall et al. 2020).
    """
    x = nn.float32(x)
    waves = []
    for i in range(frequencies):
        angles = x * 100 ** (i / frequencies)
        waves += [nn.sin(angles), nn.cos(angles)]
    return nn.concat(waves, 2)


def mlp(nn: Operations, p: Node, x: Array, config: GroundingConfig) -> Array:
    """Three linear layers, the last of the tokens' width."""
    x = nn.silu(nn.linear(p[0], x, config.hidden_width))
    x = nn.silu(nn.linear(p[2], x, config.hidden_width))
    return nn.linear(p[4], x, config.token_width)


def or_null(nn: Operations, x: Array, present: Array, null: Array) -> Array:
    """Features `(rows, n, width)` where `present (rows, n)` is 1, the learnt `null` elsewhere."""
    present = nn.cast(present, null)[:, :, None]
    return nn.cast(x, null) * present + (1 - present) * null[None, None]


def with_null(nn: Operations, x: Array | None, null: Array, rows: int, append: bool) -> Array:
    """One more token, the null one, behind those of `x`, which may be None."""
    if not append:
        assert x is not None  # as many tokens as in training: more than none
        return x
    last = nn.expand(null[None, None], (rows, 1, null.shape[0]))
    return last if x is None else nn.concat((x, last), 1)


def box_tokens(
    nn: Operations,
    p: Node,
    config: GroundingConfig,
    boxes: Array,
    present: Array,
    phrases: Array,
    phrase_present: Array | None = None,
    images: Array | None = None,
    image_present: Array | None = None,
) -> Tokens:
    """Tokens of boxes with phrases, or of kind "text-image" with phrases, pictures or both.

    Args:
        p: the root; `p.position_net` is read.
        boxes: `(rows, n, 4)` as x_min, y_min, x_max, y_max in [0, 1]; n is 0 .. `config.limit`, the
            most boxes any row has.
        present: `(rows, n)`, 1 where there is a box; 0 pads, or makes a row unconditional.
        phrases: `(rows, n, phrase_width)`, the text encoder's pooled features.
        phrase_present: `(rows, n)`, 0 where a box has no phrase; None: as `present`.
        images: `(rows, n, phrase_width)`, projected CLIP features; kind "text-image" only.
        image_present: `(rows, n)`, 0 where a box has no picture; None: as `present`.
    """
    c, net = config, p.position_net
    rows, n = boxes.shape[:2]
    padded = n < c.limit
    null = nn.parameter(net, "null_position_feature", (8 * c.frequencies,), 0.0)
    place = or_null(nn, fourier(nn, boxes, c.frequencies), present, null) if n else None
    place = with_null(nn, place, null, rows, padded)
    counts = (1,) * n + (c.limit - n,) * padded

    def encode(layers: Node, name: str, features: Array | None, there: Array | None) -> Array:
        null = nn.parameter(net, name, (c.phrase_width,), 0.0)
        known = None
        if n and features is None:
            known = nn.expand(null[None, None], (rows, n, c.phrase_width))
        elif n:
            known = or_null(nn, features, present if there is None else there, null)
        known = with_null(nn, known, null, rows, padded)
        return mlp(nn, layers, nn.concat((known, place), 2), c)

    if c.kind == "text":
        return Tokens(encode(net.linears, "null_positive_feature", phrases, present), counts)
    text = encode(net.linears_text, "null_text_feature", phrases, phrase_present)
    image = encode(net.linears_image, "null_image_feature", images, image_present)
    return Tokens(nn.concat((text, image), 1), counts + counts)


def constants(nn: Operations, p: Node, config: GroundingConfig, tokens: Tokens) -> Constants:
    """Keys and values of the tokens in every fuser: computed once, before the loop.

    Normalisation is per token, so what a fuser makes of the tokens is the same at every step.
    """
    keys = {}
    for place, width, heads in config.fusers:
        fuser = at(p, place).fuser
        h = nn.layer_norm(fuser.norm1, nn.linear(fuser.linear, tokens.values, width))
        keys[place] = keys_values(nn, fuser.attn, h, width, heads)
    return Constants(keys, _bias(nn, tokens), tokens.counts)


def _bias(nn: Operations, tokens: Tokens) -> Array | None:
    if set(tokens.counts) == {1}:
        return None
    index = nn.arange(len(tokens.counts), tokens.values)
    bias = index * 0
    for i, count in enumerate(tokens.counts):
        if count != 1:
            bias = nn.where(index == i, bias + math.log(count), bias)
    return bias


def fuse(
    nn: Operations,
    p: Node,
    x: Array,
    kv: tuple[Array, Array],
    bias: Array | None,
    heads: int,
    strength: Strength = 1.0,
) -> Array:
    """Gated self-attention of one block (equation 8) and its gated feed-forward network.

    Args:
        p: the fuser.
        x: `(rows, positions, width)` of the picture. It asks; picture and tokens answer.
        kv: keys and values of the tokens; one row serves all.
    """
    h = nn.layer_norm(p.norm1, x)
    joined = _joined(nn, p.attn, h, kv, heads)
    h = attention(nn, p.attn, h, joined, heads, mask=_mask(nn, x, bias))
    del joined  # twice the size of the picture, and the widest layer comes next
    x = x + _gate(nn, p, "alpha_attn", x, strength) * h
    h = nn.layer_norm(p.norm2, x)
    return x + _gate(nn, p, "alpha_dense", x, strength) * feed_forward(nn, p.ff, h)


def _joined(
    nn: Operations, p: Node, x: Array, kv: tuple[Array, Array], heads: int
) -> tuple[Array, Array]:
    """Keys and values of the picture, behind them those of the tokens."""
    own = keys_values(nn, p, x, x.shape[-1], heads)
    each = (nn.expand(part, (x.shape[0], *part.shape[1:])) for part in kv)
    k, v = (nn.concat(pair, 2) for pair in zip(own, each, strict=True))
    return k, v


def _mask(nn: Operations, x: Array, bias: Array | None) -> Array | None:
    """Added to the scores of all keys: 0 for the picture's, which count once."""
    if bias is None:
        return None
    mask = nn.concat((nn.arange(x.shape[1], x) * 0, bias), 0)
    return nn.cast(mask, x)[None, None, None]


def _gate(nn: Operations, p: Node, name: str, x: Array, strength: Strength) -> Array:
    gate = nn.tanh(nn.parameter(p, name, (), 0.0))
    return gate * (nn.cast(strength, x) if hasattr(strength, "shape") else strength)


@dataclass(frozen=True)
class Fusers:
    """The hook: all fusers of a grounding part, acting `after_self_attention`."""

    p: Node
    config: GroundingConfig
    constants: Constants
    strength: Strength = 1.0

    def __call__(self, nn: Operations, place: str, x: Array) -> Array:
        kv = self.constants.keys[place]
        heads = kv[0].shape[1]
        return fuse(nn, at(self.p, place).fuser, x, kv, self.constants.bias, heads, self.strength)

    def together(self, nn: Operations, other: Any, rows: tuple[int, int]) -> Fusers | None:
        """One hook for the rows of two runs, this one's first: their boxes are one attention. None
        where their tokens do not fit into one array.

        Args:
            rows: how many each of them has.
        """
        mine = self.constants
        if not isinstance(other, Fusers) or other.p is not self.p:
            return None
        theirs = other.constants
        if mine.counts != theirs.counts:
            return None

        def each(x: Array, count: int) -> Array:
            return nn.expand(x, (count, *x.shape[1:]))

        keys = {}
        for place, pair in mine.keys.items():
            k, v = zip(pair, theirs.keys[place], strict=True)
            keys[place] = tuple(
                nn.concat([each(x, count) for x, count in zip(part, rows, strict=True)], 0)
                for part in (k, v)
            )
        strength = self.strength
        if any(hasattr(s, "shape") for s in (strength, other.strength)) or (
            strength != other.strength
        ):
            like = next(iter(keys.values()))[0][:, :1, :1, 0] * 0
            first, second = like[: rows[0]] + self.strength, like[rows[0] :] + other.strength
            strength = nn.concat((first, second), 0)
        return Fusers(self.p, self.config, replace(mine, keys=keys), strength)

    def __repr__(self) -> str:
        return f"Fusers({self.config.kind})"


BOX_TOKENS = Program("gligen.box_tokens", box_tokens, once=True)
CONSTANTS = Program("gligen.constants", constants, once=True)
