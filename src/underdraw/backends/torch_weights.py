"""PyTorch: trees of its own layers built, filled from files and written back; other arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from underdraw import absent
from underdraw.backends import hardware
from underdraw.backends.layout import Layout, Leaf
from underdraw.backends.torch_leaves import Quantised
from underdraw.backends.torch_operations import Node, draw
from underdraw.errors import InputError, InputTypeError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def _layer(leaf: Leaf, device: Any) -> nn.Module:
    shape = leaf.shape
    match leaf.kind:
        case "linear":
            return nn.Linear(shape[1], shape[0], leaf.bias, device=device)
        case "conv2d":
            return nn.Conv2d(
                shape[1] * leaf.groups,
                shape[0],
                shape[2],
                leaf.stride,
                leaf.padding,
                groups=leaf.groups,
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
            here._parameters[last] = nn.Parameter(_filled(value, leaf.start))
        else:
            layer = here._modules[last] = _layer(leaf, device)
            if leaf.start is not None:
                for value in layer.parameters():
                    _filled(value.data, leaf.start)


def _filled(value: Tensor, start: float | None) -> Tensor:
    if value.is_meta:
        return value
    return value.normal_() if start is None else value.fill_(start)


def graft(root: Any, parts: Mapping[str, Any]) -> None:
    """Hang layers and raw parameters of other trees into `root` at dotted paths; they are shared.

    A root without children becomes a part of a model, or several models become one.
    """
    for path, part in parts.items():
        *parents, last = path.split(".")
        here: Any = root
        for name in parents:
            if name not in here._modules:
                here._modules[name] = Node()
            here = here._modules[name]
        (here._parameters if isinstance(part, nn.Parameter) else here._modules)[last] = part


def load_root(
    root: nn.Module, layout: Layout, tensors: dict[str, Any], dtype: Any = None, device: Any = None
) -> None:
    """Build the tree and give every parameter its tensor.

    A tensor that has the wanted dtype already stays memory-mapped. `dtype="auto"` takes what is
    fast on the device, in dtype and in memory layout.
    """
    if device is not None:
        device = hardware.resolve_device(device)
    build_root(root, layout, "meta")
    wanted = resolve_dtype(hardware.fastest_dtype(device or "cpu") if dtype == "auto" else dtype)
    for name, stored in tensors.items():
        path, _, last = name.rpartition(".")
        parameters = root.get_submodule(path)._parameters
        parameters[last] = nn.Parameter(tensor(stored, wanted, device))
    if dtype == "auto" and hardware.channels_last(getattr(root, "network", ""), device or "cpu"):
        hardware.to_channels_last(root)
    root.eval()


def named_tensors(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters by published name; weights in 8 bits in floating point."""
    if not any(isinstance(module, Quantised) for module in root.modules()):
        yield from root.named_parameters()
        return
    for path, module in root.named_modules():
        before = f"{path}." if path else ""
        if isinstance(module, Quantised):
            yield f"{before}weight", module.weight
        yield from ((f"{before}{name}", p) for name, p in module.named_parameters(recurse=False))


def to_bits(value: Tensor) -> tuple[str, np.ndarray]:
    """Dtype name and numbers on the host, bfloat16 as its bits: what the weights layer writes."""
    host = value.detach().cpu().contiguous()
    bits = host.view(torch.uint16) if host.dtype == torch.bfloat16 else host
    return str(host.dtype).removeprefix("torch."), bits.numpy()


