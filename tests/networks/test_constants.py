"""What a loop computes before its first step gives the numbers of the plain call."""

import numpy as np
import pytest
from backends.harness import give, relative, take, tree, values
from networks.configs import UNETS
from networks.programs import run_unet, unet_config, unet_inputs

from underdraw import backends
from underdraw.networks import unet


@pytest.mark.parametrize("name", UNETS)
def test_same_numbers_as_the_plain_call(name):
    case = UNETS[name]
    tensors = values(unet.layout(unet_config(case)))
    inputs = unet_inputs(case)
    plain = run_unet("torch", case, tensors, inputs)
    assert np.array_equal(run_unet("torch", case, tensors, inputs, hoisted=True), plain)


@pytest.mark.parametrize("name", ["sd1", "scale-and-shift"])
def test_times_of_all_calls_at_once(name):
    """Row `i` of the shifts of many times serves a call at time `i`, for the whole batch."""
    case = UNETS[name]
    config = unet_config(case)
    layout = unet.layout(config)
    nn, p = backends.get("torch").operations, tree("torch", layout, values(layout))
    inputs = {key: give("torch", value) for key, value in unet_inputs(case).items()}
    x, context = inputs["sample"], inputs["context"]
    times = give("torch", np.array([999, 500, 250, 3, 0]))
    shifts = unet.time_shifts(nn, p, config, unet.embed_time(nn, p, config, times, x))
    assert set(shifts) == {
        path.removesuffix(".time_emb_proj") for path in layout.paths_ending("time_emb_proj")
    }
    for i in (0, 2, 4):
        row = {place: shift[i : i + 1] for place, shift in shifts.items()}
        ours = unet.unet(nn, p, config, x, row, context)
        whole = unet.embed_time(nn, p, config, nn.expand(times[i : i + 1], (3,)), x)
        wanted = unet.unet(nn, p, config, x, whole, context)
        assert relative(take("torch", ours), take("torch", wanted)) <= 5e-6


def test_constants_cover_every_attention_over_the_text():
    config = unet_config(UNETS["x4-upscaler"])
    layout = unet.layout(config)
    nn, p = backends.get("torch").operations, tree("torch", layout, values(layout))
    context = give("torch", unet_inputs(UNETS["x4-upscaler"])["context"])
    constants = unet.context_constants(nn, p, config, context)
    reads_text = {
        path.removesuffix(".to_k")
        for path in layout.paths_ending("to_k")
        if layout.leaves[path].shape[1] == config.cross_attention_dim
    }
    assert set(constants) == reads_text
    assert any(path.endswith("attn1") for path in constants)
    for path, (k, v) in constants.items():
        assert k.shape == v.shape == (3, 2, 5, layout.leaves[f"{path}.to_k"].shape[0] // 2)


def test_a_new_context_needs_new_constants_only():
    """Half of the hoisted values may be used without the other half."""
    case = UNETS["sd1"]
    config = unet_config(case)
    layout = unet.layout(config)
    nn, p = backends.get("torch").operations, tree("torch", layout, values(layout))
    inputs = {key: give("torch", value) for key, value in unet_inputs(case).items()}
    x, context = inputs["sample"], inputs["context"]
    temb = unet.embed_time(nn, p, config, inputs["timesteps"], x)
    keys = unet.context_constants(nn, p, config, context)
    shifts = unet.time_shifts(nn, p, config, temb)
    plain = take("torch", unet.unet(nn, p, config, x, temb, context))
    assert np.array_equal(take("torch", unet.unet(nn, p, config, x, shifts, context)), plain)
    assert np.array_equal(take("torch", unet.unet(nn, p, config, x, temb, keys)), plain)
