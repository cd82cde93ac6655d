"""8-bit floats, with and without scales, wherever weights are read; integers are told."""

import json

import numpy as np
import pytest
import torch
from pipelines import tiny

from underdraw import UNet2DConditionModel, backends
from underdraw.errors import WeightError
from underdraw.formats.stored import Checkpoint, stored
from underdraw.weights import folders, single_file
from underdraw.weights.dtypes import cast
from underdraw.weights.quantised import as_floats, numbers, widened
from underdraw.weights.save import save_tensors, write_json

FLOAT8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


def eight(tensor, kind):
    bits = tensor.to(FLOAT8[kind]).view(torch.uint8).numpy()
    return stored(bits, kind)


def note(content):
    return stored(np.frombuffer(json.dumps(content).encode(), np.uint8))


@pytest.mark.parametrize("kind", FLOAT8)
def test_every_byte_stands_for_what_it_does_in_torch(kind):
    bits = np.arange(256, dtype=np.uint8)
    wanted = torch.from_numpy(bits).view(FLOAT8[kind]).float().numpy()
    for found in (
        widened(stored(bits, kind)).load(),
        numbers(stored(bits, kind)),
        cast("x", stored(bits, kind), "float32").load(),
    ):
        assert np.array_equal(found.astype(np.float32), wanted, equal_nan=True)
    assert widened(stored(bits, kind)).dtype == "float16"


# -- scales ----------------------------------------------------------------------------------------

SCALES = {
    "scalar": np.float32(0.37),
    "one": np.float32([0.37]),
    "rows": np.linspace(0.1, 2, 6, dtype=np.float32),
    "rows of ones": np.linspace(0.1, 2, 6, dtype=np.float32).reshape(6, 1),
}
NAMES = {
    "ComfyUI until 2025": ("scale_weight", {"scale_input": np.float32(1)}, {"scaled_fp8": []}),
    "ComfyUI": ("weight_scale", {"input_scale": np.float32(1)}, {}),
    "alone": ("weight_scale", {}, {}),
}


