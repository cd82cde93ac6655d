"""Running one program on any backend with numpy going in and coming out."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from underdraw import backends
from underdraw.backends.layout import Layout
from underdraw.formats.stored import stored

INSTALLED = backends.installed()
HALVES = {
    "torch": ("float16", "bfloat16"),
    "jax": ("float16", "bfloat16"),
    "mindspore": ("float16",),  # no bfloat16 kernels on CPU: `resolve_dtype` refuses it
}
PRECISIONS = [(name, dtype) for name in INSTALLED for dtype in ("float32", *HALVES[name])]


def values(layout: Layout, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors for a layout, none of them at a value that hides a mistake (0 or 1)."""
    random = np.random.default_rng(seed)
    drawn = {}
    for name, shape in layout.shapes.items():
        spread = max(1, int(np.prod(shape[1:]))) ** -0.5
        value = random.standard_normal(shape) * spread
        if len(shape) == 1:
            value = value * 0.2 + (1.0 if name.endswith("weight") else 0.0)
        drawn[name] = np.asarray(value, np.float32)
    return drawn


def tree(name: str, layout: Layout, tensors: dict[str, np.ndarray], dtype: str = "float32") -> Any:
    """A parameter tree on a backend."""
    framework = backends.get(name)
    kept = {key: stored(value) for key, value in tensors.items()}
    if name == "torch":
        root = framework.Root()
        framework.load_root(root, layout, kept, dtype)
        return root.requires_grad_(False)
    return framework.load(kept, framework.resolve_dtype(dtype))


def rounded(value: np.ndarray, dtype: str) -> np.ndarray:
    """float64 numbers that `dtype` can hold, nearest to `value`."""
    if dtype == "float32":
        return value.astype(np.float32).astype(np.float64)
    if dtype == "float16":
        return value.astype(np.float16).astype(np.float64)
    bits = np.ascontiguousarray(value.astype(np.float32)).view(np.uint32)
    even = (bits >> 16) & 1
    kept = ((bits + 0x7FFF + even) >> 16) << 16
    return kept.view(np.float32).astype(np.float64).reshape(value.shape)


def give(name: str, value: Any, dtype: str = "float32") -> Any:
    """A numpy array on a backend, floats in `dtype`."""
    framework = backends.get(name)
    value = np.asarray(value)
    floating = value.dtype.kind == "f"
    return framework.array(value, framework.resolve_dtype(dtype) if floating else None)


def take(name: str, value: Any) -> np.ndarray:
    """A backend's array as numpy; reading it is what makes MindSpore tell its errors."""
    return backends.get(name).to_numpy(value)


def dtype_name(value: Any) -> str:
    """`float16`, `bfloat16`, `float32`, `int64`, ... whatever the framework calls it."""
    return str(value.dtype).lower().removeprefix("torch.")


def relative(ours: Any, theirs: Any) -> float:
    """max |ours - theirs| / max |theirs|; NaN anywhere gives infinity."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"shapes differ: {ours.shape} and {theirs.shape}"
    error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)
    return float(error) if np.isfinite(error) else float("inf")


def run(name: str, call: Any, p: Any, arrays: list[Any], compiled: bool = False) -> Any:
    """`call(nn, p, *arrays)`; on JAX, if wished, as one compiled program."""
    nn = backends.get(name).operations
    if not compiled or name != "jax":
        return call(nn, p, *arrays)
    import jax

    return jax.jit(partial(call, nn))(p, *arrays)
