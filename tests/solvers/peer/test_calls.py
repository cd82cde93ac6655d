"""Calls as they are written for diffusers: arguments by position, attributes, timesteps of all
kinds."""

import inspect
from dataclasses import fields

import diffusers
import numpy as np
import pytest
import torch
from solvers.peer.oracle import GRIDS, SD, SHAPE, distance, peer, quiet

from underdraw import schedulers
from underdraw.errors import InputError, InputTypeError

NAMES = tuple(schedulers.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_of_step_by_position(name):
    theirs = list(inspect.signature(getattr(diffusers, name).step).parameters)
    ours = getattr(schedulers, name)
    assert ["self", "model_output", "timestep", "sample", *ours.positional] == theirs
    own = inspect.signature(ours.step).parameters  # as pipelines look what a class takes
    assert {"generator", "eta"} <= set(own)
    if "generator" in ours.positional:
        x, before = torch.ones(SHAPE), ours.positional.index("generator")
        defaults = {"eta": 0.5, "use_clipped_model_output": False, "s_churn": 2.0, "s_tmin": 0.0}
        defaults |= {"s_tmax": float("inf"), "s_noise": 1.0}
        given = {each: defaults[each] for each in ours.positional[:before]}
        made = []
        for by_name in (False, True):
            scheduler = ours(**SD)
            scheduler.set_timesteps(4)
            t, generator = scheduler.timesteps[0], torch.Generator().manual_seed(7)
            if by_name:
                made.append(scheduler.step(0.5 * x, t, x, generator=generator, **given)[0])
            else:
                made.append(scheduler.step(0.5 * x, t, x, *given.values(), generator)[0])
        assert torch.equal(*made)


def test_a_generator_by_position_seeds_the_noise():
    config = {**SD, "algorithm_type": "sde-dpmsolver++"}
    x, made = torch.ones(SHAPE), []
    for scheduler in (
        schedulers.DPMSolverMultistepScheduler(**config),
        peer("DPMSolverMultistepScheduler", **config),
    ):
        with quiet():
            scheduler.set_timesteps(5)
            t, generator = scheduler.timesteps[0], torch.Generator().manual_seed(3)
            made.append(scheduler.step(0.5 * x, t, x, generator, None, False)[0])
    assert torch.allclose(*made, atol=1e-5)


def test_misread_arguments_are_refused():
    x, scheduler = torch.ones(SHAPE), schedulers.DDIMScheduler(**SD)
    scheduler.set_timesteps(5)
    t = scheduler.timesteps[0]
    with pytest.raises(InputTypeError, match=r"eta=.*must be a number"):
        scheduler.step(x, t, x, torch.Generator())
    with pytest.raises(InputTypeError, match="eta=True"):
        scheduler.step(x, t, x, eta=True)
    with pytest.raises(InputTypeError, match="eta given twice"):
        scheduler.step(x, t, x, 0.5, eta=0.5)
    with pytest.raises(InputTypeError, match=r"at most 5 .*allowed: eta, use_clipped"):
        scheduler.step(x, t, x, 0.5, False, None, None, True, 3)
    pndm = schedulers.PNDMScheduler(**SD)
    pndm.set_timesteps(5)
    assert isinstance(pndm.step(x, pndm.timesteps[0], x, False), tuple)


@pytest.mark.parametrize("name", NAMES)
def test_add_noise_before_set_timesteps(name):
    """As training does: at training timesteps."""
    ours, theirs = getattr(schedulers, name)(**SD), peer(name, **SD)
    clean, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([10, 999, 480])
    found = ours.add_noise(clean, noise, times)
    like = theirs if hasattr(theirs, "add_noise") else peer("DDIMScheduler", **SD)
    assert distance(found, like.add_noise(clean, noise, times)) <= 1e-6


LAMBDA = [name for name in NAMES if getattr(schedulers, name).space == "lambda"]


@pytest.mark.parametrize("name", LAMBDA)
def test_as_many_steps_as_training(name):
    """Rounding repeats a timestep there, where most of diffusers' classes divide 0 by 0. (With
    "leading" it asks a thousand times at timestep 0; that is refused.)"""
    for spacing in ("linspace", "trailing"):
        place = {} if "Singlestep" in name else {"timestep_spacing": spacing}
        ours, theirs = getattr(schedulers, name)(**SD, **place), peer(name, **SD, **place)
        with quiet():
            theirs.set_timesteps(1000)
        ours.set_timesteps(1000)
        assert torch.equal(ours.timesteps, theirs.timesteps)
        assert np.isfinite(ours.make_table(1000).weights).all()


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "HeunDiscreteScheduler", "DEISMultistepScheduler"]
)
def test_timesteps_of_all_kinds(name):
    scheduler, x = getattr(schedulers, name)(**SD), torch.ones(SHAPE)
    wanted = scheduler.add_noise(x, 2 * x, torch.tensor([10, 10, 10]))
    velocity = scheduler.get_velocity(x, 2 * x, torch.tensor([10, 10, 10]))
    for one in (10, np.int64(10), [10], (10, 10, 10), np.array([10, 10, 10]), torch.tensor(10)):
        assert torch.equal(scheduler.add_noise(x, 2 * x, one), wanted)
        assert torch.equal(scheduler.get_velocity(x, 2 * x, one), velocity)
    for wrong in ("ten", None, True, [10, "x", 3], [], {}, [10, float("nan"), 3]):
        with pytest.raises(InputTypeError, match="must be a number, or one number per image"):
            scheduler.add_noise(x, x, wrong)
        with pytest.raises(InputTypeError, match="must be a number"):
            scheduler.get_velocity(x, x, wrong)
    with pytest.raises(InputError, match="2 entries; allowed: 1 or 3"):
        scheduler.add_noise(x, x, [10, 20])


