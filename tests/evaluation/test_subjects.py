"""Subjects are judged right: one who draws the scene itself, and one who draws something else."""

import json

import numpy as np
import pytest
from evaluation.hands import thing
from PIL import Image

from underdraw import scenes
from underdraw.errors import InputError
from underdraw.evaluation import real_renders
from underdraw.evaluation.subjects import (
    SubjectScores,
    evaluate_subjects,
    held_out_subjects,
    pipeline_generators,
)

SUBJECTS = held_out_subjects(4, 2, seed=5)
QUIET = {"progress": False, "batch": 3}


def itself(subjects, seeds):
    return np.stack([scenes.render(one.scene).image for one in subjects])


def another(prompts, seeds):
    return real_renders(["a red sphere"] * len(prompts), [seed + 50 for seed in seeds])


def test_subjects_are_held_out_and_the_same_each_time():
    again = held_out_subjects.__wrapped__(4, 2, seed=5)
    assert [one.prompt for one in again] == [one.prompt for one in SUBJECTS]
    assert held_out_subjects(1, seed=6)[0].described != SUBJECTS[0].described
    for one in SUBJECTS:
        assert one.subject.size == "large" and len(one.pictures) == 2
        assert one.scene.objects[0].texture == one.subject.texture
        assert f"a {one.category}" in one.prompt and f"a {one.category}" not in one.described
        assert one.subject.colour in one.described and one.subject.texture.second in one.described
    with pytest.raises(InputError, match="count=0"):
        held_out_subjects(0)


def test_what_counts():
    (one,) = [held_out_subjects(1, seed=5)[0]]
    m = one.mention
    both = f"{m.colour} and {m.second_colour} striped {m.shape}"
    other = next(c for c in ("gray", "red", "blue") if c not in (m.colour, m.second_colour))
    shape = next(s for s in ("cube", "sphere") if s != m.shape)
    cases = (
        (both, (1, 1, 1)),
        (f"{m.second_colour} {m.shape}", (0, 1, 1)),
        (f"{other} {m.shape}", (0, 0, 1)),
        (f"{m.colour} {shape}", (0, 0, 0)),
    )
    for seen, expected in cases:
        scores = SubjectScores.of([[thing(seen)]], [one])
        assert (scores.match.right, scores.kind.right, scores.shape.right) == expected, seen
    assert SubjectScores.of([[]], [one]).shape.right == 0


def test_a_perfect_generator_reaches_the_bound(tmp_path):
    folder = tmp_path / "run"
    report = evaluate_subjects(
        itself, another, SUBJECTS, round_trip=np.asarray, folder=folder, weights="a", **QUIET
    )
    assert report.subjects == report.upper_bound == report.through
    assert report.upper_bound.kind.share > 0.7
    assert report.prompts.kind.right < report.upper_bound.kind.right
    told = json.loads((folder / "report.json").read_text())
    assert told["subjects"]["match"]["right"] == report.subjects.match.right
    assert (folder / "table.txt").read_text() == report.table() + "\n"
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width > 4 * 128
    # Other weights make other pictures of subjects; what texts made stays.
    with pytest.raises(InputError, match="other weights"):
        evaluate_subjects(itself, another, SUBJECTS, folder=folder, weights="b", **QUIET)


def test_pipelines_are_told_each_subject_for_its_prompt():
    seen = []

    def pipe(prompts, **call):
        seen.append((prompts, call))
        return type("Made", (), {"images": another(prompts, call["seed"])})

    generate, plain = pipeline_generators(pipe, steps=7, guidance_scale=3)
    generate(SUBJECTS[:2], [5, 6])
    plain(["a", "b"], [1, 2])
    (prompts, call), (_, told) = seen
    assert prompts == [one.prompt for one in SUBJECTS[:2]]
    assert [control.prompts for control in call["controls"]] == [(0,), (1,)]
    assert [len(control.image) for control in call["controls"]] == [2, 2]
    assert call["num_inference_steps"] == 7 and call["guidance_scale"] == 3
    assert "controls" not in told and told["seed"] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"batch": 0}, "batch=0"), ({"seed": -1}, "seed=0"), ({"subjects": []}, "subjects is empty")],
)
def test_mistakes_are_told(arguments, message):
    with pytest.raises(InputError, match=message):
        evaluate_subjects(itself, another, **{"subjects": SUBJECTS, **arguments})
