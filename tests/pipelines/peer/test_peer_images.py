"""Images of whole calls against diffusers', over a product of arguments."""

import numpy as np
import pytest
import torch
from pipelines.peer import oracle
from pipelines.peer.oracle import deviation, images, pair

from underdraw import schedulers

LIMIT = 1e-4
RED, BLUE = "a red sphere", "blue cube on the table"

FEW_STEPS = {"num_inference_steps": 3}
CALLS = {
    "plain": {"num_inference_steps": 5},
    "unguided": {"guidance_scale": 1.0},
    "below one": {"guidance_scale": 0.0},
    "weak": {"guidance_scale": 3.0},
    "wide": {"height": 40, "width": 72},
    "tall": {"height": 96, "width": 56},
    "odd latents, batch": {"prompt": [RED, BLUE], "height": 56, "width": 40, "seeds": (1, 2)},
    "negative": {"negative_prompt": "green table"},
    "empty prompt": {"prompt": "", "negative_prompt": "green table"},
    "negatives": {"prompt": [RED, BLUE, ""], "negative_prompt": ["green", "", "cube of cube"]},
    "per prompt": {
        "prompt": [RED, BLUE],
        "num_images_per_prompt": 2,
        "negative_prompt": ["", "left"],
    },
    "per prompt, generators": {"num_images_per_prompt": 3, "seeds": (4, 5, 6)},
    "rescaled": {"guidance_rescale": 0.7, "prompt": [RED, BLUE]},
    "unguided, rescaled": {"guidance_scale": 1.0, "guidance_rescale": 0.7},
    "joint noise": {"prompt": [RED, BLUE, RED], "height": 64, "width": 48},
    "one step": {"num_inference_steps": 1},
    "uneven steps": {"num_inference_steps": 7},
    "pt": {"output_type": "pt", "height": 48, "width": 64},
    "latent": {"output_type": "latent", "prompt": [RED, BLUE]},
}


FEW = ("plain", "weak", "wide", "negatives", "rescaled")


@pytest.mark.parametrize(
    ("kind", "call"),
    [(k, c) for k in oracle.KINDS for c in CALLS if k in ("sd1", "sd2") or c in FEW],
)
def test_arguments(kind, call):
    assert deviation(kind, **{"prompt": RED, **FEW_STEPS, **CALLS[call]}) <= LIMIT


FAMILIES = {
    "DDIMScheduler": [
        {"clip_sample": False, "set_alpha_to_one": False},
        {"clip_sample": False, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    ],
    "PNDMScheduler": [{"skip_prk_steps": True}, {"skip_prk_steps": False}],
    "EulerDiscreteScheduler": [{}, {"use_karras_sigmas": True, "timestep_spacing": "linspace"}],
    "EulerAncestralDiscreteScheduler": [{}],
    "DPMSolverMultistepScheduler": [
        {},
        {"use_karras_sigmas": True},
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2},
    ],
    "DPMSolverSinglestepScheduler": [{}],
    "HeunDiscreteScheduler": [{}, {"use_karras_sigmas": True}],
    "KDPM2DiscreteScheduler": [{}],
    "KDPM2AncestralDiscreteScheduler": [{}],
    "LMSDiscreteScheduler": [{}],
    "UniPCMultistepScheduler": [{}],
    "DEISMultistepScheduler": [{}],
    "DDPMScheduler": [{"clip_sample": False}],
    "LCMScheduler": [{"clip_sample": False, "original_inference_steps": 50}],
    "TCDScheduler": [{}],
}
SOLVERS = [(name, config) for name, configs in FAMILIES.items() for config in configs]


@pytest.fixture
def solvers(request, monkeypatch):
    """Both pipelines with one scheduler, by name and options; they get their own back."""

    def use(kind, name, config):
        theirs, ours = pair(kind)
        whole = {**theirs.scheduler.config, **config}
        whole.pop("_use_default_values", None)
        monkeypatch.setattr(theirs, "scheduler", oracle.scheduler(name, whole))
        monkeypatch.setattr(ours, "scheduler", getattr(schedulers, name).from_config(whole))

    return use


@pytest.mark.parametrize(("name", "config"), SOLVERS, ids=lambda v: v if isinstance(v, str) else "")
def test_solvers(solvers, name, config):
    """Noise drawn inside a step comes from the caller's generators, as in diffusers. One picture
    and noise, two and v-prediction: every solver with each prediction is in `solvers/peer`."""
    two = {"prompt": [RED, BLUE], "seeds": (7, 8), "height": 40, "width": 72}
    for kind, call in (("sd1", {"prompt": RED}), ("sd2", two)):
        if config.get("rescale_betas_zero_snr"):
            kind = "sd2"  # without signal at the first step, noise says nothing
        solvers(kind, name, config)
        assert deviation(kind, num_inference_steps=4, **call) <= LIMIT


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_eta(solvers, eta):
    solvers("sd1", "DDIMScheduler", {"clip_sample": False})
    assert deviation("sd1", prompt=[RED, BLUE], eta=eta) <= LIMIT
    plain = images(pair("sd1")[1], prompt=RED)
    noisy = images(pair("sd1")[1], prompt=RED, eta=eta)
    assert (np.abs(plain - noisy).max() > 1e-2) == (eta > 0)


def test_the_lcm_solver_on_a_distilled_unet(solvers):
    solvers("lcm", "LCMScheduler", {"clip_sample": False, "original_inference_steps": 50})
    for scale in (1.0, 2.5, 8.0):
        assert deviation("lcm", **FEW_STEPS, prompt=[RED, BLUE], guidance_scale=scale) <= LIMIT


