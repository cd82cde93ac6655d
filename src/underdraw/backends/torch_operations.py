"""PyTorch: the operations, the tree's nodes, arrays, and random numbers for every backend.

Noise is always drawn by PyTorch: backends differ in their random streams, so it is drawn once, on
the generator's own device, and handed over. With `seed=` every image has its own CPU generator: an
image then depends neither on the batch it sits in nor on where it was made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from underdraw.backends.adapted import AdaptedLeaf
from underdraw.backends.deltas import Arrays
from underdraw.backends.slices import Slice, heads_at_once
from underdraw.checks import shown
from underdraw.errors import InputError, InputTypeError


@dataclass(frozen=True)
class Torch:
    """`Operations` on tensors; `attention_slice` tells `slices.heads_at_once`."""

    attention_slice: Slice = None
    name: str = "torch"

    def linear(self, p: Any, x: Tensor, width: int, bias: bool = True) -> Tensor:
        w = plain_layer(p, nn.Linear)
        if w:
            return _compute(F.linear, x, w)
        if isinstance(p, AdaptedLeaf):
            return p.linear(self, x, width, bias)
        return _compute(F.linear, x, vars(p)) if isinstance(p, Arrays) else p(x)

    def conv2d(
        self,
        p: Any,
        x: Tensor,
        width: int,
        kernel: int,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        groups: int = 1,
    ) -> Tensor:
        w = plain_layer(p, nn.Conv2d)
        if w and p.padding_mode == "zeros":
            return _compute(F.conv2d, x, w, p.stride, p.padding, p.dilation, p.groups)
        side = kernel // 2 if padding is None else padding
        if isinstance(p, AdaptedLeaf):
            if getattr(p, "padding_mode", "zeros") != "zeros":  # padded here, so for deltas, too
                x, side = F.pad(x, (side,) * 4, p.padding_mode), 0
                p = p.with_layer(Arrays(p.weight, p.bias))
            return p.conv2d(self, x, width, kernel, stride, side, bias, groups)
        if not isinstance(p, Arrays):
            return p(x)
        return _compute(F.conv2d, x, vars(p), stride, side, 1, groups)

    def group_norm(self, p: Any, x: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
        w = plain_layer(p, nn.GroupNorm)
        if w:
            return torch.group_norm(x, p.num_groups, w["weight"], w["bias"], p.eps)
        if isinstance(p, AdaptedLeaf):
            return p.group_norm(self, x, groups, eps)
        return F.group_norm(x, groups, p.weight, p.bias, eps) if isinstance(p, Arrays) else p(x)

    def layer_norm(self, p: Any, x: Tensor, eps: float = 1e-5) -> Tensor:
        w = plain_layer(p, nn.LayerNorm)
        if w:
            return torch.layer_norm(x, p.normalized_shape, w["weight"], w["bias"], p.eps)
        if isinstance(p, AdaptedLeaf):
            return p.layer_norm(self, x, eps)
        if isinstance(p, Arrays):
            return F.layer_norm(x, x.shape[-1:], p.weight, p.bias, eps)
        return p(x)

    def embedding(self, p: Any, ids: Tensor, count: int, width: int) -> Tensor:
        if isinstance(p, AdaptedLeaf):
            return p.embedding(self, ids, count, width)
        return F.embedding(ids, p.weight) if isinstance(p, Arrays) else p(ids)

    def parameter(
        self, p: Any, name: str, shape: tuple[int, ...], start: float | None = None
    ) -> Tensor:
        value = getattr(p, name)
        return value.parameter(self, shape) if isinstance(value, AdaptedLeaf) else value

    silu = staticmethod(F.silu)
    gelu = staticmethod(F.gelu)
    tanh = staticmethod(torch.tanh)
    sin = staticmethod(torch.sin)
    cos = staticmethod(torch.cos)
    exp = staticmethod(torch.exp)
    where = staticmethod(torch.where)
    matmul = staticmethod(torch.matmul)
    permute = staticmethod(torch.permute)

    def quick_gelu(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return x * torch.sigmoid(1.702 * x)
        # The same bits in a quarter of the time: two arrays less are allocated.
        return torch.sigmoid_(1.702 * x).mul_(x)

    def clip(self, x: Tensor, low: Any, high: Any) -> Tensor:
        # Not torch.clamp: it takes two numbers or two tensors, never one of each.
        return torch.clamp_max(torch.clamp_min(x, low), high)

    def mean(self, x: Tensor, axes: tuple[int, ...], keepdims: bool = True) -> Tensor:
        return x.mean(axes, keepdim=keepdims)

    def std(self, x: Tensor, axes: tuple[int, ...], keepdims: bool = True) -> Tensor:
        return x.std(axes, keepdim=keepdims)

    def norm(self, x: Tensor, axis: int = -1) -> Tensor:
        return torch.linalg.vector_norm(x, dim=axis, keepdim=True)

    def quantile_abs(self, x: Tensor, q: float) -> Tensor:
        return torch.quantile(x.flatten(1).abs().float(), q, dim=1).to(x.dtype)

    def argmax(self, x: Tensor, axis: int) -> Tensor:
        return x.int().argmax(axis) if x.dtype == torch.bool else x.argmax(axis)

    def softmax(self, x: Tensor) -> Tensor:
        return torch.softmax(x, -1, dtype=torch.float32).to(x.dtype)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        step = heads_at_once(self.attention_slice, q.shape[1])
        if step >= q.shape[1]:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if mask is not None:
            mask = mask.expand(*q.shape[:3], k.shape[2])
        parts = []
        for start in range(0, q.shape[1], step):
            heads = slice(start, start + step)
            part = None if mask is None else mask[:, heads]
            parts.append(
                F.scaled_dot_product_attention(q[:, heads], k[:, heads], v[:, heads], part)
            )
        return torch.cat(parts, 1)

    def tokens(self, x: Tensor) -> Tensor:
        # One copy here, else one in each normalisation of what is a view, and slow sums.
        return x.flatten(2).mT.contiguous()

    def image(self, x: Tensor, like: Tensor) -> Tensor:
        x = x.mT.unflatten(2, like.shape[2:])
        return x if like.stride(1) == 1 else x.contiguous()

    def concat(self, xs: Sequence[Tensor], axis: int) -> Tensor:
        return torch.cat(tuple(xs), axis)

    def pad(self, x: Tensor, bottom: int, right: int) -> Tensor:
        return F.pad(x, (0, right, 0, bottom))

    def upsample(self, x: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(x, size=(height, width), mode="nearest")

    def gather_rows(self, x: Tensor, index: Tensor) -> Tensor:
        return x[torch.arange(x.shape[0], device=x.device), index]

    def expand(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        return x.expand(*shape)

    def arange(self, count: int, like: Tensor) -> Tensor:
        return torch.arange(count, dtype=torch.float32, device=like.device)

    def causal_mask(self, count: int, like: Tensor) -> Tensor:
        low = torch.finfo(like.dtype).min
        return torch.full((count, count), low, dtype=like.dtype, device=like.device).triu(1)

    def float32(self, x: Tensor) -> Tensor:
        return x.float()

    def cast(self, x: Tensor, like: Tensor) -> Tensor:
        return x.to(like.dtype)


def plain_layer(p: nn.Module, kind: type[nn.Module]) -> dict[str, Any] | None:
    """The parameters of a layer which nothing watches or replaces, else None.

    Its operation is then called as it is: what `nn.Module.__call__` does around it takes a fifth of
    a small network's time. Everything else (hooks, adapters, quantised layers) is called.
    """
    d = p.__dict__
    if (
        type(p) is kind
        and not (d["_forward_hooks"] or d["_forward_pre_hooks"])
        and not (d["_backward_hooks"] or d["_backward_pre_hooks"])
        and not any(_EVERYWHERE)
        and "forward" not in d
    ):
        return d["_parameters"]
    return None


def _compute(operation: Any, x: Tensor, w: dict[str, Any], *settings: Any) -> Tensor:
    """A linear layer or convolution; float16 in float32 where the processor has no float16.

    PyTorch's kernels for it there take 5 times (linear) to 200 times (convolution) as long.
    """
    weight, bias = w["weight"], w["bias"]
    if x.dtype is not torch.float16 or x.device.type != "cpu" or _has_half():
        return operation(x, weight, bias, *settings)
    bias = None if bias is None else bias.float()
    return operation(x.float(), weight.float(), bias, *settings).to(x.dtype)


def _has_half() -> bool:
    """Whether oneDNN multiplies float16, by the processor's own instructions."""
    return bool(torch.backends.mkldnn.enabled and _KNOWS_HALF)


