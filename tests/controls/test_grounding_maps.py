"""Keypoints and maps act, are per image, and leave the plain network when their gate has closed."""

import numpy as np
import pytest
import torch
from controls.test_grounding import EVER, PROMPTS, RED, opened
from PIL import Image
from pipelines import tiny
from pipelines.tiny import run

from underdraw import CannyMap, DepthMap, HEDMap, Keypoints, NormalMap, SemanticMap
from underdraw.controls import Control, Strength
from underdraw.errors import ControlError, InputError, InputTypeError
from underdraw.models import Grounding
from underdraw.networks.sites import Sites

SIZE = {"height": 40, "width": 72, "num_inference_steps": 4}
SMALL = {"resize": 32, "backbone_widths": (8, 12), "backbone_depths": (1, 1)}
POSE = np.random.default_rng(0).uniform(0.1, 0.9, (17, 2))
MAPS = {"hed": HEDMap, "canny": CannyMap, "depth": DepthMap, "normal": NormalMap}


def picture(seed=0, size=(31, 20)):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    return Image.fromarray(pixels)


def control(kind, seed=0, strength=EVER):
    if kind == "keypoints":
        return Keypoints([np.roll(POSE, seed, 0)], strength)
    if kind == "semantic":
        classes = np.random.default_rng(seed).integers(0, 5, (20, 31))
        return SemanticMap(classes, strength)
    return MAPS[kind](picture(seed), strength)


KINDS = ("keypoints", *MAPS, "semantic")


@pytest.fixture(scope="module")
def pipe():
    made = tiny.pipeline()
    for kind in KINDS:
        fields = {} if kind == "keypoints" else SMALL
        fields = {**fields, "classes": 5} if kind == "semantic" else fields
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            part = tiny.shake(Grounding.for_unet(made.unet, kind, **fields))
            for name, value in part.named_parameters():
                if "alpha" in name:
                    value.data.fill_(0.7)
                elif value.ndim > 1 and "position_net" in name:
                    value.data.normal_(0, 0.3)
        made.load_grounding(part)
    made.load_grounding(opened(made.unet))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_acts_and_stops(pipe, kind):
    plain = run(pipe, **SIZE)
    acted = run(pipe, **SIZE, controls=[control(kind)])
    assert (acted - plain).abs().max() > 1e-3 * plain.abs().max()
    assert not torch.equal(acted, run(pipe, **SIZE, controls=[control(kind, seed=1)]))
    never = control(kind, strength=(0, 0, 1))
    assert torch.equal(run(pipe, **SIZE, controls=[never]), plain)
    unguided = run(pipe, **SIZE, guidance_scale=1.0, controls=[control(kind)])
    assert torch.isfinite(unguided).all()


@pytest.mark.parametrize("kind", ["canny", "keypoints", "semantic"])
def test_the_first_convolution_is_back_when_the_gate_has_closed(pipe, kind):
    seen = []

    class Look(Control):
        def before_call(self, nn, carry, latents, call):
            return latents, Sites(down=(lambda nn, place, x: seen.append(x) or x,)), carry

    half = control(kind, strength=(0.5, 0, 0.5))
    ready = {}

    class Sniff(Control):
        def prepare(self, run):
            ready["carry"] = half.prepare(run)

        def before_call(self, nn, carry, latents, call):
            ready[call.index] = half.before_call(nn, ready["carry"], latents, call)[1]
            return latents, Sites(), carry

    run(pipe, **SIZE, controls=[Sniff(), Look()])
    open_, closed = ready[1], ready[2]
    assert len(open_.after_self_attention) == 1 and closed == Sites()
    assert (open_.conv_in is not None) == (kind != "keypoints")


@pytest.mark.parametrize("kind", ["canny", "semantic", "keypoints"])
def test_per_image(pipe, kind):
    if kind == "keypoints":
        both = Keypoints.per_image([POSE], [np.roll(POSE, 1, 0), POSE], strength=EVER)
        alone = [Keypoints([POSE], EVER), Keypoints([np.roll(POSE, 1, 0), POSE], EVER)]
    else:
        alone = [control(kind, seed) for seed in (0, 1)]
        both = type(alone[0])([one.image[0] for one in alone], EVER)
    batch = run(pipe, PROMPTS[:2], controls=[both], seed=[1, 2], **SIZE)
    for i, one in enumerate(alone):
        single = run(pipe, PROMPTS[i], controls=[one], seed=1 + i, **SIZE)
        assert (batch[i] - single[0]).abs().max() <= 1e-5 * single.abs().max()


def test_they_combine_but_for_two_first_convolutions(pipe):
    together = run(pipe, **SIZE, controls=[RED, control("keypoints"), control("depth")])
    for some in ([RED, control("depth")], [control("keypoints"), control("depth")]):
        assert not torch.equal(together, run(pipe, **SIZE, controls=some))
    with pytest.raises(ControlError, match="first convolution"):
        run(pipe, **SIZE, controls=[control("depth"), control("canny")])


def test_defaults_of_the_original():
    assert [MAPS[kind](picture()).strength.on for kind in MAPS] == [0.9, 0.9, 0.7, 0.7]
    assert SemanticMap(np.zeros((2, 2), int)).strength == Strength(0.7, 0, 0.3)
    assert Keypoints([POSE]).strength == Strength(0.3, 0, 0.7)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Keypoints([]), InputError, "is empty"),
        (lambda: Keypoints([POSE[:16]]), InputError, r"\(16, 2\)"),
        (lambda: Keypoints([POSE * 9]), InputError, "outside"),
        (lambda: Keypoints([POSE * np.nan]), InputError, "outside"),
        (lambda: Keypoints([POSE * 0]), InputError, "no point that is seen"),
        (lambda: Keypoints("nobody"), InputTypeError, "not a list of people"),
        (lambda: Keypoints.per_image(), InputError, "no images"),
        (lambda: DepthMap("depth.png"), InputTypeError, "str"),
        (lambda: DepthMap([]), InputError, "empty list"),
        (lambda: SemanticMap(np.zeros((2, 2))), InputTypeError, "integer"),
        (lambda: SemanticMap(np.zeros((2, 2, 1), int)), InputError, r"\(2, 2, 1\)"),
    ],
)
def test_wrong_values(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (SemanticMap(np.full((4, 4), 5)), "classes 5 .. 5; the attached weights know 0 .. 4"),
        (DepthMap([picture(), picture()]), "pictures for 2 images; the call makes 1"),
        (Keypoints([POSE] * 9), "9 people"),
    ],
)
def test_errors_before_denoising(pipe, made, message):
    with pytest.raises(InputError, match=message):
        run(pipe, controls=[made])
    with pytest.raises(InputError, match="attached: none"):
        run(tiny.pipeline(), controls=[made])