@pytest.mark.parametrize(
    ("name", "custom"),
    [
        ("EulerDiscreteScheduler", {"timesteps": [901, 500, 220, 41]}),
        ("EulerDiscreteScheduler", {"sigmas": [14.6, 6.0, 1.3, 0.2]}),
        ("DPMSolverMultistepScheduler", {"timesteps": [901, 500, 220, 41]}),
        ("DDPMScheduler", {"timesteps": [901, 500, 220, 41]}),
        ("LCMScheduler", {"timesteps": [959, 499, 259]}),
    ],
)
def test_custom_times(solvers, name, custom):
    solvers("sd1", name, {"clip_sample": False, "steps_offset": 0, "timestep_spacing": "linspace"})
    assert deviation("sd1", prompt=[RED, BLUE], **custom) <= LIMIT


@pytest.mark.parametrize("kind", ["sd1", "wide"])
def test_given_latents_and_embeddings(kind):
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 4, 5, 9, generator=g)
    sizes = {"height": 40, "width": 72}
    both = dict(prompt=[RED, BLUE], num_images_per_prompt=2, latents=latents, **sizes)
    assert deviation(kind, **FEW_STEPS, **both) <= LIMIT
    context = torch.randn(2, 77, 32, generator=g)
    against = torch.randn(2, 77, 32, generator=g)
    assert (
        deviation(kind, **FEW_STEPS, prompt_embeds=context, negative_prompt_embeds=against) <= LIMIT
    )
    assert deviation(kind, **FEW_STEPS, prompt_embeds=context, num_images_per_prompt=2) <= LIMIT
    assert deviation(kind, **FEW_STEPS, prompt_embeds=context, guidance_scale=1.0) <= LIMIT
    assert deviation(kind, **FEW_STEPS, prompt=[RED, BLUE], negative_prompt_embeds=against) <= LIMIT
    assert (
        deviation(kind, **FEW_STEPS, prompt_embeds=context, negative_prompt=["blue", "red"])
        <= LIMIT
    )
    few = {"prompt_embeds": context[:, :9], "negative_prompt_embeds": against[:, :9]}
    assert deviation(kind, **FEW_STEPS, **few) <= LIMIT


def test_embeddings_of_few_tokens_meet_a_negative_prompt_of_as_many():
    context = torch.randn(2, 11, 32, generator=torch.Generator().manual_seed(0))
    assert deviation("sd1", **FEW_STEPS, prompt_embeds=context) <= LIMIT
    assert (
        deviation("sd1", **FEW_STEPS, prompt_embeds=context, negative_prompt=["blue", "red"])
        <= LIMIT
    )


def test_what_encode_prompt_gives():
    theirs, ours = pair("sd1")
    arguments = {
        "prompt": [RED, BLUE],
        "device": "cpu",
        "num_images_per_prompt": 2,
        "do_classifier_free_guidance": True,
        "negative_prompt": ["green", ""],
    }
    with torch.no_grad():
        for a, b in zip(
            theirs.encode_prompt(**arguments), ours.encode_prompt(**arguments), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        arguments["do_classifier_free_guidance"] = False
        assert ours.encode_prompt(**arguments)[1] is None


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_forms_of_output(output_type):
    made = []
    for pipe in pair("wide"):
        plain, flags = pipe(
            [RED, BLUE],
            num_inference_steps=2,
            generator=oracle.generators(1),
            output_type=output_type,
            return_dict=False,
        )
        assert flags is None
        made.append(plain)
    theirs, ours = made
    assert type(theirs) is type(ours)
    if output_type == "pil":
        assert [a.size for a in theirs] == [b.size for b in ours]
        assert [a.mode for a in theirs] == [b.mode for b in ours]
        differ = [
            np.asarray(a, int) - np.asarray(b, int) for a, b in zip(theirs, ours, strict=True)
        ]
        assert np.abs(differ).max() <= 1
        assert (np.abs(differ) > 0).mean() < 0.01
    else:
        assert theirs.dtype == ours.dtype
        assert tuple(theirs.shape) == tuple(ours.shape)
        assert np.abs(np.asarray(theirs) - np.asarray(ours)).max() <= LIMIT


def test_brackets_and_long_prompts_as_the_peer_reads_them(monkeypatch):
    _, ours = pair("sd1")
    long = " ".join(["a red cube left of the blue sphere"] * 20)
    for prompt in ("a (red:1.5) [sphere] and ((blue", long):
        monkeypatch.setattr(ours, "compat", None)
        if prompt is long:
            assert deviation("sd1", prompt=prompt) > 1e-3
        monkeypatch.setattr(ours, "compat", "diffusers")
        if prompt is long:
            with pytest.warns(UserWarning, match="only the first 77 tokens"):
                ours(prompt, num_inference_steps=1, output_type="latent")
        assert deviation("sd1", prompt=[prompt, RED], negative_prompt=[BLUE, prompt]) <= LIMIT


def test_the_peer_ignores_a_height_given_without_width(monkeypatch):
    """Its defect; ours does as told, or as diffusers with compat="diffusers"."""
    theirs, ours = pair("wide")
    for given in ({"height": 64}, {"width": 64}):
        told = dict(prompt=RED, num_inference_steps=1, **given)
        assert images(theirs, **told).shape == (1, 40, 56, 3)
        right = (1, given.get("height", 40), given.get("width", 56), 3)
        assert images(ours, **told).shape == right
        with monkeypatch.context() as patch:
            patch.setattr(ours, "compat", "diffusers")
            assert deviation("wide", **told) <= LIMIT
