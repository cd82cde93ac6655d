"""JAX: a tree is a pytree of arrays, every operation can be compiled and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from underdraw.backends import tree
from underdraw.backends.adapted import Adapted
from underdraw.backends.jax_operations import operations, with_settings
from underdraw.backends.jax_programs import (
    compiled,
    copied,
    devices_in_line,
    keep_programs,
    key_words,
    keyed,
    mapped,
    over_devices,
    replicate,
    spread,
)
from underdraw.backends.layout import Layout
from underdraw.backends.node import BaseRoot, Node, grow, initial_values, walk
from underdraw.backends.once import once
from underdraw.errors import InputError

__all__ = [
    "Root",
    "array",
    "arrays_are_values",
    "build",
    "build_root",
    "compiled",
    "device_of",
    "devices_in_line",
    "divided",
    "draw",
    "draw_like",
    "dtype_of",
    "float32",
    "gradient",
    "graft",
    "is_array",
    "is_finite",
    "is_floating",
    "keep_programs",
    "key_words",
    "keyed",
    "leaf",
    "load",
    "load_root",
    "mapped",
    "move",
    "named_tensors",
    "networks_are_values",
    "no_grad",
    "operations",
    "over_devices",
    "picked",
    "register_output",
    "repeated",
    "replace_rows",
    "replicate",
    "resized",
    "resolve_dtype",
    "spread",
    "tensor",
    "to_bits",
    "to_numpy",
    "with_settings",
    "with_values",
]

DTYPES = {
    name: jnp.dtype(kind)
    for name, kind in (
        ("float32", jnp.float32),
        ("float16", jnp.float16),
        ("bfloat16", jnp.bfloat16),
    )
}

SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
SPELLINGS = (*DTYPES, *SHORT)


def _children(node: Node) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    return tuple(node._.values()), tuple(node._)


def _children_with_keys(node: Node) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    keyed = ((jax.tree_util.GetAttrKey(name), value) for name, value in node._.items())
    return tuple(keyed), tuple(node._)


def _node(names: tuple[str, ...], children: Iterable[Any]) -> Node:
    return Node(dict(zip(names, children, strict=True)))


jax.tree_util.register_pytree_with_keys(Node, _children_with_keys, _node, _children)


def _adapted_children(p: Adapted) -> tuple[tuple[Any, list[Any]], tuple[tree.Structure, str]]:
    leaves, structure = tree.flatten(p._deltas)
    return (p._node, leaves), (structure, p._path)


def _adapted(fixed: tuple[tree.Structure, str], children: Iterable[Any]) -> Adapted:
    node, leaves = children
    return Adapted(node, tree.unflatten(fixed[0], leaves), fixed[1])


jax.tree_util.register_pytree_node(Adapted, _adapted_children, _adapted)


class Root(BaseRoot):
    """What a model class becomes here: a pytree, which `jax.jit` and `jax.grad` take."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)

        def revive(config: Any, children: Iterable[Any]) -> Any:
            root = object.__new__(cls)
            root.config, (root._tree,) = config, children
            return root

        jax.tree_util.register_pytree_node(cls, lambda root: ((root._tree,), root.config), revive)


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


def named_tensors(root: Any) -> Iterator[tuple[str, Array]]:
    """Parameters by published name."""
    return walk(root._tree)


def to_bits(value: Array) -> tuple[str, np.ndarray]:
    """Dtype name and numbers on the host, bfloat16 as its bits: what the weights layer writes."""
    host = np.asarray(value)
    return str(value.dtype), host.view(np.uint16) if value.dtype == jnp.bfloat16 else host


def with_values(layer: Node, weight: Array, bias: Array | None = None) -> Node:
    """A layer like another with other numbers."""
    more = {} if bias is None else {"bias": bias}
    return Node({**layer._, "weight": weight, **more})


def replace_rows(layer: Node, rows: Array) -> None:
    """Give an embedding layer other rows."""
    layer._["weight"] = rows


def dtype_of(root: Any) -> Any:
    """The dtype of the first parameter."""
    return next(named_tensors(root))[1].dtype


def device_of(root: Any) -> Any:
    """Where the first parameter is, over a mesh all of it alike; None while it is traced."""
    value = next(named_tensors(root))[1]
    if isinstance(value, Tracer):
        return None
    mesh = getattr(value.sharding, "mesh", None)
    if mesh is not None and len(value.devices()) > 1:
        return NamedSharding(mesh, PartitionSpec())
    return next(iter(value.devices()))


def tensor(stored: Any, dtype: Any = None, device: Any = None) -> Array:
    """A `StoredTensor` as an array. float64 and int64 become 32 bits wide, as JAX's default."""
    values = stored.load()
    if stored.dtype == "bfloat16":
        values = values.view(jnp.bfloat16)
    floating = jnp.issubdtype(values.dtype, jnp.floating)
    return array(values, dtype if floating else None, device)


def array(values: Any, dtype: Any = None, device: Any = None) -> Array:
    """An array from numpy, nested lists or an array."""
    place = None if device is None else _place(device)
    if not isinstance(values, Array):
        return jax.device_put(copied(values, dtype), place)
    if dtype is not None:
        values = values.astype(dtype)
    return values if place is None else jax.device_put(values, place)