# Asked here, not at each layer: PyTorch's tracer cannot follow the question, and would end a
# compiled program before each layer.
_KNOWS_HALF = bool(getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)())

_kinds = ("forward", "forward_pre", "backward", "backward_pre")
_EVERYWHERE = [getattr(nn.modules.module, f"_global_{kind}_hooks") for kind in _kinds]


class Node(nn.Module):
    """A node of the tree. Children are registered, so `state_dict` names are published names."""

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__["_modules"]
        return modules[name] if name in modules else super().__getattr__(name)

    def __getitem__(self, index: int) -> Any:
        return self.__dict__["_modules"][str(index)]

    def __len__(self) -> int:
        return len(self.__dict__["_modules"])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__dict__["_modules"].values())


def device_of(root: nn.Module) -> torch.device:
    """The device of the first parameter."""
    return next(root.parameters()).device


def array(values: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """A tensor from numpy, nested lists or a tensor."""
    if isinstance(values, Tensor):
        return values.to(device=device, dtype=dtype)
    return torch.as_tensor(np.asarray(values), dtype=dtype, device=device)


no_grad = torch.no_grad
float32 = torch.float32


def leaf(p: Any) -> Tensor:
    """The weight of a layer: its dtype and device are those of the layer."""
    return p.weight


def is_finite(values: Tensor) -> bool:
    """Whether no element is NaN or infinite. One reduction, no temporary of the input's size."""
    return bool(torch.isfinite(values.detach().float().sum()))


operations = Torch()


def with_settings(attention_slice: Slice) -> Torch:
    """Operations with settings."""
    return operations if attention_slice is None else Torch(attention_slice)


Generator = torch.Generator | np.random.Generator
Generators = Generator | Sequence[Generator] | None


def draw(shape: Sequence[int], generator: Generators, device: Any, dtype: Any) -> torch.Tensor:
    """Standard normal numbers of `shape (batch, ...)`.

    One generator draws for the whole batch, a list of `batch` generators one image each, None takes
    PyTorch's global stream on `device`. A CPU generator serves every device, as does one of numpy,
    which draws float64.

    Raises:
        InputError: a list has another length than the batch.
    """
    shape = tuple(shape)
    if isinstance(generator, list | tuple):
        if len(generator) == 1:
            return draw(shape, generator[0], device, dtype)
        if len(generator) != shape[0]:
            raise InputError(
                f"generator has {len(generator)} entries; the batch has {shape[0]} images"
            )
        parts = [draw((1, *shape[1:]), g, device, dtype) for g in generator]
        return torch.cat(parts)
    assert not isinstance(generator, Sequence)  # told apart above
    if isinstance(generator, np.random.Generator):
        return torch.from_numpy(generator.standard_normal(shape)).to(device=device, dtype=dtype)
    place = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=place, dtype=dtype).to(device)


def seeded(seed: int | Sequence[int], count: int) -> list[torch.Generator]:
    """A CPU generator per image: image `i` of one seed gets `seed + i`, of a list its own entry.

    Raises:
        InputError: a seed is negative or too large, or a list has another length than `count`.
        InputTypeError: a seed is not an integer.
    """
    several = isinstance(seed, list | tuple | range)
    listed: Any = seed if several else [seed]
    for one in listed:
        if isinstance(one, bool) or not isinstance(one, Integral):
            raise InputTypeError(f"seed={shown(one)} is not an integer")
    seeds = [int(one) for one in listed]
    if not several:
        seeds = [seeds[0] + i for i in range(count)]
    if len(seeds) != count:
        raise InputError(f"seed has {len(seeds)} entries; the call makes {count} images")
    for one in seeds:
        if not 0 <= one < 2**63:
            raise InputError(f"seed={shown(one)} is out of range; allowed: 0 .. 2**63 - 1")
    return [torch.Generator("cpu").manual_seed(one) for one in seeds]
