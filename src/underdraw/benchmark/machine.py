"""What figures depend on: processor, threads, versions, and what else runs."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from typing import Any

from underdraw.backends import hardware, machine
from underdraw.names import __version__

PACKAGES = ("torch", "jax", "mindspore", "diffusers", "transformers", "openvino", "onnxruntime")


def described() -> dict[str, Any]:
    """Of this moment, for records; packages that are not installed are left out."""
    cpu, load = machine.processor(), getattr(os, "getloadavg", lambda: (0.0,))()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "processor": cpu.name,
        "flags": " ".join(cpu.flags),
        "cores": cpu.cores,
        "threads": hardware.threads(),
        "load": round(load[0], 1),
        "python": platform.python_version(),
        "underdraw": __version__,
        **{name: found for name in PACKAGES if (found := version(name)) is not None},
    }


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
