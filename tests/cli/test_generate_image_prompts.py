"""`underdraw generate --image-prompt PICTURE[:SCALE] --ip-adapter FILE`."""

from __future__ import annotations

import pytest
from cli.test_generate_boxes import pixels_of
from pipelines import ip_adapters
from safetensors.torch import save_file

import underdraw
from underdraw.cli import image_prompts
from underdraw.errors import InputError, NotFoundError


@pytest.fixture
def desk(tiny, tmp_path):
    """Two pictures, and an IP-Adapter for the tiny model with its image tower."""
    pipe = underdraw.StableDiffusionPipeline.from_pretrained(tiny)
    save_file(ip_adapters.flat(ip_adapters.adapter(pipe.unet)), tmp_path / "adapter.safetensors")
    ip_adapters.tower().save_pretrained(tmp_path / "image_encoder")
    for i in range(2):
        ip_adapters.picture(i).save(tmp_path / f"{i}.png")
    return tmp_path


def test_generate(desk, run, tiny):
    made = {}
    weights = ("--ip-adapter", "adapter.safetensors")
    options = {
        "plain": (),
        "one": (*weights, "--image-prompt", "0.png:0.6"),
        "two": (*weights, "--image-prompt", "0.png", "--image-prompt", "1.png:0.4"),
    }
    for name, given in options.items():
        call = ("--model", tiny, "--steps", "2", "--seed", "3", "--out", f"{name}.png")
        run("generate", "a red sphere", *given, *call)
        made[name] = pixels_of(desk / f"{name}.png")
    assert len(set(made.values())) == 3
    again = ("generate", "--again", "two.png", "--model", tiny, "--out", "again.png")
    told = run(*again, code=2).stderr.replace("\n", " ")
    assert "--ip-adapter FILE" in told
    run(*again, *weights)
    assert pixels_of(desk / "again.png") == made["two"]
    run(*again, *weights, "--image-prompt", "0.png:0.6", "--force")
    assert pixels_of(desk / "again.png") == made["one"]


def test_what_cannot_work_is_told_before_the_model_is_loaded(desk):
    cases = [
        (["0.png:x"], "no scale"),
        (["0.png:nan"], "scale"),
        (["0.png:1e9"], "scale"),
        (["none.png"], "no picture"),
        (["adapter.safetensors"], "adapter.safetensors"),
    ]
    for options, message in cases:
        with pytest.raises((InputError, NotFoundError), match=message):
            image_prompts.read_prompts([str(desk / option) for option in options])
    assert image_prompts.read_prompts(None) is None
    shown = image_prompts.read_prompts([str(desk / "0.png")])
    for entries, weights, message in (
        (shown, None, "needs --ip-adapter"),
        (None, "x.bin", "needs --image-prompt"),
        (shown, str(desk / "none.bin"), "none.bin"),
    ):
        with pytest.raises((InputError, NotFoundError), match=message):
            image_prompts.check(entries, weights)
    for entry in ({"image": "0.png"}, {"scale": 1.0}, 3):
        with pytest.raises(InputError, match="damaged"):
            image_prompts.check_recorded(desk, [entry], True)
