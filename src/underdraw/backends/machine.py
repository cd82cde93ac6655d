"""What this machine has: processor, memory, accelerators; read without a framework."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLAGS = tuple("avx2 avx_vnni avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8 neon bf16".split())
"""Of processors, what arithmetic here gains from."""
SYSTEM = Path("/")


@dataclass(frozen=True)
class Processor:
    """The CPU."""

    name: str
    cores: int
    """That this process may use."""
    flags: tuple[str, ...]
    """Those of `FLAGS` that it has."""


def processor() -> Processor:
    """The one this process runs on."""
    told = _read("proc/cpuinfo")
    named = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", told, re.MULTILINE)
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", told, re.MULTILINE)
    words = listed.group(1).split() if listed else []
    name = named.group(1).strip() if named else platform.processor() or platform.machine()
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Processor(name, count or 1, tuple(flag for flag in FLAGS if flag in words))


def host_memory() -> tuple[int, int] | None:
    """Bytes of memory, and of those the free ones; None where the system does not tell. What a
    container is limited to counts."""
    told = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read("proc/meminfo"), re.MULTILINE))
    if "MemTotal" not in told:
        return None
    total, free = (int(told.get(name, 0)) * 1024 for name in ("MemTotal", "MemAvailable"))
    limit, used = (_read(f"sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and used.isdigit() and int(limit) < total:
        total = int(limit)
        free = min(free, max(0, total - int(used)))
    return total, free


def free_memory(device: Any) -> int | None:
    """Free bytes where networks of PyTorch on this device live; None where nobody tells."""
    kind = str(device).partition(":")[0]
    torch = sys.modules.get("torch")
    if kind == "cuda" and torch is not None and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(device)[0])
    known = host_memory() if kind == "cpu" else None
    return None if known is None else known[1]


def accelerators() -> tuple[str, list[tuple[str, str, int]]]:
    """PyTorch's version, and device, name and bytes of memory of each GPU that it sees; 0 where
    nobody tells."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        told = torch.cuda.get_device_properties(index)
        found.append((f"cuda:{index}", told.name, int(told.total_memory)))
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple GPU", 0))
    return torch.__version__, found


SHORTAGES = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|"
    r"unable to allocate|bad_alloc|resource_exhausted|DefaultCPUAllocator",
    re.IGNORECASE,
)


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, of Python, numpy or any framework."""
    if isinstance(error, MemoryError):
        return True
    named = type(error).__name__ in ("OutOfMemoryError", "XlaRuntimeError", "JaxRuntimeError")
    return (named or isinstance(error, RuntimeError)) and bool(SHORTAGES.search(str(error)))


def _read(path: str) -> str:
    """What the system tells in a file of its own; nothing where it has none."""
    try:
        return (SYSTEM / path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
