"""Networks that wait in host memory: the same pictures, and nothing on the device but what is used.

There is no accelerator where these tests run. On "cpu:0" networks compute as they always do, so
that calls give the same bits; on a pretended one (`elsewhere`) devices cannot be mixed.
"""

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from controls import test_subject
from controls.test_grounding import opened
from controls.test_grounding_maps import SMALL
from pipelines import test_gligen as gligen, tiny
from pipelines.elsewhere import DEVICE, Accelerator, There
from pipelines.test_beginnings import masked, picture

import underdraw
from underdraw import Box, CannyMap, Keypoints, Region, Structure, schedulers
from underdraw.backends import hardware
from underdraw.errors import InputError, NonFiniteError
from underdraw.models import AutoencoderKL, CLIPImageProcessor, StableDiffusionSafetyChecker
from underdraw.pipelines.call.stream import fit_colours
from underdraw.pipelines.inversion import invert_pictures
from underdraw.sampling.inversion import FixedPoint, finish

SIZE = {"height": 24, "width": 40}
PROMPTS = ["a red sphere", "blue cube on the table"]
TEXT, UNET, VAE = {"text_encoder"}, {"unet"}, {"vae"}
POSE = [[(0.2 + 0.03 * i, 0.3 + 0.02 * i) for i in range(17)]]


class Case(NamedTuple):
    """Something to do with a pipeline, and which networks it uses, one after the other."""

    make: Callable[[], Any]
    do: Callable[[Any], Any]
    order: list[set[str]]


def run(pipe, *args, **arguments):
    return tiny.run(pipe, *args, **{"num_inference_steps": 2, **arguments})


def ddim():
    config = {"clip_sample": False, "set_alpha_to_one": False}
    return schedulers.DDIMScheduler(**tiny.SCHEDULE, **config)


