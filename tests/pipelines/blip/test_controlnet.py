"""`BlipDiffusionControlNetPipeline` beside what diffusers 0.33.1 gave."""

import warnings

import numpy as np
import pytest
import torch
from engines.test_compiled import by_dynamo
from PIL import Image
from pipelines import tiny
from pipelines.blip import recorded

import underdraw
from underdraw import BlipDiffusionControlNetPipeline, Structure, Subject
from underdraw.engines.compiled import Regional
from underdraw.models import MultiControlNetModel

record = recorded.record
BOUND = 1e-5


def made(backend="torch", **changes):
    net = recorded.shared(backend)["controlnet"]
    changes = {"controlnet": net, **changes}
    return recorded.pipeline(BlipDiffusionControlNetPipeline, backend, **changes)


@pytest.fixture(scope="module")
def pipe():
    return made()


def call(pipe, **changes):
    given = {"condtioning_image": recorded.edges(), "output_type": "latent", **changes}
    return pipe(**recorded.arguments("three", pipe, **given)).images


@pytest.mark.parametrize("name", ["three", "one_unguided", "one_ddim"])
def test_pictures_are_diffusers(pipe, name):
    given = recorded.arguments(name, pipe, condtioning_image=recorded.edges())
    images = pipe(**given).images
    assert np.abs(images - recorded.arrays()[f"controlled_{name}"]).max() <= BOUND
    assert np.abs(images - recorded.arrays()[name]).max() > 0.1


@pytest.fixture(scope="module")
def shallow():
    """A UNet and a net beside it that compile in a third of the time; deep ones are compared in
    `networks/`."""
    unet = underdraw.UNet2DConditionModel(**{**record.UNET, **tiny.ONE_LEVEL}).eval()
    return unet, tiny.controlnet(unet, conditioning_embedding_out_channels=(4, 8))


def test_compiled_blocks(shallow):
    torch.compiler.reset()
    pipe, pair = made(unet=shallow[0], controlnet=shallow[1]), []
    for engine in (None, Regional(by_dynamo([]))):
        pipe.engine = engine
        pair.append(call(pipe, num_inference_steps=2))
    assert (pair[0] - pair[1]).abs().max() <= 1e-4 * pair[0].abs().max()


@pytest.mark.parametrize(
    ("changes", "equal"),
    [
        ({"conditioning_image": recorded.edges(), "condtioning_image": None}, True),
        ({"condtioning_image": [recorded.edges()] * 3}, True),
        ({"condtioning_image": [recorded.edges(), *recorded.pictures(2)]}, False),
        ({"controlnet_conditioning_scale": [1.0, 1.0, 0.0]}, False),
        ({"control_guidance_end": 0.5}, False),
        ({"guess_mode": True}, False),
    ],
)
def test_arguments(pipe, changes, equal):
    usual, other = call(pipe), call(pipe, **changes)
    assert bool((usual - other).abs().max() <= BOUND * usual.abs().max()) is equal
    assert (usual[0] - other[0]).abs().max() <= BOUND * usual.abs().max() or not equal


def test_two_nets_and_the_same_as_controls(pipe):
    net, size = pipe.controlnet, (record.SIDES[1], record.SIDES[0])
    twice = made(controlnet=MultiControlNetModel([net, net]))
    halves = call(
        twice,
        condtioning_image=[recorded.edges(), recorded.edges()],
        controlnet_conditioning_scale=[0.5, 0.5],
    )
    assert (halves - call(pipe)).abs().max() <= BOUND * halves.abs().max()
    # The other way: the pipeline without a net, and a control.
    map_ = recorded.edges().resize(size, Image.Resampling.BICUBIC)
    plain = recorded.pipeline()
    given = recorded.arguments("three", plain, output_type="latent")
    other = plain(**given, controls=[Structure(net, map_)]).images
    assert (other - call(pipe)).abs().max() <= BOUND * other.abs().max()


def test_folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = underdraw.DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again).__name__ == "BlipDiffusionControlNetPipeline"
    assert torch.equal(call(again), call(pipe))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condtioning_image": None}, "conditioning_image=None; give a map"),
        ({"conditioning_image": recorded.edges()}, "are both given; only one of them"),
        (
            {"condtioning_image": [recorded.edges()] * 2},
            "condtioning_image has 2 maps; there are 3 prompts",
        ),
        (
            {"condtioning_image": torch.full((3, 24, 36), torch.nan)},
            "condtioning_image has values from nan",
        ),
        ({"controlnet_conditioning_scale": float("nan")}, "controlnet_conditioning_scale="),
        ({"control_guidance_start": 0.9, "control_guidance_end": 0.1}, "is not below"),
        ({"guess_mode": 2}, "guess_mode=2 is not a switch"),
    ],
)
def test_bad_calls(pipe, changes, message):
    with pytest.raises((underdraw.InputError, underdraw.InputTypeError), match=message):
        call(pipe, **changes)


def test_a_net_for_another_base():
    net = underdraw.ControlNetModel(**{**record.CONTROLNET, "cross_attention_dim": 48})
    with pytest.raises(underdraw.InputError, match="cross_attention_dim=48; the UNet has 24"):
        made(controlnet=net)


def test_a_subject_in_any_pipeline_with_a_net(pipe):
    """Two subjects and a map in one call, in a batch whose images differ."""
    prompts = ["a red cube on the table", "a green sphere of the table and a cube"]
    one = Subject(recorded.pictures()[0], "red ball", word="cube")
    two = Subject(recorded.pictures()[1], "toy", word="sphere", prompts=(1,))
    plain = recorded.pipeline()
    sizes = {"height": 24, "width": 36, "num_inference_steps": 3, "output_type": "latent"}
    sd = underdraw.StableDiffusionControlNetPipeline
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the recorded scheduler has no offset
        host = sd.from_pipe(plain, controlnet=pipe.controlnet)
    host.load_subject(plain.qformer)
    host.scheduler = recorded.scheduler("DDIMScheduler")
    both = host(prompts, recorded.edges(), seed=[3, 4], controls=[one, two], **sizes).images
    for i, acting in enumerate(
        [[one], [one, Subject(recorded.pictures()[1], "toy", word="sphere")]]
    ):
        alone = host(prompts[i], recorded.edges(), seed=3 + i, controls=acting, **sizes).images
        assert (both[i] - alone[0]).abs().max() <= BOUND * both.abs().max()