@pytest.mark.parametrize("wrong", [5.0, True, np.float32(5)])
def test_steps_that_are_no_whole_number(wrong):
    """Also where 5.0 would find the table of 5."""
    scheduler = schedulers.DDIMScheduler(**SD)
    for steps in (1, 5):
        scheduler.set_timesteps(steps)
    with pytest.raises(InputTypeError, match="must be a whole number"):
        scheduler.set_timesteps(wrong)


@pytest.mark.parametrize("grid", [*GRIDS])
def test_dtype_of_timesteps(grid):
    for name in NAMES:
        names = {each.name for each in fields(getattr(schedulers, name).Config)}
        if set(grid) <= names:
            ours, theirs = getattr(schedulers, name)(**SD, **grid), peer(name, **SD, **grid)
            with quiet():
                theirs.set_timesteps(4)
            ours.set_timesteps(4)
            assert ours.timesteps.dtype == theirs.timesteps.dtype


@pytest.mark.parametrize("name", NAMES)
def test_attributes(name, tmp_path):
    ours, theirs = getattr(schedulers, name)(**SD), peer(name, **SD)
    names = ("betas", "alphas", "alphas_cumprod", "alpha_t", "sigma_t", "lambda_t")
    for each in (*names, "final_alpha_cumprod"):
        if hasattr(theirs, each):
            found, wanted = getattr(ours, each), getattr(theirs, each)
            assert found.dtype == torch.float32
            assert found.shape == wanted.shape
            assert torch.allclose(found, wanted, rtol=2e-6, atol=1e-7)
    ours.save_config(tmp_path)
    loaded = getattr(schedulers, name).load_config(tmp_path)
    assert loaded["beta_end"] == 0.012
    assert getattr(schedulers, name).from_config(loaded).config.beta_end == 0.012
    ours.to_json_file(tmp_path / "again.json")
    written = [(tmp_path / file).read_text() for file in ("scheduler_config.json", "again.json")]
    assert written == [ours.to_json_string()] * 2


def test_betas_and_final_alpha_follow_the_configuration():
    config = {**SD, "rescale_betas_zero_snr": True, "set_alpha_to_one": False}
    ours, theirs = schedulers.DDIMScheduler(**config), peer("DDIMScheduler", **config)
    assert torch.allclose(ours.betas, theirs.betas, atol=1e-6)
    assert ours.betas[-1] == 1
    assert float(ours.final_alpha_cumprod) == pytest.approx(float(theirs.final_alpha_cumprod))
