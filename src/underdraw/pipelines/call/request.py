"""The arguments that calls share, as they were given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
    return_dict: Any = True
    callback_on_step_end: Any = None
    callback_on_step_end_tensor_inputs: Any = ("latents",)
    callback: Any = None
    callback_steps: Any = 1
    lora_scale: float = 1.0
    """A factor for the pipeline's active LoRAs."""
    controls: Any = ()
    own: tuple[Any, ...] = ()
    """Controls of the pipeline itself; they act before the caller's."""
    cut: bool = False
    """Whether prompts are made to fill one window of tokens, so that the rest is dropped."""
    pictures: int = 1
    """Pictures the call begins with; one prompt serves all of them, or one of them all prompts."""
    spread: bool = False
    """Whether diffusers spreads the pictures over the images of this call, whichever prompt these
    are of (`compat`)."""
    strength: Any = 1.0
    """The part of the solver's steps that is run: its last ones."""
    scheduler: Any = None
    """Used instead of the pipeline's own (inversion)."""
