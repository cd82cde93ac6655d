"""What PyTorch runs on here, and which dtype is the fastest there that gives good pictures."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from underdraw.errors import InputError


def resolve_device(name: str | None = None) -> str:
    """`name` after checking that this machine has it; None: the fastest device.

    Raises InputError for a device that is not known, or not here.
    """
    if name is None:
        return next(kind for kind in ("cuda", "mps", "cpu") if _count(kind))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device={name!r} is not known; allowed: {_here()}") from None
    if device.type in ("cuda", "mps", "cpu") and (device.index or 0) >= _count(device.type):
        raise InputError(f"device={name!r} is not on this machine; allowed: {_here()}")
    return str(device)


def fastest_dtype(device: str) -> str:
    """ "bfloat16" where the hardware computes in it, else "float16" on a GPU, "float32" on a CPU.

    bfloat16 comes first: it has the range of float32, so no network overflows in it.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if kind == "cpu":
        return "bfloat16" if _cpu_has_bfloat16() else "float32"
    return "float16" if kind == "mps" else "float32"


@cache
def _cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself. Emulated, it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    # Names of x86 (AVX-512 and AMX) and of ARM.
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def _count(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.device_count()
    return int(torch.backends.mps.is_available()) if kind == "mps" else 1


def _here() -> str:
    cuda = [f"cuda:{i}" for i in range(_count("cuda"))]
    return ", ".join(["cpu", *(["mps"] if _count("mps") else []), *cuda])