def _place(device: Any) -> Any:
    """A device from its kind ("cpu", "gpu:1") or number; a mesh is all of its devices alike; what
    is neither as it is."""
    if isinstance(device, Mesh):
        return NamedSharding(device, PartitionSpec())
    if isinstance(device, bool) or not isinstance(device, str | int):
        return device
    named = f":{device}" if isinstance(device, int) else device
    kind, _, number = named.partition(":")
    try:
        return jax.devices(kind or None)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError):
        here = ", ".join(f"{one.platform}:{one.id}" for one in jax.devices())
        raise InputError(f"device={device!r} is not on this machine; allowed: {here}") from None


def to_numpy(values: Array) -> np.ndarray:
    """A float32 (or integer) numpy array on the host."""
    return np.array(values.astype(jnp.float32) if is_floating(values) else values)


def draw(
    shape: Sequence[int], generator: Any = None, device: Any = None, dtype: Any = None
) -> Array:
    """Standard normal numbers, drawn by PyTorch so that every backend gets the same ones."""
    import torch

    from underdraw.backends.torch_operations import draw

    return array(draw(shape, generator, "cpu", torch.float32).numpy(), dtype, device)


def draw_like(values: Array, generator: Any = None) -> Array:
    """Standard normal numbers of the shape and dtype of `values`."""
    return draw(values.shape, generator, dtype=values.dtype)


float32 = DTYPES["float32"]
no_grad = nullcontext
"""Nothing is recorded unless somebody asks for a gradient."""


Function = Callable[[Array], tuple[Array, tuple[Array, ...]]]


def gradient(function: Function, x: Array) -> tuple[Array, tuple[Array, ...]]:
    """The gradient at `x` of the number that `function` returns first, and the arrays that it
    returns second."""
    (_, rest), found = jax.value_and_grad(function, has_aux=True)(x)
    return found, rest


def leaf(p: Any) -> Array:
    """The weight of a layer: its dtype and device are those of the layer."""
    return p.weight


def is_array(value: Any) -> bool:
    """Whether it is one of this backend's arrays."""
    return isinstance(value, Array)


def is_floating(values: Array) -> bool:
    """Whether it holds floating-point numbers."""
    return bool(jnp.issubdtype(values.dtype, jnp.floating))


def is_finite(values: Array) -> bool:
    """Whether no element is NaN or infinite."""
    return bool(jnp.isfinite(values).all())


def resolve_dtype(name: Any) -> Any:
    """`jnp.dtype("float16")` from itself, `jnp.float16`, `"fp16"`, ...; None stays None."""
    if isinstance(name, str) and name == "auto":  # nothing else was measured to be faster here
        return jnp.dtype("float32")
    if name is None:
        return None
    text = str(getattr(name, "__name__", name)).removeprefix("torch.")
    text = SHORT.get(text, text)
    if text not in DTYPES:
        raise InputError(f"dtype={name!r} is not known; allowed: {', '.join(DTYPES)}")
    return DTYPES[text]


def move(root: Any, device: Any = None, dtype: Any = None) -> None:
    """Put a model elsewhere, or in another dtype; either may be given first."""
    if str(getattr(device, "__name__", device)).split(".")[-1].lower() in SPELLINGS:
        device, dtype = None, device
    wanted = resolve_dtype(dtype)
    root._tree = grow({name: array(value, wanted, device) for name, value in walk(root._tree)})


@once
def register_output(kind: type[Any]) -> None:
    """Let `jax.jit` and the other transformations return a dataclass of arrays; a second time
    nothing is done."""
    static = [f.name for f in fields(kind) if f.metadata.get("static")]
    names = [f.name for f in fields(kind) if f.name not in static]
    jax.tree_util.register_dataclass(kind, data_fields=names, meta_fields=static)


arrays_are_values = True
"""An array never changes: the same one holds the same numbers."""
networks_are_values = True
"""Networks are pytrees, so what was compiled for one serves all of its config."""


def repeated(begin: Any, end: Any, body: Callable[[Any, Any], Any], state: Any) -> Any:
    """`body(i, state)` for i from `begin` up to `end`, whose numbers may be traced: one loop."""
    return lax.fori_loop(begin, end, body, state)


def picked(numbers: Sequence[Any], i: Any) -> Array:
    """One of several floats, whose place may be traced: what it meets keeps its dtype, as beside a
    float."""
    return jnp.stack([*numbers])[i]


def divided(x: Array) -> Array:
    """Rows that all devices of a mesh have, divided along its first axis where that goes evenly;
    anything else as it is."""
    where = x.sharding
    if not isinstance(where, NamedSharding) or where.mesh.size == 1:
        return x
    axis = where.mesh.axis_names[0]
    spec = PartitionSpec(axis) if x.shape[0] % where.mesh.shape[axis] == 0 else PartitionSpec()
    return jax.device_put(x, NamedSharding(where.mesh, spec))


def resized(x: Array, sides: Sequence[int], method: str) -> Array:
    """Pictures `(..., height, width)` at another size, "nearest" or "bicubic"."""
    if tuple(x.shape[-2:]) == tuple(sides):
        return x
    return jax.image.resize(x, (*x.shape[:-2], *sides), method)
