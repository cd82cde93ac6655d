"""JAX: a tree is a pytree of arrays, every operation can be compiled and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from underdraw.backends import tree
from underdraw.backends.adapted import Adapted, AdaptedLeaf
from underdraw.backends.layout import Layout
from underdraw.backends.node import BaseRoot, Node, grow, initial_values, walk
from underdraw.backends.once import once
from underdraw.backends.slices import Slice, heads_at_once
from underdraw.errors import InputError

__all__ = [
    "Root",
    "array",
    "build",
    "build_root",
    "compiled",
    "device_of",
    "devices_in_line",
    "draw",
    "draw_like",
    "dtype_of",
    "float32",
    "gradient",
    "graft",
    "is_array",
    "is_finite",
    "is_floating",
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
    """Where the first parameter is; None while a transformation traces it."""
    value = next(named_tensors(root))[1]
    return None if isinstance(value, Tracer) else next(iter(value.devices()))


def tensor(stored: Any, dtype: Any = None, device: Any = None) -> Array:
    """A `StoredTensor` as an array. float64 and int64 become 32 bits wide, as JAX's default."""
    values = stored.load()
    if stored.dtype == "bfloat16":
        values = values.view(jnp.bfloat16)
    floating = jnp.issubdtype(values.dtype, jnp.floating)
    return array(values, dtype if floating else None, device)


def array(values: Any, dtype: Any = None, device: Any = None) -> Array:
    """An array from numpy, nested lists or an array."""
    if not isinstance(values, Array):
        # Converted on the host: the device never holds a tensor in two precisions. Copied, because
        # the host's memory may be a file, or change later.
        values = np.asarray(values)
        values = jnp.array(values if dtype is None else values.astype(dtype))
    elif dtype is not None:
        values = values.astype(dtype)
    return values if device is None else jax.device_put(values, _place(device))


def _place(device: Any) -> Any:
    """A device from its kind ("cpu", "gpu:1") or number; what is neither as it is."""
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


operations = Jax()


def with_settings(attention_slice: Slice) -> Jax:
    """Operations with settings."""
    return operations if attention_slice is None else Jax(attention_slice)


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


networks_are_values = True
"""Networks are pytrees, so what was compiled for one serves all of its config."""


def compiled(function: Callable[..., Any], spent: int | None = None) -> Callable[..., Any]:
    """The function compiled by `jax.jit`; arrays of the argument with number `spent` are of no use
    afterwards, so their memory may become that of outputs."""
    return jax.jit(function, donate_argnums=() if spent is None else spent)


def repeated(begin: Any, end: Any, body: Callable[[Any, Any], Any], state: Any) -> Any:
    """`body(i, state)` for i from `begin` up to `end`, whose numbers may be traced: one loop."""
    return lax.fori_loop(begin, end, body, state)


def keyed(key: Any, shape: Sequence[int], split: bool = False) -> tuple[Array, Array]:
    """Standard normal numbers of a key of `jax.random`, `(2,)` or one for each device
    `(devices, 2)`, and of the second of the keys that `split` makes of it; the bits that JAX
    before 0.5 gave."""
    with jax.threefry_partitionable(False):
        return _keyed(key, tuple(shape), split)


@partial(jax.jit, static_argnums=(1, 2))
def _keyed(key: Any, shape: tuple[int, ...], split: bool) -> tuple[Array, Array]:
    if jnp.ndim(key) > 1:
        drawn = [_keyed(one, shape, split) for one in key]
        return tuple(jnp.stack(each) for each in zip(*drawn, strict=True))  # type: ignore[return-value]
    second = jax.random.split(key)[1] if split else key
    return jax.random.normal(key, shape, jnp.float32), second


def resized(x: Array, sides: Sequence[int], method: str) -> Array:
    """Pictures `(..., height, width)` at another size, "nearest" or "bicubic"."""
    if tuple(x.shape[-2:]) == tuple(sides):
        return x
    return jax.image.resize(x, (*x.shape[:-2], *sides), method)


def over_devices(count: int) -> Callable[..., Any]:
    """Compiles functions of which each of so many devices runs its own: the first axis of every
    array in arguments and results counts devices, and there is no word between them."""
    mesh = devices_in_line(count)

    def compiler(function: Callable[..., Any], spent: int | None = None) -> Callable[..., Any]:
        def one(*arguments: Any) -> Any:
            made = function(*jax.tree_util.tree_map(lambda x: x[0], arguments))
            return jax.tree_util.tree_map(lambda x: x[None], made)

        by_device = PartitionSpec("devices")
        whole = _shard_map(one, mesh=mesh, in_specs=by_device, out_specs=by_device)
        return compiled(whole, spent)

    return compiler


def devices_in_line(count: int | None = None) -> Mesh:
    """A mesh of so many devices along one axis, by default of all."""
    there = jax.devices()
    if count is None:
        count = len(there)
    if count > len(there):
        raise InputError(f"the first axis counts {count} devices; there are {len(there)}")
    return Mesh(np.array(there[:count]), ("devices",))


def _shard_map(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    if hasattr(jax, "shard_map"):
        return jax.shard_map(function, check_vma=False, **how)
    from jax.experimental.shard_map import shard_map  # where it was before 0.6

    return shard_map(function, check_rep=False, **how)


def mapped(function: Callable[..., Any], tree: Any) -> Any:
    """The same tree with other arrays."""
    return jax.tree_util.tree_map(function, tree)


def replicate(tree: Any) -> Any:
    """Each array once on every device, along a new first axis."""
    mesh = devices_in_line()
    place = NamedSharding(mesh, PartitionSpec("devices"))

    def copy(x: Any) -> Array:
        x = np.asarray(x)
        shape = (mesh.size, *x.shape)
        return jax.make_array_from_callback(shape, place, lambda _: x[None])

    return jax.tree_util.tree_map(copy, tree)


def key_words(key: Any) -> Array | None:
    """Keys of `jax.random`, old or typed, as `(..., 2)` of whole numbers; None for others."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    return jnp.asarray(key) if str(key.dtype) == "uint32" else None


def spread(tree: Any, mesh: Mesh, spec: Callable[[tuple[str, ...], Array], Any]) -> Any:
    """Each array of a tree of mappings where `spec` of its path says, as axes of a mesh."""

    def place(path: Any, x: Any) -> Any:
        names = tuple(str(getattr(key, "key", key)) for key in path)
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec(names, x))))

    return jax.tree_util.tree_map_with_path(place, tree)
