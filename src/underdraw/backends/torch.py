"""PyTorch: leaves are its own layers, nodes are modules, so its ecosystem keeps working."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from underdraw.backends.layout import Layout, Leaf
from underdraw.backends.noise import draw as draw
from underdraw.errors import InputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Torch:
    """`Operations` on tensors. `attention_slice` is how many heads attend at once, None for all."""

    attention_slice: int | None = None
    name: str = "torch"

    def linear(self, p: Any, x: Tensor, width: int, bias: bool = True) -> Tensor:
        w = _plain(p, nn.Linear)
        return F.linear(x, w["weight"], w["bias"]) if w else p(x)

    def conv2d(
        self,
        p: Any,
        x: Tensor,
        width: int,
        kernel: int,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
    ) -> Tensor:
        w = _plain(p, nn.Conv2d)
        if not w or p.padding_mode != "zeros":
            return p(x)
        return F.conv2d(x, w["weight"], w["bias"], p.stride, p.padding, p.dilation, p.groups)

    def group_norm(self, p: Any, x: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
        w = _plain(p, nn.GroupNorm)
        return torch.group_norm(x, p.num_groups, w["weight"], w["bias"], p.eps) if w else p(x)

    def layer_norm(self, p: Any, x: Tensor, eps: float = 1e-5) -> Tensor:
        w = _plain(p, nn.LayerNorm)
        return torch.layer_norm(x, p.normalized_shape, w["weight"], w["bias"], p.eps) if w else p(x)

    def embedding(self, p: Any, ids: Tensor, count: int, width: int) -> Tensor:
        return p(ids)

    def parameter(self, p: Any, name: str, shape: tuple[int, ...]) -> Tensor:
        return getattr(p, name)

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
        return x * torch.sigmoid(1.702 * x)

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
        step = self.attention_slice
        if step is None or step >= q.shape[1]:
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


def _plain(p: nn.Module, kind: type[nn.Module]) -> dict[str, Any] | None:
    """The parameters of a layer which nothing watches or replaces, else None.

    Its operation is then called as it is: what `nn.Module.__call__` does around it takes a fifth of
    a small network's time. Everything else (hooks, adapters, quantised layers) is called.
    """
    d = p.__dict__
    if (
        type(p) is kind
        and not (d["_forward_hooks"] or d["_forward_pre_hooks"])
        and not (d["_backward_hooks"] or d["_backward_pre_hooks"])
        and not any(_GLOBAL_HOOKS)
        and "forward" not in d
    ):
        return d["_parameters"]
    return None


_GLOBAL_HOOKS = (
    torch.nn.modules.module._global_forward_hooks,
    torch.nn.modules.module._global_forward_pre_hooks,
    torch.nn.modules.module._global_backward_hooks,
    torch.nn.modules.module._global_backward_pre_hooks,
)


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


def _layer(leaf: Leaf, device: Any) -> nn.Module:
    shape = leaf.shape
    match leaf.kind:
        case "linear":
            return nn.Linear(shape[1], shape[0], leaf.bias, device=device)
        case "conv2d":
            return nn.Conv2d(
                shape[1],
                shape[0],
                shape[2],
                leaf.stride,
                leaf.padding,
                bias=leaf.bias,
                device=device,
            )
        case "group_norm":
            return nn.GroupNorm(leaf.groups, shape[0], leaf.eps, device=device)
        case "layer_norm":
            return nn.LayerNorm(shape[0], leaf.eps, device=device)
        case "embedding":
            weight = torch.empty(shape, device=device)
            if weight.is_meta:  # to draw values there PyTorch first imports its compiler, for 1 s
                return nn.Embedding(shape[0], shape[1], _weight=weight)
            return nn.Embedding(shape[0], shape[1], device=device)
    raise AssertionError(leaf.kind)


Root = Node
"""What a model class becomes on this backend."""


def build_root(root: nn.Module, layout: Layout, device: Any = None) -> None:
    """Hang the leaves of a layout into `root`, with PyTorch's own initial values.

    On `device="meta"` nothing is allocated: `load` follows.
    """
    for path, leaf in layout.leaves.items():
        *parents, last = path.split(".")
        here: Any = root
        for part in parents:
            if part not in here._modules:
                here._modules[part] = Node()
            here = here._modules[part]
        if leaf.kind == "parameter":
            value = torch.empty(leaf.shape, device=device)
            here._parameters[last] = nn.Parameter(value if value.is_meta else value.normal_())
        else:
            here._modules[last] = _layer(leaf, device)


def load_root(
    root: nn.Module, layout: Layout, tensors: dict[str, Any], dtype: Any = None, device: Any = None
) -> None:
    """Build the tree and give every parameter its tensor.

    A tensor that has the wanted dtype already stays memory-mapped.
    """
    build_root(root, layout, "meta")
    wanted = resolve_dtype(dtype)
    for name, stored in tensors.items():
        path, _, last = name.rpartition(".")
        parameters = root.get_submodule(path)._parameters
        parameters[last] = nn.Parameter(tensor(stored, wanted, device))
    root.eval()


def named_tensors(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters by published name."""
    return root.named_parameters()


