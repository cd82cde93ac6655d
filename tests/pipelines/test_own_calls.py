"""What a call has beyond diffusers': seeds, guidance per image, weights, long prompts, threads."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny
from pipelines.tiny import run, together

from underdraw import StableDiffusionDiffEditPipeline, StableDiffusionPipeline, schedulers
from underdraw.sampling import denoiser

PROMPTS = ["a red sphere", "blue cube on the table", "green", ""]
SOLVERS = {
    "euler": schedulers.EulerDiscreteScheduler(**tiny.SCHEDULE),
    "ancestral": schedulers.EulerAncestralDiscreteScheduler(**tiny.SCHEDULE),
    "sde": schedulers.DPMSolverMultistepScheduler(
        **tiny.SCHEDULE, algorithm_type="sde-dpmsolver++"
    ),
    "pndm": schedulers.PNDMScheduler(**tiny.SCHEDULE, skip_prk_steps=True),
}


def apart(a, b):
    """The largest difference, in units of the largest number."""
    return float((a.double() - b.double()).abs().max() / b.abs().max())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_an_image_does_not_change_with_its_batch(pipe, solver, guidance):
    pipe = StableDiffusionPipeline.from_pipe(pipe, scheduler=SOLVERS[solver])
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 40, "width": 72, "num_inference_steps": 4, "guidance_scale": guidance}
    batch = run(pipe, PROMPTS, seed=7, **call)
    for i, prompt in enumerate(PROMPTS):
        assert apart(batch[i : i + 1], run(pipe, prompt, seed=7 + i, **call)) <= 1e-5
    shuffled = run(pipe, PROMPTS[::-1], seed=[10, 9, 8, 7], **call)
    assert apart(batch, shuffled.flip(0)) <= 1e-5
    assert apart(batch[:1], batch[1:2]) > 1e-2


def test_per_image_seeds_of_several_images_per_prompt(pipe):
    batch = run(pipe, PROMPTS[:2], num_images_per_prompt=2, seed=[5, 6, 5, 9])
    for i, seed in enumerate([5, 6, 5, 9]):
        assert apart(batch[i : i + 1], run(pipe, PROMPTS[i // 2], seed=seed)) <= 1e-5


def test_a_seed_is_a_generator_of_the_cpu(pipe):
    one = run(pipe, seed=11)
    assert torch.equal(one, run(pipe, generator=torch.Generator("cpu").manual_seed(11)))
    assert torch.equal(one, run(pipe, seed=np.int64(11)))
    assert torch.equal(one, run(pipe, seed=(11,)))
    assert not torch.equal(one, run(pipe, seed=12))


def test_generators_of_numpy(pipe):
    """The numbers they give by themselves; a list has one per image, and mixes with PyTorch's."""

    def noise(*seeds, shape=(1, 4, 8, 8)):
        drawn = [np.random.default_rng(seed).standard_normal(shape) for seed in seeds]
        return torch.from_numpy(np.concatenate(drawn).astype(np.float32))

    joint = run(pipe, ["a", "b"], generator=np.random.default_rng(1))
    assert torch.equal(joint, run(pipe, ["a", "b"], latents=noise(1, shape=(2, 4, 8, 8))))
    own = [np.random.default_rng(2), torch.Generator().manual_seed(3)]
    each = run(pipe, ["a", "b"], generator=own)
    assert apart(each[:1], run(pipe, ["a"], latents=noise(2))) <= 1e-5
    assert apart(each[1:], run(pipe, ["b"], seed=3)) <= 1e-5
    made = pipe("a", num_inference_steps=1, generator=np.random.default_rng(1)).images[0]
    assert "seed" not in json.loads(made.info["underdraw"])
    editor = StableDiffusionDiffEditPipeline.from_pipe(pipe)
    editor.scheduler = schedulers.DDIMScheduler(**tiny.SCHEDULE, clip_sample=False)
    pair = []
    for seed in (1, 1, 2):
        how = {"num_inference_steps": 2, "num_reg_steps": 1}
        picture = Image.fromarray(np.full((64, 64, 3), 90, np.uint8))
        generator = np.random.default_rng(seed)
        pair.append(editor.invert("a", picture, generator=generator, **how).latents)
    assert torch.equal(pair[0], pair[1]) and not torch.equal(pair[0], pair[2])


