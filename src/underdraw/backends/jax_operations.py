"""`Operations` on arrays of JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from underdraw.backends.adapted import AdaptedLeaf
from underdraw.backends.slices import Slice, heads_at_once


@dataclass(frozen=True)
class Jax:
    """`Operations` on arrays; `attention_slice` tells `slices.heads_at_once`.

    `precision` is that of products: TPUs and recent GPUs round float32 factors to 8 or 11 bits
    unless told otherwise ("highest"); half precision is not affected.
    """

    attention_slice: Slice = None
    precision: str = "highest"
    name: str = "jax"

    def linear(self, p: Any, x: Array, width: int, bias: bool = True) -> Array:
        if isinstance(p, AdaptedLeaf):
            return p.linear(self, x, width, bias)
        y = jnp.matmul(x, p.weight.T, precision=self.precision)
        return y + p.bias if bias else y

    def conv2d(
        self,
        p: Any,
        x: Array,
        width: int,
        kernel: int,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        groups: int = 1,
    ) -> Array:
        if isinstance(p, AdaptedLeaf):
            return p.conv2d(self, x, width, kernel, stride, padding, bias, groups)
        side = kernel // 2 if padding is None else padding
        # Channels last, as XLA turns them round by itself, but on CPUs not inside of loops: there
        # it would compute the other order without its fast kernels, a hundred times slower.
        y = lax.conv_general_dilated(
            jnp.transpose(x, (0, 2, 3, 1)),
            jnp.transpose(p.weight, (2, 3, 1, 0)),
            (stride, stride),
            ((side, side), (side, side)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
            precision=self.precision,
        )
        return jnp.transpose(y + p.bias if bias else y, (0, 3, 1, 2))

    def group_norm(self, p: Any, x: Array, groups: int, eps: float = 1e-5) -> Array:
        if isinstance(p, AdaptedLeaf):
            return p.group_norm(self, x, groups, eps)
        shape = (1, -1, *(1 for _ in x.shape[2:]))
        y = _normalise(x.reshape(x.shape[0], groups, -1), eps).reshape(x.shape)
        return (y * p.weight.reshape(shape) + p.bias.reshape(shape)).astype(x.dtype)

    def layer_norm(self, p: Any, x: Array, eps: float = 1e-5) -> Array:
        if isinstance(p, AdaptedLeaf):
            return p.layer_norm(self, x, eps)
        return (_normalise(x, eps) * p.weight + p.bias).astype(x.dtype)

    def embedding(self, p: Any, ids: Array, count: int, width: int) -> Array:
        if isinstance(p, AdaptedLeaf):
            return p.embedding(self, ids, count, width)
        # An id that is out of range gives NaN: compiled code cannot raise, and the nearest row
        # would be a silent mistake.
        return jnp.take(p.weight, ids, axis=0, mode="fill")

    def parameter(
        self, p: Any, name: str, shape: tuple[int, ...], start: float | None = None
    ) -> Array:
        value = getattr(p, name)
        return value.parameter(self, shape) if isinstance(value, AdaptedLeaf) else value

    silu = staticmethod(jax.nn.silu)
    tanh = staticmethod(jnp.tanh)
    sin = staticmethod(jnp.sin)
    cos = staticmethod(jnp.cos)
    exp = staticmethod(jnp.exp)
    where = staticmethod(jnp.where)

    def gelu(self, x: Array) -> Array:
        return jax.nn.gelu(x, approximate=False)

    def quick_gelu(self, x: Array) -> Array:
        return x * jax.nn.sigmoid(1.702 * x)

    def clip(self, x: Array, low: Any, high: Any) -> Array:
        return jnp.minimum(jnp.maximum(x, low), high).astype(x.dtype)

    def mean(self, x: Array, axes: tuple[int, ...], keepdims: bool = True) -> Array:
        return x.astype(jnp.float32).mean(axes, keepdims=keepdims).astype(x.dtype)

    def std(self, x: Array, axes: tuple[int, ...], keepdims: bool = True) -> Array:
        return x.astype(jnp.float32).std(axes, ddof=1, keepdims=keepdims).astype(x.dtype)

    def norm(self, x: Array, axis: int = -1) -> Array:
        square = lax.square(x.astype(jnp.float32))
        return jnp.sqrt(square.sum(axis, keepdims=True)).astype(x.dtype)

    def quantile_abs(self, x: Array, q: float) -> Array:
        flat = jnp.abs(x.reshape(x.shape[0], -1)).astype(jnp.float32)
        return jnp.quantile(flat, q, axis=1).astype(x.dtype)

    def argmax(self, x: Array, axis: int) -> Array:
        return jnp.argmax(x, axis)

    def softmax(self, x: Array) -> Array:
        return jax.nn.softmax(x.astype(jnp.float32), -1).astype(x.dtype)

    def matmul(self, a: Array, b: Array) -> Array:
        return jnp.matmul(a, b, precision=self.precision)

    def attention(self, q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
        step = heads_at_once(self.attention_slice, q.shape[1])
        if step >= q.shape[1]:
            return self._attention(q, k, v, mask)
        if mask is not None:
            mask = jnp.broadcast_to(mask, (*q.shape[:3], k.shape[2]))
        parts = []
        for start in range(0, q.shape[1], step):
            heads = slice(start, start + step)
            part = None if mask is None else mask[:, heads]
            parts.append(self._attention(q[:, heads], k[:, heads], v[:, heads], part))
        return jnp.concatenate(parts, 1)

    def _attention(self, q: Array, k: Array, v: Array, mask: Array | None) -> Array:
        scores = jnp.einsum(
            "bhqd,bhkd->bhqk",
            q,
            k,
            precision=self.precision,
            preferred_element_type=jnp.float32,
        )
        scores = scores * q.shape[-1] ** -0.5
        probabilities = jax.nn.softmax(scores if mask is None else scores + mask, -1)
        return jnp.matmul(probabilities.astype(v.dtype), v, precision=self.precision)

    def permute(self, x: Array, axes: Sequence[int]) -> Array:
        return jnp.transpose(x, axes)

    def tokens(self, x: Array) -> Array:
        return jnp.transpose(x.reshape(*x.shape[:2], -1), (0, 2, 1))

    def image(self, x: Array, like: Array) -> Array:
        return jnp.transpose(x, (0, 2, 1)).reshape(x.shape[0], -1, *like.shape[2:])

    def concat(self, xs: Sequence[Array], axis: int) -> Array:
        return jnp.concatenate(tuple(xs), axis)

    def pad(self, x: Array, bottom: int, right: int) -> Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, bottom), (0, right)))

    def upsample(self, x: Array, height: int, width: int) -> Array:
        rows = np.arange(height) * x.shape[2] // height
        columns = np.arange(width) * x.shape[3] // width
        return jnp.take(jnp.take(x, rows, axis=2), columns, axis=3)

    def gather_rows(self, x: Array, index: Array) -> Array:
        return x[jnp.arange(x.shape[0]), index]

    def expand(self, x: Array, shape: Sequence[int]) -> Array:
        return jnp.broadcast_to(x, tuple(shape))

    def arange(self, count: int, like: Array) -> Array:
        return jnp.arange(count, dtype=jnp.float32)

    def causal_mask(self, count: int, like: Array) -> Array:
        low = jnp.full((count, count), jnp.finfo(like.dtype).min, like.dtype)
        return jnp.triu(low, 1)

    def float32(self, x: Array) -> Array:
        return x.astype(jnp.float32)

    def cast(self, x: Array, like: Array) -> Array:
        return x.astype(like.dtype)


def _normalise(x: Array, eps: float) -> Array:
    """Mean 0 and variance 1 over the last axis, in float32."""
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt(lax.square(x).mean(-1, keepdims=True) + eps)


operations = Jax()


def with_settings(attention_slice: Slice) -> Jax:
    """Operations with settings."""
    return operations if attention_slice is None else Jax(attention_slice)