def to_bits(value: Tensor) -> tuple[str, np.ndarray]:
    """Dtype name and numbers on the host, bfloat16 as its bits: what the weights layer writes."""
    host = value.detach().cpu().contiguous()
    bits = host.view(torch.uint16) if host.dtype == torch.bfloat16 else host
    return str(host.dtype).removeprefix("torch."), bits.numpy()


def dtype_of(root: nn.Module) -> torch.dtype:
    """The dtype of the first parameter."""
    return next(root.parameters()).dtype


def device_of(root: nn.Module) -> torch.device:
    """The device of the first parameter."""
    return next(root.parameters()).device


def tensor(stored: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """A `StoredTensor` as a tensor; shares its memory where neither dtype nor device change."""
    array = stored.load()
    value = torch.from_numpy(array if array.ndim else array.reshape(1)).reshape(stored.shape)
    if stored.dtype == "bfloat16":
        value = value.view(torch.bfloat16)
    return value.to(device=device, dtype=dtype if value.is_floating_point() else None)


def array(values: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """A tensor from numpy, nested lists or a tensor."""
    if isinstance(values, Tensor):
        return values.to(device=device, dtype=dtype)
    return torch.as_tensor(np.asarray(values), dtype=dtype, device=device)


def to_numpy(values: Tensor) -> np.ndarray:
    """A float32 (or integer) numpy array on the host."""
    values = values.detach()
    return (values.float() if values.is_floating_point() else values).cpu().numpy()


def draw_like(values: Tensor, generator: Any = None) -> Tensor:
    """Standard normal numbers of the shape, dtype and device of `values`."""
    return draw(values.shape, generator, values.device, values.dtype)


no_grad = torch.no_grad
float32 = torch.float32


def leaf(p: Any) -> Tensor:
    """The weight of a layer: its dtype and device are those of the layer."""
    return p.weight


def is_array(value: Any) -> bool:
    """Whether it is a tensor."""
    return isinstance(value, Tensor)


def is_floating(values: Tensor) -> bool:
    """Whether it holds floating-point numbers."""
    return values.is_floating_point()


def is_finite(values: Tensor) -> bool:
    """Whether no element is NaN or infinite. One reduction, no temporary of the input's size."""
    return bool(torch.isfinite(values.detach().float().sum()))


def resolve_dtype(name: Any) -> Any:
    """`torch.float16` from itself, `"float16"`, `"fp16"`, ...; None stays None."""
    if name is None or isinstance(name, torch.dtype):
        return name
    short = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    text = str(name).removeprefix("torch.")
    text = short.get(text, text)
    if text not in DTYPES:
        raise InputError(f"dtype={name!r} is not known; allowed: {', '.join(DTYPES)}")
    return DTYPES[text]


operations = Torch()


def with_settings(attention_slice: int | str | None) -> Torch:
    """Operations with settings: "max" attends one head at a time, "auto" is the same here."""
    if attention_slice is None:
        return operations
    return Torch(attention_slice if isinstance(attention_slice, int) else 1)


def move(root: nn.Module, *args: Any, **kwargs: Any) -> None:
    """As `nn.Module.to`."""
    root.to(*args, **kwargs)
