"""BLIP-Diffusion with the weights, pictures and calls of `scripts/record_blip.py`."""

from __future__ import annotations

import importlib.util
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pipelines import tiny

from underdraw import BlipDiffusionPipeline, schedulers
from underdraw.engines.compiled import Compiled
from underdraw.models import (
    AutoencoderKL,
    Blip2QFormerModel,
    BlipImageProcessor,
    ContextCLIPTextModel,
    ControlNetModel,
    UNet2DConditionModel,
)
from underdraw.models.wordpiece import WordPiece
from underdraw.text.tokenizer import CLIPTokenizer

ROOT = Path(__file__).parents[3]

spec = importlib.util.spec_from_file_location("record_blip", ROOT / "scripts" / "record_blip.py")
assert spec is not None and spec.loader is not None
record = importlib.util.module_from_spec(spec)
spec.loader.exec_module(record)

CONFIGS: dict[str, Any] = {
    "unet": (UNet2DConditionModel, record.UNET),
    "vae": (AutoencoderKL, record.VAE),
    "text_encoder": (ContextCLIPTextModel, record.text_config()),
    "qformer": (Blip2QFormerModel, record.BLIP),
    "controlnet": (ControlNetModel, record.CONTROLNET),
}
JIT = Compiled()
"""Shared: what it has compiled serves both pipelines."""
SIDE = {"height": 28, "width": 28}


@cache
def arrays() -> dict[str, np.ndarray]:
    """What was recorded."""
    with np.load(ROOT / "tests" / "data" / "blip.npz") as found:
        return dict(found)


@cache
def tokenizer() -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        record.write_tokenizers(Path(folder))
        return CLIPTokenizer.from_pretrained(Path(folder, "tokenizer"))


def network(part: str, backend: str = "torch") -> Any:
    """A network of `CONFIGS` with the weights of the recording."""
    kind, config = CONFIGS[part]
    made = kind.from_config(config)
    for name, value in made.named_parameters():
        value.data = torch.from_numpy(record.numbers(f"{part}.{name}", tuple(value.shape)))
    made = tiny.moved(made.eval(), backend)
    if part == "qformer":
        made.tokenizer = WordPiece(record.PIECES)
    return made


@cache
def shared(backend: str = "torch") -> dict[str, Any]:
    """The networks, the same ones for all pipelines of a backend."""
    return {part: network(part, backend) for part in CONFIGS}


def components(backend: str = "torch", **changes: Any) -> dict[str, Any]:
    networks = {name: one for name, one in shared(backend).items() if name != "controlnet"}
    parts = {
        **networks,
        "tokenizer": tokenizer(),
        "scheduler": schedulers.PNDMScheduler(**record.PNDM),
        "image_processor": BlipImageProcessor(size=SIDE),
        "mean": record.MEAN,
        "std": record.STD,
    }
    return {**parts, **changes}


def pipeline(kind: Any = BlipDiffusionPipeline, backend: str = "torch", **changes: Any) -> Any:
    pipe = kind(**components(backend, **changes))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edges() -> Image.Image:
    """The map of the recorded calls with a ControlNet."""
    return Image.fromarray(record.picture(7, (30, 50)))


def pictures(count: int = 3) -> list[Image.Image]:
    return [Image.fromarray(record.picture(i)) for i in range(count)]


def scheduler(name: str | None) -> Any:
    """That of a recorded call."""
    if name is None:
        return schedulers.PNDMScheduler(**record.PNDM)
    kind = getattr(schedulers, name)
    return kind.from_config({**record.SCHEDULE, "clip_sample": False})


def arguments(name: str, pipe: Any, **changes: Any) -> dict[str, Any]:
    """Of a recorded call; the pipeline gets its scheduler."""
    call = dict(record.CALLS[name])
    pipe.scheduler = scheduler(call.pop("scheduler", None))
    count = record.count_of(call)
    begin = pipe.parts.framework.array(record.latents(count))
    given = {"reference_image": pictures(count), "latents": begin}
    return {**given, **call, **record.FIXED, **changes}
