"""Gated UNets and the grounding parts in them, which come off and go onto others."""

import numpy as np
import pytest
import torch
from backends.harness import INSTALLED, take
from networks.configs import BASE
from networks.grounded import box_inputs, call_inputs

from underdraw import backends
from underdraw.errors import InputError
from underdraw.models import Grounding, UNet2DConditionModel
from underdraw.networks.sites import Sites

GATED = {**BASE, "attention_type": "gated"}
EVERY = pytest.mark.parametrize("backend", INSTALLED)


def shaken(model):
    """No gate stays closed."""
    torch.manual_seed(1)
    for value in model.parameters():
        value.data += 0.3 * torch.randn_like(value)
    return model.requires_grad_(False)


def called(unet, backend="torch", **more):
    framework = backends.get(backend)
    given = {k: framework.array(v) for k, v in call_inputs().items()}
    out = unet(given["sample"], given["timesteps"], given["context"], **more)
    return take(backend, out.sample)


def grounded(unet, part, strength=1.0):
    tokens = part.boxes(**box_inputs("text", (2, 0, 1)))
    return called(unet, sites=part.sites(part.constants(tokens), strength))


@EVERY
def test_new_parts_have_closed_gates(backend):
    """On every backend, alone or inside a gated UNet, with which they share their parameters."""
    unet = UNet2DConditionModel(**GATED, backend=backend)
    framework = backends.get(backend)
    inside = dict(framework.named_tensors(unet.grounding))
    own = dict(framework.named_tensors(unet))
    assert all(own[name] is value for name, value in inside.items())
    alone = dict(framework.named_tensors(Grounding.for_unet(unet, "text")))
    assert alone.keys() == inside.keys()
    for tensors in (alone, inside):
        for name, value in tensors.items():
            begins_at_zero = name.endswith(("alpha_attn", "alpha_dense", "_feature"))
            assert begins_at_zero == (not take(backend, value).any()) or "norm" in name, name


def test_new_parts_change_nothing_until_they_are_trained():
    unet = UNet2DConditionModel(**BASE)
    part = Grounding.for_unet(unet, "text")
    tokens = part.boxes(**box_inputs("text", (2, 0, 1)))
    with torch.no_grad():
        acting = called(unet, sites=part.sites(part.constants(tokens)))
        assert np.array_equal(acting, called(unet))


def test_a_call_runs_no_grounding_layer():
    """Whatever they hold: with NaN in all of them the plain call gives the plain UNet's bits."""
    unet = shaken(UNet2DConditionModel(**GATED))
    plain = unet.without_grounding()
    before = called(unet)
    for value in unet.grounding.parameters():
        value.data.fill_(float("nan"))
    assert np.array_equal(called(unet), before)
    assert np.array_equal(called(plain), before)
    assert plain.grounding is None
    assert plain.config.attention_type == "default"


def test_parts_come_off_and_go_onto_other_unets(tmp_path):
    first, second = shaken(UNet2DConditionModel(**GATED)), shaken(UNet2DConditionModel(**BASE))
    part = first.lift_grounding()
    before, acting = called(second), grounded(second, part)
    assert not np.array_equal(before, acting)
    assert np.array_equal(called(second), before)
    assert np.array_equal(grounded(second, part, 0.0), before)
    both = second.with_grounding(part)
    assert np.array_equal(called(both), before)
    assert np.array_equal(grounded(both, both.grounding), acting)
    both.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    assert again.state_dict().keys() == first.state_dict().keys()
    assert np.array_equal(grounded(again, again.grounding), acting)


def test_parameters_are_shared_not_copied():
    """Training the part trains the UNet it came from; `to` moves both."""
    unet = shaken(UNet2DConditionModel(**GATED))
    part = unet.grounding
    names = set(unet.state_dict())
    assert set(part.state_dict()) < names
    assert all("fuser" in name or "position_net" in name for name in part.state_dict())
    own = dict(unet.named_parameters())
    assert all(own[name] is value for name, value in part.named_parameters())
    part.half()
    assert unet.grounding.dtype == torch.float16


def test_gradients_reach_the_part_alone():
    unet = shaken(UNet2DConditionModel(**BASE))
    part = shaken(Grounding.for_unet(unet, "text")).requires_grad_(True)
    given = {k: torch.from_numpy(v) for k, v in call_inputs().items()}
    sites = part(part.boxes(**box_inputs("text", (2, 0, 1))))
    out = unet(given["sample"], given["timesteps"], given["context"], sites=sites).sample
    out.square().mean().backward()
    missing = [name for name, value in part.named_parameters() if value.grad is None]
    assert missing == []
    assert all(value.grad is None for value in unet.parameters())


