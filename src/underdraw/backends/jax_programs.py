"""Whole programs on JAX: compiled, over several devices, with noise from keys of `jax.random`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from underdraw.errors import InputError


def compiled(function: Callable[..., Any], spent: int | None = None) -> Callable[..., Any]:
    """The function compiled by `jax.jit`; arrays of the argument with number `spent` are of no use
    afterwards, so their memory may become that of outputs."""
    return jax.jit(function, donate_argnums=() if spent is None else spent)


def keep_programs(folder: str, most: int) -> None:
    """Keep what is compiled from now on in a folder of at most so many bytes, unless somebody else
    in this process has told JAX of one."""
    global _folder
    if jax.config.jax_compilation_cache_dir not in (None, "", _folder):  # type: ignore[attr-defined]
        return
    if folder != _folder or not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        _folder = folder
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_compilation_cache_max_size", most)
        compilation_cache.reset_cache()  # it looks for a folder once, when it first compiles


_folder: str | None = None
"""The folder of which JAX was told here."""


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
    """Each array, of JAX or numpy, once on every device, along a new first axis."""
    mesh = devices_in_line()
    place = NamedSharding(mesh, PartitionSpec("devices"))

    def copy(x: Any) -> Array:
        x = np.asarray(x) if isinstance(x, Array) else copied(x)
        shape = (mesh.size, *x.shape)
        return jax.make_array_from_callback(shape, place, lambda _: x[None])

    return jax.tree_util.tree_map(copy, tree)


def spread(tree: Any, mesh: Mesh, spec: Callable[[tuple[str, ...], Array], Any]) -> Any:
    """Each array of a tree of mappings where `spec` of its path says, as axes of a mesh."""

    def place(path: Any, x: Any) -> Any:
        names = tuple(str(getattr(key, "key", key)) for key in path)
        where = NamedSharding(mesh, PartitionSpec(*spec(names, x)))
        return jax.device_put(x if isinstance(x, Array) else copied(x), where)

    return jax.tree_util.tree_map_with_path(place, tree)


def copied(values: Any, dtype: Any = None) -> np.ndarray:
    """Numbers that are not JAX's, for `jax.device_put`, which shares memory of the host that lies
    at a multiple of 64 bytes, whatever `may_alias` says, or reads it later: it may be a file, or
    change. Copied by numpy, for `jnp.array` does that by a program, which it compiles for each
    shape; and converted here, so that no device holds them in two precisions."""
    return np.array(np.asarray(values), dtype)


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


def key_words(key: Any) -> Array | None:
    """Keys of `jax.random`, old or typed, as `(..., 2)` of whole numbers; None for others."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    return jnp.asarray(key) if str(key.dtype) == "uint32" else None