@pytest.mark.parametrize("kind", FLOAT8)
@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3)])
def test_weights_are_multiplied_by_their_scales(kind, names, scale, shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    name, beside, marks = NAMES[names]
    tensors = {"a.b.weight": eight(weight, kind), "a.b.bias": stored(np.ones(6, np.float16))}
    tensors[f"a.b.{name}"] = stored(np.asarray(SCALES[scale]))
    tensors |= {f"a.b.{n}": stored(np.asarray(value)) for n, value in beside.items()}
    tensors |= {n: stored(np.asarray(value, np.float32)) for n, value in marks.items()}
    if names == "ComfyUI":
        tensors["a.b.comfy_quant"] = note({"format": kind, "full_precision_matrix_mult": True})
    found = as_floats(tensors)
    assert sorted(found) == ["a.b.bias", "a.b.weight"]
    assert found["a.b.bias"] is tensors["a.b.bias"]
    factor = torch.from_numpy(np.asarray(SCALES[scale])).reshape(-1, *(1,) * (len(shape) - 1))
    wanted = weight.to(FLOAT8[kind]).float() * factor
    assert found["a.b.weight"].dtype == "float32"
    assert np.array_equal(found["a.b.weight"].load(), wanted.numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_scales_of_other_floats(dtype):
    scale = cast("s", stored(np.float32([0.375])), dtype)
    tensors = {"x.weight": eight(torch.full((2, 2), 3.0), "float8_e4m3fn"), "x.weight_scale": scale}
    assert np.array_equal(as_floats(tensors)["x.weight"].load(), np.full((2, 2), 1.125))


def test_what_is_no_quantised_file_is_left_alone():
    tensors = {
        "x.weight": stored(np.ones((2, 2), np.float32)),
        "y.weight": eight(torch.ones(2, 2), "float8_e5m2"),
        "scale_factor": stored(np.float32(1)),
        "position_ids": stored(np.arange(3)),
    }
    found = as_floats(tensors)
    assert all(found[name] is tensors[name] for name in tensors) and len(found) == 4


# -- what is told ----------------------------------------------------------------------------------

INT8 = stored(np.ones((4, 3), np.int8))
ONE = stored(np.float32(1))
F8 = eight(torch.ones(4, 3), "float8_e4m3fn")
TOLD = {
    "int8 with a scale": (
        {"x.weight": INT8, "x.weight_scale": ONE},
        r"1 weights are quantised to int8, such as x\.weight with its scale x\.weight_scale",
    ),
    "int8 with a scale, old": (
        {"x.weight": INT8, "y.weight": INT8, "x.scale_weight": ONE},
        r"2 weights are quantised to int8, .* scale x\.scale_weight",
    ),
    "int8, rotated": (
        {"x.weight": INT8, "x.weight_scale": ONE, "x.comfy_quant": note({"format": "convrot"})},
        r"int8 \(format 'convrot'\)",
    ),
    "int8 alone": ({"x.weight": INT8}, "quantised to int8"),
    "packed": ({"x.weight": stored(np.ones((4, 3), np.uint8))}, "quantised to uint8"),
    "NVFP4": (
        {"x.weight": stored(np.ones((4, 3), np.uint8)), "x.weight_scale_2": ONE},
        r"NVFP4: x\.weight_scale_2",
    ),
    "bitsandbytes, 4 bits": ({"x.weight.quant_state.bitsandbytes__nf4": ONE}, "bitsandbytes"),
    "bitsandbytes, 8 bits": ({"x.weight": INT8, "x.SCB": ONE}, "bitsandbytes"),
    "quanto": ({"x.weight._data": INT8, "x.weight._scale": ONE}, "quanto"),
    "GPTQ": ({"x.qweight": INT8}, "GPTQ or AWQ"),
    "blocks": ({"x.weight": F8, "x.weight_scale_inv": ONE}, "blocks with scales"),
    "float8 and blocks": (
        {"x.weight": F8, "x.weight_scale": stored(np.ones((2, 3), np.float32))},
        r"x\.weight_scale has shape \[2, 3\] beside x\.weight of \[4, 3\]; readable are one scale",
    ),
    "a scale of columns": (
        {"x.weight": F8, "x.weight_scale": stored(np.ones((1, 3), np.float32))},
        "or one for each row",
    ),
    "a scale of integers": (
        {"x.weight": F8, "x.weight_scale": stored(np.ones(1, np.int32))},
        "holds int32; a scale is of floats",
    ),
    "float8, rotated": (
        {"x.weight": F8, "x.comfy_quant": note({"format": "float8_e4m3fn", "convrot": True})},
        r"format 'float8_e4m3fn' with convrot, which is not read",
    ),
    "float8, noted otherwise": (
        {"x.weight": F8, "x.comfy_quant": note({"format": "mxfp8"})},
        "says format 'mxfp8'",
    ),
    "a torn note": (
        {"x.weight": F8, "x.comfy_quant": stored(np.frombuffer(b"{", np.uint8))},
        "says format 'None'",
    ),
}


@pytest.mark.parametrize("case", TOLD)
def test_what_is_quantised_otherwise_is_told(case, tmp_path):
    tensors, words = TOLD[case]
    with pytest.raises(WeightError, match=words):
        as_floats(tensors)
    with pytest.raises(WeightError, match=words):
        single_file.read_single_file(Checkpoint(dict(tensors), {}))
    name = "diffusion_pytorch_model.safetensors"
    save_tensors(tmp_path / name, tensors)
    with pytest.raises(WeightError, match=words) as caught:
        folders.open_weights(tmp_path, folders.WeightFiles((name,)))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


# -- whole networks --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet():
    return tiny.components()["unet"]


def coded(unet, scaled, prefix=""):
    """Float8 tensors of a network, and what they stand for."""
    tensors, wanted = {}, {}
    for name, value in unet.state_dict().items():
        plain = value.float()
        if name.endswith(".weight") and value.ndim > 1:
            factor = plain.abs().max() / 448 if scaled else torch.tensor(1.0)
            tensors[name] = eight(plain / factor, "float8_e4m3fn")
            wanted[name] = (plain / factor).to(torch.float8_e4m3fn).float() * factor
            if scaled:
                scale = stored(factor.numpy())
                tensors[f"{name.removesuffix('.weight')}.weight_scale"] = scale
        else:
            tensors[name], wanted[name] = stored(plain.numpy()), plain
    return tensors, wanted


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("form", ["folder", "shards", "single file"])
def test_a_network_of_8_bit_floats(unet, scaled, form, tmp_path):
    tensors, wanted = coded(unet, scaled)
    config = unet.export_config()
    if form == "folder":
        write_json(tmp_path / "config.json", config)
        save_tensors(tmp_path / "diffusion_pytorch_model.safetensors", tensors)
    elif form == "shards":  # scales apart from their weights
        write_json(tmp_path / "config.json", config)
        stem, places = "diffusion_pytorch_model", {}
        for i in (1, 2):
            name = f"{stem}-0000{i}-of-00002.safetensors"
            part = {n: t for n, t in tensors.items() if n.endswith("_scale") == (i == 2)}
            save_tensors(tmp_path / name, part or {"extra.betas": stored(np.zeros(1, "f4"))})
            places |= dict.fromkeys(part, name)
        write_json(tmp_path / f"{stem}.safetensors.index.json", {"weight_map": places})
    if form == "single file":
        save_tensors(tmp_path / "unet.safetensors", tensors)
        own = {"unet": config}
        read = single_file.read_single_file(tmp_path / "unet.safetensors", configs=own)
        found = UNet2DConditionModel.from_tensors(*read.components["unet"])
    else:
        found = UNet2DConditionModel.from_pretrained(tmp_path)
    assert found.dtype == torch.float32
    for name, value in found.state_dict().items():
        assert torch.equal(value, wanted[name]), name


@pytest.mark.parametrize(("backend", "dtype"), [("torch", "bfloat16"), ("jax", "float32")])
def test_backends_get_numbers_not_bits(backend, dtype):
    unet = tiny.components(unet=tiny.ONE_LEVEL)["unet"]
    tensors, wanted = coded(unet, False)
    config = unet.export_config()
    found = UNet2DConditionModel.from_tensors(config, tensors, dtype=dtype, backend=backend)
    framework = backends.get(backend)
    kernel = framework.to_numpy(found.conv_in.weight)
    assert np.allclose(kernel, wanted["conv_in.weight"].numpy(), rtol=2**-8)  # bfloat16's own step
