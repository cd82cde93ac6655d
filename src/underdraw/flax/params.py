"""Parameters as Flax has them: mappings inside each other, which users may change, copy to devices
and give to calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from underdraw import backends, checks
from underdraw.backends.contract import Array
from underdraw.backends.layout import Layout
from underdraw.backends.node import Node, grow
from underdraw.backends.once import once
from underdraw.errors import InputError, InputTypeError, WeightError
from underdraw.weights.flax import TO_FLAX, Path, Place, places

Params = Mapping[str, Any]
"""Mappings of names down to arrays."""


def jax() -> Any:
    """The backend; an InputError says where JAX is not installed."""
    return backends.get("jax")


def read_dtype(dtype: Any) -> Any:
    """A dtype to compute in.

    Raises:
        InputError, InputTypeError: it is none.
    """
    if isinstance(dtype, np.dtype):
        dtype = dtype.name
    return jax().resolve_dtype(checks.dtype("dtype", dtype))


def read_array(name: str, value: Any) -> Any:
    """An array of JAX or numpy; InputTypeError: it is something else."""
    if not (isinstance(value, np.ndarray | np.generic) or jax().is_array(value)):
        raise InputTypeError(f"{name}={checks.shown(value)} is no array")
    return value


def read_key(name: str, key: Any) -> Array:
    """The words of keys of `jax.random`, `(..., 2)`; `name` is the argument's.

    Raises:
        InputTypeError: it is something else.
    """
    words = jax().key_words(read_array(name, key))
    if words is None or words.shape[-1:] != (2,):
        raise InputTypeError(
            f"{name}={checks.shown(key)}; needed is a key, as jax.random.PRNGKey(0)"
        )
    return words


# -- parameters as programs take them ----------------------------------------------------------
@once
def holder() -> type[Any]:
    """The class of what engines take as a network: parameters in Flax's layout, and a config."""

    class Held(jax().Root):
        _framework = jax()
        dtype = None

    return Held


def held(tree: Params, config: Any) -> Any:
    """Parameters in Flax's layout as a network of this config."""
    made = object.__new__(holder())
    made.config, made._tree = config, tree
    return made


def tensors(
    tree: Any, network: str, layout: Layout, dtype: Any = None, only: str = ""
) -> dict[str, Array]:
    """Arrays by published name and in the published order of axes. Compiled, the order costs
    nothing: products and convolutions take their factors in any.

    Args:
        tree: parameters in Flax's layout.
        dtype: to compute in.
        only: the beginning of those that are needed.
    """
    made = {}
    for name, place in places(network, layout).items():
        if name.startswith(only):
            x = place.to_published(_at(tree, place.path))
            made[name] = x if dtype is None else x.astype(dtype)
    return made


def node(tree: Any, network: str, layout: Layout, dtype: Any = None) -> Node:
    """Parameters in Flax's layout as the node that programs take."""
    return grow(tensors(tree, network, layout, dtype))


def _at(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def check(name: str, tree: Any, network: str, layout: Layout, devices: int | None = None) -> None:
    """That parameters are those of a network; their numbers are not looked at.

    Args:
        name: of the argument, for errors.
        devices: by which a first axis counts, where they were replicated.

    Raises:
        InputTypeError: they are no mapping.
        WeightError: some lack, or have another shape.
    """
    if not isinstance(tree, Mapping):
        raise InputTypeError(f"{name}={checks.shown(tree)} is no mapping of parameters")
    shapes = layout.shapes
    lacking, wrong = [], []
    for published, place in places(network, layout).items():
        try:
            found = tuple(_at(tree, place.path).shape)
        except (KeyError, TypeError, IndexError, AttributeError):
            lacking.append("/".join(place.path))
            continue
        wanted = _flax_shape(place, shapes[published])
        wanted = wanted if devices is None else (devices, *wanted)
        if found != wanted:
            wrong.append(f"{'/'.join(place.path)} is {list(found)}, wanted {list(wanted)}")
    if lacking or wrong:
        told = [
            f"{len(each)} {what}: {', '.join(each[:3])}"
            for each, what in ((lacking, "missing"), (wrong, "of another shape"))
            if each
        ]
        raise WeightError(f"{name} does not fit the network: {'; '.join(told)}")


def _flax_shape(place: Place, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in TO_FLAX[place.kind]) if place.kind else shape


def flat(tree: Params, path: Path = ()) -> dict[Path, Any]:
    """Leaves by path."""
    found: dict[Path, Any] = {}
    for name, value in tree.items():
        here = (*path, str(name))
        found |= flat(value, here) if isinstance(value, Mapping) else {here: value}
    return found


# -- devices -----------------------------------------------------------------------------------
def shard(tree: Any) -> Any:
    """Arrays `(n, ...)` of a tree as `(devices, n / devices, ...)`.

    Raises:
        InputError: an array cannot be divided among the devices.
    """
    framework = jax()
    count = framework.devices_in_line().size

    def divide(x: Any) -> Any:
        shape = getattr(x, "shape", ())
        if not shape or shape[0] % count:
            raise InputError(
                f"tree has an array of shape {tuple(shape)}; allowed: first axes that the "
                f"{count} devices divide"
            )
        return x.reshape(count, shape[0] // count, *shape[1:])

    return framework.mapped(divide, tree)


def replicate(tree: Any) -> Any:
    """Each array of a tree once on every device, along a new first axis."""
    return jax().replicate(tree)


def unreplicate(tree: Any) -> Any:
    """The inverse of `replicate`: what the first device has."""
    return jax().mapped(lambda x: x[0], tree)


COLUMNS = ("to_q", "to_k", "to_v", "q_proj", "k_proj", "v_proj", "fc1")
ROWS = ("to_out_0", "out_proj", "fc2", "net_2")
"""Layers whose outputs (heads) or inputs are divided along an axis of a mesh."""


def spread(params: Any, mesh: Any, axis: str | None = "model") -> Any:
    """Parameters of a pipeline over a mesh of `jax.sharding`: attention and the layers behind it
    are divided by heads along `axis`, where it divides them; all else is everywhere. A call then
    computes on the mesh, with the same result.

    Args:
        params: as pipelines take them.
        mesh: `jax.sharding.Mesh`; prompts, keys and latents may be divided along others of its axes
            (`jax.device_put`).
        axis: of the mesh; None divides nothing.

    Raises:
        InputError, InputTypeError: it is no mesh, or has no such axis.
    """
    sides = getattr(mesh, "shape", None)
    if not isinstance(sides, Mapping):
        raise InputTypeError(f"mesh={checks.shown(mesh)} is no jax.sharding.Mesh")
    if axis is not None and axis not in sides:
        raise InputError(f"axis={checks.shown(axis)}; the mesh has {', '.join(map(str, sides))}")
    parts = 1 if axis is None else sides[axis]

    def spec(path: tuple[str, ...], x: Array) -> tuple[Any, ...]:
        layer, last = ("", "", *path)[-2:]
        if last != "kernel" or len(x.shape) != 2 or parts == 1:
            return ()
        if layer in COLUMNS and x.shape[1] % parts == 0:
            return (None, axis)
        if layer in ROWS and x.shape[0] % parts == 0:
            return (axis, None)
        return ()

    return jax().spread(params, mesh, spec)