def checked():
    config = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "patch_size": 8}
    config |= {"num_attention_heads": 2, "image_size": 32, "projection_dim": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        checker = tiny.shake(StableDiffusionSafetyChecker(**config))
    processor = CLIPImageProcessor(32, (32, 32))
    parts = {"safety_checker": checker, "feature_extractor": processor}
    return underdraw.StableDiffusionPipeline(**tiny.components(), **parts)


def grounded():
    pipe = tiny.pipeline()
    for kind in ("text", "canny", "keypoints"):
        pipe.load_grounding(opened(pipe.unet, kind, **(SMALL if kind == "canny" else {})))
    return pipe


def portraying():
    pipe = tiny.pipeline()
    pipe.load_subject(test_subject.encoder())
    return pipe


def diffedit(compat=None):
    parts = tiny.components(scheduler=ddim())
    return underdraw.StableDiffusionDiffEditPipeline(**parts, compat=compat)


def painter():
    return underdraw.StableDiffusionInpaintPipeline(**tiny.components(unet={"in_channels": 9}))


def mask_invert_and_call(pipe):
    steps, image = {"num_inference_steps": 2, "inpaint_strength": 1.0}, picture(24, 40)
    found = pipe.generate_mask(
        image,
        *(PROMPTS[1], "a cube"),
        source_prompt=PROMPTS[0],
        source_negative_prompt="green",
        num_maps_per_mask=2,
        num_inference_steps=2,
        seed=5,
    )
    drawn = torch.Generator().manual_seed(1)
    inverted = pipe.invert(
        PROMPTS[0], image, **steps, generator=drawn, output_type="np", decode_latents=True
    )
    made = pipe(PROMPTS[1], found, inverted.latents, **steps, output_type="np")
    return found, inverted.latents, inverted.images, made.images


def solved(pipe):
    options = {"num_inference_steps": 3, "method": FixedPoint(1e-3, 2)}
    return pipe.invert(PROMPTS[0], picture(24, 40), **options).latents


def edited(pipe):
    options = {"num_inference_steps": 2, "num_maps_per_mask": 2, "output_type": "np"}
    made = pipe.edit(picture(24, 40), *PROMPTS, **options)
    return made.images, made.mask_image, made.latents


def streamed(pipe):
    shown = []
    with closing(pipe.stream(PROMPTS[0], **SIZE, num_inference_steps=2, seed=4)) as steps:
        for step in steps:
            shown += [*step.preview(), *step.preview(full=True)]
    return [np.asarray(image) for image in [*shown, *steps.output.images]]


def embedded(pipe):
    given, _ = pipe.encode_prompt(PROMPTS[0], do_classifier_free_guidance=False)
    made = pipe(prompt_embeds=given, negative_prompt="green", num_inference_steps=2, seed=3)
    return given, np.asarray(made.images[0])


def painted_boxes(pipe):
    options = {"gligen_inpaint_image": gligen.photo(), "output_type": "np", **gligen.WIDE}
    return run(pipe, **{**gligen.CALL, "num_inference_steps": 2, **options})


def pictured_boxes(pipe):
    images = {"gligen_images": [gligen.photo((9, 9), 3), None], "num_images_per_prompt": 2}
    return run(pipe, **{**gligen.CALL, "num_inference_steps": 2, **images})


def controlled(pipe):
    canny = CannyMap(picture(24, 40))
    boxes = [Box("red sphere", (0.1, 0.2, 0.5, 0.6)), Box("green", (0.5, 0.4, 1.0, 1.0))]
    return run(pipe, PROMPTS, **SIZE, controls=[*boxes, canny, Keypoints(POSE)])


def kept(pipe):
    return run(pipe, **SIZE, controls=[Region(masked(24, 40), image=picture(24, 40))])


def inverted(pipe, **options):
    found = finish(
        invert_pictures(
            pipe, picture(24, 40), PROMPTS[0], num_inference_steps=3, strength=0.6, **options
        )
    )
    return found.latents, np.array(found.error.psnr)


def painted(pipe):
    call = {
        "image": picture(24, 40),
        "mask_image": masked(24, 40),
        "strength": 0.7,
        "output_type": "np",
    }
    return run(pipe, **call, **SIZE, num_inference_steps=3)


def steerable():
    pipe = tiny.pipeline()
    pipe.load_structure(tiny.controlnet(pipe.unet), name="edges")
    pipe.load_structure(tiny.adapter(), name="depth")
    return pipe


def steered(pipe):
    """A net that is attached, an adapter, and a net of the control's own."""
    nets = "edges", "depth", tiny.controlnet(pipe.unet, 6)
    return run(pipe, **SIZE, controls=[Structure(net, picture(24, 40)) for net in nets])


def along_maps():
    parts = tiny.components()
    nets = [tiny.controlnet(parts["unet"], seed) for seed in (5, 6)]
    return underdraw.StableDiffusionControlNetPipeline(**parts, controlnet=nets)


PARTS = {"text", "canny", "keypoints"}
CASES = {
    "text to image": Case(
        checked,
        lambda pipe: run(pipe, PROMPTS, **SIZE, output_type="np"),
        [TEXT, UNET, VAE, {"safety_checker"}],
    ),
    "embeddings": Case(tiny.pipeline, embedded, [TEXT, TEXT, UNET, VAE]),
    "img2img": Case(
        lambda: underdraw.StableDiffusionImg2ImgPipeline(**tiny.components()),
        lambda pipe: run(pipe, image=picture(24, 40), strength=0.6, num_inference_steps=3),
        [TEXT, VAE, UNET],
    ),
    "inpaint": Case(
        lambda: underdraw.StableDiffusionInpaintPipeline(**tiny.components()),
        painted,
        [TEXT, VAE, UNET, VAE],
    ),
    "inpaint, nine channels": Case(painter, painted, [TEXT, VAE, VAE, UNET, VAE]),
    "DiffEdit": Case(
        diffedit,
        mask_invert_and_call,
        [TEXT, TEXT, VAE, UNET, VAE, TEXT, UNET, *[VAE] * 2, TEXT, UNET, VAE],
    ),
    "DiffEdit as diffusers": Case(
        lambda: diffedit("diffusers"),
        mask_invert_and_call,
        [TEXT, TEXT, VAE, UNET, VAE, TEXT, UNET, *[VAE] * 2, TEXT, UNET, VAE],
    ),
    "edit": Case(diffedit, edited, [TEXT, TEXT, VAE, UNET, UNET, UNET, VAE]),
    "DiffEdit, solved": Case(diffedit, solved, [VAE, TEXT, UNET]),
    "inversion": Case(
        lambda: tiny.pipeline(scheduler=ddim()),
        lambda pipe: inverted(pipe, method=FixedPoint(1e-3, 3)),
        [VAE, TEXT, UNET | VAE, UNET | VAE],
    ),
    "GLIGEN, text and image": Case(
        lambda: gligen.made("text-image"),
        pictured_boxes,
        [TEXT, TEXT, {"image_encoder"}, {"image_project"}, {"grounding"}, UNET],
    ),
    "GLIGEN, inpainting": Case(
        gligen.made, painted_boxes, [TEXT, VAE, TEXT, {"grounding"}, UNET, VAE]
    ),
    "grounding controls": Case(
        grounded,
        controlled,
        [TEXT, TEXT, {"text"}, {"canny"}, {"keypoints"}, UNET | PARTS],
    ),
    "attached, not used": Case(grounded, run, [TEXT, UNET]),
    "structure": Case(
        steerable,
        steered,
        [TEXT, {"edges"}, {"depth"}, {"a net"}, UNET | {"edges", "depth", "a net"}],
    ),
    "ControlNets": Case(
        along_maps,
        lambda pipe: run(pipe, image=[picture(24, 40)] * 2),
        [TEXT, {"controlnet 0"}, {"controlnet 1"}, UNET | {"controlnet 0", "controlnet 1"}],
    ),
    "subjects": Case(
        portraying,
        lambda pipe: run(pipe, "a red sphere", **SIZE, controls=[test_subject.SPHERE]),
        [TEXT | {"subject"}, UNET],
    ),
    "region": Case(tiny.pipeline, kept, [TEXT, VAE, UNET]),
    "stream": Case(
        tiny.pipeline,
        streamed,
        [TEXT, *[UNET | VAE] * 3, VAE],
    ),
}


class Watch:
    """Which networks are on the device, by name: after each move, as it is told to a backend."""

    def __init__(self, pipe, monkeypatch):
        framework = pipe.parts.framework
        self.move, self.pipe = framework.move, pipe
        self.there: list[Any] = []
        self.seen: list[set[str]] = [set()]
        monkeypatch.setattr(framework, "move", self)

    def __call__(self, network, place):
        self.move(network, place)
        self.there = [one for one in self.there if one is not network]
        if str(place) != "cpu":
            self.there.append(network)
        names = {self._name(one) for one in self.there}
        if names != self.seen[-1]:
            self.seen.append(names)

    def _name(self, network):
        kinds = self.pipe.parts.attached.by_kind.values()
        named = {**self.pipe.components, **{k: v for kind in kinds for k, v in kind.items()}}
        several = getattr(self.pipe.components.get("controlnet"), "nets", ())
        named |= {f"controlnet {i}": one for i, one in enumerate(several)}
        other = "a net" if isinstance(network, underdraw.ControlNetModel) else "grounding"
        return next((name for name, one in named.items() if one is network), other)

    @property
    def peaks(self):
        """What was there together before some of it left, in order."""
        three = zip(self.seen, self.seen[1:], self.seen[2:], strict=False)
        return [now for before, now, after in three if before < now and after < now]


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def numbers(made):
    """All arrays of a result, on the host."""
    if isinstance(made, list | tuple):
        return [array for one in made for array in numbers(one)]
    if isinstance(made, There):
        made = made.held
    return [np.asarray(made.detach() if isinstance(made, torch.Tensor) else made)]


def is_home(pipe):
    return all(p.device.type == "cpu" for one in pipe.parts.networks for p in one.parameters())


@pytest.mark.parametrize("name", CASES)
def test_the_same_pictures_and_one_network_at_a_time(name, monkeypatch):
    make, do, order = CASES[name]
    pipe = quiet(make())
    plain = numbers(do(pipe))
    for device, mode, exact in (("cpu:0", nullcontext, True), ("meta", Accelerator, False)):
        pipe.enable_model_cpu_offload(device=device)
        with monkeypatch.context() as patch, mode():
            watch = Watch(pipe, patch)
            made = numbers(do(pipe))
        assert watch.seen[-1] == set() and is_home(pipe)
        assert watch.peaks == order
        for a, b in zip(made, plain, strict=True):
            if exact:
                np.testing.assert_array_equal(a, b)
            else:
                far = 1 if b.dtype == np.uint8 else 1e-3 * abs(b).max()
                np.testing.assert_allclose(a, b, atol=far, rtol=0)


# -- everything comes home -------------------------------------------------------------------------
@pytest.fixture
def pipe():
    pipe = tiny.pipeline()
    pipe.enable_model_cpu_offload(device="meta")
    return pipe


def is_there(network):
    return all(isinstance(p, There) for p in network.parameters())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_in_a_callback(pipe, error):
    def fails(pipe, index, *_):
        assert is_there(pipe.unet) and not is_there(pipe.vae)
        raise error("stop")

    with Accelerator(), pytest.raises(error, match="stop"):
        run(pipe, callback_on_step_end=fails)
    assert is_home(pipe) and not pipe.parts.offload.busy


def test_after_a_network_that_gives_nan():
    pipe = tiny.pipeline()
    pipe.vae.post_quant_conv.weight.data[0] = np.nan
    pipe.enable_model_cpu_offload(device="meta")
    with Accelerator(), pytest.raises(NonFiniteError, match="vae"):
        run(pipe, output_type="np")
    assert is_home(pipe)


@pytest.mark.parametrize("end", ["closed", "forgotten", "interrupted"])
def test_after_a_stream_that_ends_early(pipe, end):
    with Accelerator():
        steps = pipe.stream("a red sphere", num_inference_steps=3, seed=1)
        assert is_home(pipe)
        next(steps)
        assert is_there(pipe.unet) and not is_there(pipe.text_encoder)
        if end == "closed":
            steps.close()
        elif end == "interrupted":
            pipe._interrupt = True
            list(steps)
        del steps
        gc.collect()
    assert is_home(pipe) and not pipe.parts.offload.busy


def test_an_interrupted_move_is_made_up_for(pipe, monkeypatch):
    framework, expected = pipe.parts.framework, run(tiny.pipeline())
    real, stop = framework.move, []

    def move(network, place):
        if network is pipe.unet and stop and (str(place) == "cpu") is stop[0]:
            stop.clear()
            next(network.children()).to(place)
            raise KeyboardInterrupt
        real(network, place)

    monkeypatch.setattr(framework, "move", move)
    with Accelerator():
        for way_home in (False, True):
            stop.append(way_home)
            with pytest.raises(KeyboardInterrupt):
                run(pipe)
            assert is_home(pipe) is not way_home
            pipe.maybe_free_model_hooks()
            assert is_home(pipe) and not pipe.parts.offload.busy
        made = run(pipe).held
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-3)


