"""What PyTorch runs on here, and which dtype and layout are the fastest that give good pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from underdraw.backends.machine import processor
from underdraw.errors import InputError

if TYPE_CHECKING:
    import torch


def resolve_device(name: str | int | torch.device | None = None) -> str:
    """`name` after checking that this machine has it; None: the fastest device. A number is that of
    an accelerator.

    Raises InputError for a device that is not known, or not here.
    """
    import torch

    if name is None:
        return next(kind for kind in ("cuda", "mps", "cpu") if _count(kind))
    shown = str(name) if isinstance(name, torch.device) else name
    absent = f"device={shown!r} is not on this machine; allowed: {_here()}"
    if isinstance(name, int):
        kind = next(kind for kind in ("cuda", "mps", "cpu") if _count(kind))
        if kind == "cpu":
            raise InputError(absent)
        name = f"{kind}:{name}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device={shown!r} is not known; allowed: {_here()}") from None
    if device.type == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        absent += f" (this PyTorch, {torch.__version__}, was built without CUDA)"
    if device.type in ("cuda", "mps", "cpu"):
        if not 0 <= (device.index or 0) < _count(device.type):
            raise InputError(absent)
    elif device.type != "meta":  # of other kinds of accelerators only a try tells
        try:
            torch.empty(0, device=device)
        except (AssertionError, RuntimeError, NotImplementedError):
            raise InputError(absent) from None
    return str(device)


def resolve_accelerator(gpu_id: int | None = None, name: str | None = None) -> torch.device:
    """The device `name`, or else the fastest one, with an index: `gpu_id`, or 0.

    Raises InputError for a device that is not here, for two indexes, and where `name` is None and
    this machine has no accelerator.
    """
    import torch

    device = torch.device(resolve_device(name))
    if name is None and device.type == "cpu":
        raise InputError("device=None: this machine has no accelerator; the CPU is all there is")
    if gpu_id is not None and device.index is not None:
        raise InputError(f"gpu_id={gpu_id} and device={str(name)!r} both give an index; give one")
    index = (device.index or 0) if gpu_id is None else gpu_id
    return torch.device(resolve_device(f"{device.type}:{index}"))


def fastest_dtype(device: str) -> str:
    """ "bfloat16" where the hardware computes in it, else "float16" on a GPU, "float32" on a CPU.

    bfloat16 comes first: it has the range of float32, so no network overflows in it. On a CPU that
    has it (an EPYC, one thread) a UNet step took 0.82 of its time in float32 with 7 M parameters,
    0.76 with 16 M, 0.45 with those of Stable Diffusion; only networks of 2 M took 1.3, 2 ms more.
    """
    return dtype_choice(device)[0]


def dtype_choice(device: str) -> tuple[str, str]:
    """`fastest_dtype`, and why it is this one."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "the GPU computes in it, with the range of float32"
        return "float16", "the GPU does not compute in bfloat16"
    if kind == "cpu":
        if _cpu_has_bfloat16():
            return "bfloat16", "the processor multiplies it itself"
        return "float32", "the processor does not multiply bfloat16 itself"
    if kind == "mps":
        return "float16", "GPUs of Apple are fast in it"
    return "float32", f"nothing is known of {kind}"


def channels_last(network: str, device: str) -> bool:
    """Whether a network is faster with the channels of its convolutions next to each other.

    Measured on a CPU: decoding takes 0.75 (scenes) to 0.96 (Stable Diffusion) of the time. A small
    UNet takes 1.1, since its many norms are slower so, a large one 0.93 in bfloat16.
    """
    import torch

    return network == "vae" and torch.device(device).type == "cpu"


def has_channels_last(network: Any) -> bool:
    """Whether a network's convolutions have their channels next to each other. They then add in
    another order, and results differ in their last bits. Never so on other backends."""
    import torch

    wanted = torch.channels_last
    return isinstance(network, torch.nn.Module) and any(
        p.ndim == 4 and p.is_contiguous(memory_format=wanted) and not p.is_contiguous()
        for p in network.parameters()
    )


def to_channels_last(network: Any) -> None:
    """Lay a network out so; what is no network of PyTorch stays as it is."""
    import torch

    if isinstance(network, torch.nn.Module):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def threads() -> int:
    """How many threads PyTorch computes with on the CPU."""
    import torch

    return torch.get_num_threads()


def memory() -> int:
    """Bytes of memory that this machine has; 8 GB where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return 8 << 30


@cache
def bfloat16_pays() -> bool:
    """Whether products of bfloat16 take at most 0.7 of the time of float32 here: a few milliseconds
    of trying tell, for some processors know the instructions and are not faster by them."""
    import torch

    if not _cpu_has_bfloat16():
        return False
    a = torch.ones(384, 384)
    half = a.bfloat16()
    return _least(lambda: torch.mm(half, half)) <= PAYS * _least(lambda: torch.mm(a, a))


@cache
def int8_pays() -> bool:
    """The same of products of whole numbers in 8 bits, which VNNI and AMX multiply."""
    import torch

    if {"avx_vnni", "avx512_vnni", "amx_int8"}.isdisjoint(processor().flags):
        return False
    a, private = torch.ones(384, 384), cast(Any, torch)
    eight = a.to(torch.int8)
    try:
        taken = _least(lambda: private._int_mm(eight, eight))
    except (AttributeError, RuntimeError):  # an older PyTorch has none on CPUs
        return True
    return taken <= PAYS * _least(lambda: torch.mm(a, a))


PAYS = 0.7
"""Of the time of float32, at most."""


def _least(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of five tries."""
    times = []
    for _ in range(5):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return min(times)


@cache
def _cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself. Emulated, it is slower than float32."""
    # Names of x86 (AVX-512 and AMX) and of ARM.
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(processor().flags)


def _count(kind: str) -> int:
    import torch

    if kind == "cuda":
        return torch.cuda.device_count()
    return int(torch.backends.mps.is_available()) if kind == "mps" else 1


def _here() -> str:
    cuda = [f"cuda:{i}" for i in range(_count("cuda"))]
    return ", ".join(["cpu", *(["mps"] if _count("mps") else []), *cuda])
