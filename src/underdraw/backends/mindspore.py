"""MindSpore: a tree holds tensors. Written with `mindspore.ops`; `mint` has no kernels on CPU.

On a device MindSpore runs behind Python, so errors surface when a result is read. On CPU that is
turned off below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from underdraw.backends.adapted import AdaptedLeaf
from underdraw.backends.layout import Layout
from underdraw.backends.mindspore_graphs import compiled
from underdraw.backends.node import BaseRoot, Node, grow, initial_values, walk
from underdraw.backends.slices import Slice, heads_at_once
from underdraw.errors import InputError

__all__ = [
    "Root",
    "array",
    "build",
    "build_root",
    "compiled",
    "device_of",
    "draw",
    "draw_like",
    "dtype_of",
    "float32",
    "gradient",
    "graft",
    "is_array",
    "is_finite",
    "is_floating",
    "leaf",
    "load",
    "load_root",
    "move",
    "named_tensors",
    "networks_are_values",
    "no_grad",
    "operations",
    "register_output",
    "replace_rows",
    "resolve_dtype",
    "tensor",
    "to_bits",
    "to_numpy",
    "with_settings",
    "with_values",
]

DTYPES = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}
FLOATS = (*DTYPES.values(), ms.float64)

SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
SPELLINGS = (*DTYPES, *SHORT)

if ms.get_context("device_target") == "CPU":
    # Threads that wait for one another by spinning cost a small UNet ten times its processor time,
    # and there is no device to run ahead of.
    ms.runtime.launch_blocking()


@dataclass(frozen=True)
class MindSpore:
    """`Operations` on tensors; `attention_slice` tells `slices.heads_at_once`."""

    attention_slice: Slice = None
    name: str = "mindspore"

    def linear(self, p: Any, x: Tensor, width: int, bias: bool = True) -> Tensor:
        if isinstance(p, AdaptedLeaf):
            return p.linear(self, x, width, bias)
        return ops.dense(x, p.weight, p.bias if bias else None)

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
        if isinstance(p, AdaptedLeaf):
            return p.conv2d(self, x, width, kernel, stride, padding, bias, groups)
        side = kernel // 2 if padding is None else padding
        if _on_cpu():
            y = _convolve(x, p.weight, stride, side, groups)
            return y + p.bias[:, None, None] if bias else y
        offset = p.bias if bias else None
        return ops.conv2d(x, p.weight, offset, stride, "pad", side, 1, groups)

    def group_norm(self, p: Any, x: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
        if isinstance(p, AdaptedLeaf):
            return p.group_norm(self, x, groups, eps)
        y = ops.group_norm(x.float(), groups, p.weight.float(), p.bias.float(), eps)
        return y.astype(x.dtype)

    def layer_norm(self, p: Any, x: Tensor, eps: float = 1e-5) -> Tensor:
        if isinstance(p, AdaptedLeaf):
            return p.layer_norm(self, x, eps)
        weight, bias = p.weight.float(), p.bias.float()
        if not _on_cpu():
            return ops.layer_norm(x.float(), weight.shape, weight, bias, eps).astype(x.dtype)
        # It has no kernel on CPU, and a graph that records `ops.LayerNorm` ends the process.
        rows = x.float().reshape(-1, x.shape[-1])
        return ops.group_norm(rows, 1, weight, bias, eps).reshape(x.shape).astype(x.dtype)

    def embedding(self, p: Any, ids: Tensor, count: int, width: int) -> Tensor:
        if isinstance(p, AdaptedLeaf):
            return p.embedding(self, ids, count, width)
        return ops.gather(p.weight, ids, 0)

    def parameter(
        self, p: Any, name: str, shape: tuple[int, ...], start: float | None = None
    ) -> Tensor:
        value = getattr(p, name)
        return value.parameter(self, shape) if isinstance(value, AdaptedLeaf) else value

    silu = staticmethod(ops.silu)
    gelu = staticmethod(ops.gelu)
    sin = staticmethod(ops.sin)
    cos = staticmethod(ops.cos)
    matmul = staticmethod(ops.matmul)
    permute = staticmethod(ops.permute)

    def quick_gelu(self, x: Tensor) -> Tensor:
        return x * ops.sigmoid(1.702 * x)

    def tanh(self, x: Tensor) -> Tensor:
        # `ops.tanh` is off by 1e-5 on CPU.
        return (2 * ops.sigmoid(2 * x.float()) - 1).astype(x.dtype)

    def exp(self, x: Tensor) -> Tensor:
        # On CPU the float32 kernel is off by 5e-6 of the result: 0.005 rad in embeddings of time.
        return ops.exp(x.double()).astype(x.dtype) if _on_cpu() else ops.exp(x)

    def clip(self, x: Tensor, low: Any, high: Any) -> Tensor:
        return ops.minimum(ops.maximum(x, low), high).astype(x.dtype)

    def where(self, condition: Tensor, x: Any, y: Any) -> Tensor:
        return ops.where(condition, x, y)

    def mean(self, x: Tensor, axes: tuple[int, ...], keepdims: bool = True) -> Tensor:
        return ops.mean(x.float(), axes, keepdims).astype(x.dtype)

    def std(self, x: Tensor, axes: tuple[int, ...], keepdims: bool = True) -> Tensor:
        return ops.std(x.float(), axes, 1, keepdims).astype(x.dtype)

    def norm(self, x: Tensor, axis: int = -1) -> Tensor:
        square = ops.square(x.float())
        return ops.sqrt(square.sum(axis, keepdims=True)).astype(x.dtype)

    def quantile_abs(self, x: Tensor, q: float) -> Tensor:
        # `ops.quantile` has no kernel on CPU.
        ordered = ops.sort(x.float().abs().reshape(x.shape[0], -1), 1)[0]
        place = q * (ordered.shape[1] - 1)
        low = int(place)
        high = min(low + 1, ordered.shape[1] - 1)
        part = place - low
        return (ordered[:, low] * (1 - part) + ordered[:, high] * part).astype(x.dtype)

    def argmax(self, x: Tensor, axis: int) -> Tensor:
        return ops.argmax(x.int() if x.dtype == ms.bool_ else x, axis)

    def softmax(self, x: Tensor) -> Tensor:
        return ops.softmax(x.float(), -1).astype(x.dtype)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        step = heads_at_once(self.attention_slice, q.shape[1])
        if step >= q.shape[1]:
            return _attention(q, k, v, mask)
        if mask is not None:
            mask = ops.broadcast_to(mask, (*q.shape[:3], k.shape[2]))
        parts = []
        for start in range(0, q.shape[1], step):
            heads = slice(start, start + step)
            part = None if mask is None else mask[:, heads]
            parts.append(_attention(q[:, heads], k[:, heads], v[:, heads], part))
        return ops.cat(parts, 1)

    def tokens(self, x: Tensor) -> Tensor:
        return ops.permute(x.reshape(*x.shape[:2], -1), (0, 2, 1))

    def image(self, x: Tensor, like: Tensor) -> Tensor:
        return ops.permute(x, (0, 2, 1)).reshape(x.shape[0], -1, *like.shape[2:])

    def concat(self, xs: Sequence[Tensor], axis: int) -> Tensor:
        return ops.cat(tuple(xs), axis)

    def pad(self, x: Tensor, bottom: int, right: int) -> Tensor:
        return ops.pad(x, (0, right, 0, bottom))

    def upsample(self, x: Tensor, height: int, width: int) -> Tensor:
        for axis, size in ((2, height), (3, width)):
            index = np.arange(size) * x.shape[axis] // size
            x = ops.gather(x, Tensor(index.astype(np.int32)), axis)
        return x

    def gather_rows(self, x: Tensor, index: Tensor) -> Tensor:
        # Indexing by arrays cannot be recorded in a graph.
        count, tokens = x.shape[:2]
        first = Tensor(np.arange(count, dtype=np.int32) * tokens).astype(index.dtype)
        return ops.gather(x.reshape(count * tokens, *x.shape[2:]), index + first, 0)

    def expand(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        return ops.broadcast_to(x, tuple(shape))

    def arange(self, count: int, like: Tensor) -> Tensor:
        # A constant: `ops.arange` cannot be recorded in a graph.
        return Tensor(np.arange(count, dtype=np.float32))

    def causal_mask(self, count: int, like: Tensor) -> Tensor:
        low = float(np.finfo(ms.dtype_to_nptype(like.dtype)).min)
        return Tensor(np.triu(np.full((count, count), low, np.float32), 1)).astype(like.dtype)

    def float32(self, x: Tensor) -> Tensor:
        return x.float()

    def cast(self, x: Tensor, like: Tensor) -> Tensor:
        return x.astype(like.dtype)


def _on_cpu() -> bool:
    return ms.get_context("device_target") == "CPU"


def _convolve(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Tensor:
    """Convolution as one matrix product: MindSpore's own on CPU takes 40 times as long."""
    width, _, kernel, _ = weight.shape
    batch, _, *sizes = x.shape
    rows, columns = ((size + 2 * padding - kernel) // stride + 1 for size in sizes)
    if kernel == 1 and padding == 0:
        patches = x if stride == 1 else x[:, :, ::stride, ::stride]
        patches = patches.reshape(batch, -1, rows * columns)
    else:
        patches = ops.unfold(x, kernel, 1, padding, stride)
    if groups == 1:
        y = ops.matmul(weight.reshape(width, -1), patches)
    else:
        patches = patches.reshape(batch, groups, -1, rows * columns)
        y = ops.matmul(weight.reshape(groups, width // groups, -1), patches)
    return y.reshape(batch, width, rows, columns)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = ops.matmul(q.float() * q.shape[-1] ** -0.5, ops.swapaxes(k.float(), 2, 3))
    probabilities = ops.softmax(scores if mask is None else scores + mask.float(), -1)
    return ops.matmul(probabilities.astype(v.dtype), v)


Root = BaseRoot
"""What a model class becomes on this backend."""


def build(layout: Layout, seed: int = 0, dtype: Any = None, device: Any = None) -> Node:
    """A tree with the initial values of a layout, drawn from `seed` on the host."""
    values = initial_values(layout, seed)
    return grow({name: array(value, dtype, device) for name, value in values})


def load(tensors: Mapping[str, Any], dtype: Any = None, device: Any = None) -> Node:
    """A tree of `StoredTensor`s by name, each turned into `dtype` on its way."""
    return grow({name: tensor(stored, dtype, device) for name, stored in tensors.items()})


def build_root(root: Any, layout: Layout, device: Any = None) -> None:
    """Give a model the initial values of its layout."""
    root._tree = build(layout, device=device)


def graft(root: Any, parts: Mapping[str, Any]) -> None:
    """Give a model layers and raw parameters of other trees by dotted path; they are shared."""
    root._tree = grow(parts)


def load_root(
    root: Any, layout: Layout, tensors: Mapping[str, Any], dtype: Any = None, device: Any = None
) -> None:
    """Give a model its tensors, in the order of the layout."""
    wanted = resolve_dtype(dtype)
    root._tree = load({name: tensors[name] for name in layout.shapes}, wanted, device)


def named_tensors(root: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters by published name."""
    return walk(root._tree)


def to_bits(value: Tensor) -> tuple[str, np.ndarray]:
    """Dtype name and numbers on the host, bfloat16 as its bits: what the weights layer writes."""
    if value.dtype == ms.bfloat16:
        return "bfloat16", (value.float().asnumpy().view(np.uint32) >> 16).astype(np.uint16)
    host = value.asnumpy()
    return host.dtype.name, host


def with_values(layer: Node, weight: Tensor, bias: Tensor | None = None) -> Node:
    """A layer like another with other numbers."""
    more = {} if bias is None else {"bias": bias}
    return Node({**layer._, "weight": weight, **more})


def replace_rows(layer: Node, rows: Tensor) -> None:
    """Give an embedding layer other rows."""
    layer._["weight"] = rows


def dtype_of(root: Any) -> Any:
    """The dtype of the first parameter."""
    return next(named_tensors(root))[1].dtype


def device_of(root: Any) -> str:
    """The device everything runs on: MindSpore has one per process."""
    return ms.get_context("device_target")


def tensor(stored: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """A `StoredTensor` as a tensor. bfloat16 becomes float32 on its way to the wanted dtype, and
    float64 too, since few kernels take it."""
    values = stored.load()
    if stored.dtype == "bfloat16":
        bits = values.reshape(-1).astype(np.uint32) << 16
        values = bits.view(np.float32).reshape(stored.shape)
        dtype = dtype or (ms.float32 if _on_cpu() else ms.bfloat16)
    elif stored.dtype == "float64":
        values = values.astype(np.float32)
    floating = values.dtype.kind == "f"
    return array(values, dtype if floating else None, device)


def array(values: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """A tensor from numpy, nested lists or a tensor; `device` may only be MindSpore's own."""
    if device is not None and str(device).lower() != device_of(None).lower():
        raise InputError(
            f"device={device!r} is not where MindSpore runs; allowed: {device_of(None)!r} "
            f"(choose with mindspore.set_device)"
        )
    if not isinstance(values, Tensor):
        host = np.asarray(values)
        host = host.astype(np.float32) if host.dtype == np.float64 else host
        # Tensor() copies what numpy holds, which may be a file or change later; but it reads
        # memory in order, so a transposed array is laid out first.
        values = Tensor(np.ascontiguousarray(host).reshape(host.shape))
    return values if dtype is None else values.astype(dtype)


def to_numpy(values: Tensor) -> np.ndarray:
    """A float32 (or integer) numpy array on the host."""
    return (values.float() if is_floating(values) else values).asnumpy().copy()


def draw(
    shape: Sequence[int], generator: Any = None, device: Any = None, dtype: Any = None
) -> Tensor:
    """Standard normal numbers, drawn by PyTorch so that every backend gets the same ones."""
    import torch

    from underdraw.backends.torch_operations import draw

    return array(draw(shape, generator, "cpu", torch.float32).numpy(), dtype, device)


def draw_like(values: Tensor, generator: Any = None) -> Tensor:
    """Standard normal numbers of the shape and dtype of `values`."""
    return draw(values.shape, generator, dtype=values.dtype)


float32 = DTYPES["float32"]
networks_are_values = True
"""Parameters are arguments of graphs: what was compiled for one serves all of its config."""
no_grad = nullcontext
"""Nothing is recorded unless somebody asks for a gradient."""


Function = Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]]


def gradient(function: Function, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The gradient at `x` of the number that `function` returns first, and the arrays that it
    returns second."""
    (_, rest), found = ms.value_and_grad(function, 0, None, has_aux=True)(x)
    return found, rest


def leaf(p: Any) -> Tensor:
    """The weight of a layer: its dtype and device are those of the layer."""
    return p.weight


def is_array(value: Any) -> bool:
    """Whether it is one of this backend's arrays."""
    return isinstance(value, Tensor)


def is_floating(values: Tensor) -> bool:
    """Whether it holds floating-point numbers."""
    return values.dtype in FLOATS


def is_finite(values: Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    return bool(np.isfinite(values.float().sum().asnumpy()))


def resolve_dtype(name: Any) -> Any:
    """`mindspore.float16` from itself, `"float16"`, `"fp16"`, ...; None stays None.

    Raises:
        InputError: the dtype is unknown, or is bfloat16 on CPU, where it has no kernels.
    """
    if isinstance(name, str) and name == "auto":  # nothing else was measured to be faster here
        return ms.float32
    if name is None:
        return None
    text = str(name).removeprefix("torch.").removeprefix("mindspore.").lower()
    text = SHORT.get(text, text)
    allowed = [known for known in DTYPES if not (known == "bfloat16" and _on_cpu())]
    if text not in allowed:
        raise InputError(f"dtype={name!r} cannot run here; allowed: {', '.join(allowed)}")
    return DTYPES[text]


operations = MindSpore()


def with_settings(attention_slice: Slice) -> MindSpore:
    """Operations with settings."""
    return operations if attention_slice is None else MindSpore(attention_slice)


def move(root: Any, device: Any = None, dtype: Any = None) -> None:
    """Put a model elsewhere, or in another dtype; either may be given first."""
    if str(getattr(device, "__name__", device)).split(".")[-1].lower() in SPELLINGS:
        device, dtype = None, device
    wanted = resolve_dtype(dtype)
    root._tree = grow({name: array(value, wanted, device) for name, value in walk(root._tree)})


def register_output(kind: type[Any]) -> None:
    """Nothing to do: no transformation here looks into what a model returns."""