def test_a_call_without_seed_takes_the_global_stream_and_a_seeded_one_does_not(pipe):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = torch.random.get_rng_state()
        run(pipe, seed=1)
        assert torch.equal(state, torch.random.get_rng_state())
        a, b = run(pipe, seed=None), run(pipe, seed=None)
        torch.manual_seed(0)
        assert torch.equal(a, run(pipe, seed=None))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("changes", [{}, {"unet": {"time_cond_proj_dim": 16}}])
@pytest.mark.parametrize("rescale", [0.0, 0.6])
def test_guidance_per_image(changes, rescale):
    """Also 1 and less, which leaves an image unguided, and in a distilled UNet."""
    pipe = tiny.pipeline(**changes)
    scales = [1.0, 7.5, 3, 0.0]
    call = {"negative_prompt": "table", "guidance_rescale": rescale}
    batch = run(pipe, PROMPTS, seed=2, guidance_scale=scales, **call)
    for i, scale in enumerate(scales):
        one = run(pipe, PROMPTS[i], seed=2 + i, guidance_scale=scale, **call)
        assert apart(batch[i : i + 1], one) <= 1e-5
    assert apart(batch, run(pipe, PROMPTS, seed=2, guidance_scale=7.5, **call)) > 1e-3


def test_distilled_networks_keep_the_guidance_of_the_start(monkeypatch):
    """They are told it with the times, which are embedded for many calls at once."""
    monkeypatch.setattr(denoiser, "CHUNK", 1)
    pipe = tiny.pipeline(unet={"time_cond_proj_dim": 16})

    def change(pipe, index, timestep, given):
        pipe._guidance_scale = 2.0
        return {}

    assert torch.equal(run(pipe, callback_on_step_end=change), run(pipe))


@pytest.mark.parametrize("sample_size", [8, [5, 7]])
def test_height_alone_and_width_alone(sample_size):
    pipe = tiny.pipeline(unet={"sample_size": sample_size})
    rows, columns = (8, 8) if sample_size == 8 else sample_size
    assert run(pipe).shape == (1, 4, rows, columns)
    assert run(pipe, height=48).shape == (1, 4, 6, columns)
    assert run(pipe, width=48).shape == (1, 4, rows, 6)
    assert run(pipe, height=24, width=80).shape == (1, 4, 3, 10)
    assert run(pipe, latents=torch.randn(1, 4, 6, 3)).shape == (1, 4, 6, 3)


@pytest.mark.parametrize(
    ("prompt", "same"),
    [
        ("a (red:1.5) sphere", False),
        ("a (red:1.0) sphere", True),
        ("a (red) sphere", False),
        ("a [red] sphere", False),
        (r"a \(red\) sphere", False),
    ],
)
def test_weights_have_an_effect(pipe, prompt, same):
    found = apart(run(pipe, "a red sphere"), run(pipe, prompt))
    assert found == 0 if same else found > 1e-3


def test_weights_act_on_negative_prompts_and_stay_with_their_image(pipe):
    plain, weighted = (run(pipe, negative_prompt=text) for text in ("blue", "(blue:1.4)"))
    assert apart(plain, weighted) > 1e-3
    batch = run(pipe, ["a (red:1.5) sphere", "blue cube"], seed=4)
    assert apart(batch[1:], run(pipe, "blue cube", seed=5)) <= 1e-5
    assert apart(batch[:1], run(pipe, "a (red:1.5) sphere", seed=4)) <= 1e-5


