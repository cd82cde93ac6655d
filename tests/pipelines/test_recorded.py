"""Calls that the newest peers cannot make, against arrays recorded from older ones."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from underdraw import DDIMScheduler, StableDiffusionPipeline
from underdraw.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from underdraw.text.tokenizer import CLIPTokenizer

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "oracle"

spec = importlib.util.spec_from_file_location("record", ROOT / "scripts" / "record_oracle.py")
record = importlib.util.module_from_spec(spec)
spec.loader.exec_module(record)


@pytest.fixture(scope="module")
def pipe():
    configs = json.loads((DATA / "configs.json").read_text())
    parts = {}
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    for part, cls in classes.items():
        parts[part] = cls.from_config(configs[part])
        for name, value in parts[part].named_parameters():
            numbers = record.numbers(f"{part}.{name}", tuple(value.shape))
            value.data = torch.from_numpy(numbers)
    made = StableDiffusionPipeline(
        **parts,
        tokenizer=CLIPTokenizer.from_pretrained(DATA / "tokenizer"),
        scheduler=DDIMScheduler.from_config(configs["scheduler"]),
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def recorded():
    with np.load(DATA / "calls.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", record.CALLS)
def test_calls_of_older_peers(pipe, recorded, name):
    (pipe.enable_vae_slicing if "sliced" in name else pipe.disable_vae_slicing)()
    (pipe.enable_vae_tiling if "tiled" in name else pipe.disable_vae_tiling)()
    call = record.CALLS[name]
    latents = torch.from_numpy(record.latents(call))
    made = pipe(record.PROMPTS, latents=latents, **{**record.FIXED, **call}).images
    assert made.shape == recorded[name].shape
    assert np.abs(made - recorded[name]).max() <= 1e-4


def test_recorded_calls_differ(pipe, recorded):
    """Leaving out layers changes the picture, and so do tiles; slices do not."""
    plain = recorded["plain"]
    for name in ("clip_skip_1", "clip_skip_3", "clip_skip_1_unguided"):
        assert np.abs(plain - recorded[name]).max() > 1e-2
    for same in ("clip_skip_0", "sliced"):
        assert np.abs(plain - recorded[same]).max() < 1e-5
    (pipe.disable_vae_slicing(), pipe.disable_vae_tiling())
    latents = torch.from_numpy(record.latents(record.CALLS["tiled"]))
    call = {**record.FIXED, **record.CALLS["tiled"]}
    whole = pipe(record.PROMPTS, latents=latents, **call).images
    assert np.abs(whole - recorded["tiled"]).max() > 1e-3
