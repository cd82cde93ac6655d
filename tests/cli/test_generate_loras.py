"""`underdraw generate --lora FILE[:SCALE] --embedding FILE`."""

from __future__ import annotations

import pytest
import torch
from cli.test_generate_boxes import pixels_of
from pipelines.loras import lora
from safetensors.torch import save_file

import underdraw
from underdraw.cli import loras
from underdraw.errors import InputError, NotFoundError


@pytest.fixture
def desk(tiny, tmp_path):
    """Two LoRAs for the tiny model, and a word."""
    pipe = underdraw.StableDiffusionPipeline.from_pretrained(tiny)
    width = pipe.text_encoder.config.hidden_size
    save_file(lora(pipe, 1), tmp_path / "clay.safetensors")
    save_file(lora(pipe, 2), tmp_path / "snow.v2.safetensors")
    save_file({"<toy>": torch.ones(2, width)}, tmp_path / "toy.safetensors")
    return tmp_path


def test_generate(desk, run, tiny):
    made = {}
    every = ("--lora", "clay.safetensors:0.5", "--lora", "snow.v2.safetensors")
    options = {
        "plain": (),
        "clay": every[:2],
        "both": (*every, "--embedding", "toy.safetensors"),
    }
    for name, given in options.items():
        place = f"{name}.png"
        call = ("--model", tiny, "--steps", "2", "--seed", "3", "--out", place)
        run("generate", "a red <toy>", *given, *call)
        made[name] = pixels_of(desk / place)
    assert len(set(made.values())) == 3
    again = ("generate", "--again", "both.png", "--model", tiny, "--out", "again.png")
    told = run(*again, code=2).stderr.replace("\n", " ")
    assert "--lora clay.safetensors --lora snow_v2.safetensors" in told
    given = ("--lora", "clay.safetensors", "--lora", "snow.v2.safetensors")
    run(*again, *given, "--embedding", "toy.safetensors")
    assert pixels_of(desk / "again.png") == made["both"]


def test_what_cannot_work_is_told_before_the_model_is_loaded(desk, run):
    (desk / "other").mkdir()
    (desk / "other" / "clay.safetensors").write_bytes(b"")
    cases = [
        (["clay.safetensors:x"], "no scale"),
        (["clay.safetensors:nan"], "--lora"),
        (["clay.safetensors:1e9"], "--lora"),
        (["none.safetensors"], "no such file"),
        (["other"], "no such file"),
        (["clay.safetensors", "other/clay.safetensors"], "two files"),
    ]
    for options, message in cases:
        with pytest.raises((InputError, NotFoundError), match=message):
            loras.read_loras(options, None)
    with pytest.raises(NotFoundError, match="--embedding"):
        loras.read_loras(None, [desk / "none.pt"])
    assert loras.read_loras(None, None) == loras.NOTHING