def test_prompts_of_more_than_one_window(pipe):
    long = " ".join(["a red cube left of the blue sphere"] * 12)
    tail = f"{long} and green table"
    assert apart(run(pipe, long), run(pipe, tail)) > 1e-3
    batch = run(pipe, [tail, "green"], negative_prompt=["blue", long], seed=3)
    assert apart(batch[:1], run(pipe, tail, negative_prompt="blue", seed=3)) <= 1e-5
    assert apart(batch[1:], run(pipe, "green", negative_prompt=long, seed=4)) <= 1e-5


def test_embeddings_and_text_of_different_length_go_together(pipe):
    long = " ".join(["a red cube left of the blue sphere"] * 12)
    context, negative = pipe.encode_prompt(long)
    assert context.shape[1] == negative.shape[1] == 154
    expected = run(pipe, long)
    assert apart(expected, run(pipe, None, prompt_embeds=context)) <= 1e-5
    assert apart(expected, run(pipe, long, negative_prompt_embeds=negative[:, :77])) <= 1e-5
    short = run(pipe, "green", negative_prompt=long)
    assert apart(short, run(pipe, "green", negative_prompt_embeds=context)) <= 1e-5


def test_compat_reads_brackets_as_text_and_cuts():
    pipe, plain = tiny.pipeline(compat="diffusers"), tiny.pipeline()
    long = " ".join(["a red cube left of the blue sphere"] * 12)
    with pytest.warns(UserWarning, match="only the first 77 tokens"):
        cut = run(pipe, long)
    with pytest.warns(UserWarning, match="only the first 77 tokens"):
        assert torch.equal(cut, run(pipe, f"{long} and green"))
    assert torch.equal(run(pipe, "a (red sphere"), run(plain, r"a \(red sphere"))


# -- threads --------------------------------------------------------------------------------------
def test_threads_share_a_pipeline(pipe):
    """With different prompts, sizes, guidance and seeds, each gives the bits it gives alone."""
    calls = [
        {"prompt": "a red sphere", "guidance_scale": 7.5, "seed": 1, "num_inference_steps": 6},
        {
            "prompt": ["blue", "green cube"],
            "guidance_scale": 1.0,
            "seed": 2,
            "num_inference_steps": 8,
        },
        {
            "prompt": "table",
            "guidance_scale": [2.5],
            "seed": 3,
            "height": 40,
            "num_inference_steps": 7,
        },
    ]
    alone = [run(pipe, **call) for call in calls]
    for _ in range(2):
        shared = together(*(lambda call=call: run(pipe, **call) for call in calls))
        assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_threads_share_networks(pipe):
    other = StableDiffusionPipeline.from_pipe(pipe, scheduler=SOLVERS["ancestral"])
    other.set_progress_bar_config(disable=True)
    other.enable_attention_slicing(1)
    tasks = [
        lambda: run(pipe, "a red sphere", num_inference_steps=6),
        lambda: run(other, "blue cube", num_inference_steps=6),
    ]
    alone = [task() for task in tasks]
    assert all(torch.equal(a, b) for a, b in zip(alone, together(*tasks), strict=True))