def test_new_maps_begin_with_the_first_convolution_of_the_unet():
    unet = UNet2DConditionModel(**BASE)
    part = Grounding.for_unet(unet, "canny", resize=64)
    maps = np.random.default_rng(0).uniform(-1, 1, (3, 3, 37, 50))
    extra = part.map_channels(maps, 9, 14)
    assert extra.shape == (3, 8, 9, 14)
    sites = part.sites(part.constants(part.maps(maps, [1, 1, 0])), 1.0, extra)
    with torch.no_grad():
        assert np.abs(called(unet, sites=sites) - called(unet)).max() < 1e-6


def test_people():
    unet = UNet2DConditionModel(**BASE)
    part = shaken(Grounding.for_unet(unet, "keypoints", people=2))
    body = [(0.0, 0.0)] * 17
    seen = [(0.1, 0.2), *body[1:]]
    tokens = part.keypoints([[seen], [], [body, seen]])
    assert tokens.counts == (1, 33)
    values = tokens.values
    assert torch.equal(values[1, 0], values[1, 1])
    assert not torch.allclose(values[0, 0], values[2, 0])  # the same point of another person
    assert part.keypoints([[], []]).counts == (34,)
    with pytest.raises(InputError, match="3 people; these weights take at most 2"):
        part.keypoints([[seen] * 3])
    with pytest.raises(InputError, match="17 points"):
        part.keypoints([[seen[:3]]])


def test_calls_that_do_not_fit_the_kind():
    unet = UNet2DConditionModel(**BASE)
    text, hed = Grounding.for_unet(unet, "text"), Grounding.for_unet(unet, "hed", resize=64)
    boxes = box_inputs("text-image", (1,))
    with pytest.raises(InputError, match=r"images are given.*'text-image' take both"):
        text.boxes(**boxes)
    with pytest.raises(InputError, match=r"for 'hed', not for boxes \('text', 'text-image'\)"):
        hed.boxes(**box_inputs("text", (1,)))
    with pytest.raises(InputError, match=r"31 boxes; .* at most 30 per image"):
        text.boxes(**box_inputs("text", (31,)))
    with pytest.raises(InputError, match=r"maps are \(1, 1, 8, 8\); needed are \(rows, 3,"):
        hed.maps(np.zeros((1, 1, 8, 8)), [1])
    ready = text.constants(text.boxes(**box_inputs("text", (1,))))
    with pytest.raises(InputError, match="no first convolution"):
        text.sites(ready, 1.0, torch.zeros(1, 5, 9, 14))
    with pytest.raises(InputError, match="attention_type='default'"):
        unet.lift_grounding()
    with pytest.raises(InputError, match=r"'hed'.*no place in a UNet folder"):
        unet.with_grounding(hed)
    wide = UNet2DConditionModel(**{**BASE, "cross_attention_dim": 12})
    with pytest.raises(InputError, match="trained for another UNet"):
        wide.with_grounding(text)


def test_inpainting_on_either_base():
    """A part lifted off a UNet with nine channels gives its numbers on one with four."""
    nine = shaken(UNet2DConditionModel(**{**GATED, "in_channels": 9}))
    part = nine.lift_grounding()
    four = UNet2DConditionModel(**BASE)
    state = nine.without_grounding().state_dict()
    state["conv_in.weight"] = torch.zeros_like(four.conv_in.weight)
    four.load_state_dict(state)
    whole = {k: torch.from_numpy(v) for k, v in call_inputs(9).items()}
    ready = part.constants(part.boxes(**box_inputs("text", (2, 0, 1))))
    x, t, context = whole["sample"], whole["timesteps"], whole["context"]
    for strength in (1.0, 0.0):
        theirs = nine(x, t, context, sites=part.sites(ready, strength)).sample
        sites = part.sites(ready, strength, x[:, 4:])
        ours = four(x[:, :4], t, context, sites=sites).sample
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_what_acts_beside_cross_attention_meets_no_fuser():
    """Defect 5 of diffusers, which gives an IP-Adapter to the fusers, too."""
    gated = shaken(UNet2DConditionModel(**GATED))
    seen = {}

    def places(unet, part=None):
        met = []

        def beside(nn, place, q):
            met.append(place)
            return q * 0

        sites = Sites(beside_cross_attention=(beside,))
        if part is not None:
            ready = part.constants(part.boxes(**box_inputs("text", (2, 0, 1))))
            sites = sites + part.sites(ready)
        called(unet, sites=sites)
        return met

    seen["plain"] = places(gated.without_grounding())
    assert len(seen["plain"]) == len(gated.grounding.config.fusers) == len(set(seen["plain"]))
    assert places(gated) == places(gated, gated.grounding) == seen["plain"]
