"""Bad configurations and requests: an error that names argument, value and what is allowed."""

import json

import numpy as np
import pytest

from underdraw import schedulers
from underdraw.errors import InputError, InputTypeError, NotFoundError, UnderdrawError
from underdraw.solvers.schedule import noise_schedule

CONSTRUCTION = [
    ("DDIMScheduler", {"beta_schedule": "cubic"}, "beta_schedule='cubic'.*scaled_linear"),
    ("DDIMScheduler", {"prediction_type": "noise"}, "prediction_type='noise'.*v_prediction"),
    ("DDIMScheduler", {"timestep_spacing": "even"}, "timestep_spacing='even'.*trailing"),
    ("DDIMScheduler", {"num_train_timesteps": 0}, "num_train_timesteps=0"),
    ("DDIMScheduler", {"trained_betas": [0.1, 0.2]}, "trained_betas has 2 entries.*1000"),
    ("DDIMInverseScheduler", {"timestep_spacing": "linspace"}, "'leading', 'trailing'"),
    ("PNDMScheduler", {"prediction_type": "sample"}, "prediction_type='sample'.*epsilon"),
    ("DDPMScheduler", {"variance_type": "learned"}, "variance_type='learned'.*fixed_small"),
    ("EulerDiscreteScheduler", {"interpolation_type": "cubic"}, "interpolation_type.*log_linear"),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "one"}, "final_sigmas_type.*sigma_min"),
    (
        "EulerDiscreteScheduler",
        {"use_karras_sigmas": True, "use_beta_sigmas": True},
        "use_karras_sigmas and use_beta_sigmas",
    ),
    ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order=4.*1, 2, 3"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "rk4"}, "algorithm_type='rk4'"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "final_sigmas_type='zero'"),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas=True"),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver"}, "algorithm_type"),
    ("UniPCMultistepScheduler", {"solver_type": "bh3"}, "solver_type='bh3'.*bh1"),
    ("DEISMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "allowed: 'deis'"),
]


@pytest.mark.parametrize(("name", "config", "message"), CONSTRUCTION)
def test_unsupported_values(name, config, message):
    with pytest.raises(InputError, match=message):
        getattr(schedulers, name)(**config)


def test_unknown_arguments():
    with pytest.raises(InputTypeError, match=r"'beta_begin'.*allowed: num_train_timesteps"):
        schedulers.DDIMScheduler(beta_begin=0.1)
    with pytest.raises(InputTypeError, match="given twice"):
        schedulers.DDIMScheduler(1000, num_train_timesteps=1000)
    with pytest.raises(InputTypeError, match="at most"):
        schedulers.PNDMScheduler(*range(20))
    scheduler = schedulers.DDIMScheduler(500, 0.001, 0.02, "scaled_linear")
    assert (len(scheduler), scheduler.config.beta_schedule) == (500, "scaled_linear")
    with pytest.raises(InputTypeError, match="fixed"):
        scheduler.config["beta_end"] = 1.0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"num_inference_steps": -3}, "at least 1"),
        ({"num_inference_steps": True}, "whole number"),
        ({"num_inference_steps": 2.5}, "num_inference_steps=2.5"),
        ({"num_inference_steps": "ten"}, "'ten'"),
        ({}, "exactly one of num_inference_steps or timesteps or sigmas"),
        ({"num_inference_steps": 3, "sigmas": [1.0, 0.0]}, "exactly one"),
        ({"timesteps": []}, "at least one number"),
        ({"timesteps": [900, "x"]}, "list of numbers"),
        ({"timesteps": [900, float("nan")]}, "finite"),
        ({"timesteps": [900, 900]}, "must fall"),
        ({"timesteps": [1000, 3]}, "between 0 and 999"),
        ({"sigmas": [1.0]}, "at least two"),
        ({"sigmas": [1.0, -1.0]}, "none below 0"),
        ({"sigmas": [1.0, 2.0, 0.0]}, "must fall"),
        ({"num_inference_steps": 3, "speed": 2}, "'speed' is not an option.*s_churn"),
    ],
)
def test_bad_requests(request_, message):
    with pytest.raises(UnderdrawError, match=message):
        schedulers.EulerDiscreteScheduler().make_table(**request_)


