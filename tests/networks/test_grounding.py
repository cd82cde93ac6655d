"""Grounding parts by themselves: null tokens, gates, and the modalities no peer has.

For those the reference is written here in float64, from the paper and the original's architecture.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backends.harness import INSTALLED, give, relative, take, tree, values
from networks.configs import PUBLISHED_UNETS, SD15_UNET, SIZE
from networks.grounded import (
    SMALL,
    Grounded,
    box_inputs,
    call_inputs,
    map_inputs,
    point_inputs,
    run_grounded,
    run_tokens,
)

from underdraw import backends
from underdraw.backends.shapes import Shape, trace
from underdraw.errors import ControlError, InputError
from underdraw.networks import unet
from underdraw.networks.config import read
from underdraw.networks.gligen import grounding, maps as grounding_maps, sites as grounding_sites
from underdraw.networks.gligen.config import KINDS, MAPS, GroundingConfig

TEXT = Grounded("text")


def inputs_of(case):
    if case.kind == "keypoints":
        return point_inputs((4, 0, 2), case.config.people)
    if case.kind in MAPS:
        return map_inputs(case.config)
    return box_inputs(case.kind, (2, 0, 1))


def test_null_tokens_stand_for_padding():
    """Padding by hand gives the same; leaving the null tokens out does not."""
    tensors, few = values(TEXT.layout), box_inputs("text", (2, 0, 1))
    padded = {
        name: np.pad(v, [(0, 0), (0, 30 - v.shape[1]), *((0, 0) for _ in v.shape[2:])])
        for name, v in few.items()
    }
    ours = run_grounded("torch", TEXT, tensors, few)
    assert relative(ours, run_grounded("torch", TEXT, tensors, padded)) <= 2e-6
    assert run_tokens("torch", TEXT, tensors, few)[1] == (1, 1, 28)
    assert run_tokens("torch", TEXT, tensors, padded)[1] == (1,) * 30
    p = tree("torch", TEXT.layout, tensors)
    nn = backends.get("torch").operations
    given = {name: give("torch", v) for name, v in few.items()}
    tokens = grounding.box_tokens(nn, p, TEXT.config, **given)
    ready = grounding.constants(nn, p, TEXT.config, tokens)
    assert ready.bias.tolist() == pytest.approx([0, 0, math.log(28)])


def test_rows_do_not_touch_each_other():
    """Each image of a batch has its own boxes, as if it were alone."""
    tensors, counts = values(TEXT.layout), (3, 0, 1)
    together = box_inputs("text", counts)
    call = call_inputs()
    ours = run_grounded("torch", TEXT, tensors, together, call)
    for row, count in enumerate(counts):
        alone = {k: v[row : row + 1, :count] for k, v in together.items()}
        one = {k: v[row : row + 1] for k, v in call.items()}
        assert relative(run_grounded("torch", TEXT, tensors, alone, one)[0], ours[row]) <= 3e-6


def test_strength():
    """A number for all rows, or one per row; 0 is the plain network, bit for bit."""
    tensors, inputs = values(TEXT.layout), box_inputs("text", (2, 1, 1))
    each = [run_grounded("torch", TEXT, tensors, inputs, strength=s) for s in (0.0, 0.4, 1.0)]
    p, nn = tree("torch", TEXT.layout, tensors), backends.get("torch").operations
    call = {k: give("torch", v) for k, v in call_inputs().items()}
    time = unet.embed_time(nn, p, TEXT.unet, call["timesteps"], call["sample"])
    plain = unet.unet(nn, p, TEXT.unet, call["sample"], time, call["context"])
    assert np.array_equal(each[0], take("torch", plain))
    assert relative(each[1], each[0]) > 1e-3 < relative(each[2], each[1])
    mixed = torch.tensor([0.0, 0.4, 1.0])[:, None, None]
    together = run_grounded("torch", TEXT, tensors, inputs, strength=mixed)
    for row, alone in enumerate(each):
        assert relative(together[row], alone[row]) <= 3e-6


def test_one_row_serves_all_and_halves_can_be_taken():
    tensors = values(TEXT.layout)
    p, nn = tree("torch", TEXT.layout, tensors), backends.get("torch").operations
    given = {k: give("torch", v) for k, v in box_inputs("text", (2, 1)).items()}
    tokens = grounding.box_tokens(nn, p, TEXT.config, **given)
    ready = grounding.constants(nn, p, TEXT.config, tokens)
    place, width, heads = TEXT.config.fusers[0]
    x = torch.randn(3, 6, width)
    fuser = p.down_blocks[0].attentions[0].transformer_blocks[0].fuser
    second = ready.rows(1, 2)
    one = grounding.fuse(nn, fuser, x, second.keys[place], second.bias, heads)
    k, v = (part.expand(3, -1, -1, -1) for part in second.keys[place])
    assert torch.equal(one, grounding.fuse(nn, fuser, x, (k, v), second.bias, heads))


@pytest.mark.parametrize("name", [name for name in INSTALLED if name != "torch"])
@pytest.mark.parametrize("kind", ["keypoints", "normal", "semantic"])
def test_tokens_on_every_backend(name, kind):
    """That fusers agree is tested with boxes, in `peer/` and `test_mindspore.py`."""
    case = Grounded(kind)
    tensors, inputs = values(case.layout), inputs_of(case)
    ours, counts = run_tokens("torch", case, tensors, inputs)
    theirs, same = run_tokens(name, case, tensors, inputs)
    assert counts == same
    assert relative(theirs, ours) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_do_not_depend_on_sizes(kind):
    case = Grounded(kind)
    c = case.config

    def program(nn, p):
        shapes = {name: Shape(*value.shape) for name, value in inputs_of(case).items()}
        maps = grounding_maps
        if kind == "keypoints":
            tokens = maps.keypoint_tokens(nn, p, c, **shapes)
        elif kind in MAPS:
            tokens = maps.map_tokens(nn, p, c, shapes["maps"], shapes["present"])
        else:
            tokens = grounding.box_tokens(nn, p, c, **shapes)
        extra = maps.map_channels(nn, p, c, shapes["resized"]) if kind in MAPS else None
        ready = grounding.constants(nn, p, c, tokens)
        sites = grounding_sites.sites(p, c, ready, 1.0, extra)
        x = Shape(3, 4, *SIZE)
        time = unet.embed_time(nn, p, case.unet, Shape(3), x)
        unet.unet(nn, p, case.unet, x, time, Shape(3, 5, case.unet.cross_attention_dim), sites)

    assert dict(trace(program).leaves) == dict(case.layout.leaves)


# -- keypoints and maps against a plain float64 reading of the original
def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def perceptron(w, x):
    for i in (0, 2):
        x = F.silu(linear(w, f"position_net.linears.{i}", x))
    return linear(w, "position_net.linears.4", x)


def doubled(tensors):
    return {name: torch.from_numpy(value).double() for name, value in tensors.items()}


@pytest.mark.parametrize("counts", [(5, 0, 2), (0, 0, 0), (51, 3, 0)], ids=str)
def test_keypoints(counts):
    """All slots as the original lays them out, those not seen replaced by null features."""
    case = Grounded("keypoints")
    tensors = values(case.layout)
    inputs = point_inputs(counts, case.config.people)
    ours, weights = run_tokens("torch", case, tensors, inputs)
    assert sum(weights) == 51
    w = doubled(tensors)
    whose, which = w["position_net.person_embeddings"], w["position_net.keypoint_embeddings"]
    null = torch.cat((w["position_net.null_person_feature"], w["position_net.null_xy_feature"]))
    for row, count in enumerate(counts):
        for k in range(ours.shape[1]):
            feature = null
            if k < count:
                person = inputs["person"][row, k].argmax()
                joint = inputs["joint"][row, k].argmax()
                x, y = inputs["points"][row, k].astype(np.float64)
                waves = [
                    f(100 ** (i / 8) * v)
                    for i in range(8)
                    for f in (math.sin, math.cos)
                    for v in (x, y)
                ]
                feature = torch.cat((whose[person] + which[joint], torch.tensor(waves).double()))
            assert relative(ours[row, k], perceptron(w, feature)) <= 1e-5


def image_features(w, config, x):
    """ConvNeXt without its last norm and head."""

    def channels_normed(name, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        scale, shift = (w[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        return (x - mean) / (variance + 1e-6).sqrt() * scale + shift

    def convolved(name, x, **how):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **how)

    net = "position_net.convnext_tiny_backbone"
    for i, depth in enumerate(config.backbone_depths):
        down = f"{net}.downsample_layers.{i}"
        if i == 0:
            x = channels_normed(f"{down}.1", convolved(f"{down}.0", x, stride=4))
        else:
            x = convolved(f"{down}.1", channels_normed(f"{down}.0", x), stride=2)
        for j in range(depth):
            block = f"{net}.stages.{i}.{j}"
            h = convolved(f"{block}.dwconv", x, padding=3, groups=x.shape[1])
            h = channels_normed(f"{block}.norm", h).movedim(1, -1)
            h = linear(w, f"{block}.pwconv2", F.gelu(linear(w, f"{block}.pwconv1", h)))
            x = x + (w[f"{block}.gamma"] * h).movedim(-1, 1)
    return x


@pytest.mark.parametrize("kind", MAPS)
def test_maps(kind):
    case = Grounded(kind)
    c, tensors = case.config, values(case.layout)
    inputs = map_inputs(c)
    ours, counts = run_tokens("torch", case, tensors, inputs)
    assert counts == (1,) * c.map_tokens == (1,) * 4
    w = doubled(tensors)
    x = F.interpolate(torch.from_numpy(inputs["maps"]).double(), c.resize)
    if kind == "semantic":
        x = F.conv2d(x, w["position_net.in_conv.weight"], w["position_net.in_conv.bias"], padding=1)
    x = image_features(w, c, x).flatten(2).movedim(1, 2)
    x[2] = w["position_net.null_feature"]
    assert relative(ours, perceptron(w, x + w["position_net.pos_embedding"])) <= 1e-5

    p, nn = tree("torch", case.layout, tensors), backends.get("torch").operations
    extra = grounding_maps.map_channels(nn, p, c, give("torch", inputs["resized"]))
    assert extra.shape == (3, c.extra_channels, *SIZE)
    small = torch.from_numpy(inputs["resized"]).double()
    if kind == "hed":
        assert torch.equal(extra.double(), small[:, :1])
        return
    small = small if kind in ("normal", "semantic") else small[:, :1]
    for i in (0, 2):
        layer = f"downsample_net.layers.{i}"
        small = F.conv2d(small, w[f"{layer}.weight"], w[f"{layer}.bias"], stride=2, padding=1)
        small = F.silu(small) if i == 0 else small
    assert relative(take("torch", extra), small) <= 1e-5


@pytest.mark.parametrize("sizes", [(37, 9), (50, 56), (9, 9), (512, 64)], ids=str)
def test_cubic_interpolation_is_that_of_training(sizes):
    size, wanted = sizes
    x = torch.randn(1, 1, size, 3, dtype=torch.float64)
    theirs = F.interpolate(x, (wanted, 3), mode="bicubic")
    matrix = torch.tensor(grounding_maps.bicubic(size, wanted), dtype=torch.float64)
    assert relative(matrix @ x, theirs) <= 1e-12


def test_the_first_convolution_goes_with_the_gate():
    """Open: latents and map together. Closed: the UNet's own, which a map never touches."""
    case = Grounded("hed")
    tensors, inputs = values(case.layout), inputs_of(case)
    p, nn = tree("torch", case.layout, tensors), backends.get("torch").operations
    extra = give("torch", inputs["resized"])[:, :1]
    ready = grounding.Constants({}, None)
    closed = grounding_sites.sites(p, case.config, ready, 0.0, extra)
    assert closed.conv_in is None
    assert not closed.after_self_attention
    opened = grounding_sites.sites(p, case.config, ready, 0.5, extra).conv_in
    x = torch.randn(3, 4, *SIZE)
    both = F.conv2d(torch.cat((x, extra), 1), p.conv_in.weight, p.conv_in.bias, padding=1)
    assert torch.allclose(opened(nn, None, x), both, atol=1e-6)
    one = grounding_maps.FirstConvolution(p, case.config, extra[:1])
    assert torch.allclose(one(nn, None, x)[0], both[0], atol=1e-6)
    with pytest.raises(ControlError, match=r"FirstConvolution\(hed\) adds \(3, 1, 4, 4\)"):
        grounding_sites.sites(p, case.config, ready, 1.0, extra[:, :, :4, :4]).conv_in(nn, None, x)
    # What an inpainting part adds is the picture itself: it stays when the gate is closed.
    inpainting = GroundingConfig.for_unet(case.unet, "text", extra_channels=5)
    kept = grounding_sites.sites(p, inpainting, ready, 0.0, torch.zeros(3, 5, *SIZE))
    assert kept.conv_in is not None
    assert not kept.after_self_attention


