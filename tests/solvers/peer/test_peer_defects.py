"""Where diffusers is wrong, and what we do instead. Each test shows both."""

import numpy as np
import pytest
import torch
from solvers.peer.oracle import SD, SHAPE, distance, our_run, peer, peer_run, quiet

from underdraw import schedulers
from underdraw.errors import InputError
from underdraw.solvers.dpm_solver import integrals
from underdraw.solvers.lms import adams_coefficients

KARRAS_TO_SIGMA_MIN = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
NOISE_FORM = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}


@pytest.mark.parametrize(
    ("name", "config", "steps"),
    [
        # The last step goes from a σ to itself: 0 / 0.
        (
            "DPMSolverMultistepScheduler",
            {**NOISE_FORM, **KARRAS_TO_SIGMA_MIN, "solver_type": "heun"},
            20,
        ),
        (
            "UniPCMultistepScheduler",
            {**KARRAS_TO_SIGMA_MIN, "lower_order_final": False, "solver_order": 3},
            7,
        ),
        ("DPMSolverMultistepInverseScheduler", {"use_karras_sigmas": True, "solver_order": 3}, 20),
        # The last step goes to σ = 0, where h is infinite: 0 * inf.
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, 7),
        ("UniPCMultistepScheduler", {"predict_x0": False}, 7),
        ("UniPCMultistepScheduler", {"lower_order_final": False}, 7),
    ],
)
def test_nan_at_the_last_step(name, config, steps):
    assert not torch.isfinite(peer_run(peer(name, **SD, **config), steps)).all()
    assert torch.isfinite(our_run(getattr(schedulers, name)(**SD, **config), steps)).all()


def test_bh1_ends_on_the_clean_image_as_bh2_does():
    """The order-1 step to σ = 0 does not depend on B(h) at all."""
    one, two = (
        our_run(schedulers.UniPCMultistepScheduler(**SD, solver_order=1, solver_type=kind), 7)
        for kind in ("bh1", "bh2")
    )
    assert distance(one, two) < 0.2


def test_stochastic_inverse_is_refused():
    """sqrt(1 - exp(-2h)) with h < 0: diffusers returns NaN; noise cannot be taken out again."""
    config = {**SD, "algorithm_type": "sde-dpmsolver++"}
    theirs = peer("DPMSolverMultistepInverseScheduler", **config)
    with quiet():
        theirs.set_timesteps(5)
        x = torch.ones(SHAPE)
        assert torch.isnan(theirs.step(x, theirs.timesteps[0], x).prev_sample).all()
    with pytest.raises(InputError, match="algorithm_type"):
        schedulers.DPMSolverMultistepInverseScheduler(**config)


def test_third_order_of_the_stochastic_noise_form_does_not_exist():
    config = {**SD, **NOISE_FORM, "algorithm_type": "sde-dpmsolver", "solver_order": 3}
    with pytest.raises(UnboundLocalError):
        peer_run(peer("DPMSolverMultistepScheduler", **config), 7)
    with pytest.raises(InputError, match="solver_order"):
        schedulers.DPMSolverMultistepScheduler(**config)


def test_thresholding_of_the_singlestep_noise_form():
    """diffusers indexes its schedule with a time that was never given."""
    config = {**SD, **NOISE_FORM, "thresholding": True}
    theirs = peer("DPMSolverSinglestepScheduler", **config)
    with pytest.raises(Exception):  # noqa: B017
        peer_run(theirs, 4)
    assert torch.isfinite(our_run(schedulers.DPMSolverSinglestepScheduler(**config), 4)).all()


def test_equal_timesteps_at_the_start():
    """Rounded times repeat; diffusers begins at the second one and runs out of levels."""
    config = {**SD, "beta_schedule": "squaredcos_cap_v2", "use_exponential_sigmas": True}
    theirs = peer("DPMSolverMultistepScheduler", **config)
    ours = schedulers.DPMSolverMultistepScheduler(**config)
    ours.set_timesteps(14)
    assert ours.timesteps[0] == ours.timesteps[1]
    with quiet():
        theirs.set_timesteps(14)
        x = torch.ones(SHAPE)
        with pytest.raises(IndexError):
            for t in theirs.timesteps:
                x = theirs.step(x, t, x).prev_sample
    x = torch.ones(SHAPE)
    for t in ours.timesteps:
        x = ours.step(x, t, x).prev_sample
    assert torch.isfinite(x).all()