def with_values(layer: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
    """A layer like another with other numbers."""
    layer = layer.plain() if isinstance(layer, Quantised) else layer
    made = copy(layer)
    given = {"weight": weight, "bias": bias}
    new = {
        name: nn.Parameter(value.detach(), False)
        for name, value in given.items()
        if value is not None
    }
    made._parameters = {**layer._parameters, **new}
    return made


def replace_rows(layer: Any, rows: Tensor) -> None:
    """Give an embedding layer other rows, in a parameter of its own."""
    layer.weight = nn.Parameter(rows.detach().clone(), layer.weight.requires_grad)
    layer.num_embeddings = rows.shape[0]


def dtype_of(root: nn.Module) -> torch.dtype:
    """The dtype of the first parameter."""
    return next(root.parameters()).dtype


def tensor(stored: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """A `StoredTensor` as a tensor; shares its memory where neither dtype nor device change."""
    array = stored.load()
    value = torch.from_numpy(array if array.ndim else array.reshape(1)).reshape(stored.shape)
    if stored.dtype == "bfloat16":
        value = value.view(torch.bfloat16)
    return value.to(device=device, dtype=dtype if value.is_floating_point() else None)


def resolve_dtype(name: Any) -> Any:
    """`torch.float16` from itself, `"float16"`, `"fp16"`, ...; None stays None."""
    if name is None or isinstance(name, torch.dtype):
        return name
    text = _plain_name(name)
    if text not in DTYPES:
        raise InputError(f"dtype={name!r} is not known; allowed: {', '.join(DTYPES)}")
    return DTYPES[text]


def _plain_name(dtype: Any) -> str:
    short = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    text = str(dtype).removeprefix("torch.")
    return short.get(text, text)


class Root(Node):
    """The root of a network, which goes only where this machine can go."""

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__["_modules"]
        if name in modules:
            return modules[name]
        if name.startswith("_"):  # asked for at each call, to see whether it is there
            return super().__getattr__(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            kind = type(self)
            raise AttributeError(absent.method(kind.__name__, name, dir(kind))) from None

    def to(self, *args: Any, **kwargs: Any) -> Root:
        """As `nn.Module.to`; dtypes may also be named.

        Raises:
            InputError: the device is not here, or networks cannot have the dtype.
            InputTypeError: it is neither a device nor a dtype.
        """
        places = [_device_or_dtype("to", value) for value in args]
        named = {name: _device_or_dtype(name, value) for name, value in kwargs.items()}
        if any(isinstance(value, torch.device) for value in places[1:]):
            raise InputTypeError(f"to{args}: allowed are a device, a dtype, or both in this order")
        return super().to(*places, **named)


def _device_or_dtype(name: str, value: Any) -> Any:
    """An argument of `to`, after checking it; what is neither device nor dtype as it is."""
    if name not in ("to", "device", "dtype") or value is None or isinstance(value, bool | Tensor):
        return value
    known = isinstance(value, str) and _plain_name(value) in DTYPES
    if name == "dtype" or (name == "to" and (known or isinstance(value, torch.dtype))):
        dtype = resolve_dtype(value)
        if not dtype.is_floating_point:
            raise InputError(f"dtype={dtype} is none of a network; allowed: {', '.join(DTYPES)}")
        return dtype
    if not isinstance(value, str | int | torch.device):
        raise InputTypeError(f"{name}={value!r:.100} is not a device{' or dtype' * (name == 'to')}")
    return torch.device(hardware.resolve_device(value))


def move(root: nn.Module, *args: Any, **kwargs: Any) -> None:
    """As `Root.to`; a network that is there already is not touched, so that other threads may go on
    with it."""
    there = _device_or_dtype("to", args[0]) if len(args) == 1 and not kwargs else None
    if isinstance(there, torch.device):
        # PyTorch would copy from "cpu" to "cpu:0", and free what others are reading.
        place = _place(there)
        if all(_place(one.device) == place for one in (*root.parameters(), *root.buffers())):
            return
    # Moved under inference mode, parameters could never again take part in a gradient; those which
    # were made under it stay as they are.
    stay = torch.is_inference_mode_enabled() and any(p.is_inference() for p in root.parameters())
    with torch.inference_mode(stay):
        root.to(*args, **kwargs)


def _place(device: torch.device) -> tuple[str, int | None]:
    return device.type, 0 if device.type == "cpu" else device.index


def to_numpy(values: Tensor) -> np.ndarray:
    """A float32 (or integer) numpy array on the host."""
    values = values.detach()
    return (values.float() if values.is_floating_point() else values).cpu().numpy()


def draw_like(values: Tensor, generator: Any = None) -> Tensor:
    """Standard normal numbers of the shape, dtype and device of `values`."""
    return draw(values.shape, generator, values.device, values.dtype)


def is_array(value: Any) -> bool:
    """Whether it is a tensor."""
    return isinstance(value, Tensor)


def is_floating(values: Tensor) -> bool:
    """Whether it holds floating-point numbers."""
    return values.is_floating_point()


def register_output(kind: type[Any]) -> None:
    """Let `torch.export` and `torch.utils._pytree` see the tensors in a dataclass."""

    static = [f.name for f in fields(kind) if f.metadata.get("static")]

    def flatten(output: Any) -> tuple[list[Any], list[Any]]:
        # None is a leaf to PyTorch; a field that was not asked for must not be one.
        there = [f.name for f in fields(kind) if getattr(output, f.name) is not None]
        names = [name for name in there if name not in static]
        fixed = {name: getattr(output, name) for name in static}
        return [getattr(output, name) for name in names], [names, fixed]

    def unflatten(values: Iterable[Any], context: list[Any]) -> Any:
        names, fixed = context
        return kind(**dict(zip(names, values, strict=True)), **fixed)

    name = f"{kind.__module__}.{kind.__qualname__}"
    pytree.register_pytree_node(kind, flatten, unflatten, serialized_type_name=name)


def recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """`function(*arguments)`; what it computes inside is not kept for the gradient but computed
    again (Chen et al. 2016). Gradients flow into what the function encloses, too."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    # Nothing inside a network is random, so no random state has to be put back.
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


Function = Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]]


def gradient(function: Function, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The gradient at `x` of the number that `function` returns first, and the arrays that it
    returns second. Nothing is left on parameters."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        value, rest = function(x)
    (found,) = torch.autograd.grad(value, x)
    return found, tuple(part.detach() for part in rest)


def compiled(function: Callable[..., Any], dynamic: bool | None = None) -> Callable[..., Any]:
    """The function compiled by `torch.compile`, with its default settings; `dynamic` for all sizes
    of its arrays at once."""
    how: dict[str, Any] = {} if dynamic is None else {"dynamic": dynamic}
    return torch.compile(function, **how)


def compiler_of(model: Any) -> Callable[..., Any] | None:
    """What compiles functions as `torch.compile` was told to compile this network; None for one
    that was not wrapped by it."""
    return getattr(model, "dynamo_ctx", None) if hasattr(model, "_orig_mod") else None
