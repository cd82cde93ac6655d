"""Grounding parts from any file that holds one, and into a small file of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from underdraw.models.base import Model
from underdraw.models.grounding import Grounding
from underdraw.models.keywords import drop_neutral
from underdraw.weights import hub as hubs, save
from underdraw.weights.grounding import METADATA, read_grounding


def load_grounding(
    source: str | os.PathLike[str],
    unet: Any = None,
    *,
    kind: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    dtype: Any = None,
    torch_dtype: Any = None,
    device: Any = None,
    backend: str | None = None,
    check: bool = False,
    **hub: Any,
) -> Grounding:
    """A grounding part, ready to act beside a UNet.

    Args:
        source: a folder or Hub id (of a `Grounding`, a gated UNet or a GLIGEN pipeline), a
            checkpoint of the original (`.bin`, `.pth`, read without running code), or a file with
            the grounding part alone, as `save_grounding` and others write it (`.safetensors`).
        unet: the UNet it is for: it tells heads and blocks, and where nothing else is asked for
            dtype, device and backend. Without it, Stable Diffusion 1.x is expected.
        kind: what it is for, where the file does not tell ("canny" or "depth").
        dtype, device, backend, check, hub: as in `from_pretrained`.

    A part of an inpainting checkpoint brings its first convolution along for a UNet with four input
    channels (`sites(..., extra=...)`); one with nine keeps its own.

    Raises:
        NotFoundError: there is no such folder, repository or file.
        WeightError: it holds no grounding layers, not all of them, or something unknown.
        InputError: it was trained for another UNet, or `kind` is not right.
    """
    hub = drop_neutral("load_grounding", hub)
    path = Path(source)
    if not path.is_file():
        path = hubs.resolve(source, subfolder=subfolder or "", variant=variant, **hub)
    config = unet.config if isinstance(unet, Model) else unet
    found = read_grounding(
        path, config, kind=kind, variant=variant, subfolder=subfolder or "", name=os.fspath(source)
    )
    if config is not None:
        found.config.require_fit(config)
    dtype = dtype or torch_dtype
    if isinstance(unet, Model):
        dtype = dtype or unet.dtype
        device = unet.device if device is None else device
        backend = backend or unet.nn.name
    return Grounding.from_tensors(
        found.config.to_dict(),
        found.tensors,
        dtype=dtype,
        device=device,
        backend=backend or "torch",
        check=check,
    )


def save_grounding(grounding: Grounding, target: str | os.PathLike[str]) -> None:
    """Write a grounding part alone: a `.safetensors` file with its config inside, or a folder.

    Either is atomic: an interruption leaves what was there before.
    """
    if Path(target).suffix != ".safetensors":
        grounding.save_pretrained(Path(target))
        return
    about = {"format": "pt", METADATA: json.dumps(grounding.export_config(), sort_keys=True)}
    save.save_tensors(target, grounding.stored_tensors(), about)
