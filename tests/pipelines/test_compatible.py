"""What code written for diffusers finds in a pipeline."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines.tiny import run

from underdraw import StableDiffusionPipeline
from underdraw.errors import InputError, InputTypeError


def test_arguments_stand_in_the_places_of_the_peer():
    peer = pytest.importorskip("diffusers").StableDiffusionPipeline
    theirs = [
        p.name
        for p in inspect.signature(peer.__call__).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    ours = list(inspect.signature(StableDiffusionPipeline.__call__).parameters)
    assert ours[: len(theirs)] == theirs
    assert ours[len(theirs) : len(theirs) + 2] == ["callback", "callback_steps"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cross_attention_kwargs", {"scale": 0.5, "gligen": {}}),
        ("cross_attention_kwargs", {"scale": float("nan")}),
        ("cross_attention_kwargs", {"scale": True}),
        ("cross_attention_kwargs", {"scale": "0.5"}),
        ("cross_attention_kwargs", {"scales": 0.5}),
        ("cross_attention_kwargs", 0.5),
    ],
)
def test_what_controls_do_here_is_refused(pipe, name, value):
    plain = run(pipe)
    assert torch.equal(run(pipe, **{name: None}), plain)
    with pytest.raises(InputError, match=rf"{name}=.* allowed: None.*controls="):
        run(pipe, **{name: value})


@pytest.mark.parametrize("name", ["ip_adapter_image", "ip_adapter_image_embeds"])
def test_pictures_without_an_adapter_are_refused(pipe, name):
    with pytest.raises(InputError, match=rf"{name}: no IP-Adapter is attached.*load_ip_adapter"):
        run(pipe, **{name: [torch.ones(2)]})


@pytest.mark.parametrize("scale", [0.5, 0, np.float32(-2)])
def test_the_scale_of_layers_that_are_not_there_changes_nothing(pipe, scale):
    mine = {"scale": scale}
    assert torch.equal(run(pipe, cross_attention_kwargs=mine), run(pipe))
    assert mine == {"scale": scale}


def test_no_callback_steps_and_no_attention_arguments(pipe):
    seen = []
    made = run(
        pipe,
        callback=lambda i, *_: seen.append(i),
        callback_steps=None,
        cross_attention_kwargs={},
    )
    assert seen == [0, 1, 2]
    assert torch.equal(made, run(pipe, callback_steps=None))


def test_neutral_keywords_of_loading_and_saving(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "a", push_to_hub=False)
    none = "device_map use_onnx custom_pipeline provider resume_download proxies max_memory mirror"
    false = "output_loading_info trust_remote_code force_download"
    neutral = dict.fromkeys(none.split()) | dict.fromkeys(false.split(), False)
    neutral |= {"quantization_config": None, "low_cpu_mem_usage": True}
    made = StableDiffusionPipeline.from_pretrained(tmp_path / "a", **neutral)
    assert made.name_or_path == str(tmp_path / "a")
    with pytest.raises(InputTypeError, match="device_map='auto' is not supported"):
        StableDiffusionPipeline.from_pretrained(tmp_path / "a", device_map="auto")
    with pytest.raises(InputTypeError, match="push_to_hub=True is not supported"):
        pipe.save_pretrained(tmp_path / "b", push_to_hub=True)
    assert not (tmp_path / "b").exists()


def test_attributes_that_user_code_reads(pipe):
    assert pipe.vae_scale_factor == 8
    assert pipe.config["unet"] == ("diffusers", "UNet2DConditionModel")
    assert pipe.config["safety_checker"] == (None, None)
    assert pipe._execution_device == pipe.device
    assert pipe.maybe_free_model_hooks() is None
    seen = []

    def note(running, *_):
        seen.append((running.clip_skip, running.guidance_rescale, running.cross_attention_kwargs))

    run(pipe, clip_skip=1, guidance_rescale=0.3, num_inference_steps=1, callback_on_step_end=note)
    assert seen == [(1, 0.3, None)]


def test_prepared_latents_are_what_a_run_begins_with(pipe):
    generator = torch.Generator().manual_seed(4)
    latents = pipe.prepare_latents(3, 4, 40, 72, torch.float32, "cpu", generator)
    noise = torch.randn(3, 4, 5, 9, generator=torch.Generator().manual_seed(4))
    scale = getattr(pipe.scheduler, "init_noise_sigma", 1.0)
    assert torch.allclose(latents, noise * scale)
    assert torch.equal(pipe.prepare_latents(3, 4, 40, 72, latents=noise), noise * scale)


def test_the_image_processor_takes_pictures_there_and_back(pipe):
    pixels = (np.random.default_rng(0).random((2, 40, 72, 3)) * 255).round().astype(np.uint8)
    pictures = pipe.numpy_to_pil(pixels / 255)
    processor = pipe.image_processor
    array = processor.preprocess(pictures)
    assert array.shape == (2, 3, 40, 72)
    assert (array.min(), array.max()) == (-1, 1)
    back = processor.postprocess(array)
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip(back, pixels, strict=True))
    assert processor.postprocess(array, "latent") is array
    assert torch.equal(processor.preprocess(array), array)
    assert processor.preprocess(pictures[0].resize((77, 45))).shape == (1, 3, 40, 72)
    assert processor.preprocess(pictures[0], 24, 16).shape == (1, 3, 24, 16)
    with pytest.raises(InputTypeError, match="image holds a str"):
        processor.preprocess("a.png")


def test_the_mask_processor_reads_masks(pipe):
    mask = np.zeros((45, 77), np.uint8)
    mask[10:20, 30:50] = 255
    picture = Image.fromarray(mask)
    processor = pipe.mask_processor
    read = processor.preprocess(picture)
    assert read.shape == (1, 1, 40, 72) and set(read.unique().tolist()) == {0, 1}
    assert torch.equal(processor.preprocess(mask / 255, 40, 72), processor.preprocess(mask, 40, 72))
    assert processor.get_crop_region(picture, 64, 64, pad=2) == (28, 3, 52, 27)
    inside = picture.crop((28, 3, 52, 27))
    cropped = processor.preprocess(picture, 24, 24, crops_coords=(28, 3, 52, 27))
    assert np.array_equal(cropped[0, 0].numpy() * 255, np.asarray(inside))
    soft = np.asarray(processor.blur(picture, 3))
    assert len(np.unique(soft)) > 10 and soft.max() < 255