# -- which UNets it fits
def test_sizes_of_the_original():
    """Blocks and parameters of GLIGEN on Stable Diffusion 1.4 (209 million new ones)."""
    base = read(unet.UNetConfig, SD15_UNET)
    config = GroundingConfig.for_unet(base, "text")
    assert config == GroundingConfig(fusers=config.fusers)
    assert len(config.fusers) == 16
    assert {(width, heads) for _, width, heads in config.fusers} == {
        (320, 8),
        (640, 8),
        (1280, 8),
    }
    blocks = {leaf.rpartition(".")[0] for leaf in unet.layout(base).paths_ending("norm1")}
    assert {place for place, _, _ in config.fusers} == {b for b in blocks if "attentions" in b}
    count = sum(math.prod(s) for s in grounding_sites.layout(config).shapes.values())
    assert count == 209_102_240
    assert GroundingConfig.for_unet(base, "hed").extra_channels == 1
    assert GroundingConfig.for_unet(base, "depth").extra_channels == 8


def test_another_unet_is_refused():
    first = read(unet.UNetConfig, SD15_UNET)
    second = read(unet.UNetConfig, PUBLISHED_UNETS["stable-diffusion-2-1"])
    config = GroundingConfig.for_unet(first, "text")
    config.require_fit(first)
    with pytest.raises(InputError) as error:
        config.require_fit(second)
    text = str(error.value)
    assert "320 (8 heads), 640 (8 heads), 1280 (8 heads) in 16 transformer blocks" in text
    assert "this UNet has widths 320 (5 heads)" in text
    assert "phrases of width 768; this UNet's text encoder gives 1024" in text
    with pytest.raises(InputError, match=r"a first convolution 4\+8 -> 320"):
        inpainting = read(unet.UNetConfig, {**SD15_UNET, "in_channels": 9})
        GroundingConfig.for_unet(first, "depth").require_fit(inpainting)


