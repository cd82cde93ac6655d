"""Every field of every scheduler with values it is not meant for: a table of finite numbers, or an
error of ours that names the field, as it is made or as its steps are."""

import json
import random
from functools import partial

import numpy as np
import pytest
import torch
from trying import JSON, PYTHON, outcome

from underdraw import schedulers
from underdraw.errors import InputError
from underdraw.schema import hints_of, shown

NAMES = [name for name in schedulers.__all__ if hasattr(getattr(schedulers, name), "Config")]
STEPS = 5
GOOD = (True, False, None, 1, 2, 1e-3, 0.5, 10, 1000, "linear", "leading", "trailing", "sample")
BETAS = ([0.01] * 9, [0.0] * 9, [0.9] * 1000, [1e-9] * 9, np.linspace(0.01, 0.1, 9))


def steps_of(cls, settings):
    """The table of a few steps, whose numbers are all finite."""
    scheduler = cls(**settings)
    table = scheduler.make_table(STEPS)
    columns = [value for value in vars(table).values() if isinstance(value, np.ndarray)]
    assert all(np.isfinite(column).all() for column in columns if column.dtype.kind == "f")
    json.loads(scheduler.to_json_string())


@pytest.mark.parametrize("name", NAMES)
def test_a_field(name):
    cls = getattr(schedulers, name)
    for field in hints_of(cls.Config):
        for value in (*PYTHON, *GOOD, *BETAS):
            wrong = outcome(partial(steps_of, cls, {field: value}), field, "num_inference_steps")
            assert wrong is None, (field, shown(value))


@pytest.mark.parametrize("name", NAMES)
def test_several_fields(name):
    cls = getattr(schedulers, name)
    names, draw = list(hints_of(cls.Config)), random.Random(name)
    for _ in range(40):
        settings = {field: draw.choice(GOOD) for field in draw.sample(names, 3)}
        if draw.random() < 0.3:
            betas = draw.choice(BETAS)
            settings |= {"trained_betas": betas, "num_train_timesteps": len(betas)}
        wrong = outcome(partial(steps_of, cls, settings), *settings, "num_inference_steps")
        assert wrong is None, settings


@pytest.mark.parametrize("value", JSON, ids=lambda value: shown(value)[:20])
def test_what_is_no_configuration(value):
    """In the place of the whole, and of the list of defaults that diffusers writes."""
    for config in (value, {"_use_default_values": value, "beta_end": value}):
        assert outcome(partial(schedulers.DDIMScheduler.from_config, config)) is None


def test_files_are_named(tmp_path):
    schedulers.EulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_start": -0.1}))
    with pytest.raises(InputError) as error:
        schedulers.EulerDiscreteScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert str(error.value) == (
        f"{tmp_path / 'scheduler'}: EulerDiscreteScheduler: beta_start=-0.1 is not supported; "
        "allowed: a number, 0 or more, below 1"
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["model_output", "sample"])
def test_what_is_no_number_goes_on_where_it_stands(name, where):
    """Nothing hides it, and nothing else notices."""

    def run(given):
        scheduler, random = getattr(schedulers, name)(), torch.Generator().manual_seed(0)
        scheduler.set_timesteps(STEPS)
        x, output = (torch.randn(2, 4, 5, 9, generator=random) for _ in "xo")
        (output if where == "model_output" else x)[0, 1, 2, 3] = given
        for time in scheduler.timesteps[:4]:
            scheduler.scale_model_input(x, time)
            x = scheduler.step(output, time, x, generator=random).prev_sample
        return x

    plain, found = run(0.5), run(np.nan)
    there = torch.zeros(2, 4, 5, 9, dtype=torch.bool)
    there[0, 1, 2, 3] = True
    assert torch.isnan(found[there]).all()
    assert torch.equal(found[~there], plain[~there]) and torch.isfinite(plain).all()