def test_gradients_after_a_call_under_inference_mode(pipe):
    pipe.enable_model_cpu_offload(device="cpu:0")
    with torch.inference_mode():
        run(pipe)
    context = torch.ones((1, 3, tiny.WIDTH), requires_grad=True)
    pipe.unet(torch.ones((1, 4, 8, 8)), 1, context).sample.sum().backward()
    assert context.grad is not None and pipe.unet.conv_in.weight.grad is not None
    with torch.inference_mode():
        made = tiny.pipeline()
        made.enable_model_cpu_offload(device="cpu:0")
        assert torch.equal(run(made), run(made.to(torch.float64).to(torch.float32)))


# -- who shares it ---------------------------------------------------------------------------------
def test_threads_share_the_networks(pipe):
    expected = [run(tiny.pipeline(), seed=i) for i in range(2)]
    both, ended = threading.Barrier(2), threading.Event()

    def call(first):
        def meet(pipe, index, *_):
            if index == 0:
                both.wait(20)  # both are in their loops now
                assert first or ended.wait(20)
            assert is_there(pipe.unet)

        with Accelerator():
            made = run(pipe, seed=int(not first), callback_on_step_end=meet)
        if first:
            ended.set()
        return made.held

    made = tiny.together(lambda: call(True), lambda: call(False))
    for a, b in zip(made, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * float(b.abs().max()))
    assert is_home(pipe) and not pipe.parts.offload.busy


