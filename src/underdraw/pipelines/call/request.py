"""What a call is: the arguments that pipelines share, as given and after they were checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from underdraw.solvers.solver import Solver


@dataclass(frozen=True)
class Request:
    """The arguments that calls share, as they were given; `StableDiffusionPipeline` tells their
    meaning. A pipeline names those it has."""

    prompt: Any = None
    negative_prompt: Any = None
    prompt_embeds: Any = None
    negative_prompt_embeds: Any = None
    num_images_per_prompt: Any = 1
    guidance_scale: Any = 7.5
    guidance_rescale: Any = 0.0
    clip_skip: Any = None
    num_inference_steps: Any = 50
    timesteps: Any = None
    sigmas: Any = None
    eta: Any = 0.0
    generator: Any = None
    seed: Any = None
    output_type: Any = "pil"
    return_dict: bool = True
    callback_on_step_end: Any = None
    callback_on_step_end_tensor_inputs: Any = ("latents",)
    callback: Any = None
    callback_steps: Any = 1
    controls: Any = ()
    pictures: int = 1
    """Pictures the call begins with; one prompt serves all of them, or one of them all prompts."""
    strength: Any = 1.0
    """The part of the solver's steps that is run: its last ones."""
    scheduler: Any = None
    """Used instead of the pipeline's own (inversion)."""


OWN = ("pictures", "strength", "scheduler")
"""Fields that calls make themselves."""
SHARED = tuple(f.name for f in fields(Request) if f.name not in OWN)


@dataclass(frozen=True)
class Plan:
    """A call whose shared arguments were checked; nothing has been computed yet."""

    request: Request
    prompts: list[str] | None
    negatives: list[str] | None
    count: int
    """Images made; those of a prompt lie next to each other."""
    guidance: Any
    """A number, or an array `(count, 1, 1, 1)`."""
    guided: bool
    generators: Any
    seeds: Sequence[int | None]
    """Per image, for the record; empty where none is kept."""
    solver: Solver
    steps: int
    watch: Any
    """A `callbacks.Callbacks`, or None."""