def test_inverse_karras_keeps_times_and_levels_together():
    """Timesteps that rounding repeats are dropped by diffusers, their σ are not: from then on the
    network is asked a whole step ahead of the latents."""
    config = {**SD, "use_karras_sigmas": True}
    theirs = peer("DPMSolverMultistepInverseScheduler", **config)
    with quiet():
        theirs.set_timesteps(50)
    table = schedulers.DPMSolverMultistepInverseScheduler(**config).make_table(50)
    assert table.timesteps.tolist() == theirs.timesteps.tolist()
    assert len(table.levels) == len(table) + 1
    at = np.interp(table.timesteps, np.arange(1000), schedulers.DDIMScheduler(**SD).schedule.sigmas)
    their_levels = theirs.sigmas[: len(at)].numpy()
    assert np.abs(np.log(table.levels[:-1] / at))[5:].max() < 0.02  # apart by rounding of t alone
    assert np.abs(np.log(their_levels / at))[5:].max() > 0.08


def test_fixed_large_log_variance():
    """diffusers takes the square root of a logarithm."""
    config = {**SD, "variance_type": "fixed_large_log"}
    generator = torch.Generator().manual_seed(5)
    assert torch.isnan(peer_run(peer("DDPMScheduler", **config), 7, generator=generator)).any()
    plain = {**SD, "variance_type": "fixed_large"}
    found = our_run(schedulers.DDPMScheduler(**config), 7)
    assert torch.equal(found, our_run(schedulers.DDPMScheduler(**plain), 7))


def test_euler_velocity():
    """diffusers looks ᾱ up by the place in `timesteps`, not by the timestep."""
    theirs, ours = peer("EulerDiscreteScheduler", **SD), schedulers.EulerDiscreteScheduler(**SD)
    right = schedulers.DDIMScheduler(**SD)
    with quiet():
        theirs.set_timesteps(10)
    ours.set_timesteps(10)
    sample, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([999.0, 666.0, 0.0])
    wanted = right.get_velocity(sample, noise, times)
    assert distance(ours.get_velocity(sample, noise, times), wanted) == 0
    assert distance(theirs.get_velocity(sample, noise, times), wanted) > 0.1


def test_lms_begun_later():
    """diffusers computes weights for answers it does not have, and drops the rest of the sum."""
    sigmas = schedulers.LMSDiscreteScheduler(**SD).make_table(7).levels
    weights = adams_coefficients(sigmas[[3, 2, 1, 0]], sigmas[4])
    assert weights[0] != pytest.approx(sum(weights), rel=0.1)
    assert sum(weights) == pytest.approx(sigmas[4] - sigmas[3])
    tail = schedulers.LMSDiscreteScheduler(**SD).make_table(7).tail(3)
    step = dict(tail.row(0).x)[2]  # of the output, which is the noise: a plain Euler step
    assert step == pytest.approx(sigmas[4] - sigmas[3])


def test_pndm_begun_later():
    """Kept as diffusers has it, since its pictures are asked for (image-to-image with the default
    scheduler of Stable Diffusion 1): it restarts its count, so that it takes the second call for a
    repetition of the first and from then on asks one timestep ahead of its latents."""
    config = {**SD, "skip_prk_steps": True}
    tail = schedulers.PNDMScheduler(**config).make_table(10).tail(4)
    alpha = schedulers.DDIMScheduler(**SD).schedule.alphas_cumprod
    first, again, third = (dict(row.x) for row in tail.rows[:3])
    t, second, ahead = (int(row.timestep) for row in tail.rows[:3])
    assert first[0] == pytest.approx((alpha[second] / alpha[t]) ** 0.5)  # of x
    assert again[1] == pytest.approx(first[0])  # of the saved latents: x is where it was
    assert third[0] == pytest.approx((alpha[ahead - 100] / alpha[ahead]) ** 0.5)
    assert ahead == second - 100


def test_singlestep_keeps_its_configuration():
    """diffusers' set_timesteps turns `lower_order_final` on for good."""
    config = {**SD, "final_sigmas_type": "sigma_min"}
    theirs, ours = (
        peer("DPMSolverSinglestepScheduler", **config),
        schedulers.DPMSolverSinglestepScheduler(**config),
    )
    with quiet():
        theirs.set_timesteps(5)
    ours.set_timesteps(5)
    assert theirs.config.lower_order_final
    assert not ours.config.lower_order_final


def test_known_sign_in_the_stochastic_third_order():
    """Kept as diffusers has it, since its pictures are asked for: in the expansion of the SDE the
    D2 factor must vanish with h, as it does for the ODE, but diffusers' goes to -1."""
    small = integrals("sde-dpmsolver++", 1.0, 0.999)
    assert small.d2 == pytest.approx(-(2**-0.5), rel=1e-2)
    assert integrals("dpmsolver++", 1.0, 0.999).d2 == pytest.approx(0, abs=1e-3)
