"""The peers' networks with given weights."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the peers' own imports warn about
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import (
        CLIPConfig,
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )


def fill(module: torch.nn.Module, tensors: dict[str, np.ndarray]) -> Any:
    """Every weight of diffusers comes from `tensors`, and every tensor is used: names are equal."""
    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def unet(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> UNet2DConditionModel:
    with torch.device("meta"):
        module = UNet2DConditionModel.from_config(config)
    return fill(module, tensors)


def vae(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> AutoencoderKL:
    with torch.device("meta"):
        module = AutoencoderKL.from_config(config)
    return fill(module, tensors)


def text(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> CLIPTextModelWithProjection:
    return fill(CLIPTextModelWithProjection(CLIPTextConfig(**config)), tensors)


def vision(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> CLIPVisionModelWithProjection:
    return fill(CLIPVisionModelWithProjection(CLIPVisionConfig(**config)), tensors)


def checker(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> StableDiffusionSafetyChecker:
    whole = CLIPConfig(vision_config=config, projection_dim=config["projection_dim"])
    # transformers 5 took one of the two published `vision_model.` away.
    names = {
        name.replace("vision_model.vision_model", "vision_model"): v for name, v in tensors.items()
    }
    return fill(StableDiffusionSafetyChecker(whole), names)


def call_unet(module: UNet2DConditionModel, inputs: dict[str, np.ndarray]) -> np.ndarray:
    given = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
    residuals = [value for name, value in given.items() if name.startswith("residual.")]
    with torch.no_grad():
        out = module(
            given["sample"],
            given["timesteps"],
            given["context"],
            class_labels=given.get("labels"),
            timestep_cond=given.get("condition"),
            encoder_attention_mask=given.get("keep"),
            down_block_additional_residuals=tuple(residuals[:-1]) or None,
            mid_block_additional_residual=residuals[-1] if residuals else None,
        )
    return out.sample.numpy()
