"""Each network as one call from numpy to numpy, on any backend."""

from __future__ import annotations

from typing import Any

import numpy as np
from backends.harness import give, run, take, tree
from networks.configs import BATCH, SIZE, TOKENS, UNetCase

from underdraw.networks import clip, safety, unet, vae, vision as image_tower
from underdraw.networks.config import read
from underdraw.networks.sites import NO_SITES, Sites

Arrays = dict[str, np.ndarray]


def unet_config(case: UNetCase) -> unet.UNetConfig:
    return read(unet.UNetConfig, case.config)


def unet_inputs(case: UNetCase, size: tuple[int, int] = SIZE, batch: int = BATCH) -> Arrays:
    """Everything a call of this UNet takes, random."""
    c, random = unet_config(case), np.random.default_rng(7)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    inputs = {
        "sample": normal(batch, c.in_channels, *size),
        "timesteps": np.linspace(987, 1, batch).astype(np.int64),
        "context": normal(batch, TOKENS, c.cross_attention_dim),
    }
    width = {"projection": 6, "simple_projection": 6}.get(c.class_embed_type or "")
    if case.labels == "ids":
        inputs["labels"] = np.arange(batch) % 11
    elif case.labels == "times":
        inputs["labels"] = np.linspace(3, 950, batch).astype(np.int64)
    elif case.labels == "vectors":
        inputs["labels"] = normal(batch, width or 4 * c.block_out_channels[0])
    if case.condition:
        inputs["condition"] = normal(batch, case.condition)
    if case.mask:
        inputs["keep"] = np.arange(TOKENS)[None] < np.array([[TOKENS], [2], [1]])[:batch]
    if case.residuals:
        height, wide = size
        shapes = [(c.block_out_channels[0], height, wide)]
        for level, channels in enumerate(c.block_out_channels):
            shapes += [(channels, height, wide)] * c.level("layers_per_block", level)
            if level < len(c.block_out_channels) - 1:
                height, wide = -(-height // 2), -(-wide // 2)
                shapes.append((channels, height, wide))
        for i, shape in enumerate([*shapes, (c.block_out_channels[-1], height, wide)]):
            inputs[f"residual.{i}"] = normal(batch, *shape)
    return inputs


def unet_program(
    nn: Any,
    p: Any,
    config: unet.UNetConfig,
    inputs: dict[str, Any],
    sites: Sites = NO_SITES,
    hoisted: bool = False,
) -> Any:
    """One call on the arrays of a backend; `hoisted` computes the constants of a loop before it."""
    x, context = inputs["sample"], inputs["context"]
    residuals = [value for name, value in inputs.items() if name.startswith("residual.")]
    if residuals:
        sites = Sites(down_residuals=residuals[:-1], mid_residual=residuals[-1])
    mask = None
    if "keep" in inputs:
        mask = ((1 - nn.cast(inputs["keep"], x)) * -10000.0)[:, None, None]
    time = unet.embed_time(
        nn, p, config, inputs["timesteps"], x, inputs.get("labels"), inputs.get("condition")
    )
    if hoisted:
        time = unet.time_shifts(nn, p, config, time)
        context = unet.context_constants(nn, p, config, context)
    return unet.unet(nn, p, config, x, time, context, sites, mask)


def run_unet(name: str, case: UNetCase, tensors: Arrays, inputs: Arrays, **more: Any) -> np.ndarray:
    config = unet_config(case)
    p = tree(name, unet.layout(config), tensors)
    given = {key: give(name, value) for key, value in inputs.items()}
    sites = more.pop("sites", NO_SITES)
    hoisted = more.pop("hoisted", False)

    def program(nn: Any, p: Any, inputs: Any) -> Any:
        return unet_program(nn, p, config, inputs, sites, hoisted)

    return take(name, run(name, program, p, [given], **{"compiled": True, **more}))


def run_vae(name: str, fields: dict[str, Any], tensors: Arrays, entry: str, x: np.ndarray) -> Any:
    """`entry` is "encode" or "decode"."""
    config = read(vae.VAEConfig, fields)
    p = tree(name, vae.layout(config), tensors)

    def program(nn: Any, p: Any, x: Any) -> Any:
        return getattr(vae, entry)(nn, p, config, x)

    return take(name, run(name, program, p, [give(name, x)], compiled=True))


def run_text(
    name: str, fields: dict[str, Any], tensors: Arrays, ids: np.ndarray, keep: Any = None
) -> Arrays:
    config = read(clip.CLIPTextConfig, fields)
    p = tree(name, clip.text_layout(config, projection=True), tensors)
    mask = [] if keep is None else [give(name, np.where(keep, 0.0, -1e9)[:, None, None])]

    def program(nn: Any, p: Any, ids: Any, mask: Any = None) -> Any:
        out = clip.text(nn, p, config, ids, mask=mask)
        return _named(out, clip.text_projection(nn, p, config, out.pooled))

    found = run(name, program, p, [give(name, ids), *mask], compiled=True)
    return {key: take(name, value) for key, value in found.items()}


def run_vision(name: str, fields: dict[str, Any], tensors: Arrays, image: np.ndarray) -> Arrays:
    config = read(clip.CLIPVisionConfig, fields)
    p = tree(name, image_tower.vision_layout(config), tensors)

    def program(nn: Any, p: Any, image: Any) -> Any:
        out = image_tower.vision(nn, p, config, image)
        return _named(out, image_tower.visual_projection(nn, p, config, out.pooled))

    found = run(name, program, p, [give(name, image)], compiled=True)
    return {key: take(name, value) for key, value in found.items()}


def _named(out: Any, projected: Any) -> dict[str, Any]:
    states = {f"hidden {i}": state for i, state in enumerate(out.hidden_states)}
    return {**states, "last": out.last, "pooled": out.pooled, "projected": projected}


def run_safety(
    name: str, fields: dict[str, Any], tensors: Arrays, image: np.ndarray
) -> list[np.ndarray]:
    config = read(clip.CLIPVisionConfig, fields)
    p = tree(name, safety.layout(config), tensors)

    def program(nn: Any, p: Any, image: Any) -> Any:
        return safety.concept_scores(nn, p, config, image)

    scores = run(name, program, p, [give(name, image)], compiled=True)
    return [take(name, score) for score in scores]


def token_ids(fields: dict[str, Any], batch: int = 4, length: int = 8) -> np.ndarray:
    """Rows with the end token early, late, twice and missing; its id is the largest one."""
    ids = np.random.default_rng(3).integers(3, fields["vocab_size"] - 3, (batch, length))
    end = fields["vocab_size"] - 1
    ids[:, 0] = end - 1
    ids[0, 3], ids[1, -1], ids[2, 2], ids[2, 5] = end, end, end, end
    return ids
