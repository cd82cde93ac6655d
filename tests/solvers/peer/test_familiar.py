"""The familiar methods beside diffusers': configurations both ways, noise, and runs begun later."""

import json

import diffusers
import pytest
import torch
from solvers.peer.oracle import SD, SHAPE, distance, network, peer, peer_run, quickly, quiet

import underdraw
from underdraw import backends, schedulers
from underdraw.errors import InputError
from underdraw.solvers.table import State, advance

NAMES = tuple(schedulers.__all__)
STEPS = {"LCMScheduler": 4, "TCDScheduler": 4}
PUBLISHED = {
    # As in the scheduler folders of Stable Diffusion 1.4, 1.5, 2.1-base and 2.1.
    "sd14": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.7.0.dev0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    },
    "sd15": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    },
    "sd21base": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.10.0.dev0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
    "sd21": {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.8.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
}


@quiet()
def step_through(scheduler, steps, begin=0, **options):
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    for t in times:
        output = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, return_dict=False, **options)[0]
    return x


def generator_for(name):
    noisy = ("DDPM", "Ancestral", "LCM", "TCD")
    seeded = {"generator": torch.Generator().manual_seed(3)}
    return seeded if any(part in name for part in noisy) else {}


@pytest.mark.parametrize("name", NAMES)
def test_defaults_and_step_by_step(name):
    ours, theirs = getattr(underdraw, name)(**SD), peer(name, **SD)
    assert {k: v for k, v in ours.config.items() if not k.startswith("_")} == {
        k: v for k, v in theirs.config.items() if not k.startswith("_")
    }
    assert sorted(ours.config["_use_default_values"]) == sorted(
        theirs.config["_use_default_values"]
    )
    assert (ours.order, len(ours)) == (theirs.order, len(theirs))
    if theirs.timesteps is not None:  # PNDM's are not there before set_timesteps
        assert torch.allclose(ours.timesteps.double(), theirs.timesteps.double(), atol=1e-3)
    steps = STEPS.get(name, 7)
    wanted = step_through(theirs, steps, **generator_for(name))
    assert distance(step_through(ours, steps, **generator_for(name)), wanted) <= 1e-5
    assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)
    if hasattr(theirs, "sigmas"):
        assert ours.sigmas.shape == theirs.sigmas.shape
        assert torch.allclose(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half):
    scheduler = schedulers.DPMSolverMultistepScheduler(**SD)
    scheduler.set_timesteps(3)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    t, rough = scheduler.timesteps[0], x.to(half)
    found = scheduler.step(rough.flip(0), t, rough).prev_sample
    scheduler.set_timesteps(3)
    exact = scheduler.step(rough.flip(0).float(), t, rough.float()).prev_sample
    assert found.dtype == half
    assert torch.equal(found, exact.to(half))


def test_outputs():
    scheduler = schedulers.DDIMScheduler(**SD)
    scheduler.set_timesteps(5)
    x = torch.ones(SHAPE)
    out = scheduler.step(0.5 * x, scheduler.timesteps[0], x, eta=0.5, variance_noise=x)
    with quiet():
        theirs = peer("DDIMScheduler", **SD)
        theirs.set_timesteps(5)
        wanted = theirs.step(0.5 * x, theirs.timesteps[0], x, eta=0.5, variance_noise=x)
    assert torch.allclose(out.prev_sample, wanted.prev_sample, atol=1e-6)
    assert torch.allclose(out["pred_original_sample"], wanted[1], atol=1e-5)
    assert len(out.to_tuple()) == 2
    assert out[0] is out.prev_sample
    anywhere = scheduler.step(0.5 * x, 123, x)[0]
    assert torch.allclose(anywhere, theirs.step(0.5 * x, 123, x)[0], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_add_noise(name):
    ours, theirs = getattr(schedulers, name)(**SD), peer(name, **SD)
    steps = STEPS.get(name, 7)
    with quiet():
        theirs.set_timesteps(steps)
    ours.set_timesteps(steps)
    clean, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    times = ours.timesteps[[0, -1, 2]]
    for dtype in (torch.float32, torch.float64):
        found = ours.add_noise(clean.to(dtype), noise.to(dtype), times)
        assert found.dtype == dtype
        if hasattr(theirs, "add_noise"):
            wanted = theirs.add_noise(
                clean.to(dtype), noise.to(dtype), theirs.timesteps[[0, -1, 2]]
            )
            assert distance(found, wanted) <= 1e-6
    if name in ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler"):
        wanted = theirs.get_velocity(clean, noise, times)
        assert distance(ours.get_velocity(clean, noise, times), wanted) <= 1e-6


# PNDM has no begin index, see test_pndm_begun_later.
BEGUN = ("DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler")
BEGUN += ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
BEGUN += ("KDPM2DiscreteScheduler", "DPMSolverSinglestepScheduler", "LCMScheduler")


@pytest.mark.parametrize("name", BEGUN)
@pytest.mark.parametrize("begin", [1, 2])
def test_runs_begun_later(name, begin):
    ours, theirs = getattr(schedulers, name)(**SD), peer(name, **SD)
    begin *= ours.order
    wanted = step_through(theirs, 7, begin, **generator_for(name))
    assert distance(step_through(ours, 7, begin, **generator_for(name)), wanted) <= 1e-5
    ours.set_timesteps(7)
    t = ours.timesteps[begin]
    ours.scale_model_input(torch.ones(SHAPE), t)
    ours.step(torch.ones(SHAPE), t, torch.ones(SHAPE))
    assert ours.step_index in (begin + 1, None)  # without set_begin_index, found by its timestep


@pytest.mark.parametrize("model", PUBLISHED)
@pytest.mark.parametrize("name", NAMES)
def test_published_configs_on_every_class(model, name, tmp_path):
    """A folder of ours or theirs, loaded as any class, in any order."""
    published = PUBLISHED[model]
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(published))
    ours = getattr(schedulers, name).from_pretrained(tmp_path, subfolder="scheduler")
    with quickly(getattr(diffusers, name)) as peers:
        theirs = peers.from_pretrained(str(tmp_path), subfolder="scheduler")
    steps = STEPS.get(name, 5)
    request = generator_for(name)
    wanted = peer_run(theirs, steps, **request)
    with quiet():
        assert distance(peer_run(ours, steps, **generator_for(name)), wanted) <= 1e-5
    ours.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "scheduler_config.json").read_text())
    assert saved["_class_name"] == name
    assert "_use_default_values" not in saved
    with quickly(peers):  # afresh: the peer's set_timesteps may change its configuration
        theirs = peers.from_pretrained(str(tmp_path), subfolder="scheduler")
        back = peers.from_pretrained(str(tmp_path / "saved"))
    assert {k: v for k, v in back.config.items() if not k.startswith("_")} == {
        k: v for k, v in theirs.config.items() if not k.startswith("_")
    }
    original = getattr(schedulers, published["_class_name"])
    again = original.from_config(ours).config
    assert {k: again[k] for k in published if not k.startswith("_")} == {
        k: v for k, v in published.items() if not k.startswith("_")
    }


