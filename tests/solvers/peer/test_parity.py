"""Each solver over whole trajectories: largest difference over largest value, at most 1e-5."""

import pytest
from solvers.peer.oracle import (
    CLIPS,
    GRIDS,
    PREDICTIONS,
    SD,
    SPACINGS,
    check_all,
    configurations,
)

V_ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
NOISE_FORM = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
ALGORITHMS = {
    "dpmsolver++": {},
    "dpmsolver": NOISE_FORM,
    "sde-dpmsolver++": {"algorithm_type": "sde-dpmsolver++"},
    "sde-dpmsolver": {**NOISE_FORM, "algorithm_type": "sde-dpmsolver"},
}


PLACES = (*GRIDS, *({"timestep_spacing": spacing} for spacing in SPACINGS[::2]))
"""For solvers whose σ grids do not look at the spacing; "linspace" is their default."""


def orders(algorithm):
    return (1, 2) if algorithm == "sde-dpmsolver" else (1, 2, 3)


def test_ddim():
    axes = {"timestep_spacing": SPACINGS, "prediction_type": PREDICTIONS, "clip": CLIPS}
    check_all("DDIMScheduler", configurations(**axes, set_alpha_to_one=(True, False)), (1, 7, 50))
    check_all("DDIMScheduler", configurations(steps_offset=(1,), clip=CLIPS))


@pytest.mark.parametrize("clipped", [False, True])
def test_ddim_with_noise(clipped):
    configs = configurations(prediction_type=PREDICTIONS, clip=CLIPS)
    options = {"eta": 0.7, "use_clipped_model_output": clipped}
    check_all("DDIMScheduler", configs, noisy=True, **options)


def test_ddim_inverse():
    axes = {"timestep_spacing": ("leading", "trailing"), "clip": CLIPS[:2]}
    kinds = ({"prediction_type": "sample", "set_alpha_to_one": False}, {}, V_ZERO)
    configs = configurations(**axes, kind=(*kinds, {"set_alpha_to_one": False}))
    check_all("DDIMInverseScheduler", configs, (1, 7, 50))


def test_ddpm():
    axes = {"timestep_spacing": SPACINGS, "prediction_type": PREDICTIONS, "clip": CLIPS}
    kinds = ("fixed_small", "fixed_small_log", "fixed_large")
    check_all("DDPMScheduler", configurations(**axes, variance_type=kinds), noisy=True)
    check_all("DDPMScheduler", [SD], ({"timesteps": [900, 500, 499, 20, 0]},), noisy=True)


def test_plms():
    axes = {"timestep_spacing": SPACINGS, "prediction_type": PREDICTIONS[:2]}
    ends = {"set_alpha_to_one": (True, False), "steps_offset": (0, 1)}
    check_all("PNDMScheduler", configurations(skip_prk_steps=(True,), **axes, **ends), (2, 7, 50))
    check_all("PNDMScheduler", [{**SD, "skip_prk_steps": True}], (1,))


def test_pndm():
    axes = {"timestep_spacing": SPACINGS, "prediction_type": PREDICTIONS[:2]}
    check_all("PNDMScheduler", configurations(**axes), (4, 7, 50))


def test_lms():
    axes = {"timestep_spacing": SPACINGS, "prediction_type": PREDICTIONS, "grid": GRIDS}
    check_all("LMSDiscreteScheduler", configurations(**axes), (1, 5, 12))
    check_all("LMSDiscreteScheduler", [SD], (7,), order=2)


def test_euler():
    axes = {"timestep_spacing": SPACINGS, "prediction_type": PREDICTIONS, "grid": GRIDS}
    configs = configurations(**axes, final_sigmas_type=("zero", "sigma_min"))
    check_all("EulerDiscreteScheduler", configs, (1, 7, 50))
    configs = configurations(interpolation_type=("log_linear",), grid=GRIDS)
    check_all("EulerDiscreteScheduler", configs)
    edm = {"timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0}
    edm |= {"prediction_type": "v_prediction", "use_karras_sigmas": True}
    check_all("EulerDiscreteScheduler", configurations(edm=(edm,)))
    zeros = (V_ZERO, {**V_ZERO, "prediction_type": "sample"})
    configs = configurations(zero=zeros, timestep_spacing=SPACINGS)
    check_all("EulerDiscreteScheduler", configs)


def test_euler_custom():
    sigmas = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]
    times = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    configs = configurations(prediction_type=PREDICTIONS, timestep_spacing=SPACINGS[:2])
    check_all("EulerDiscreteScheduler", configs, ({"sigmas": sigmas}, {"timesteps": times}))


def test_euler_churned():
    options = {"s_churn": 3.0, "s_noise": 1.1, "s_tmin": 0.1}
    configs = configurations(prediction_type=PREDICTIONS)
    check_all("EulerDiscreteScheduler", configs, noisy=True, **options)


def test_euler_ancestral():
    axes = {"timestep_spacing": SPACINGS, "prediction_type": PREDICTIONS[:2]}
    configs = configurations(**axes, rescale_betas_zero_snr=(False, True))
    check_all("EulerAncestralDiscreteScheduler", configs, (1, 7, 50), noisy=True)


