"""DiffEdit pipelines of diffusers and of this package with the same small random networks."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.pipelines.deprecated.stable_diffusion_diffedit import (
    pipeline_stable_diffusion_diffedit as theirs_module,
)
from PIL import Image
from pipelines.peer import oracle

import underdraw

HEIGHT, WIDTH = 40, 56
SIZE = (HEIGHT // 8, WIDTH // 8)
LEADING = {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
SCHEDULERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", "DDIMInverseScheduler", LEADING),
    "sample": ("DDIMScheduler", "DDIMInverseScheduler", {**LEADING, "prediction_type": "sample"}),
    "dpm": ("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler", {}),
}


@cache
def pair(kind: str = "sd1", solver: str = "ddim") -> tuple[Any, Any]:
    """diffusers' pipeline, and ours with `compat="diffusers"`."""
    peer, _ = oracle.pair(kind)
    down, up, config = SCHEDULERS[solver]
    config = {**dict(peer.scheduler.config), **config}
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    parts = {name: getattr(peer, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = diffusers.StableDiffusionDiffEditPipeline(
            **parts,
            scheduler=getattr(diffusers, down).from_config(config),
            inverse_scheduler=getattr(diffusers, up).from_config(config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    _, own = oracle.pair(kind)
    ours = underdraw.StableDiffusionDiffEditPipeline(
        own.vae,
        own.text_encoder,
        own.tokenizer,
        own.unet,
        getattr(underdraw, down).from_config(config),
        inverse_scheduler=getattr(underdraw, up).from_config(config),
        compat="diffusers",
    )
    return oracle.quiet(theirs), oracle.quiet(ours)


def right(kind: str = "sd1", solver: str = "ddim") -> Any:
    """Ours without diffusers' mistakes."""
    _, ours = pair(kind, solver)
    made = underdraw.StableDiffusionDiffEditPipeline.from_pipe(ours, compat=None)
    return oracle.quiet(made)


def pictures(count: int = 1, seed: int = 0) -> torch.Tensor:
    """Smooth pictures `(count, 3, HEIGHT, WIDTH)` in [-1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 3, 4, 6), generator=draw) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear")


def pil(count: int = 1, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> list[Any]:
    made = ((pictures(count, seed) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one).resize(size) for one in made]


def mask(count: int = 1) -> np.ndarray:
    """`(count, *SIZE)`, each different."""
    made = np.zeros((count, *SIZE), np.float32)
    for i in range(count):
        made[i, 1 : 4 - i % 2, i : i + 3] = 1
    return made


def quietly(work: Any) -> Any:
    """What a call of diffusers gives, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work()


def deviation(theirs: Any, ours: Any) -> float:
    """The largest difference of two arrays."""
    theirs, ours = (np.asarray(one, np.float64) for one in (theirs, ours))
    assert theirs.shape == ours.shape
    assert theirs.std() > 1e-3
    return float(np.abs(theirs - ours).max())


__all__ = ["theirs_module"]
