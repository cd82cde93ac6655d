"""The engine of a pipeline: every network program of every pipeline goes through it."""

import copy

import numpy as np
import pytest
import torch
from pipelines import test_gligen as gligen, tiny
from pipelines.test_offload import checked

import underdraw
from underdraw import StableDiffusionPipeline
from underdraw.engines.eager import EAGER
from underdraw.errors import InputError, InputTypeError


class Recording:
    """Runs programs as they are written, and notes which."""

    def __init__(self):
        self.names = []

    def run(self, question):
        assert not torch.is_grad_enabled()
        self.names.append(question.program.name)
        return EAGER.run(question)


def test_programs_of_a_text_to_image_call():
    pipe = checked()
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "seed": 1, "output_type": "np"}
    plain = pipe("a red sphere", **call).images
    pipe.engine = engine = Recording()
    assert np.array_equal(pipe("a red sphere", **call).images, plain)
    names = ["clip.text", "unet.times", "unet.context", "unet", "unet", "vae.decode"]
    assert sorted(engine.names) == sorted([*names, "safety.scores"])
    first = list(engine.names)
    engine.names.clear()
    list(pipe.stream("a red sphere", **call))
    assert engine.names == first


def test_programs_of_a_grounded_call():
    pipe = gligen.made("text-image")
    pipe.engine = engine = Recording()
    images = {"gligen_images": [gligen.photo((9, 9), 3), None]}
    gligen.run(pipe, **{**gligen.CALL, "num_inference_steps": 2, **images})
    assert {"vision", "vision.projection", "image_projection", "gligen.box_tokens"} <= set(
        engine.names
    )
    assert "gligen.constants" in engine.names


def test_an_engine_belongs_to_one_pipeline(tmp_path):
    pipe, engine = tiny.pipeline(), Recording()
    assert pipe.engine is EAGER
    other = StableDiffusionPipeline.from_pipe(pipe, engine=engine)
    third = underdraw.StableDiffusionImg2ImgPipeline.from_pipe(other)
    assert (pipe.engine, other.engine, third.engine) == (EAGER, engine, engine)
    assert copy.deepcopy(other).engine is copy.copy(other).engine is engine
    assert copy.deepcopy(pipe).engine is EAGER
    made = StableDiffusionPipeline(**pipe.components, engine=engine)
    assert made.engine is engine
    made.engine = None
    assert made.engine is EAGER
    pipe.save_pretrained(tmp_path)
    assert StableDiffusionPipeline.from_pretrained(tmp_path, engine=engine).engine is engine
    assert StableDiffusionPipeline.from_pretrained(tmp_path, engine="eager").engine is EAGER


@pytest.mark.parametrize(
    ("engine", "error", "words"),
    [
        ("fastest", InputError, "engine='fastest' is not known; allowed: 'eager'"),
        (3, InputTypeError, "engine=3 has no method `run`"),
    ],
)
def test_what_is_no_engine(engine, error, words):
    pipe = tiny.pipeline()
    with pytest.raises(error, match=words):
        pipe.engine = engine
    with pytest.raises(error, match=words):
        StableDiffusionPipeline(**pipe.components, engine=engine)
    assert pipe.engine is EAGER


def test_an_error_of_the_engine_ends_the_run_in_order():
    class Broken(Recording):
        def run(self, question):
            if question.program.name == "unet":
                raise MemoryError("no room")
            return super().run(question)

    pipe = tiny.pipeline()
    pipe.engine = Broken()
    with pytest.raises(MemoryError, match="no room"):
        tiny.run(pipe)
    run = pipe.stream("a red sphere", num_inference_steps=2, seed=1)
    with pytest.raises(MemoryError, match="no room"):
        next(run)
    assert list(run) == []
    pipe.engine = None
    assert tiny.run(pipe) is not None