def test_other_pipelines_on_the_same_networks(pipe):
    other = underdraw.StableDiffusionImg2ImgPipeline.from_pipe(pipe, dtype=torch.float32)
    copied = copy.copy(pipe)
    assert other.parts.offload is pipe.parts.offload is copied.parts.offload
    with Accelerator():
        steps = pipe.stream("a red sphere", num_inference_steps=2, seed=1)
        next(steps)
        quiet(other)("a cube", picture(24, 40), num_inference_steps=2, output_type="latent")
        assert is_there(pipe.unet) and not is_there(pipe.vae)
        list(steps)
    assert is_home(pipe)
    for own in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert own.parts.offload is not pipe.parts.offload and own.device == DEVICE
        with Accelerator():
            assert isinstance(run(own), There)
        assert is_home(own)


def test_shared_layers_stay_while_any_owner_is_used():
    pipe = gligen.made()
    pipe.enable_model_cpu_offload(device="meta")
    with Accelerator(), pipe.parts.borrow(pipe.unet):
        with pipe.parts.borrow(pipe.unet.grounding, pipe.text_encoder, None):
            assert is_there(pipe.unet) and is_there(pipe.text_encoder)
        assert is_there(pipe.unet) and not is_there(pipe.text_encoder)
        with pipe.parts.borrow(pipe.unet):
            pass
        assert is_there(pipe.unet)
    assert is_home(pipe)
    part = pipe.unet.grounding
    with Accelerator(), pipe.parts.borrow(part):
        with pipe.parts.borrow(pipe.unet):
            pass
        assert is_there(part)
    assert is_home(pipe)


