"""Every name of `--solver help` draws with the family that ships."""

import json

import pytest

import underdraw
from underdraw import InputError, StableDiffusionPipeline, schedulers
from underdraw.cli.solvers import ALIASES, GRIDS, SOLVERS, describe, make_solver
from underdraw.evaluation.detector import load_evaluator
from underdraw.training.recipes import ScenesRecipe
from underdraw.training.text_to_image import scheduler_for

pytestmark = pytest.mark.usefixtures("onednn")
STEPS = 14
CALL = {"num_inference_steps": STEPS, "guidance_scale": 4.5, "seed": 7}


def drawn(pipe, config):
    """What the evaluator sees in "a red sphere" of every solver. All are drawn at once, so that
    they share the calls of the network."""
    streams = []
    for name in SOLVERS:
        another = StableDiffusionPipeline.from_pipe(pipe)
        another.scheduler = make_solver(name, config)
        streams.append(another.stream("a red sphere", **CALL))
    for _ in (runs := underdraw.batched(streams)):
        pass
    seen = load_evaluator().detect([stream.output.images[0] for stream in runs.streams])
    return {
        name: [(thing.colour, thing.shape) for thing in things]
        for name, things in zip(SOLVERS, seen, strict=True)
    }


@pytest.fixture(scope="module")
def family():
    pipe = StableDiffusionPipeline.from_pretrained("underdraw/scenes")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_every_solver_draws_what_is_asked_for(family):
    for name, things in drawn(family, family.scheduler.config).items():
        assert set(things) == {("red", "sphere")}, name


def test_every_name_has_a_table(family):
    """With a grid, too, where the solver has one; help names what works and nothing else."""
    for name in SOLVERS:
        assert name in describe()
        for grid, switch in GRIDS.items():
            try:
                made = make_solver(f"{name}_{grid}", family.scheduler.config)
            except InputError as error:
                assert f"{name} has no {grid} grid" in str(error)
                assert switch not in make_solver(name, family.scheduler.config).settings.__dict__
                continue
            assert made.settings.grid() == switch
            assert len(made.make_table(STEPS)) >= STEPS
    for alias, name in ALIASES.items():
        one, other = (make_solver(n, family.scheduler.config).config for n in (alias, name))
        assert one == other


def test_no_solver_clips_latents_of_the_family(family):
    """By whatever way another solver takes the place of the family's own."""
    for name in schedulers.__all__:
        cls = getattr(schedulers, name, None)
        if hasattr(cls, "build"):
            made = cls.from_config(family.scheduler.config)
            assert made.settings.clip is None, name
            assert len(made.make_table(10)) >= 10
    ddpm = schedulers.DDPMScheduler
    assert ddpm(variance_type=None).make_table(5) is not None


def test_the_folder_is_what_the_recipe_writes(family, tmp_path):
    """A family that is trained and exported anew says the same."""
    scheduler_for(ScenesRecipe().denoiser.objective).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    shipped = json.loads(family.scheduler.to_json_string())
    assert written == shipped
