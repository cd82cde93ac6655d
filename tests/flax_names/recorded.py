"""Flax's pipelines with the weights and calls of `scripts/record_flax.py`."""

from __future__ import annotations

import importlib.util
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

import underdraw
from underdraw.engines import Compiled
from underdraw.flax.models import CLASSES
from underdraw.formats.stored import stored
from underdraw.text.tokenizer import CLIPTokenizer

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("record_flax", ROOT / "scripts" / "record_flax.py")
assert spec is not None and spec.loader is not None
record = importlib.util.module_from_spec(spec)
spec.loader.exec_module(record)

CONFIGS: dict[str, dict[str, Any]] = {
    "unet": record.UNET,
    "wide": record.WIDE,
    "vae": record.VAE,
    "deep": record.DEEP,
    "text_encoder": record.text_config(),
    "controlnet": record.CONTROLNET,
    "safety_checker": record.VISION,
}
ENGINE = Compiled()
BOUND = 2e-3
"""Of pictures in [0, 1]; the original is off PyTorch by up to 1.3e-3 itself."""


@cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(ROOT / "tests" / "data" / "flax.npz") as found:
        return dict(found)


@cache
def network(part: str) -> Any:
    return CLASSES[{"wide": "unet", "deep": "vae"}.get(part, part)](**CONFIGS[part])


@cache
def params(part: str) -> Any:
    made = network(part)
    shapes = made.layout.shapes
    return made.params({n: stored(record.numbers(f"{part}.{n}", s)) for n, s in shapes.items()})


@cache
def tokenizer() -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        record.write_tokenizer(Path(folder))
        return CLIPTokenizer.from_pretrained(Path(folder, "tokenizer"))


def scheduler(name: str = "ddim") -> Any:
    kind, settings = record.SCHEDULERS[name]
    return getattr(underdraw, f"Flax{kind}")(**record.SCHEDULE, **settings)


def components(unet: str = "unet", *beside: str) -> dict[str, Any]:
    made = {part: network(part) for part in ("text_encoder", *beside)}
    made |= {"unet": network(unet), "vae": network(autoencoder(beside))}
    return {**made, "tokenizer": tokenizer(), "scheduler": scheduler()}


def autoencoder(beside: tuple[str, ...]) -> str:
    return "deep" if "controlnet" in beside else "vae"


@cache
def pipeline(kind: str = "FlaxStableDiffusionPipeline", unet: str = "unet", *beside: str) -> Any:
    """One for all tests; what is compiled for one serves the next."""
    made = getattr(underdraw, kind)(**components(unet, *beside), compat="diffusers")
    made.engine = ENGINE
    return made


def all_params(unet: str = "unet", *beside: str) -> dict[str, Any]:
    made = {part: params(part) for part in ("text_encoder", *beside)}
    made |= {"unet": params(unet), "vae": params(autoencoder(beside))}
    return {**made, "scheduler": scheduler().create_state()}


def key(seed: int = record.SEED) -> Any:
    return jax.random.PRNGKey(seed)
