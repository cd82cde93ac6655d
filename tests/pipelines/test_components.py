"""Components: their dtypes, what may take their place, copies of a whole pipeline."""

import copy
import json

import numpy as np
import pytest
import torch
from pipelines import tiny
from pipelines.tiny import run

import underdraw
from underdraw import DiffusionPipeline, StableDiffusionPipeline
from underdraw.errors import InputError, InputTypeError
from underdraw.models import AutoencoderKL

SIZE = {"height": 40, "width": 72}


@pytest.mark.parametrize("name", ["vae", "unet", "text_encoder"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_one_network_in_another_dtype(name, dtype):
    pipe = tiny.pipeline()
    plain = pipe("a red sphere", seed=3, num_inference_steps=2, output_type="np", **SIZE).images
    getattr(pipe, name).to(dtype)
    made = pipe("a red sphere", seed=3, num_inference_steps=2, output_type="np", **SIZE).images
    assert made.shape == (1, 40, 72, 3)
    assert np.abs(made - plain).max() < (0.1 if dtype == torch.bfloat16 else 1e-4)
    assert run(pipe).dtype == pipe.unet.dtype


def test_assignment_checks_as_the_constructor_does():
    pipe = tiny.pipeline()
    before = pipe.unet
    with pytest.raises(InputTypeError, match="unet: Linear cannot serve as UNet2DConditionModel"):
        pipe.unet = torch.nn.Linear(2, 2)
    with pytest.raises(InputTypeError, match="unet=None"):
        pipe.unet = None
    with pytest.raises(InputTypeError, match="scheduler=int has no"):
        pipe.scheduler = 3
    wide = tiny.components(unet={"cross_attention_dim": 48})["unet"]
    with pytest.raises(InputError, match="width 32, the UNet takes 48"):
        pipe.unet = wide
    assert pipe.unet is before
    assert pipe.components["unet"] is before
    other = tiny.components(vae={"layers_per_block": 2})["vae"]
    pipe.vae = other
    assert pipe.vae is other


def test_a_foreign_network_is_adopted_when_assigned():
    diffusers = pytest.importorskip("diffusers")
    pipe = tiny.pipeline()
    foreign = diffusers.AutoencoderKL(**tiny.VAE)
    pipe.vae = foreign
    assert isinstance(pipe.vae, AutoencoderKL)
    assert pipe("a cube", seed=1, num_inference_steps=1, output_type="np").images.shape[1] == 64


@pytest.mark.parametrize("name", ["vae", "text_encoder"])
def test_other_networks_may_be_compiled_too(name):
    pipe, compiled = tiny.pipeline(), []

    def compiler(graph, inputs):
        compiled.append(graph)
        return graph

    call = {"seed": 1, "num_inference_steps": 1, "output_type": "np"}
    plain = pipe("a cube", **call).images
    setattr(pipe, name, torch.compile(getattr(pipe, name), backend=compiler))
    assert np.abs(pipe("a cube", **call).images - plain).max() <= 1e-5
    assert compiled


def test_deep_copies_are_apart():
    pipe = tiny.pipeline()
    plain = run(pipe)
    copied = copy.deepcopy(pipe)
    assert torch.equal(run(copied), plain)
    with torch.no_grad():
        copied.unet.conv_in.weight.zero_()
    assert torch.equal(run(pipe), plain)
    assert not torch.equal(run(copied), plain)


def test_without_text_encoder_embeddings_are_enough(tmp_path):
    full = tiny.pipeline()
    embeds, negative = full.encode_prompt("a red sphere", negative_prompt="blue")
    plain = run(full, negative_prompt="blue")
    full.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    parts = full.components | {"text_encoder": None, "tokenizer": None}
    for pipe in (
        StableDiffusionPipeline(**parts),
        StableDiffusionPipeline.from_pretrained(tmp_path),
    ):
        pipe.set_progress_bar_config(disable=True)
        given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
        assert torch.equal(run(pipe, None, **given), plain)
        run(pipe, None, prompt_embeds=embeds, guidance_scale=1.0)
        calls = tiny.counted(pipe)
        with pytest.raises(InputError, match="text_encoder and tokenizer=None, so prompt cannot"):
            run(pipe)
        with pytest.raises(InputError, match=r"so negative_prompt \(an empty one"):
            run(pipe, None, prompt_embeds=embeds)
        assert not calls


def test_from_pipe_takes_over_what_the_constructor_was_told():
    pipe = tiny.pipeline(compat="diffusers")
    pipe.requires_safety_checker = False
    made = StableDiffusionPipeline.from_pipe(pipe)
    assert (made.compat, made.requires_safety_checker) == ("diffusers", False)
    assert made.progress_bar_options == {"disable": True}
    made.set_progress_bar_config(disable=False)
    assert pipe.progress_bar_options == {"disable": True}
    own = StableDiffusionPipeline.from_pipe(pipe, compat=None, requires_safety_checker=True)
    assert (own.compat, own.requires_safety_checker) == (None, True)
    with pytest.raises(InputError, match="compat='other' is not known"):
        StableDiffusionPipeline.from_pipe(pipe, compat="other")


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_from_pipe_converts(name):
    made = StableDiffusionPipeline.from_pipe(tiny.pipeline(), **{name: torch.bfloat16})
    assert {made.dtype, made.vae.dtype, made.text_encoder.dtype} == {torch.bfloat16}


def test_a_folder_names_its_class(tmp_path):
    pipe = tiny.pipeline()
    pipe.save_pretrained(tmp_path)
    made = DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert type(made) is StableDiffusionPipeline
    assert made.dtype == torch.bfloat16
    index = (tmp_path / "model_index.json").read_text()
    (tmp_path / "model_index.json").write_text(
        index.replace("StableDiffusionPipeline", "InputError")
    )
    with pytest.raises(InputError, match="is of a 'InputError', which is not known"):
        DiffusionPipeline.from_pretrained(tmp_path)
    with pytest.raises(InputTypeError, match=r"StableDiffusionPipeline\.from_single_file"):
        DiffusionPipeline.from_single_file("a.safetensors")


@pytest.mark.parametrize("name", ["Pipeline", "Img2ImgPipeline", "InpaintPipeline"])
def test_a_component_which_there_is_not_is_told(name):
    made = getattr(underdraw, f"StableDiffusion{name}")
    parts = tiny.components()
    assert made(**parts, image_encoder=None).unet is parts["unet"]
    for unknown in ("foo", "inverse_scheduler"):
        with pytest.raises(InputTypeError, match=rf"no components \['{unknown}'\]; .*'compat'"):
            made(**parts, **{unknown: None})


def test_pipelines_without_an_image_encoder_refuse_one():
    parts = tiny.components()
    for made in (
        underdraw.StableDiffusionGLIGENPipeline,
        underdraw.StableDiffusionDiffEditPipeline,
    ):
        assert made(**parts).vae is parts["vae"]
        with pytest.raises(TypeError, match="image_encoder"):
            made(**parts, image_encoder=3)
    encoded = StableDiffusionPipeline(**parts)
    assert "image_encoder" in encoded.components
    made = underdraw.StableDiffusionGLIGENPipeline.from_pipe(encoded)
    assert "image_encoder" not in made.components
