"""`--memory WAY`."""

from types import SimpleNamespace

import numpy as np
import pytest
from cli.test_generate import QUICK, pixels
from engines.runs import unet
from pipelines.tiny import ONE_LEVEL

import underdraw
from underdraw.cli import memory
from underdraw.errors import InputError
from underdraw.pictures.writing import read_metadata


def test_settings_are_the_pipelines(run, tiny):
    run(
        *("generate", "a cone", "--model", tiny, *QUICK, "--seed", 3, "--out", "a.png"),
        *("--memory", "slices", "--memory", "heads", "--memory", "bands"),
    )
    record = read_metadata("a.png")
    assert record["settings"]["vae_slicing"] is True
    assert record["settings"]["vae_tiling"] == "seamless"
    assert record["settings"]["attention_slice"] == "auto"
    assert record["quantized"] is None


def test_weights_in_8_bits_come_again(run, tiny):
    words = ("generate", "a cone", "--model", tiny, *QUICK, "--seed", 3)
    run(*words, "--out", "plain.png")
    run(*words, "--out", "a.png", "--memory", "float8")
    record = read_metadata("a.png")
    assert record["quantized"] == {"unet": "float8"}
    assert not np.array_equal(pixels("a.png"), pixels("plain.png"))
    run("generate", "--again", "a.png", "--as-recorded", "--out", "b.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    run("generate", "--again", "a.png", "--as-recorded", "--memory", "int8", "--out", "c.png")
    assert read_metadata("c.png")["quantized"] == {"unet": "int8"}
    run("generate", "--again", "a.png", "--as-recorded", "--memory", "full", "--out", "d.png")
    assert read_metadata("d.png")["quantized"] is None
    assert np.array_equal(pixels("d.png"), pixels("plain.png"))

    pipe = underdraw.StableDiffusionPipeline.from_pretrained(tiny, dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    from underdraw.pipelines.call.record import repeat

    with pytest.raises(underdraw.errors.InputError, match=r"in 8 bits: \{'unet': 'float8'\}; pipe"):
        repeat(pipe, record)
    made = repeat(pipe.quantize("float8"), record)
    assert np.array_equal(np.asarray(made), pixels("a.png"))
    with pytest.raises(underdraw.errors.InputTypeError, match=r"quantized\['unet'\]='int4'"):
        repeat(pipe, {**record, "quantized": {"unet": "int4"}})


@pytest.mark.parametrize(
    ("ways", "says"),
    [
        (["less"], "--memory less is not known; allowed: bands, tiles, slices, heads, int8"),
        (["bands", "tiles"], "--memory bands and --memory tiles exclude each other"),
        (["full", "float8"], "--memory full and --memory float8 exclude each other"),
        (["layers", "int8", "networks"], "--memory layers and --memory networks exclude"),
    ],
)
def test_what_cannot_be(run, ways, says):
    options = [part for way in ways for part in ("--memory", way)]
    for command in (("generate", "a cone"), ("evaluate",)):
        assert says in run(*command, *options, code=2).stderr


def test_offloading_needs_somewhere_to_go(run, tiny):
    words = ("generate", "a cone", "--model", tiny, *QUICK, "--memory", "blocks")
    told = run(*words, code=2).stderr
    assert "--memory blocks: this machine has no accelerator" in told


def test_a_backend_without_such_weights_is_told_by_the_option():
    pytest.importorskip("jax")
    model = unet("jax", **ONE_LEVEL)
    pipe = SimpleNamespace(quantize=lambda kind, names=(): model.quantized(kind))
    with pytest.raises(InputError, match=r"^--memory int8: (?!kind)"):
        memory.read_ways(["int8"]).set(pipe)
    held = {"unet": "float8"}
    says = r"in 8 bits \(unet: float8\): (?!kind).*; --memory full takes them as they are$"
    with pytest.raises(InputError, match=says):
        memory.read_ways([], held).set(pipe)
    memory.read_ways(["full"], held).set(pipe)


def test_every_way_is_told(run):
    from underdraw.cli.options import Memory

    (option,) = Memory.__metadata__
    assert all(f"{name}" in option.help for name in memory.WAYS)
