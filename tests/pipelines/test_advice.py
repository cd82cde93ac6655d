"""What the makers of a checkpoint advise travels with it."""

import json

import pytest
from pipelines import tiny

from underdraw import StableDiffusionPipeline
from underdraw.errors import InputError, InputTypeError, WeightError
from underdraw.pipelines.components.advice import Advice, read_advice


@pytest.fixture
def folder(tmp_path):
    pipe = tiny.pipeline()
    pipe.advice = Advice(guidance_scale=4.5)
    pipe.save_pretrained(tmp_path)
    return tmp_path


def test_it_is_kept(folder, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert pipe.advice == Advice(4.5)
    assert StableDiffusionPipeline.from_pipe(pipe).advice == Advice(4.5)
    pipe.save_pretrained(tmp_path / "again")
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "again").advice == Advice(4.5)


def test_a_call_does_what_it_is_told(folder):
    """Two folders of the same weights give the same numbers."""
    advised, plain = StableDiffusionPipeline.from_pretrained(folder), tiny.pipeline()
    advised.set_progress_bar_config(disable=True)
    assert (tiny.run(advised) == tiny.run(plain)).all()


def test_without_advice_nothing_is_written(tmp_path):
    tiny.pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert not [name for name in index if "underdraw" in name]
    assert StableDiffusionPipeline.from_pretrained(tmp_path).advice == Advice()


def test_what_later_versions_advise_is_passed_over():
    assert read_advice({"_underdraw": {"guidance_scale": 3, "mood": 1}}, "x") == Advice(3)
    assert read_advice({"_underdraw": ["unet", "vae"]}, "x") == Advice()


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        ("4", InputTypeError, "guidance_scale"),
        (float("nan"), WeightError, "not readable as JSON: it holds NaN"),
        (-1, InputError, "guidance_scale"),
    ],
)
def test_damaged_advice_is_named_with_its_place(folder, value, error, says):
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"_underdraw": {"guidance_scale": value}}))
    with pytest.raises(error, match=rf"model_index.json: {says}"):
        StableDiffusionPipeline.from_pretrained(folder)


def test_the_scenes_family_advises_less_than_usual():
    pipe = StableDiffusionPipeline.from_pretrained("underdraw/scenes")
    assert pipe.advice.guidance_scale == 4.5
