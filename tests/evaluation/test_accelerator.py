"""Every evaluation of the family, on an accelerator that is only pretended: pictures are made there
and judged on the host, and nothing mixes the two."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pipelines.elsewhere import DEVICE, Accelerator

from underdraw import StableDiffusionDiffEditPipeline, StableDiffusionPipeline
from underdraw.evaluation import (
    evaluate_autoencoder,
    evaluate_editing,
    evaluate_text_to_image,
    grounding,
    held_out_captions,
    structure,
    subjects,
)
from underdraw.evaluation.autoencoder import through

FEW: dict[str, Any] = {"guidance_scale": 1.0}


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The shipped family, which has all weights, over there."""
    made = StableDiffusionPipeline.from_pretrained("underdraw/scenes", dtype="float32")
    made.set_progress_bar_config(disable=True)
    with Accelerator():
        made.to(DEVICE)
        assert made.groundings and made.adapters["structure"] and made.subjects
    return made


@pytest.fixture
def judged() -> dict[str, Any]:
    """What stands in for the evaluator, whose network belongs on the host; its pictures."""

    def detect(pictures: Any) -> list[tuple]:
        assert type(pictures) is np.ndarray
        return [() for _ in pictures]

    return {"evaluator": SimpleNamespace(detect=detect), "progress": False}


def test_captions_and_the_autoencoder(pipe, judged):
    with Accelerator():
        made = evaluate_text_to_image(pipe, held_out_captions(1), steps=1, **FEW, **judged)
        kept = evaluate_autoencoder(pipe.vae, 1, **judged)
    assert made.settings["model"]["weights"]
    assert 20 < kept.mean < 60  # so it went through weights that hold numbers


def test_boxes_and_holes(pipe, judged):
    with Accelerator():
        made = grounding.evaluate_grounding(
            grounding.pipeline_generator(pipe, steps=1, **FEW),
            grounding.held_out_layouts(1),
            subjects=grounding.held_out_subjects(1),
            holes=grounding.held_out_holes(1),
            fill=grounding.pipeline_filler(pipe, steps=1, **FEW),
            round_trip=through(pipe.vae),
            **judged,
        )
    assert made.filling is not None and made.filling.change < 0.1


def test_edits(pipe, judged):
    editor = StableDiffusionDiffEditPipeline.from_pipe(pipe)
    way = {"num_inference_steps": 2, "num_maps_per_mask": 1, **FEW}
    with Accelerator():
        made = evaluate_editing(editor, 1, batch=1, compare=False, **way, **judged)
    assert made.round_trip > 20


def test_maps(pipe, judged):
    nets = {"edges": pipe.adapters["structure"]["edges"]}
    flat: Any = SimpleNamespace(estimate=lambda pictures: np.zeros(pictures.shape[:3], np.float32))
    with Accelerator():
        made = structure.evaluate_structure(
            structure.pipeline_generator(pipe, nets, steps=1, **FEW),
            structure.held_out_maps(1),
            kinds=["edges"],
            round_trip=through(pipe.vae),
            estimator=flat,
            **judged,
        )
    assert made.upper_bound.edges.f1 > 0.2


def test_subjects(pipe, judged):
    generate, _ = subjects.pipeline_generators(pipe, steps=1, **FEW)

    def plain(prompts: Any, seeds: Any) -> Any:
        """By texts alone is how captions are drawn above."""
        return np.zeros((len(prompts), 128, 128, 3), np.float32)

    with Accelerator():
        made = subjects.evaluate_subjects(
            *(generate, plain, subjects.held_out_subjects(1)),
            round_trip=through(pipe.vae),
            **judged,
        )
    assert made.through is not None
