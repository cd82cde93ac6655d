"""Few-step models beside diffusers: solvers by name, their LoRAs, the tiny autoencoder."""

import tempfile

import diffusers
import numpy as np
import pytest
import torch
from pipelines import tiny
from pipelines.test_beginnings import masked, picture
from safetensors.torch import save_file

import underdraw
from underdraw import schedulers
from underdraw.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")
BOUND = 2e-5
"""Of the largest number; the pipelines without anything else differ by 3e-6."""
SIZE = (40, 72)
CALL = {"num_inference_steps": 3, "output_type": "latent"}
BASE = {**tiny.SCHEDULE, "skip_prk_steps": True, "clip_sample": False}
MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"

NAMES = [
    ("DPM++ 2M", MULTI, {}),
    ("DPM++ 2M Karras", MULTI, {"use_karras_sigmas": True}),
    ("dpmpp_2m_sde_gpu", MULTI, {"algorithm_type": "sde-dpmsolver++"}),
    (
        "DPM++ 2M SDE Karras",
        MULTI,
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    (
        "DPM++ 2M SDE Heun Exponential",
        MULTI,
        {
            "algorithm_type": "sde-dpmsolver++",
            "solver_type": "heun",
            "use_exponential_sigmas": True,
        },
    ),
    ("dpmpp_3m_sde", MULTI, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    ("DPM++ 2S Karras", SINGLE, {"use_karras_sigmas": True}),
    ("DPM2", "KDPM2DiscreteScheduler", {}),
    ("dpm_2_karras", "KDPM2DiscreteScheduler", {"use_karras_sigmas": True}),
    ("DPM2 a", "KDPM2AncestralDiscreteScheduler", {}),
    ("Euler", "EulerDiscreteScheduler", {}),
    ("euler sgm_uniform", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("euler_ancestral", "EulerAncestralDiscreteScheduler", {}),
    ("EULER-A", "EulerAncestralDiscreteScheduler", {}),
    ("Heun", "HeunDiscreteScheduler", {}),
    ("LMS Karras", "LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    ("PLMS", "PNDMScheduler", {}),
    ("UniPC", "UniPCMultistepScheduler", {}),
    ("uni_pc_bh2_beta", "UniPCMultistepScheduler", {"use_beta_sigmas": True}),
    ("deis", "DEISMultistepScheduler", {}),
    ("DDIM", "DDIMScheduler", {}),
    ("ddim trailing", "DDIMScheduler", {"timestep_spacing": "trailing"}),
    ("ddpm", "DDPMScheduler", {}),
    ("LCM", "LCMScheduler", {}),
    ("tcd", "TCDScheduler", {}),
]
"""A name, and what diffusers' users write for it."""


def test_names():
    """Each is what diffusers makes of the same configuration, whichever was chosen before."""
    pipe = tiny.pipeline(scheduler=schedulers.PNDMScheduler.from_config(BASE))
    base = pipe.scheduler.config
    for name, kind, changes in NAMES:
        pipe.solver = name
        theirs = getattr(diffusers, kind).from_config(dict(base), **changes)
        assert type(pipe.scheduler).__name__ == kind, name
        ours = {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
        wrong = {k: v for k, v in ours.items() if k in theirs.config and theirs.config[k] != v}
        assert wrong in ({}, {"solver_type": "midpoint"}), name
        theirs.set_timesteps(6)
        table = pipe.scheduler.make_table(6)
        assert np.allclose(table.timesteps, np.asarray(theirs.timesteps), atol=1e-3), name
    pipe.solver = "euler"
    copied = underdraw.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    copied.solver = "dpm++ 2m karras"
    assert (pipe.solver, copied.solver) == ("euler", "dpm++_karras")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dpm adaptive", "nearest is dpm"),
        ("DPM++ 2S a Karras", "draws no noise"),
        ("ddim karras", "ddim has no karras grid"),
        ("lms beta beta", "allowed: ddim"),
        ("", "allowed: ddim"),
        (None, "allowed: ddim"),
        (7, "allowed: ddim"),
    ],
)
def test_names_of_nothing(name, says):
    pipe = tiny.pipeline()
    before = pipe.scheduler
    with pytest.raises(InputError, match=says):
        pipe.solver = name
    assert pipe.scheduler is before


# -- whole calls -----------------------------------------------------------------------------------
def both(kind="", vae=None, unet=tiny.DEEP):
    """One random pipeline, ours and theirs."""
    ours = tiny.pipeline(unet=unet, scheduler=schedulers.PNDMScheduler.from_config(BASE))
    ours = getattr(underdraw, f"StableDiffusion{kind}Pipeline").from_pipe(ours, compat="diffusers")
    if vae is not None:
        ours.vae = vae
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        load = getattr(diffusers, f"StableDiffusion{kind}Pipeline").from_pretrained
        theirs = load(folder, safety_checker=None)
        # A file does not say which of its values were a class's defaults.
        ours.scheduler = schedulers.PNDMScheduler.from_pretrained(folder, subfolder="scheduler")
    for pipe in (ours, theirs):
        pipe.set_progress_bar_config(disable=True)
    return ours, theirs


def apart(pipes, **arguments):
    made = []
    for pipe in pipes:
        drawn = torch.Generator().manual_seed(3)
        made.append(pipe("a red sphere", generator=drawn, **{**CALL, **arguments}).images)
    return float((made[0] - made[1]).abs().max() / made[1].abs().max())


def kohya(pipe, rank=2):
    """A LoRA as sd-scripts write it, with another alpha in each layer of a kind."""
    drawn, tensors = torch.Generator().manual_seed(1), {}
    ends = ("to_q", "to_v", "ff.net.2", "conv1", "proj_in")
    for path, leaf in type(pipe.unet).layout(pipe.unet.config).leaves.items():
        if path.endswith(ends):
            out, *rest = leaf.shape
            ones = (1,) * (len(rest) - 1)
            name = f"lora_unet_{path.replace('.', '_')}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(rank, *rest, generator=drawn) * 0.3
            tensors[f"{name}.lora_up.weight"] = torch.randn(out, rank, *ones, generator=drawn) * 0.3
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
    return tensors


FAMILIES = [
    ("LCM", "LCMScheduler", {}, {"guidance_scale": 1.0}),
    ("TCD", "TCDScheduler", {}, {"guidance_scale": 0.0, "eta": 0.3}),
    ("ddim trailing", "DDIMScheduler", {"timestep_spacing": "trailing"}, {"guidance_scale": 0.0}),
    ("TCD", "TCDScheduler", {}, {"guidance_scale": 0.0, "num_inference_steps": 1, "eta": 1.0}),
]
"""LCM-LoRA, TCD-LoRA, Hyper-SD of several steps and of one."""


def test_loras_of_few_steps(tmp_path):
    pipes = both()
    save_file(kohya(pipes[0]), tmp_path / "few.safetensors")
    calls, base = tiny.counted(pipes[0]), dict(pipes[1].scheduler.config)
    rows = []
    pipes[0].unet.conv_in.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    plain = apart(pipes, height=SIZE[0], width=SIZE[1])
    assert plain <= BOUND and set(rows) == {2}
    for pipe in pipes:
        pipe.load_lora_weights(str(tmp_path), weight_name="few.safetensors")
    for name, kind, changes, call in FAMILIES:
        pipes[0].solver = name
        made = getattr(diffusers, kind).from_config(base, **changes)
        pipes[1].scheduler = made
        calls.clear(), rows.clear()
        assert apart(pipes, height=SIZE[0], width=SIZE[1], **call) <= BOUND, name
        assert len(calls) == call.get("num_inference_steps", 3)
        assert set(rows) == {1}  # guidance of at most 1 takes one branch


DISTILLED = {
    **tiny.DEEP,
    "mid_block_type": None,
    "layers_per_block": (1, 2, 1),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}


@pytest.mark.parametrize("kind", ["", "Img2Img", "Inpaint"])
def test_the_tiny_autoencoder(kind):
    """On a UNet without a middle. Nothing is drawn for the latents of pictures, so the noise that
    follows is diffusers', too."""
    pipes = both(kind, tiny.small_vae(), DISTILLED)
    call = {"height": 40, "width": 72} if kind != "Img2Img" else {}
    if kind:
        call |= {"image": picture(40, 72), "strength": 0.7}
    if kind == "Inpaint":
        call["mask_image"] = masked(40, 72)
    for pipe in pipes:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    assert apart(pipes, **call) <= BOUND


def test_weights_that_lie_in_another_order(tmp_path):
    """tiny-sd has tensors that are transposed in their file."""
    ours = tiny.pipeline(unet=DISTILLED)
    ours.unet.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    state = {
        name: value.detach().transpose(0, 1).contiguous().transpose(0, 1)
        if value.ndim > 1
        else value.detach()
        for name, value in ours.unet.state_dict().items()
    }
    assert any(not value.is_contiguous() for value in state.values())
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    read = underdraw.UNet2DConditionModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in read.state_dict().items())
    read.save_pretrained(tmp_path / "again")
    again = underdraw.UNet2DConditionModel.from_pretrained(tmp_path / "again")
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
