"""A pretended accelerator: tensors that say they are on the device "meta", and yet hold numbers.

Like tensors of a real one they cannot be mixed with those of the host, nor be read as numpy. Each
operation runs on the CPU; only where PyTorch picks a kernel by the device (attention) numbers may
differ in their last bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
DEVICE = torch.device("meta:0")
COPIES = (aten._to_copy, aten.copy_)
LAYERS = (
    *(aten.convolution, aten.addmm, aten.embedding),
    *(aten.native_layer_norm, aten.native_group_norm),
)
"""What networks are made of: nothing else has a reason to compute these."""


class There(torch.Tensor):
    """A tensor on the pretended device; `held` are its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Any:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Accelerator(TorchDispatchMode):
    """While it is on, in this thread, "meta" is the pretended device, and networks that compute on
    the host are an error."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = compute(func, args, kwargs or {})
        if func.overloadpacket in LAYERS and not any(isinstance(x, There) for x in flat(made)):
            raise AssertionError(f"{func} of a network that is not on the accelerator")
        return made


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation where its tensors are, or where it is told to go."""
    tensors = [x for x in flat((*args, *kwargs.values())) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    # Single numbers of the host may stand beside tensors of any device.
    mixed = there and any(x.ndim and not isinstance(x, There) for x in tensors)
    if mixed and func.overloadpacket not in COPIES:
        raise AssertionError(f"{func} mixes devices: {[(x.device, *x.shape) for x in tensors]}")
    goes = bool(there)
    if (device := kwargs.get("device")) is not None:
        goes, kwargs = torch.device(device).type == DEVICE.type, {**kwargs, "device": "cpu"}
    kwargs = {name: held(value) for name, value in kwargs.items()}
    made = func(*held(args), **kwargs)
    return wrapped(made) if goes else made


def flat(values: Any) -> list[Any]:
    """What is in lists and tuples; PyTorch's own function takes ten times as long."""
    if not isinstance(values, list | tuple):
        return [values]
    return [one for value in values for one in flat(value)]


def held(value: Any) -> Any:
    """Tensors of the device as the host's."""
    if isinstance(value, list | tuple):
        return type(value)(map(held, value))
    return value.held if isinstance(value, There) else value


def wrapped(value: Any) -> Any:
    """Tensors of the host as the device's."""
    if isinstance(value, list | tuple):
        return type(value)(map(wrapped, value))
    return There(value) if isinstance(value, torch.Tensor) else value
