"""`dtype="auto"`: what is fast on the device, the same for all networks of a pipeline."""

from __future__ import annotations

import logging

import pytest
import torch

from underdraw import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from underdraw.backends import hardware
from underdraw.errors import InputError
from underdraw.training.loop import resolve_precision

VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (32, 32),
}


@pytest.fixture(params=[True, False], ids=["with bfloat16", "without"])
def dtype(request, monkeypatch):
    monkeypatch.setattr(hardware, "_cpu_has_bfloat16", lambda: request.param)
    return torch.bfloat16 if request.param else torch.float32


def test_a_model(dtype, tmp_path):
    made = AutoencoderKL(**VAE)
    made.save_pretrained(tmp_path)
    found = AutoencoderKL.from_pretrained(tmp_path, dtype="auto")
    assert found.dtype == dtype
    assert found.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    z = torch.randn(3, 4, 5, 7)
    exact = made.eval().decode(z).sample
    got = found.decode(z.to(dtype)).sample.float()
    assert (got - exact).abs().max() <= (0.05 if dtype == torch.bfloat16 else 1e-5)
    plain = AutoencoderKL.from_pretrained(tmp_path)
    assert plain.dtype == torch.float32
    assert plain.decoder.conv_in.weight.is_contiguous()


def test_an_unet_keeps_its_layout(dtype, tmp_path):
    UNet2DConditionModel(
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        cross_attention_dim=32,
    ).save_pretrained(tmp_path)
    found = UNet2DConditionModel.from_pretrained(tmp_path, dtype="auto")
    assert found.dtype == dtype
    assert found.conv_in.weight.is_contiguous()


def test_a_pipeline_says_which(dtype, caplog):
    with caplog.at_level(logging.INFO, "underdraw"):
        pipe = StableDiffusionPipeline.from_pretrained("underdraw/scenes", dtype="auto")
    assert {pipe.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {dtype}
    assert f"underdraw/scenes: {dtype} on cpu" in caplog.text
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red cube", num_inference_steps=1, output_type="np").images.std() > 0


def test_training_takes_the_same(dtype):
    assert resolve_precision("auto", torch.device("cpu")) == dtype


def test_devices_that_are_not_here():
    with pytest.raises(InputError, match="device='abacus' is not known; allowed: cpu"):
        hardware.resolve_device("abacus")
    with pytest.raises(InputError, match="device='cpu:9' is not on this machine"):
        hardware.resolve_device("cpu:9")
