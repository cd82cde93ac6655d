"""The price of acceleration: what is counted, drawn, kept and compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from underdraw import DeepCache, StableDiffusionDiffEditPipeline, StableDiffusionPipeline
from underdraw.evaluation import Rate, load_evaluator

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def pipe():
    pipe = StableDiffusionPipeline.from_pretrained("underdraw/scenes")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_shares_are_counted():
    import acceleration

    whole, cached = (acceleration.counted(ways, 10, 64) for ways in (("exact",), (DeepCache(5),)))
    shallow = (cached / whole - 0.2) / 0.8  # of a call in part; 2 of 10 are whole
    assert 0 < shallow < 0.15


def test_marks_are_compared_picture_by_picture():
    import pricing

    exact = pricing.Marks.count([Rate(2, 2), Rate(1, 2), Rate(0, 1)])
    other = pricing.Marks.count([Rate(1, 2), Rate(2, 2), Rate(0, 1)])
    told = other.beside(exact)
    error = 100 * np.sqrt(3) * np.std([-1, 1, 0]) / 5
    assert told == {"score": 60, "points": 0, "lost": 1, "won": 1, "error": round(error, 2)}
    assert pricing.Marks.count([Rate(1, 1)], whole=0.5).score == 50
    assert pricing.Marks.mean([0.25, 0.75]).beside(pricing.Marks.mean([0.5, 0.5]))["lost"] == 0.25


def test_pictures_are_drawn_once(tmp_path, pipe):
    import acceleration
    import pricing

    asked = (["captions"], ["exact", "faster"], 2, 10, 1, tmp_path)
    exact, faster = acceleration.price(*asked)
    assert exact["share"] == 1 and exact["PSNR"] is None and exact["things"]["points"] == 0
    assert 0.4 < faster["share"] < 0.6 and faster["PSNR"] > 15
    kept = tmp_path / pricing.file_name("captions", "faster", 2)
    pictures = pricing.drawn(pricing.Captions(pipe, 2, 10), (), None, 1, kept).pictures
    assert pictures.shape == (2, 128, 128, 3) and pictures.dtype == np.uint8
    assert acceleration.price(*asked) == [exact, faster]  # seconds too: nothing ran again
    assert json.loads((tmp_path / "prices.json").read_text()) == [exact, faster]


@pytest.mark.parametrize("name", ["boxes", "edges", "depth", "subjects"])
def test_real_pictures_are_right(name, pipe):
    """Renders of what was asked for, judged as pictures are."""
    import pricing

    from underdraw import scenes
    from underdraw.pictures.writing import to_bytes

    task = pricing.TASKS[name](pipe, 4, 10)
    renders = np.stack([to_bytes(scenes.render(one.scene).image) for one in task.items])
    for mark in task.marks(renders, load_evaluator()).values():
        assert mark.score >= 75
    turned = task.marks(renders[::-1], load_evaluator())  # each under the wrong question
    assert min(mark.score for mark in turned.values()) < 50


def test_edits_are_those_that_evaluate_judges(monkeypatch, pipe):
    import pricing

    settings = replace(pricing.EditSettings(), steps=12)
    monkeypatch.setattr(pricing, "EditSettings", lambda: settings)
    task = pricing.Edits(pipe, 2, 20)
    task.prepare(task.items, [0, 1])
    made = task.draw(task.items, [0, 1])
    editor = StableDiffusionDiffEditPipeline.from_pipe(pipe)
    before = np.stack([pair.before.rendering.image for pair in task.items])
    source, target = (
        [side.caption.text for side in sides]
        for sides in zip(*((pair.before, pair.after) for pair in task.items), strict=True)
    )
    how = {"num_inference_steps": 12, "guidance_scale": 4.5, "output_type": "np"}
    whole = editor.edit(before, source, target, seed=0, **how)
    assert np.array_equal(task.inverted[0][0], whole.mask_image)
    np.testing.assert_array_equal(made, whole.images)
    real = np.stack([pair.after.rendering.image for pair in task.items])
    told = task.marks(real, load_evaluator())
    assert told["edited as told"].score == told["others unchanged"].score == 100
    assert task.marks(before, load_evaluator())["edited as told"].score == 0
