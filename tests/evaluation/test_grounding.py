"""Grounded generation is judged right: a perfect generator, one that ignores boxes, a bad one."""

import json

import numpy as np
import pytest
from PIL import Image

from underdraw import scenes
from underdraw.errors import InputError
from underdraw.evaluation import real_renders
from underdraw.evaluation.grounding import evaluate_grounding
from underdraw.evaluation.layouts import (
    held_out_holes,
    held_out_layouts,
    held_out_subjects,
)

LAYOUTS = held_out_layouts(8, seed=5)
SUBJECTS = held_out_subjects(8, seed=5)
HOLES = held_out_holes(6, seed=5)
QUIET = {"progress": False, "batch": 5}


def perfect(layouts, seeds):
    """The scene itself where there are boxes, another of the same prompt where there are none."""
    return np.stack(
        [
            scenes.render(one.scene).image if one.grounded else other(one, seed)
            for one, seed in zip(layouts, seeds, strict=True)
        ]
    )


def other(layout, seed):
    return real_renders(["a red sphere" if "," in layout.prompt else layout.prompt], [seed + 50])[0]


def boxless(layouts, seeds):
    return np.stack([other(one, seed) for one, seed in zip(layouts, seeds, strict=True)])


def test_layouts_are_held_out_and_the_same_each_time():
    assert [len(one.boxes) for one in LAYOUTS] == [1, 2, 3, 4] * 2
    assert held_out_layouts.__wrapped__(8, seed=5)[3].prompt == LAYOUTS[3].prompt
    assert held_out_layouts(8, seed=6)[0].prompt != LAYOUTS[0].prompt
    for one in LAYOUTS:
        assert len(one.scene.objects) == len(one.phrases) == len(one.boxes) == len(one.things)
        assert len(one.scene.objects) == 1 or scenes.has_reserved_pair(one.scene)
        for thing, obj in zip(one.things, one.scene.objects, strict=True):
            assert thing.matches(obj)
        assert not one.prompt_only().grounded
        assert one.prompt_only().wanted == one.wanted


def test_subjects_are_shown_alone_and_not_told():
    for one, told in zip(SUBJECTS, LAYOUTS, strict=True):
        assert one.prompt.count("a thing") == len(one.images) == len(told.phrases)
        np.testing.assert_array_equal(one.boxes, told.boxes)
        assert all(image.shape == (128, 128, 3) for image in one.images)
        assert not set(one.prompt.split()) - {"a", "thing", "thing,", "and"}


def test_holes_want_something_else():
    for hole in HOLES:
        (thing,), (box,) = hole.layout.things, hole.layout.boxes
        kinds = {(o.colour, o.shape) for o in hole.layout.scene.objects}
        assert all(thing.colour != c and thing.shape != s for c, s in kinds)
        share = hole.mask.mean()
        area = (box[2] - box[0]) * (box[3] - box[1])
        assert area <= share + 1e-6 <= area + 0.03


def test_a_perfect_generator_reaches_the_bound_and_prompts_do_not(tmp_path):
    report = evaluate_grounding(
        perfect, LAYOUTS, subjects=SUBJECTS, folder=tmp_path / "run", **QUIET
    )
    assert report.boxes == report.upper_bound
    assert report.boxes.ap50 > 0.9
    assert report.boxes.mean_iou > 0.8
    assert report.boxes.attributes.share > 0.9
    assert report.prompts.ap50 < 0.4
    assert report.subjects.attributes == report.subjects_bound
    assert report.subjects_bound.of == 20
    assert report.filling is None
    told = json.loads((tmp_path / "run" / "report.json").read_text())
    assert told["boxes"]["ap50"] == report.boxes.ap50
    assert (tmp_path / "run" / "table.txt").read_text() == report.table() + "\n"
    assert "prompts alone" in report.table()
    with Image.open(tmp_path / "run" / "sheet.png") as sheet:
        assert sheet.height > 4 * 128


def test_a_generator_that_ignores_boxes_scores_as_its_prompts():
    report = evaluate_grounding(boxless, LAYOUTS, **QUIET)
    assert report.boxes == report.prompts
    assert report.boxes.ap50 < 0.4
    assert report.subjects is None


def test_filling_is_judged_inside_and_outside():
    def fill(holes, seeds):
        made = [hole.picture.copy() for hole in holes]
        for picture, hole in zip(made, holes, strict=True):
            picture[~hole.mask] = np.minimum(picture[~hole.mask], 250) + 5
        return np.stack(made)

    options = {"holes": HOLES, "fill": fill, **QUIET}
    report = evaluate_grounding(perfect, LAYOUTS[:2], round_trip=lambda x: x, **options)
    assert report.filling.change == pytest.approx(5 / 255, rel=0.05)
    assert report.filling.filled.right == 0  # what was there is still there
    same = evaluate_grounding(
        perfect, LAYOUTS[:2], round_trip=lambda x: np.minimum(x, 250 / 255) + 5 / 255, **options
    )
    assert same.filling.change < 0.2 / 255
    assert "0.0" in same.table()
    with pytest.raises(InputError, match="fill and round_trip"):
        evaluate_grounding(perfect, LAYOUTS[:1], holes=HOLES, **QUIET)


def test_an_interrupted_run_goes_on(tmp_path):
    drawn = []

    def stops(layouts, seeds):
        if len(drawn) >= 10:
            raise KeyboardInterrupt
        drawn.extend(seeds)
        return perfect(layouts, seeds)

    with pytest.raises(KeyboardInterrupt):
        evaluate_grounding(stops, LAYOUTS, folder=tmp_path, **QUIET)
    resumed = evaluate_grounding(perfect, LAYOUTS, folder=tmp_path, **QUIET)
    whole = evaluate_grounding(perfect, LAYOUTS, **QUIET)
    assert resumed.boxes == whole.boxes
    assert resumed.prompts == whole.prompts
    with pytest.raises(InputError, match="other seed"):
        evaluate_grounding(perfect, LAYOUTS, folder=tmp_path, seed=1, **QUIET)
    with pytest.raises(InputError, match="other model"):
        evaluate_grounding(perfect, LAYOUTS, folder=tmp_path, settings={"model": "x"}, **QUIET)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch": 0}, "batch=0"),
        ({"seed": -1}, "seed="),
        ({"layouts": []}, "layouts is empty"),
        ({"generate": lambda layouts, seeds: np.zeros((1, 64, 64, 3), np.float32)}, "differ"),
    ],
)
def test_wrong_arguments(arguments, words):
    given = {"generate": perfect, "layouts": LAYOUTS[:2], "progress": False, **arguments}
    with pytest.raises(InputError, match=words):
        evaluate_grounding(given.pop("generate"), given.pop("layouts"), **given)
    with pytest.raises(InputError, match="count=0"):
        held_out_layouts(0)