# -- what a call leaves behind --------------------------------------------------------------------
def test_a_call_changes_no_parameter_and_no_component(pipe):
    networks = (pipe.unet, pipe.vae, pipe.text_encoder)
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in networks]
    versions = [[p._version for p in network.parameters()] for network in networks]
    parts, config = pipe.components, dict(pipe.scheduler.config)
    pipe(["a red sphere", "(blue:1.2)"], seed=1, num_inference_steps=2, output_type="np")
    for network, state, version in zip(networks, before, versions, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
        assert [p._version for p in network.parameters()] == version
        assert all(p.grad is None and p.requires_grad for p in network.parameters())
        assert not network.training
    assert all(pipe.components[name] is part for name, part in parts.items())
    assert dict(pipe.scheduler.config) == config


def test_given_arrays_are_not_written_to(pipe):
    context, negative = pipe.encode_prompt(["a red sphere", "green"])
    arrays = {
        "latents": torch.randn(2, 4, 8, 8),
        "prompt_embeds": context,
        "negative_prompt_embeds": negative,
    }
    copies = {name: value.clone() for name, value in arrays.items()}
    run(pipe, None, **arrays)
    assert all(torch.equal(arrays[name], copies[name]) for name in arrays)


def test_results_carry_no_graph(pipe):
    for output_type in ("latent", "pt"):
        images = pipe("a", num_inference_steps=1, output_type=output_type).images
        assert not images.requires_grad
    assert not pipe.encode_prompt("a")[0].requires_grad


# -- settings -------------------------------------------------------------------------------------
@pytest.mark.parametrize("slices", ["auto", "max", 1, 3, None])
def test_attention_slices(pipe, slices):
    other = StableDiffusionPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    other.enable_attention_slicing(slices)
    plain = run(pipe, PROMPTS)
    assert apart(run(other, PROMPTS), plain) <= 1e-5
    other.disable_attention_slicing()
    assert torch.equal(run(other, PROMPTS), plain)


def test_slices_and_tiles_of_the_autoencoder(pipe):
    other = StableDiffusionPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 1, "output_type": "np", "seed": 1, "height": 72, "width": 80}
    plain = pipe(PROMPTS[:3], **call).images
    other.enable_vae_slicing()
    assert np.abs(other(PROMPTS[:3], **call).images - plain).max() <= 1e-5
    other.enable_vae_tiling()
    tiled = other(PROMPTS[:3], **call).images
    assert tiled.shape == plain.shape
    assert np.abs(tiled - plain).max() > 1e-4
    assert (pipe(PROMPTS[:3], **call).images == plain).all()  # settings are one pipeline's
    other.disable_vae_slicing()
    other.disable_vae_tiling()
    assert (other(PROMPTS[:3], **call).images == plain).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pipe, dtype):
    half = tiny.pipeline().to(dtype)
    assert half.dtype == dtype
    assert all(p.dtype == dtype for part in half.parts.networks for p in part.parameters())
    call = {
        "num_inference_steps": 4,
        "seed": [3, 4],
        "output_type": "np",
        "height": 40,
        "width": 72,
    }
    images = half(PROMPTS[:2], **call).images
    assert images.dtype == np.float32 and np.isfinite(images).all()
    assert np.abs(images - pipe(PROMPTS[:2], **call).images).mean() < 0.03
    assert run(half).dtype == dtype


def test_from_pipe_shares(pipe):
    other = StableDiffusionPipeline.from_pipe(pipe, scheduler=SOLVERS["pndm"])
    for name, part in pipe.components.items():
        assert (other.components[name] is part) == (name != "scheduler" or part is None)
    assert list(pipe.components) == [
        *("vae", "text_encoder", "tokenizer", "unet", "scheduler"),
        *("safety_checker", "feature_extractor", "image_encoder"),
    ]
    made = StableDiffusionPipeline(**pipe.components)
    made.set_progress_bar_config(disable=True)
    assert torch.equal(run(made), run(pipe))


def test_calls_inside_a_callback_leave_the_run_alone(pipe):
    """Another picture made between two steps: the run around it keeps its guidance."""
    call = {"height": 40, "width": 72, "num_inference_steps": 4, "seed": 3, "guidance_scale": 6.0}
    alone = run(pipe, "a red sphere", **call)
    seen = []

    def another(pipe, step, timestep, tensors):
        run(pipe, "green", **call | {"guidance_scale": 1.0, "num_inference_steps": 2, "seed": 9})
        seen.append((pipe.guidance_scale, pipe.num_timesteps))
        return tensors

    assert torch.equal(run(pipe, "a red sphere", callback_on_step_end=another, **call), alone)
    assert seen == [(6.0, 4)] * 4

    def louder(pipe, step, timestep, tensors):
        pipe._guidance_scale = 9.0
        if nested:
            run(pipe, "green", **call)
        return tensors

    nested = False
    changed = run(pipe, "a red sphere", callback_on_step_end=louder, **call)
    nested = True
    again = run(pipe, "a red sphere", callback_on_step_end=louder, **call)
    assert torch.equal(again, changed) and not torch.equal(changed, alone)
