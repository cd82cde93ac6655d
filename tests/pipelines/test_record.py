"""Pictures that say how they were made, and are made again from that."""

import json

import numpy as np
import pytest
import torch
from pipelines import tiny

from underdraw import engines, schedulers
from underdraw.controls import Control
from underdraw.engines.compiled import Compiled
from underdraw.engines.eager import EAGER
from underdraw.errors import InputError, InputTypeError
from underdraw.pictures.writing import read_metadata
from underdraw.pipelines.call.record import repeat


def same(a, b):
    return a.size == b.size and a.tobytes() == b.tobytes()


CALLS = {
    "plain": {"prompt": "a red sphere", "seed": 7},
    "all": {
        "prompt": "a (red:1.3) sphere",
        "negative_prompt": "blue [cube]",
        "seed": 8,
        "height": 40,
        "width": 72,
        "guidance_scale": 3.5,
        "guidance_rescale": 0.5,
        "clip_skip": 1,
    },
    "unguided": {
        "prompt": ["green"],
        "guidance_scale": 1.0,
        "negative_prompt": "x",
        "seed": [2**40],
    },
    "sigmas": {"prompt": "", "sigmas": [10.0, 2.5, 0.3], "seed": 1},
    "timesteps": {"prompt": "naïve 猫 👍 \\(x\\)", "timesteps": [900, 400, 1], "seed": 1},
    "a list with one guidance": {"prompt": "a", "guidance_scale": [4.0], "seed": 3},
}


@pytest.mark.parametrize("name", CALLS)
def test_a_picture_is_made_again_bit_by_bit(tmp_path, pipe, name):
    if name == "timesteps":
        scheduler = schedulers.EulerDiscreteScheduler(**{**tiny.SCHEDULE, "steps_offset": 0})
        pipe = type(pipe).from_pipe(pipe)
        pipe.scheduler = scheduler  # assigned, so that nobody mends it
        pipe.set_progress_bar_config(disable=True)
    result = pipe(**{"num_inference_steps": 3, **CALLS[name]})
    (path,) = result.save(tmp_path / "picture.png")
    metadata = read_metadata(path)
    assert metadata["missing"] == []
    again = repeat(pipe, metadata)
    assert same(again, result.images[0])
    assert read_png(path).tobytes() == again.tobytes()
    assert same(repeat(pipe, again.info["underdraw"]), again)


def read_png(path):
    from PIL import Image

    return Image.open(path)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"]
)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_scheduler_settings_and_compat_come_from_the_picture(name, eta):
    options = {"clip_sample": False} if name != "EulerAncestralDiscreteScheduler" else {}
    scheduler = getattr(schedulers, name)(**{**tiny.SCHEDULE, **options})
    made = tiny.pipeline(compat="diffusers", scheduler=scheduler)
    made.enable_vae_tiling()
    call = {"num_inference_steps": 2, "eta": eta, "seed": 5, "height": 88, "width": 48}
    image = made("a (red sphere", **call).images[0]
    other = tiny.pipeline()
    plain = tiny.run(other)
    assert same(repeat(other, image.info["underdraw"]), image)
    assert other.compat is None and type(other.scheduler) is schedulers.EulerDiscreteScheduler
    assert not other.settings.vae_tiling
    assert torch.equal(tiny.run(other), plain)