def test_weights_attached_later_wait_in_host_memory(pipe):
    part = opened(pipe.unet)
    with Accelerator():
        part.to("meta")
        pipe.load_grounding(part)
        assert is_home(pipe)
        assert isinstance(run(pipe, controls=[Box("green", (0.1, 0.1, 0.6, 0.9))]), There)
    assert is_home(pipe)


def test_colours_of_previews_need_the_autoencoder_alone(pipe, monkeypatch):
    with Accelerator():
        watch = Watch(pipe, monkeypatch)
        fit_colours(pipe.parts)
        assert watch.peaks == [VAE]


# -- on and off ------------------------------------------------------------------------------------
def test_off_again(pipe):
    expected = run(tiny.pipeline())
    assert pipe.device == pipe._execution_device == DEVICE and pipe.unet.device.type == "cpu"
    pipe.enable_model_cpu_offload(device="cpu:0")
    before = pipe.parts.offload
    pipe.enable_model_cpu_offload(0, "cpu")
    assert pipe.parts.offload is before and str(pipe.device) == "cpu:0"
    pipe.disable_model_cpu_offload()
    assert pipe.device == torch.device("cpu") and torch.equal(run(pipe), expected)
    assert pipe.to("cpu") is pipe and pipe.maybe_free_model_hooks() is None
    pipe.enable_model_cpu_offload(device="cpu")
    pipe.remove_all_hooks()
    assert pipe.parts.offload is None


def test_networks_on_an_accelerator_come_home_when_it_is_turned_on():
    pipe = tiny.pipeline()
    with Accelerator():
        pipe.to("meta")
        assert is_there(pipe.unet)
        pipe.enable_model_cpu_offload(device="meta")
        assert is_home(pipe)


def test_only_dtypes_may_change_while_it_is_on(pipe):
    for dtype in ({"dtype": torch.float64}, {"torch_dtype": torch.float32}):
        assert pipe.to(**dtype) is pipe
        assert pipe.dtype == next(iter(dtype.values()))
    pipe.to(torch.float64, non_blocking=True).to(torch.float32)
    for args, options in (
        (("cpu",), {}),
        ((torch.device("cpu"), torch.float32), {}),
        ((torch.zeros(1),), {}),
        ((), {"torch_device": "cpu"}),
    ):
        with pytest.raises(InputError, match=r"enable_model_cpu_offload, to 'meta:0'.*a dtype"):
            pipe.to(*args, **options)


def test_what_is_refused(pipe, monkeypatch, caplog):
    monkeypatch.setattr(hardware, "_count", lambda kind: int(kind == "cpu"))
    for arguments, words in (
        ({}, "device=None: this machine has no accelerator"),
        ({"gpu_id": 1}, "no accelerator"),
        ({"device": "cuda"}, "device='cuda' is not on this machine; allowed: cpu"),
        ({"device": "warp"}, "device='warp' is not a device; allowed: cpu, cuda"),
        ({"device": "cpu", "gpu_id": 1}, "device='cpu:1' is not on this machine"),
        ({"device": "cpu:0", "gpu_id": 0}, "gpu_id=0 and device='cpu:0' both"),
        ({"device": "cpu", "gpu_id": -1}, "gpu_id=-1 is too small"),
    ):
        with pytest.raises(InputError, match=words):
            pipe.enable_model_cpu_offload(**arguments)
        assert pipe.device == DEVICE
    pipe.enable_sequential_cpu_offload()  # no accelerator: a note, and nothing changes
    assert "changes nothing: device=None: this machine has no accelerator" in caplog.text
    assert pipe.device == DEVICE
    with Accelerator(), closing(pipe.stream("a red sphere", num_inference_steps=2)) as steps:
        next(steps)
        with pytest.raises(InputError, match=r"device='cpu:0': calls are in progress on 'meta:0'"):
            pipe.enable_model_cpu_offload(device="cpu")
    pipe.enable_model_cpu_offload(device="cpu")
    monkeypatch.setattr(hardware, "_count", lambda kind: int(kind in ("cpu", "cuda")) * 2)
    assert str(hardware.resolve_accelerator()) == "cuda:0"
    assert str(hardware.resolve_accelerator(1)) == "cuda:1"
    assert str(hardware.resolve_accelerator(None, "cuda:1")) == "cuda:1"


def test_other_backends_place_their_networks_themselves(pipe):
    pytest.importorskip("jax")
    pipe.disable_model_cpu_offload()
    pipe.vae = AutoencoderKL(**tiny.VAE, backend="jax")
    with pytest.raises(InputError, match=r"vae is on the backend 'jax'; networks of 'torch' alone"):
        pipe.enable_model_cpu_offload(device="cpu:0")
    assert pipe.parts.offload is None
