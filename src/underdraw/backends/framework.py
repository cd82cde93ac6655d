"""What the module of a backend offers beside its operations, and what each name promises.

`backends.get(name)` returns such a module. `contract.Operations` is what a network may use; this is
what the code around networks uses: arrays from numpy and back, noise, parameter trees, precision.
`tests/backends/test_framework.py` holds every installed backend to exactly these names, and to
those of `EXTRAS`, which only some offer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.layout import Layout

Dtype = Any
"""A dtype of the framework: `torch.float16`, `jnp.dtype("float16")`, `mindspore.float16`."""

Device = Any
"""A device of the framework or its name; None leaves an array where the framework puts it."""

EXTRAS: Mapping[str, frozenset[str]] = {
    # Keeps less for a gradient; `torch.compile`, and what a network was compiled by; whether
    # parameters are what they were, and whether a call is recorded for a gradient; weights in 8
    # bits, how much memory they take, and layers that come to a device while they are used; what
    # was compiled in another process, and by what; packages of compiled programs; where parameters
    # lie, and functions recorded as CUDA graphs.
    "torch": frozenset(
        (
            "recomputed compiled compiler_of Watch recording "
            "quantised quantised_as eight_bits stored_bytes copies streamed "
            "made_artifacts take_artifacts maker Package packaged Tree Recording"
        ).split()
    ),
    # Trees without a model class; `jax.jit`, which takes networks as arguments, and loops; keys,
    # and work on many devices.
    "jax": frozenset(
        {
            *("build", "load", "compiled", "networks_are_values", "repeated", "picked"),
            *("keyed", "key_words", "mapped", "resized", "keep_programs", "divided"),
            *("arrays_are_values", "over_devices", "devices_in_line", "replicate", "spread"),
        }
    ),
    # Graphs, which take the arrays of networks as arguments.
    "mindspore": frozenset({"build", "load", "compiled", "networks_are_values"}),
}
"""What one framework can do and another cannot; who uses it asks for it by `hasattr`."""


class Framework(Protocol):
    """The module of a backend: `backends.torch`, `backends.jax`, `backends.mindspore`."""

    @property
    def operations(self) -> Operations:
        """The operations with default settings."""
        ...

    @property
    def Root(self) -> type[Any]:
        """The class that a model class inherits from: an `nn.Module` on PyTorch, a pytree on JAX.

        A root reads like a node of its tree (`root.conv_in`)."""
        ...

    @property
    def float32(self) -> Dtype:
        """The dtype."""
        ...

    @property
    def no_grad(self) -> Callable[[], AbstractContextManager[Any]]:
        """`with framework.no_grad():` records nothing for a gradient."""
        ...

    def with_settings(self, attention_slice: int | str | None) -> Operations:
        """Operations that attend a few heads at once, see `slices.heads_at_once`."""
        ...

    # -- arrays -----------------------------------------------------------------------------------
    def array(self, values: Any, dtype: Dtype = None, device: Device = None) -> Array:
        """An array from numpy, nested lists, numbers or an array.

        Raises:
            InputError: the device is none of this framework's (MindSpore).
        """
        ...

    def tensor(self, stored: Any, dtype: Dtype = None, device: Device = None) -> Array:
        """A `formats.stored.StoredTensor`, bfloat16 included; whole numbers keep their dtype."""
        ...

    def to_numpy(self, values: Array) -> np.ndarray:
        """Its numbers on the host, cut off from any gradient: float32, or integers as they are.

        On PyTorch it may share memory with a float32 tensor on the CPU."""
        ...

    def to_bits(self, value: Array) -> tuple[str, np.ndarray]:
        """Name of the dtype and the numbers on the host; bfloat16 as its bits in uint16."""
        ...

    def is_array(self, value: Any) -> bool:
        """Whether it is an array of this framework."""
        ...

    def is_floating(self, values: Array) -> bool:
        """Whether its dtype is one of floating-point numbers."""
        ...

    def is_finite(self, values: Array) -> bool:
        """Whether no element is NaN or infinite. Waits for the device."""
        ...

    def gradient(
        self, function: Callable[[Array], tuple[Array, tuple[Array, ...]]], x: Array
    ) -> tuple[Array, tuple[Array, ...]]:
        """The gradient at `x` of the number that `function` returns first, and the arrays that it
        returns second. Works under `no_grad` and leaves nothing on parameters."""
        ...

    # -- noise ------------------------------------------------------------------------------------
    def draw(self, shape: Sequence[int], generator: Any, device: Device, dtype: Dtype) -> Array:
        """Standard normal numbers `(batch, ...)`, drawn by PyTorch on every backend.

        Args:
            generator: a `torch.Generator` or `np.random.Generator` for the whole batch, a list of
                `batch` of them for one image each, or None for PyTorch's global stream.

        Raises:
            InputError: a list has another length than the batch.
        """
        ...

    def draw_like(self, values: Array, generator: Any = None) -> Array:
        """Standard normal numbers of the shape, dtype and device of `values`."""
        ...

    # -- parameter trees --------------------------------------------------------------------------
    def build_root(self, root: Any, layout: Layout, device: Device = None) -> None:
        """Give a model new parameters, as PyTorch's own layers are initialised."""
        ...

    def load_root(
        self,
        root: Any,
        layout: Layout,
        tensors: Any,
        dtype: Dtype | str = None,
        device: Device = None,
    ) -> None:
        """Give a model its `StoredTensor`s by name; all names of the layout must be there.

        What has the wanted dtype stays mapped from its file where the framework can (PyTorch).
        `dtype="auto"` is the fastest on the device, None the dtype that is stored.
        """
        ...

    def graft(self, root: Any, parts: Mapping[str, Any]) -> None:
        """Give a model layers and raw parameters of other trees by dotted path; they are shared."""
        ...

    def named_tensors(self, root: Any) -> Iterator[tuple[str, Array]]:
        """Parameters by published name, in the order of the layout."""
        ...

    def leaf(self, p: Node) -> Array:
        """The weight of a layer; its dtype and device are those of the layer."""
        ...

    def with_values(self, layer: Node, weight: Array, bias: Array | None = None) -> Node:
        """A layer like another with other numbers; without `bias` it keeps the other's."""
        ...

    def replace_rows(self, layer: Node, rows: Array) -> None:
        """Give an embedding layer other rows `(count, width)`, in place."""
        ...

    def dtype_of(self, root: Any) -> Dtype:
        """The dtype of a model's first parameter."""
        ...

    def device_of(self, root: Any) -> Device:
        """Where a model's first parameter is; on JAX None while it is traced."""
        ...

    def move(self, root: Any, *args: Any, **kwargs: Any) -> None:
        """Put a model on a device, or in a dtype, or both: positional or `device=`, `dtype=`."""
        ...

    def resolve_dtype(self, name: Any) -> Dtype:
        """The dtype called `"float16"`, `"fp16"`, `"torch.float16"`; itself; None for None.

        Raises:
            InputError: it is unknown, or has no kernels here; the message lists what is allowed.
        """
        ...

    def register_output(self, kind: type[Any]) -> None:
        """Let the framework's transformations return instances of a dataclass of arrays."""
        ...