def test_heun():
    axes = {"prediction_type": PREDICTIONS, "grid": GRIDS}
    check_all("HeunDiscreteScheduler", configurations(**axes, clip=CLIPS[:2]), (1, 7, 20))
    check_all("HeunDiscreteScheduler", configurations(timestep_spacing=SPACINGS), (5,))
    times = {"timesteps": [999, 700, 300, 100, 10]}
    check_all("HeunDiscreteScheduler", [SD], (times,))


@pytest.mark.parametrize("name", ["KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
def test_dpm2(name):
    axes = {"prediction_type": PREDICTIONS[:2], "grid": GRIDS}
    check_all(name, configurations(**axes), (1, 7, 12), noisy="Ancestral" in name)
    configs = configurations(timestep_spacing=SPACINGS)
    check_all(name, configs, (5,), noisy="Ancestral" in name)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_dpm_multistep(algorithm):
    common = {"kind": (ALGORITHMS[algorithm],), "solver_order": orders(algorithm)}
    ends = ({"lower_order_final": False}, {"euler_at_final": True}, {})
    noisy = algorithm.startswith("sde")
    name = "DPMSolverMultistepScheduler"
    places = (*PLACES, {"use_lu_lambdas": True})
    configs = configurations(**common, place=places, end=ends)
    check_all(name, configs, (1, 7, 14), noisy)
    axes = {"solver_type": ("midpoint", "heun"), "prediction_type": PREDICTIONS}
    bounds = ({}, {"thresholding": True, "sample_max_value": 1.5})
    check_all(name, configurations(**common, **axes, clip=bounds), (1, 7, 50), noisy)


def test_dpm_multistep_special():
    name = "DPMSolverMultistepScheduler"
    check_all(name, configurations(zero=(V_ZERO,), timestep_spacing=SPACINGS), (1, 7, 20))
    cosine = {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}
    places = (*PLACES, {"use_lu_lambdas": True})
    check_all(name, configurations(b=(cosine,), place=places), (1, 7, 14))
    times = {"timesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]}
    check_all(name, [SD], (times,))
    published = {"algorithm_type": "deis", "solver_type": "bh2", "final_sigmas_type": "sigma_min"}
    check_all(name, configurations(kind=(published,)), (7,))


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver", "sde-dpmsolver++"])
def test_dpm_singlestep(algorithm):
    axes = {"kind": (ALGORITHMS[algorithm],), "solver_order": (1, 2, 3)}
    more = {"solver_type": ("midpoint", "heun"), "prediction_type": PREDICTIONS, "grid": GRIDS}
    configs = configurations(**axes, **more, lower_order_final=(True, False))
    check_all("DPMSolverSinglestepScheduler", configs, (1, 2, 7, 12, 20), "sde" in algorithm)


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
def test_dpm_inverse(algorithm):
    axes = {"algorithm_type": (algorithm,), "solver_order": (1, 2, 3)}
    more = {"solver_type": ("midpoint", "heun"), "prediction_type": PREDICTIONS}
    configs = configurations(**axes, **more, place=PLACES)
    check_all("DPMSolverMultistepInverseScheduler", configs, (1, 7, 11))
    configs = configurations(**axes, **more)
    check_all("DPMSolverMultistepInverseScheduler", configs, (20, 50))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_unipc(order):
    name, common = "UniPCMultistepScheduler", {"solver_order": (order,)}
    axes = {"prediction_type": PREDICTIONS, "place": PLACES}
    check_all(name, configurations(**common, **axes), (1, 7, 50))
    low = {"final_sigmas_type": ("sigma_min",), "predict_x0": (True, False)}
    axes = {"solver_type": ("bh1", "bh2"), "lower_order_final": (True, False)}
    configs = configurations(**common, **axes, **low, prediction_type=PREDICTIONS[:2])
    check_all(name, configs, (1, 7, 20))
    axes = {"disable_corrector": ([], [0, 2]), "thresholding": (True, False)}
    check_all(name, configurations(**common, **axes), (7, 20))
    check_all(name, configurations(**common, zero=(V_ZERO,), timestep_spacing=SPACINGS))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order):
    axes = {"prediction_type": PREDICTIONS, "place": PLACES}
    ends = {"lower_order_final": (True, False), "clip": ({}, {"thresholding": True})}
    configs = configurations(solver_order=(order,), **axes, **ends)
    check_all("DEISMultistepScheduler", configs, (1, 7, 15))
    check_all("DEISMultistepScheduler", configs[:1], (50,))


def test_lcm():
    configs = configurations(prediction_type=PREDICTIONS, clip=CLIPS, timestep_scaling=(10.0, 1.0))
    steps = (1, 4, 7, {"timesteps": [999, 700, 259]})
    check_all("LCMScheduler", configs, steps, noisy=True)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd(eta):
    steps = (1, 4, 7, {"timesteps": [999, 700, 259]})
    check_all("TCDScheduler", configurations(prediction_type=PREDICTIONS), steps, True, eta=eta)
