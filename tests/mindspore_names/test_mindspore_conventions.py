"""How users of mindone make and call things, and what they are told where it cannot be."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny
from pipelines.test_from_single_file import write

import underdraw
from underdraw import mindspore as room
from underdraw.errors import InputError, InputTypeError
from underdraw.pipelines.base import DiffusionPipeline

ms = pytest.importorskip("mindspore")
CALL = {"num_inference_steps": 1, "height": 16, "width": 24, "prompt": "a red sphere"}
TUPLES = {
    name: getattr(room, name)
    for name in room.NAMES
    if hasattr(getattr(room, name), "forward") or hasattr(getattr(room, name), "stream")
}
BARE = {"CLIPImageProjection", "MultiAdapter", "MultiControlNetModel", "T2IAdapter"}
BARE |= {"StableDiffusionSafetyChecker", "DiffusionPipeline"}
"""Without `return_dict`."""


def noise(seed=3):
    return np.random.default_rng(seed)


def pixels():
    return ms.Tensor(np.zeros((1, 3, 16, 24), np.float32))


def moments():
    return ms.Tensor(np.zeros((1, 8, 2, 3), np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipeline")
    tiny.pipeline(unet=tiny.ONE_LEVEL).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def pipe(folder):
    made = room.StableDiffusionPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("name", sorted(TUPLES.keys() - BARE))
def test_tuples_by_default(name):
    kind = TUPLES[name]
    methods = [kind.__call__ if issubclass(kind, DiffusionPipeline) else kind.forward]
    methods += [
        getattr(kind, name) for name in ("invert", "decode", "encode") if name in vars(kind)
    ]
    for method in methods:
        assert inspect.signature(method).parameters["return_dict"].default is False


def test_tensors_in_and_out(pipe):
    made = pipe(**CALL, output_type="ms", generator=noise())
    assert isinstance(made, tuple) and len(made) == 2 and made[1] is None
    assert isinstance(made[0], ms.Tensor) and made[0].shape == (1, 3, 16, 24)
    latents = ms.Tensor(noise().standard_normal((1, 4, 2, 3)).astype(np.float32))
    again = pipe(**CALL, output_type="ms", latents=latents)[0]
    assert np.array_equal(made[0].asnumpy(), again.asnumpy())
    whole = pipe(**CALL, output_type="np", generator=[noise()], return_dict=True)
    assert isinstance(whole, underdraw.StableDiffusionPipelineOutput)
    assert np.array_equal(whole.images, made[0].asnumpy().transpose(0, 2, 3, 1))
    picture = pipe(CALL["prompt"], 16, 24, 1, output_type="pil", generator=noise())[0][0]
    assert np.abs(np.asarray(picture) / 255 - whole.images[0]).max() < 0.6 / 255


def test_steps_of_a_call_take_no_device(pipe):
    context, against = pipe.encode_prompt("a red sphere", 2, True, "blue")
    assert context.shape[0] == against.shape[0] == 2
    latents = pipe.prepare_latents(1, 4, 16, 24, ms.float32, noise())
    whole = pipe(
        **{**CALL, "prompt": None},
        prompt_embeds=context[:1],
        output_type="ms",
        negative_prompt_embeds=against[:1],
        generator=noise(),
    )[0]
    again = pipe(**CALL, negative_prompt="blue", generator=noise(), output_type="ms")[0]
    assert np.abs(whole.asnumpy() - again.asnumpy()).max() <= 1e-6
    expected = noise().standard_normal((1, 4, 2, 3)) * pipe.scheduler.init_noise_sigma
    assert np.abs(latents.asnumpy() - expected).max() <= 1e-5
    editor = room.StableDiffusionDiffEditPipeline.from_pipe(pipe)
    pixels = ms.Tensor(noise().uniform(-1, 1, (1, 3, 16, 24)).astype(np.float32))
    assert editor.prepare_image_latents(pixels, 1, ms.float32, noise()).shape == (1, 4, 2, 3)


def test_streams_follow(pipe):
    with pytest.raises(StopIteration):
        run = pipe.stream(**CALL, generator=noise(), output_type="ms")
        while True:
            next(run)
    images, flags = run.output
    assert isinstance(images, ms.Tensor) and flags is None


def test_folders_and_classes(folder, pipe, tmp_path):
    found = room.DiffusionPipeline.from_pretrained(str(folder), mindspore_dtype=ms.float16)
    assert type(found) is room.StableDiffusionPipeline
    assert found.dtype == ms.float16 and found.to(ms.float32).dtype == ms.float32
    for name in ("unet", "vae", "text_encoder"):
        assert isinstance(getattr(found, name), getattr(room, type(getattr(found, name)).__name__))
    found.save_pretrained(tmp_path)
    plain = underdraw.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(plain) is underdraw.StableDiffusionPipeline and plain.unet.nn.name == "torch"
    other = room.AutoPipelineForImage2Image.from_pretrained(tmp_path, mindspore_dtype="float16")
    assert type(other) is room.StableDiffusionImg2ImgPipeline and other.dtype == ms.float16
    shared = room.StableDiffusionInpaintPipeline.from_pipe(pipe)
    assert shared.unet is pipe.unet
    copied = room.DiffusionPipeline.from_pipe(plain)
    assert type(copied) is room.StableDiffusionPipeline and copied.unet.nn.name == "mindspore"
    here = underdraw.StableDiffusionPipeline.from_pretrained(folder, backend="mindspore")
    assert room.StableDiffusionPipeline.from_pipe(here).unet.conv_in is here.unet.conv_in


def test_single_files_and_copies(folder, pipe, tmp_path):
    path = tmp_path / "one.safetensors"
    write(folder, path)
    read = room.StableDiffusionPipeline.from_single_file(
        path, tokenizer=folder / "tokenizer", mindspore_dtype="float16"
    )
    assert read.dtype == ms.float16 and isinstance(read.vae, room.AutoencoderKL)
    alone = room.UNet2DConditionModel.from_single_file(path, mindspore_dtype=ms.float32)
    assert isinstance(alone, room.UNet2DConditionModel)
    kept = pickle.loads(pickle.dumps(alone))
    assert isinstance(kept, room.UNet2DConditionModel)
    for one in (alone, kept):
        assert np.array_equal(one.conv_in.weight.asnumpy(), pipe.unet.conv_in.weight.asnumpy())
    assert isinstance(copy.copy(pipe)(**CALL, output_type="latent", generator=noise()), tuple)


def test_networks(folder):
    unet = room.UNet2DConditionModel.from_pretrained(
        folder, subfolder="unet", mindspore_dtype=ms.float32
    )
    x = ms.Tensor(noise().standard_normal((2, 4, 2, 3)).astype(np.float32))
    context = ms.Tensor(noise().standard_normal((2, 7, tiny.WIDTH)).astype(np.float32))
    (bare,) = unet(x, 3, context)
    assert np.array_equal(unet(x, 3, context, return_dict=True).sample.asnumpy(), bare.asnumpy())
    vae = room.AutoencoderKL.from_pretrained(folder, subfolder="vae")
    pixels = ms.Tensor(noise().uniform(-1, 1, (2, 3, 16, 24)).astype(np.float32))
    moments = vae.encode(pixels)[0]
    assert moments.shape == (2, 8, 2, 3)
    drawn = vae.diag_gauss_dist.sample(moments, generator=noise(5))
    known = vae.encode(pixels, return_dict=True).latent_dist
    by_hand = known.mean + known.std * ms.Tensor(noise(5).standard_normal((2, 4, 2, 3)), ms.float32)
    assert np.abs(drawn.asnumpy() - by_hand.asnumpy()).max() <= 1e-6
    assert np.array_equal(vae.diag_gauss_dist.mode(moments).asnumpy(), known.mean.asnumpy())
    assert vae.diag_gauss_dist.kl(moments).shape == (2,)
    assert vae.diag_gauss_dist.nll(moments, drawn).shape == (2,)
    back = vae(pixels)[0]
    assert np.array_equal(back.asnumpy(), vae.decode(known.mode())[0].asnumpy())
    small = room.UNet2DConditionModel(**{**tiny.UNET, **tiny.ONE_LEVEL})
    assert small.nn.name == "mindspore" and type(small).__name__ == "UNet2DConditionModel"
    assert room.UNet2DConditionModel.from_config(small.export_config()).nn.name == "mindspore"


def test_processors(pipe):
    pixels = noise().uniform(0, 1, (2, 16, 24, 3)).astype(np.float32)
    tensor = room.VaeImageProcessor.numpy_to_ms(pixels)
    assert isinstance(tensor, ms.Tensor) and tensor.shape == (2, 3, 16, 24)
    for one in (room.VaeImageProcessor(), pipe.image_processor):
        read = one.preprocess(tensor)
        assert isinstance(read, ms.Tensor)
        assert np.abs(read.asnumpy() - (tensor * 2 - 1).asnumpy()).max() <= 1e-6
        back = one.postprocess(read, "ms")
        assert np.abs(room.VaeImageProcessor.ms_to_numpy(back) - pixels).max() <= 1e-6
        assert one.postprocess(read, "pil")[1].size == (24, 16)
    plain = room.VaeImageProcessor.denormalize(room.VaeImageProcessor.normalize(tensor))
    assert np.abs(plain.asnumpy() - tensor.asnumpy()).max() <= 1e-6
    half = np.zeros((16, 24), np.float32)
    half[:, :10] = 1
    (mask,) = room.IPAdapterMaskProcessor().preprocess([Image.fromarray(half * 255).convert("L")])
    assert isinstance(mask, ms.Tensor) and np.array_equal(mask.asnumpy()[0], half)


def test_a_step_of_a_scheduler_by_hand():
    """Its output answers to `[0]`, as mindone's tuple does; noise is numpy's."""
    made = []
    for kind in (ms.Tensor, torch.from_numpy):
        solver = room.EulerAncestralDiscreteScheduler(**tiny.SCHEDULE)
        solver.set_timesteps(3)
        x = kind(noise(1).standard_normal((2, 4, 2, 3)).astype(np.float32))
        made.append(solver.step(x * 0.1, solver.timesteps[0], x, generator=noise(2))[0])
    assert np.abs(made[0].asnumpy() - made[1].numpy()).max() <= 1e-5


WRONG = [
    (lambda p, f: p(**CALL, generator=3), InputTypeError, "np.random.Generator"),
    (lambda p, f: p(**CALL, generator=[noise()] * 2), InputError, "generator has 2 entries"),
    (lambda p, f: p(**CALL, output_type="mindspore"), InputError, "output_type"),
    (lambda p, f: p(**CALL, return_dict=3), InputTypeError, "return_dict"),
    (lambda p, f: p.from_pretrained(f, backend="torch"), InputError, "backend='torch'"),
    (lambda p, f: p.from_pretrained(f, mindspore_dtype="int3"), InputError, "mindspore_dtype"),
    (lambda p, f: p.from_pretrained(f, mindspore_dtype=3), InputTypeError, "mindspore_dtype"),
    (
        lambda p, f: p.from_pretrained(f, mindspore_dtype="float32", dtype="float16"),
        InputError,
        "mindspore_dtype and dtype are both given",
    ),
    (lambda p, f: p.from_pretrained(f, device="cuda"), InputError, "device='cuda'"),
    (lambda p, f: room.DiffusionPipeline.from_single_file(f), InputTypeError, "single file"),
    (lambda p, f: room.UNet2DConditionModel(backend="jax"), InputError, "backend='jax'"),
    (lambda p, f: p.from_pipe(3), InputTypeError, "pipeline=3"),
    (lambda p, f: room.UNet2DConditionModel(backend=np.ones(2)), InputError, "backend="),
    (lambda p, f: room.DiffusionPipeline.from_pretrained(3), InputTypeError, "name_or_path=3"),
    (lambda p, f: room.VaeImageProcessor.numpy_to_ms(np.ones(3)), InputError, "3 or 4 axes"),
    (lambda p, f: p.vae.encode(3), InputTypeError, "x is int"),
    (lambda p, f: p.vae.encode(pixels(), return_dict=3), InputTypeError, "return_dict=3"),
    (lambda p, f: p.vae.diag_gauss_dist.mode(3), InputTypeError, "parameters is int"),
    (lambda p, f: p.vae.diag_gauss_dist.mode(pixels()), InputError, "stacked"),
    (lambda p, f: p.vae.diag_gauss_dist.sample(moments(), 3), InputTypeError, "generator=3"),
    (lambda p, f: p.vae.diag_gauss_dist.kl(moments(), pixels()), InputError, "other has shape"),
    (lambda p, f: p.vae.diag_gauss_dist.nll(moments(), 3), InputTypeError, "sample is int"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_what_cannot_be(pipe, folder, call, error, message):
    with pytest.raises(error, match=message):
        call(pipe, folder)


def test_names_that_are_elsewhere():
    with pytest.raises(ImportError, match="out of scope"):
        from underdraw.mindspore import StableDiffusionXLPipeline  # noqa: F401  # pyright: ignore
    with pytest.raises(AttributeError, match="did you mean 'DDIMScheduler'"):
        _ = room.DDIMSchedule
    public = {name for name in underdraw.__all__ if not name.startswith("Flax")}
    ours = set(room.NAMES)
    kinds = ("Pipeline", "Processor", "Scheduler", "Model", "Checker", "Autoencoder", "Image2Image")
    missing = {one for one in public - ours if one.endswith(kinds)}
    assert not missing