def test_inpainting_parts_fit_both_kinds_of_base():
    """The base takes all nine channels itself, or leaves them to the part's first convolution."""
    four = read(unet.UNetConfig, SD15_UNET)
    nine = read(unet.UNetConfig, {**SD15_UNET, "in_channels": 9})
    config = GroundingConfig.for_unet(four, "text", extra_channels=5)
    config.require_fit(four)
    config.require_fit(nine)
    GroundingConfig.for_unet(nine, "text").require_fit(four)


def test_a_plain_unet_says_what_it_lacks():
    """Defect 6 of diffusers: there it is an attribute error."""
    plain = read(unet.UNetConfig, SD15_UNET)
    with pytest.raises(InputError) as error:
        GroundingConfig.for_unet(plain)
    assert "attention_type='default'" in str(error.value)
    assert "'gated' or 'gated-text-image'" in str(error.value)
    assert "load_grounding" in str(error.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"kind": "pose"}, "kind='pose'.*'keypoints'"),
        ({"fusers": (("mid", 10, 3),)}, "heads of mid=3"),
        ({"kind": "hed", "backbone_depths": (1, 1)}, "backbone_depths"),
        ({"kind": "hed", "resize": 100}, "resize=100"),
    ],
)
def test_configs_that_cannot_be(fields, message):
    with pytest.raises(InputError, match=f"grounding config: .*{message}"):
        GroundingConfig(**fields)


def test_configs_survive_json():
    config = GroundingConfig.for_unet(read(unet.UNetConfig, SD15_UNET), "semantic", **SMALL)
    assert read(GroundingConfig, config.to_dict()) == config
