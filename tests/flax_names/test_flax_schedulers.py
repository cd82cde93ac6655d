"""Schedulers under Flax's names, whose states are given and returned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax_names.recorded import record

import underdraw
from underdraw import schedulers
from underdraw.errors import InputError
from underdraw.flax.schedulers import CLASSES, FlaxScheduler

SHAPE = (3, 4, 5, 9)
STEPS = 4


def made(cls, **settings):
    return cls(**record.SCHEDULE, **settings)


def arrays(seed=0):
    drawn = np.random.default_rng(seed).standard_normal((STEPS + 2, *SHAPE))
    return drawn.astype(np.float32)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_steps_are_those_of_the_familiar_class(cls):
    """In a compiled loop, with the same answers of a network."""
    scheduler = made(cls)
    familiar = made(cls.within, **scheduler.settings)
    state = scheduler.create_state()
    state = scheduler.set_timesteps(state, STEPS, shape=SHAPE)
    familiar.set_timesteps(STEPS)
    np.testing.assert_allclose(state.timesteps, familiar.timesteps, rtol=1e-6)
    np.testing.assert_allclose(state.init_noise_sigma, familiar.init_noise_sigma, rtol=1e-6)
    outputs = jnp.asarray(arrays())
    x, key = outputs[-1] * state.init_noise_sigma, jax.random.PRNGKey(0)
    draws = any(row.draws for row in familiar.table.rows)

    @jax.jit
    def run(x, state, output, t, key):
        scaled = scheduler.scale_model_input(state, x, t)
        more = {"key": key} if draws else {}
        return scheduler.step(state, 0.1 * output + 0.3 * scaled, t, x, **more).to_tuple()

    found, after = x, state
    for i, t in enumerate(state.timesteps):
        found, after = run(found, after, outputs[i % len(outputs)], t, jax.random.fold_in(key, i))
    assert run._cache_size() == 1
    y = torch.from_numpy(np.array(x))
    for i, t in enumerate(familiar.timesteps):
        scaled = familiar.scale_model_input(y, t)
        output = 0.1 * torch.from_numpy(arrays()[i % len(outputs)]) + 0.3 * scaled
        more = {}
        if draws:
            noise = underdraw.backends.get("jax").keyed(jax.random.fold_in(key, i), SHAPE)[0]
            more = {"variance_noise": torch.from_numpy(np.array(noise))}
        y = familiar.step(output, t, y, **more).prev_sample
    np.testing.assert_allclose(found, y, atol=2e-5 * float(abs(y).max()))
    assert int(after.call) == len(familiar.timesteps)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_training(cls):
    scheduler = made(cls)
    state, (clean, noise) = scheduler.create_state(), arrays()[:2]
    times = np.array([3, 999, 400])
    familiar = made(cls.within, **scheduler.settings)
    found = scheduler.add_noise(state, clean, noise, jnp.asarray(times))
    signal = np.sqrt(familiar.schedule.alphas_cumprod[times]).reshape(-1, 1, 1, 1)
    sigma = np.sqrt(1 - signal**2)
    expected = signal * clean + sigma * noise
    if familiar.space == "sigma":
        expected = expected / signal
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    velocity = scheduler.get_velocity(state, clean, noise, times)
    np.testing.assert_allclose(velocity, signal * noise - sigma * clean, rtol=1e-3, atol=1e-4)
    assert len(scheduler) == 1000 and scheduler.has_state


def test_the_run_of_the_solver_ends_where_flaxs_ends():
    scheduler = underdraw.FlaxDPMSolverMultistepScheduler()
    assert scheduler.config.final_sigmas_type == "sigma_min"
    familiar = schedulers.DPMSolverMultistepScheduler()
    assert FlaxScheduler.of(familiar).config.final_sigmas_type == "sigma_min"
    told = schedulers.DPMSolverMultistepScheduler(final_sigmas_type="zero")
    assert FlaxScheduler.of(told).config.final_sigmas_type == "zero"


def test_files(tmp_path):
    scheduler = underdraw.FlaxPNDMScheduler(steps_offset=1, skip_prk_steps=True)
    scheduler.save_pretrained(tmp_path)
    again, state = underdraw.FlaxPNDMScheduler.from_pretrained(tmp_path)
    assert again.config.items() <= scheduler.config.items()
    assert again.config["_class_name"] == "FlaxPNDMScheduler"
    assert state.timesteps[0] == 999 and state.common.alphas_cumprod.shape == (1000,)
    other = underdraw.FlaxDDIMScheduler.from_config(scheduler.config, clip_sample=False)
    assert other.config.steps_offset == 1 and other.config.clip_sample is False
    assert len(jax.tree_util.tree_leaves(state)) == 5


def test_all_of_ours_stand_behind_a_state():
    """Schedulers that Flax never had, too."""
    heun = FlaxScheduler.of(schedulers.HeunDiscreteScheduler(**record.SCHEDULE))
    state = heun.set_timesteps(heun.create_state(), STEPS)
    assert len(state.timesteps) == 2 * STEPS - 1


def test_what_cannot_be():
    scheduler = underdraw.FlaxDDPMScheduler()
    state, x = scheduler.create_state(), jnp.zeros(SHAPE)
    with pytest.raises(InputError, match="set_timesteps"):
        scheduler.step(state, x, 1, x)
    state = scheduler.set_timesteps(state, 2, SHAPE)
    with pytest.raises(InputError, match="key=None"):
        scheduler.step(state, x, state.timesteps[0], x)
    with pytest.raises(InputError, match="num_inference_steps"):
        scheduler.set_timesteps(state, 0)
    with pytest.raises(TypeError, match="nothing"):
        underdraw.FlaxDDIMScheduler(nothing=1)
    with pytest.raises(TypeError, match="config"):
        underdraw.FlaxDDIMScheduler.from_config(3)
