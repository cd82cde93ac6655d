"""What is wrong in diffusers' BLIP-Diffusion, and right here (`ARCHITECTURE.md`, differences)."""

import inspect
import json
import warnings

import numpy as np
import pytest
import torch
from pipelines.blip import recorded

import underdraw
from underdraw import StableDiffusionPipeline

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its own imports warn about
    import diffusers

record = recorded.record


@pytest.fixture(scope="module")
def pipe():
    return recorded.pipeline()


def test_latents_are_scaled_for_the_network(pipe):
    """diffusers never calls `scale_model_input`: in Euler the network sees latents of size 14."""
    given = recorded.arguments("one_euler", pipe, output_type="latent")
    ours = pipe(**given).images
    tokens = pipe.get_query_embeddings(pixels(pipe), "toy cubes")
    prompt = pipe._build_prompt(["on the table"], ["cube"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the recorded scheduler has no offset
        plain = StableDiffusionPipeline.from_pipe(pipe)
    plain.scheduler = pipe.scheduler
    plain.set_progress_bar_config(disable=True)
    sizes = {name: given[name] for name in ("height", "width", "num_inference_steps", "latents")}
    negative = plain.encode_prompt("", do_classifier_free_guidance=False)[0]
    contexts = {"prompt_embeds": pipe.encode_prompt(tokens, prompt)}
    contexts["negative_prompt_embeds"] = negative
    known = plain(**contexts, **sizes, output_type="latent").images
    assert (ours - known).abs().max() <= 1e-5 * known.abs().max()
    theirs = recorded.arrays()["one_euler"]
    assert np.abs(pipe(**{**given, "output_type": "np"}).images - theirs).max() > 0.1
    pipe.scheduler = recorded.scheduler(None)


def pixels(pipe):
    found = pipe.image_processor.preprocess(
        recorded.pictures(1), image_mean=pipe.mean, image_std=pipe.std, return_tensors="pt"
    )
    return found.pixel_values


def source(name):
    """diffusers' own text of a method of its pipeline, which is still in its files."""
    from importlib import resources

    place = resources.files(diffusers) / "pipelines" / "deprecated" / "blip_diffusion"
    return (place / name).read_text(encoding="utf-8")


def test_steps_draw_from_the_generator_of_the_call(pipe):
    """diffusers hands `step` none, so that solvers which draw are not repeatable."""
    text = source("pipeline_blip_diffusion.py")
    step = text[text.index("self.scheduler.step(") :]
    assert "generator" not in step[: step.index(")")]
    pipe.scheduler = recorded.scheduler("EulerAncestralDiscreteScheduler")
    given = {**record.ONE, "reference_image": recorded.pictures(1), **record.FIXED}
    one, two = (pipe(**given, generator=torch.Generator().manual_seed(3)).images for _ in range(2))
    assert np.array_equal(one, two)
    pipe.scheduler = recorded.scheduler(None)


def test_several_images_for_a_prompt(pipe):
    assert "num_images_per_prompt" not in source("pipeline_blip_diffusion.py")
    given = {**record.ONE, "reference_image": recorded.pictures(1), **record.FIXED}
    assert pipe(**given, num_images_per_prompt=2, seed=3).images.shape == (2, 24, 36, 3)


def test_a_long_negative_prompt(pipe):
    """diffusers neither cuts nor splits it, and fails in the text encoder; here it has two
    windows."""
    text = source("pipeline_blip_diffusion.py")
    negative = text[text.index("uncond_input = ") :]
    assert "truncation" not in negative[: negative.index(")")]
    given = {**record.ONE, "reference_image": recorded.pictures(1), **record.FIXED}
    long = "the blue table " * 20
    made = pipe(**given, seed=3, neg_prompt=long).images
    assert np.abs(made - pipe(**given, seed=3, neg_prompt=long[:-60]).images).max() > 1e-4


def test_sizes_go_by_the_autoencoder():
    """diffusers counts the levels of the UNet: a UNet of two levels gets latents twice as large."""
    text = source("pipeline_blip_diffusion.py")
    assert "2 ** (len(self.unet.config.block_out_channels) - 1)" in text
    fields = {
        "block_out_channels": [8, 16],
        "down_block_types": record.UNET["down_block_types"][1:],
        "up_block_types": record.UNET["up_block_types"][:2],
    }
    shallow = underdraw.UNet2DConditionModel(**{**record.UNET, **fields})
    pipe = recorded.pipeline(unet=shallow.eval())
    given = {**record.ONE, "reference_image": recorded.pictures(1), **record.FIXED}
    assert pipe(**given, seed=3).images.shape == (1, 24, 36, 3)
    assert pipe(**{**given, "height": None}, seed=3).images.shape == (1, 32, 36, 3)
    assert inspect.signature(type(pipe).__call__).parameters["height"].default is None


def test_folders_that_current_versions_cannot_load(pipe, tmp_path):
    """The module of their classes has moved."""
    pipe.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "model_index.json").read_text())
    with warnings.catch_warnings(), pytest.raises(ValueError, match="blip_diffusion is not"):
        warnings.simplefilter("ignore")
        diffusers.DiffusionPipeline.from_pretrained(str(tmp_path))
    for module in ("blip_diffusion", "pipeline_blip_diffusion"):
        for name in ("qformer", "image_processor", "text_encoder"):
            said[name][0] = module
        (tmp_path / "model_index.json").write_text(json.dumps(said))
        made = underdraw.DiffusionPipeline.from_pretrained(tmp_path)
        assert type(made).__name__ == "BlipDiffusionPipeline"
    assert "bert-base-uncased" in source("modeling_blip2.py")


@torch.no_grad()
def test_current_versions_have_no_causal_mask():
    """Their context text encoder hands the mask to an encoder of transformers that drops it, so
    that tokens see those behind them."""
    from diffusers.pipelines.deprecated.blip_diffusion.modeling_ctx_clip import (
        ContextCLIPTextModel,
    )
    from transformers import CLIPTextConfig

    ours = recorded.network("text_encoder")
    theirs = ContextCLIPTextModel(CLIPTextConfig(**record.text_config())).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)  # but for a buffer
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])

    def seen(tower):
        """How much of the first tokens the later ones change."""
        whole, begin = (tower(input_ids=one, ctx_embeddings=None)[0] for one in (ids, ids[:, :3]))
        return float((whole[:, :3] - begin).abs().max())

    assert seen(ours) <= 1e-6
    assert seen(theirs) > 1e-2
    # With it they gave what is recorded.
    prompts = [
        ", ".join([f"a {target} {prompt.strip()}"] * 20)
        for prompt, target in zip(
            record.THREE["prompt"], record.THREE["target_subject_category"], strict=True
        )
    ]
    tokens = recorded.tokenizer()
    told = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    rows = tokens(prompts, **told).input_ids
    assert (
        np.abs(ours(input_ids=rows)[0].numpy() - recorded.arrays()["plain_context"]).max() <= 1e-5
    )
