"""Weights in 8 bits: what they cost and lose, and that all else goes on working."""

import copy

import pytest
import torch
from pipelines import tiny
from pipelines.loras import lora

import underdraw
from underdraw.backends import torch_leaves, torch_operations
from underdraw.errors import InputError
from underdraw.models import UNet2DConditionModel

WIDE = {"block_out_channels": (64, 128)}
LOSS = {"int8": 0.01, "float8": 0.04}
"""Of the largest latent after three steps; measured 0.003 and 0.011."""


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline(unet=WIDE)


@pytest.mark.parametrize("kind", LOSS)
@pytest.mark.parametrize("shape", [(70, 64), (16, 40, 3, 3)])
@pytest.mark.parametrize("half", [True, False], ids=["with float16", "without"])
def test_each_weight(kind, shape, half, monkeypatch):
    """Within half a step of its output's scale, or the rounding of three bits."""
    kernel = shape[2:]
    layer = torch.nn.Conv2d(40, 16, 3, 2, 1) if kernel else torch.nn.Linear(64, 70)
    layer.weight.data[3] *= 100
    layer.weight.data[5] = 0
    made = torch_leaves.quantised(layer, kind)
    apart, largest = (made.weight - layer.weight).abs(), layer.weight.abs().flatten(1).amax(1)
    spread = largest.reshape(-1, *[1] * (len(shape) - 1))
    bound = spread / 254 if kind == "int8" else spread * 2**-9 + layer.weight.abs() / 16
    assert (apart <= bound * 1.001 + 1e-12).all()
    x = torch.randn(2, 40, 9, 7) if kernel else torch.randn(3, 64)
    back = made.plain()
    assert torch.equal(made(x), back(x)) and type(back) is type(layer)
    monkeypatch.setattr(torch_operations, "_has_half", lambda: half)
    for dtype in (torch.float16, torch.bfloat16):
        assert made(x.to(dtype)).dtype == dtype
    assert torch_leaves.stored_bytes(made) < 0.35 * torch_leaves.stored_bytes(layer)


@pytest.mark.parametrize("kind", LOSS)
def test_of_a_pipeline(pipe, kind, tmp_path):
    expected, whole = tiny.run(pipe), pipe.unet.get_memory_footprint()
    small = underdraw.StableDiffusionPipeline.from_pipe(pipe)
    assert small.quantize(kind) is small
    made = tiny.run(small)
    assert (made - expected).abs().max() <= LOSS[kind] * expected.abs().max()
    assert small.unet.get_memory_footprint() <= 0.3 * whole  # of float32; 0.55 of float16
    assert torch.equal(tiny.run(pipe), expected)  # who shares the network has it as it was
    small.unet.save_pretrained(tmp_path)
    read = UNet2DConditionModel.from_pretrained(tmp_path)
    other = underdraw.StableDiffusionPipeline.from_pipe(pipe, unet=read)
    assert torch.equal(tiny.run(other), made)
    assert torch.equal(tiny.run(copy.deepcopy(small)), made)
    small.unet.to("bfloat16")
    assert torch.equal(tiny.run(pipe), expected)  # shared numbers go their own ways
    alone = tiny.pipeline(unet=WIDE).quantize(kind)
    alone.to(dtype="bfloat16")
    assert tiny.run(alone).dtype == torch.bfloat16
    assert alone.unet.get_memory_footprint() <= 0.55 * whole / 2


def test_in_8_bits_twice(pipe):
    """Who quantises once more shares numbers and nothing else; another kind is another kind."""
    small = underdraw.StableDiffusionPipeline.from_pipe(pipe).quantize("int8")
    made = tiny.run(small)
    twin = underdraw.StableDiffusionPipeline.from_pipe(small).quantize("int8")
    twin.unet.to("bfloat16")
    assert torch.equal(tiny.run(small), made)
    twin.quantize("float8")
    kinds = [one.kind for one in twin.unet.modules() if isinstance(one, torch_leaves.Quantised)]
    assert set(kinds) == {"float8"}


def test_a_sum_beyond_half_precision_is_no_infinity():
    layer = torch.nn.Linear(300, 300).half()
    layer.weight.data[:] = 1
    assert torch.equal(torch_leaves.quantised(layer, "int8").weight, layer.weight)


def test_loras_act_on_it_and_may_be_merged(pipe, tmp_path):
    torch.save(lora(pipe), tmp_path / "a.pt")
    small = underdraw.StableDiffusionPipeline.from_pipe(pipe).quantize()
    plain = tiny.run(small)
    for one in (pipe, small):
        one.load_lora_weights(tmp_path / "a.pt", "a")
    acting = tiny.run(small)
    assert not torch.equal(acting, plain)
    assert (acting - tiny.run(pipe)).abs().max() <= 0.03 * acting.abs().max()
    small.fuse_lora()
    fused = tiny.run(small)
    assert (fused - acting).abs().max() <= 1e-3 * acting.abs().max()
    small.unfuse_lora()
    assert torch.equal(tiny.run(small), acting)
    pipe.unload_lora_weights(), small.unload_lora_weights()
    assert torch.equal(tiny.run(small), plain)


def test_with_a_controlnet_and_the_compiler_left_out(pipe, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    small = underdraw.StableDiffusionPipeline.from_pipe(pipe, engine="compiled").quantize()
    net = tiny.controlnet(pipe.unet)
    for one in (net, net.quantized("int8")):
        made = tiny.run(small, controls=[underdraw.Structure(one, torch.zeros(1, 3, 64, 64))])
        assert torch.isfinite(made).all()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kind": "int4"}, "kind"),
        ({"components": ["scheduler"]}, "components: 'scheduler' is no network"),
        ({"components": ["nothing"]}, "nothing"),
        ({"components": []}, "components"),
        ({"components": 3}, "components"),
    ],
)
def test_what_cannot_be(pipe, given, says):
    before = pipe.unet
    with pytest.raises((InputError, TypeError), match=says):
        pipe.quantize(**given)
    assert pipe.unet is before


def test_where_there_is_none(pipe):
    with pytest.raises(InputError, match="not there on jax"):
        tiny.moved(pipe.vae, "jax").quantized()
    broken = copy.deepcopy(pipe.unet)
    broken.mid_block.resnets[0].conv1.weight.data[:] = float("nan")
    with pytest.raises(InputError, match="NaN or infinity"):
        broken.quantized("int8")