def test_each_picture_of_a_batch_has_its_own_record(tmp_path, pipe):
    prompts = ["a red sphere", "(blue:1.4) cube"]
    call = {"num_inference_steps": 3, "guidance_scale": [2.0, 7.0, 3.0, 1.0], "seed": 20}
    result = pipe(prompts, negative_prompt=["", "green"], num_images_per_prompt=2, **call)
    paths = result.save(tmp_path / "batch.png")
    assert [path.name for path in paths] == [f"batch-{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        metadata = read_metadata(path)
        assert metadata["call"]["prompt"] == prompts[i // 2]
        assert metadata["call"]["seed"] == 20 + i
        again = np.asarray(repeat(pipe, metadata), int)
        assert np.abs(again - np.asarray(result.images[i], int)).max() <= 1


def test_generators_are_recorded_where_a_seed_says_as_much(pipe):
    def missing(**arguments):
        made = pipe(["a", "b"], num_inference_steps=1, **arguments).images
        return [json.loads(image.info["underdraw"])["missing"] for image in made]

    fresh = [torch.Generator().manual_seed(i) for i in (1, 2)]
    used = [torch.Generator().manual_seed(i) for i in (1, 2)]
    torch.randn(1, generator=used[1])
    assert missing(generator=fresh) == [[], []]
    assert missing(generator=used) == [[], ["seed"]]
    assert missing(generator=torch.Generator().manual_seed(1)) == [["seed"], ["seed"]]
    assert missing() == [["seed"], ["seed"]]
    assert missing(seed=1, latents=torch.randn(2, 4, 8, 8)) == [["latents"]] * 2
    assert missing(seed=1, controls=[Control()]) == [["controls"]] * 2
    told = {"callback_on_step_end": lambda pipe, i, t, tensors: {"latents": tensors["latents"] * 2}}
    assert missing(seed=1, **told) == [["callback_on_step_end"]] * 2
    told = {"callback_on_step_end": lambda pipe, i, t, tensors: tensors}
    assert missing(seed=1, **told) == [[], []]
    one = torch.Generator().manual_seed(9)
    image = pipe("a", num_inference_steps=2, generator=one).images[0]
    assert same(repeat(pipe, image.info["underdraw"]), image)


def test_half_precision_draws_otherwise_from_a_generator():
    pipe = tiny.pipeline().to(torch.bfloat16)
    call = {"prompt": "a", "num_inference_steps": 1}
    drawn = pipe(**call, generator=[torch.Generator().manual_seed(4)]).images[0]
    assert json.loads(drawn.info["underdraw"])["missing"] == ["seed"]
    seeded = pipe(**call, seed=4).images[0]
    assert same(repeat(pipe, seeded.info["underdraw"]), seeded)


def test_what_is_missing_is_asked_for(pipe):
    latents = torch.randn(1, 4, 8, 8)
    image = pipe("a", num_inference_steps=1, latents=latents).images[0]
    with pytest.raises(InputError, match="lacks latents, seed"):
        repeat(pipe, image.info["underdraw"])
    assert same(repeat(pipe, image.info["underdraw"], latents=latents, seed=None), image)


class Own:
    """An engine of somebody else."""

    def run(self, question):
        return EAGER.run(question)


def test_an_engine_comes_from_the_picture(pipe, monkeypatch):
    monkeypatch.setattr(engines, "NAMES", {**engines.NAMES, "own": Own})
    own = type(pipe).from_pipe(pipe, engine="own")
    image = own("a", num_inference_steps=1, seed=1).images[0]
    record = json.loads(image.info["underdraw"])
    assert record["engine"] == "own"
    assert json.loads(repeat(pipe, record).info["underdraw"]) == record
    assert json.loads(repeat(own, record, engine="eager").info["underdraw"])["engine"] == "eager"
    del record["engine"]  # as pictures were written before
    assert json.loads(repeat(own, record).info["underdraw"])["engine"] == "eager"
    with pytest.raises(InputError, match="engine='other' is not known; allowed: 'eager'"):
        repeat(pipe, {**record, "engine": "other"})


def test_what_an_engine_has_compiled_is_used_again(pipe):
    compiled, asked = Compiled(), []
    compiled.run = lambda question: asked.append(question.program.name) or EAGER.run(question)
    own = type(pipe).from_pipe(pipe, engine=compiled)
    record = own("a", num_inference_steps=1, seed=1).images[0].info["underdraw"]
    assert json.loads(record)["engine"] == "jit"
    first = list(asked)
    repeat(own, record)
    assert asked == first * 2


@pytest.mark.parametrize("engine", [Own(), Compiled(lambda function: function)])
def test_an_engine_without_a_name_is_missing(pipe, engine):
    own = type(pipe).from_pipe(pipe, engine=engine)
    image = own("a", num_inference_steps=1, seed=1).images[0]
    assert json.loads(image.info["underdraw"])["missing"] == ["engine"]
    with pytest.raises(InputError, match="lacks engine; give them"):
        repeat(own, image.info["underdraw"])
    assert same(repeat(pipe, image.info["underdraw"], engine=engine), image)


def test_arguments_may_be_replaced(pipe):
    image = pipe("a red sphere", num_inference_steps=2, seed=3).images[0]
    changed = repeat(pipe, image.info["underdraw"], prompt="blue cube")
    assert same(changed, pipe("blue cube", num_inference_steps=2, seed=3).images[0])


@pytest.mark.parametrize(
    "metadata", ["", "{}", "[]", "no json", {}, {"call": {}}, None, 3, '{"call": 1, "missing": 2}']
)
def test_what_is_no_record(pipe, metadata):
    with pytest.raises(InputTypeError, match="metadata="):
        repeat(pipe, metadata)


def test_records_of_other_pipelines(pipe):
    record = json.loads(pipe("a", num_inference_steps=1, seed=1).images[0].info["underdraw"])
    with pytest.raises(InputError, match="metadata is of a Other; pipe is a Stable"):
        repeat(pipe, {**record, "pipeline": "Other"})
    with pytest.raises(InputError, match="scheduler 'Other' is not known; allowed: "):
        repeat(pipe, {**record, "scheduler": {"_class_name": "Other"}})
