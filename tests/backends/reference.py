"""The contract of `backends.contract` in plain numpy and float64: slow, and easy to believe."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Reference:
    """`Operations` on float64 arrays; `p` is a `backends.node.Node` of arrays."""

    name = "reference"

    # -- operations with parameters ---------------------------------------------------------------
    def linear(self, p, x, width, bias=True):
        y = np.einsum("...i,oi->...o", x, p.weight)
        return y + p.bias if bias else y

    def conv2d(self, p, x, width, kernel, stride=1, padding=None, bias=True, groups=1):
        side = kernel // 2 if padding is None else padding
        x = np.pad(x, ((0, 0), (0, 0), (side, side), (side, side)))
        rows = (x.shape[2] - kernel) // stride + 1
        columns = (x.shape[3] - kernel) // stride + 1
        y = np.zeros((x.shape[0], width, rows, columns))
        for i in range(rows):
            for j in range(columns):
                top, left = i * stride, j * stride
                window = x[:, :, top : top + kernel, left : left + kernel]
                parts = zip(np.split(window, groups, 1), np.split(p.weight, groups, 0), strict=True)
                each = [np.einsum("bcij,ocij->bo", part, weight) for part, weight in parts]
                y[:, :, i, j] = np.concatenate(each, 1)
        return y + p.bias[:, None, None] if bias else y

    def group_norm(self, p, x, groups, eps=1e-5):
        y = np.empty_like(x)
        size = x.shape[1] // groups
        for image in range(x.shape[0]):
            for group in range(groups):
                channels = slice(group * size, (group + 1) * size)
                part = x[image, channels]
                y[image, channels] = (part - part.mean()) / np.sqrt(part.var() + eps)
        shape = (-1, *(1 for _ in x.shape[2:]))
        return y * p.weight.reshape(shape) + p.bias.reshape(shape)

    def layer_norm(self, p, x, eps=1e-5):
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred / np.sqrt(variance + eps) * p.weight + p.bias

    def embedding(self, p, ids, count, width):
        return p.weight[ids]

    def parameter(self, p, name, shape, start=None):
        return getattr(p, name)

    # -- elementwise ------------------------------------------------------------------------------
    def silu(self, x):
        return x * sigmoid(x)

    def gelu(self, x):
        return x * (1 + np.vectorize(erf)(x / sqrt(2))) / 2

    def quick_gelu(self, x):
        return x * sigmoid(1.702 * x)

    tanh = staticmethod(np.tanh)
    sin = staticmethod(np.sin)
    cos = staticmethod(np.cos)
    exp = staticmethod(np.exp)
    where = staticmethod(np.where)

    def clip(self, x, low, high):
        return np.minimum(np.maximum(x, low), high)

    # -- reductions -------------------------------------------------------------------------------
    def mean(self, x, axes, keepdims=True):
        return x.mean(axes, keepdims=keepdims)

    def std(self, x, axes, keepdims=True):
        return x.std(axes, ddof=1, keepdims=keepdims)

    def norm(self, x, axis=-1):
        return np.sqrt((x**2).sum(axis, keepdims=True))

    def quantile_abs(self, x, q):
        return np.array([np.quantile(np.abs(image), q) for image in x])

    def argmax(self, x, axis):
        return x.argmax(axis)

    def softmax(self, x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def matmul(self, a, b):
        return np.einsum("...ij,...jk->...ik", a, b)

    def attention(self, q, k, v, mask=None):
        scores = np.einsum("bhqd,bhkd->bhqk", q, k) / sqrt(q.shape[-1])
        probabilities = self.softmax(scores if mask is None else scores + mask)
        return np.einsum("bhqk,bhkd->bhqd", probabilities, v)

    # -- shape and type ---------------------------------------------------------------------------
    def permute(self, x, axes):
        return x.transpose(axes)

    def tokens(self, x):
        return np.stack([x[:, :, i, j] for i in range(x.shape[2]) for j in range(x.shape[3])], 1)

    def image(self, x, like):
        rows = np.split(x, like.shape[2], axis=1)
        return np.stack([row.swapaxes(1, 2) for row in rows], axis=2)

    def concat(self, xs, axis):
        return np.concatenate(xs, axis)

    def pad(self, x, bottom, right):
        return np.pad(x, ((0, 0), (0, 0), (0, bottom), (0, right)))

    def upsample(self, x, height, width):
        rows = [i * x.shape[2] // height for i in range(height)]
        columns = [i * x.shape[3] // width for i in range(width)]
        return x[:, :, rows][:, :, :, columns]

    def gather_rows(self, x, index):
        return np.stack([x[b, i] for b, i in enumerate(index)])

    def expand(self, x, shape):
        return np.broadcast_to(x, shape)

    def arange(self, count, like):
        return np.arange(count, dtype=np.float64)

    def causal_mask(self, count, like):
        """Here the lowest number is that of the precision under test, which `harness` gives."""
        return np.triu(np.full((count, count), self.lowest), 1)

    lowest = float(np.finfo(np.float32).min)

    def float32(self, x):
        return x

    def cast(self, x, like):
        return x