@pytest.mark.parametrize(
    ("name", "config", "request_", "message"),
    [
        ("DDIMScheduler", {}, {"num_inference_steps": 1001}, "between 1 and"),
        ("DDIMScheduler", {}, {"timesteps": [9, 3]}, "does not support custom timesteps"),
        ("DDIMScheduler", {}, {"num_inference_steps": 5, "eta": 1.5}, "eta=1.5.*0 to 1"),
        ("DDIMScheduler", {"steps_offset": 1}, {"num_inference_steps": 1000}, "steps_offset=1"),
        (
            "DDIMScheduler",
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            {"num_inference_steps": 5},
            "prediction_type='epsilon'.*v_prediction",
        ),
        (
            "DDIMInverseScheduler",
            {"prediction_type": "sample"},
            {"num_inference_steps": 5},
            "noise",
        ),
        ("PNDMScheduler", {}, {"num_inference_steps": 3}, "at least 4"),
        ("LCMScheduler", {}, {"num_inference_steps": 51}, "at most 50"),
        ("LCMScheduler", {}, {"num_inference_steps": 4, "strength": 0.0}, "strength=0.0"),
        ("TCDScheduler", {}, {"num_inference_steps": 4, "eta": -1.0}, "eta=-1.0"),
        ("LMSDiscreteScheduler", {}, {"num_inference_steps": 4, "order": 9}, "order=9"),
        ("DPMSolverMultistepScheduler", {}, {"num_inference_steps": 1001}, "1001 .*at most 1000"),
        ("DPMSolverMultistepInverseScheduler", {}, {"num_inference_steps": 1001}, "1001 .*at most"),
        (
            "UniPCMultistepScheduler",
            {"timestep_spacing": "leading"},
            {"num_inference_steps": 1000},
            "steps=1000 must be at most 999",
        ),
    ],
)
def test_bad_requests_by_class(name, config, request_, message):
    with pytest.raises(InputError, match=message):
        getattr(schedulers, name)(**config).make_table(**request_)


def test_files(tmp_path):
    with pytest.raises(NotFoundError, match=r"scheduler_config\.json"):
        schedulers.DDIMScheduler.from_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    path.write_text("{broken")
    with pytest.raises(UnderdrawError, match=r"scheduler_config\.json"):
        schedulers.DDIMScheduler.from_pretrained(tmp_path)
    path.write_text(json.dumps({"beta_schedule": "cubic"}))
    with pytest.raises(InputError, match="cubic"):
        schedulers.DDIMScheduler.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        schedulers.DDIMScheduler().save_pretrained(path)
    with pytest.raises(InputTypeError, match="must be a dict or a scheduler"):
        schedulers.DDIMScheduler.from_config("text")
    assert json.loads(path.read_text()) == {"beta_schedule": "cubic"}
    schedulers.DDIMScheduler(trained_betas=np.full(1000, 0.01)).save_pretrained(tmp_path)
    again = schedulers.DDIMScheduler.from_pretrained(tmp_path)
    assert again.config.trained_betas == [0.01] * 1000


def test_stepping_out_of_turn():
    import torch

    x = torch.ones(3, 4, 6, 5)
    scheduler = schedulers.DPMSolverMultistepScheduler()
    with pytest.raises(InputError, match="set_timesteps"):
        scheduler.step(x, 999, x)
    scheduler.set_timesteps(2)
    with pytest.raises(InputError, match="generator and variance_noise"):
        scheduler.step(x, 999, x, generator=torch.Generator(), variance_noise=x)
    for t in scheduler.timesteps:
        scheduler.step(x, t, x)
    with pytest.raises(InputError, match="run has ended"):
        scheduler.step(x, scheduler.timesteps[-1], x)
    euler = schedulers.EulerDiscreteScheduler()
    euler.set_timesteps(2)
    with pytest.raises(InputError, match="whole number"):
        euler.step(x, 1, x)
    with pytest.raises(InputError, match="not one of"):
        euler.scale_model_input(x, torch.tensor(3.25))
    ddim = schedulers.DDIMScheduler()
    ddim.set_timesteps(2)
    with pytest.raises(InputError, match="timestep=1000"):
        ddim.step(x, 1000, x)
    with pytest.raises(InputError, match="below 1000"):
        ddim.add_noise(x, x, torch.tensor([1, 2, 1000]))
    with pytest.raises(InputTypeError, match="ndarray"):
        ddim.step(x.numpy(), 500, x.numpy())


def test_schedule_ends():
    schedule = noise_schedule("scaled_linear", 0.00085, 0.012, rescale_betas_zero_snr=True)
    assert schedule.alphas_cumprod[-1] == 0
    assert schedule.sigmas[-1] == np.inf
    plain = noise_schedule("scaled_linear", 0.00085, 0.012)
    assert schedule.alphas_cumprod[0] == pytest.approx(plain.alphas_cumprod[0])
    with pytest.raises(ValueError, match="read-only"):
        plain.alphas_cumprod[0] = 1.0