def test_defaults_of_one_class_are_not_carried_to_another():
    ours = schedulers.EulerDiscreteScheduler.from_config(schedulers.DDIMScheduler(**SD).config)
    with quiet():
        theirs = diffusers.EulerDiscreteScheduler.from_config(peer("DDIMScheduler", **SD).config)
        crossed = diffusers.EulerDiscreteScheduler.from_config(
            schedulers.DDIMScheduler(**SD).config
        )
    assert ours.config.timestep_spacing == theirs.config.timestep_spacing == "linspace"
    assert crossed.config.timestep_spacing == "linspace"
    taken = schedulers.EulerDiscreteScheduler.from_config(theirs, use_karras_sigmas=True)
    assert taken.config.use_karras_sigmas
    assert taken.config["beta_end"] == 0.012
    assert taken.config.get("nothing") is None
    assert "_class_name" in list(taken.config)


def test_compatibles():
    for name in NAMES:
        theirs = {each.__name__ for each in peer(name, **SD).compatibles}
        ours = {each.__name__ for each in getattr(schedulers, name)(**SD).compatibles}
        assert ours == theirs & set(NAMES) or name in ("DDIMInverseScheduler",)


def test_peer_refuses_what_we_refuse():
    """Arguments of set_timesteps that both answer with ValueError."""
    cases = [
        ("DDIMScheduler", {}, {"num_inference_steps": 1001}),
        ("DDPMScheduler", {}, {"num_inference_steps": 5, "timesteps": [9, 5]}),
        ("DDPMScheduler", {}, {"timesteps": [5, 9]}),
        ("DDPMScheduler", {}, {"timesteps": [1000, 9]}),
        ("EulerDiscreteScheduler", {}, {"timesteps": [9], "sigmas": [1.0, 0.0]}),
        ("EulerDiscreteScheduler", {}, {}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {"timesteps": [9, 5]}),
        ("HeunDiscreteScheduler", {"use_beta_sigmas": True}, {"timesteps": [9, 5]}),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, {"timesteps": [9, 5]}),
        ("DPMSolverMultistepScheduler", {}, {"num_inference_steps": 3, "timesteps": [9, 5]}),
        ("UniPCMultistepScheduler", {}, {"sigmas": [2.0, 1.0]}),
        ("LCMScheduler", {}, {"num_inference_steps": 51}),
        ("LCMScheduler", {}, {"num_inference_steps": 30, "strength": 0.5}),
        ("TCDScheduler", {}, {"timesteps": [5, 9]}),
    ]
    for name, config, request in cases:
        theirs, ours = peer(name, **SD, **config), getattr(schedulers, name)(**SD, **config)
        with quiet(), pytest.raises(ValueError):
            theirs.set_timesteps(**request)
        with pytest.raises(InputError):
            ours.set_timesteps(**request)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("skip_prk_steps", [True, False])
@pytest.mark.parametrize("begin", [0, 1, 2, 3, 4, 7, 9])
def test_pndm_begun_later(begin, skip_prk_steps, prediction_type):
    """As image-to-image does it: the timesteps are cut, and nobody says where the run begins."""
    config = {**SD, "skip_prk_steps": skip_prk_steps, "prediction_type": prediction_type}
    theirs = peer("PNDMScheduler", **config, steps_offset=1)
    clean, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    made = []
    for scheduler in (theirs, ours := schedulers.PNDMScheduler(**config, steps_offset=1)):
        scheduler.set_timesteps(10)
        times = scheduler.timesteps[begin:]
        x = scheduler.add_noise(clean, noise, times[:1].repeat(len(clean)))
        for t in times:
            x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
        made.append(x)
    assert distance(made[1], made[0]) <= 1e-5
    nn = backends.get("torch").operations
    table = ours.make_table(10).tail(begin)
    assert table.timesteps.tolist() == times.tolist()
    state = State(ours.add_noise(clean, noise, times[:1]))
    for row in table.rows:
        state = advance(nn, row, state, network(state.x, row.timestep))
    assert distance(state.x, made[0]) <= 1e-5
