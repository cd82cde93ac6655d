"""Small runs without a pipeline, on any backend, for engines to answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pipelines import tiny

from underdraw import schedulers
from underdraw.backends import get
from underdraw.controls.run import Conditioning, Run
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import answered
from underdraw.models import UNet2DConditionModel
from underdraw.sampling.loop import sample

SIZE = (5, 9)


def unet(backend: str = "torch", **changes: Any) -> Any:
    """Always the same numbers, on any backend."""
    made = tiny.components(unet=changes)["unet"]
    if backend == "torch":
        return made
    config = {**tiny.UNET, **changes}
    return UNet2DConditionModel.from_tensors(config, made.stored_tensors(), backend=backend)


def begun(
    model: Any,
    seed: int = 0,
    *,
    images: int = 2,
    tokens: int = 77,
    guidance: Any = 3.0,
    steps: int = 4,
    solver: str = "EulerDiscreteScheduler",
    size: tuple[int, int] = SIZE,
    engine: Any = EAGER,
    controls: Any = (),
    components: Any = None,
    **options: Any,
) -> Any:
    """The questions and steps of a run."""
    random, framework = np.random.default_rng(seed), model._framework

    def array(*shape: int) -> Any:
        values = random.standard_normal(shape).astype(np.float32)
        return framework.array(values, device=framework.device_of(model))

    table = getattr(schedulers, solver)(**tiny.SCHEDULE).make_table(steps)
    halves = array(images, tokens, tiny.WIDTH), array(images, tokens, tiny.WIDTH)
    x = array(images, 4, *size) * table.initial_sigma
    noise = torch.Generator().manual_seed(seed)
    run = Run(
        model.nn,
        model,
        table,
        Conditioning(*halves),
        guidance,
        draw=lambda: framework.draw(
            tuple(x.shape), noise, framework.device_of(model), framework.float32
        ),
        engine=engine,
        components=components,
        **options,
    )
    return sample(run, x, controls)


def ended(model: Any, seed: int = 0, engine: Any = EAGER, **options: Any) -> np.ndarray:
    """The latents of a run."""
    *_, step = answered(begun(model, seed, engine=engine, **options), engine)
    return get(model.nn.name).to_numpy(step.latents)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference beside the largest value."""
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())
