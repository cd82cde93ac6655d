"""Judgements and their counts on hand-made detections, and wrong captions of real renders."""

from dataclasses import replace

import numpy as np
import pytest
from evaluation.hands import thing

from underdraw.errors import InputError, InputTypeError
from underdraw.evaluation import (
    CaptionScores,
    Rate,
    held_out_captions,
    judge,
    real_renders,
    score_captions,
)
from underdraw.scenes import parse
from underdraw.scenes.vocabulary import COLOURS, SHAPES

pytestmark = pytest.mark.usefixtures("onednn")
RED = thing("red cube", foot=(0.2, 0.6))
BLUE = thing("blue sphere", foot=(0.7, 0.8), material="metal", size="large")


@pytest.mark.parametrize(
    ("text", "found", "relations"),
    [
        ("a red cube", (0,), ()),
        ("a blue sphere and a red cube", (1, 0), ()),
        ("a red sphere and a blue cube", (None, None), ()),
        ("a red cube and a red cube", (0, None), ()),
        ("a red thing and a sphere", (0, 1), ()),
        ("a red cube left of a blue sphere", (0, 1), (True,)),
        ("a red cube right of a blue sphere", (0, 1), (False,)),
        ("a red cube behind a blue sphere", (0, 1), (True,)),
        ("a red cube in front of a blue sphere", (0, 1), (False,)),
        ("a blue sphere to the right of a red cube", (1, 0), (True,)),
        ("a red cube left of a green cone", (0, None), (None,)),
        ("from left to right a red cube, a blue sphere and a cone", (0, 1, None), (True, None)),
        ("an empty table", (), ()),
    ],
)
def test_what_is_found(text, found, relations):
    judged = judge(parse(text), [RED, BLUE])
    assert judged.found == found
    assert judged.relations == relations


def test_attributes_count_where_they_are_told():
    judged = judge(parse("a small red metal cube and a large blue sphere"), [RED, BLUE])
    assert judged.told("material") == [False]
    assert judged.told("size") == [True, True]
    assert judged.right


def test_the_favourable_way_to_match():
    twin = replace(RED, foot=(0.9, 0.6), material="metal", size="large", score=0.5)
    judged = judge(parse("a red cube right of a blue sphere"), [RED, BLUE, twin])
    assert judged.found == (2, 1)
    judged = judge(parse("a large red cube"), [RED, BLUE, twin])
    assert judged.found == (2,)
    judged = judge(parse("a red cube"), [RED, BLUE, twin])
    assert judged.found == (0,)  # else the surest


def test_patterns_have_two_colours_in_no_order():
    ball = thing("blue and red dotted sphere")
    assert judge(parse("a red and blue dotted sphere"), [ball]).all_found
    assert judge(parse("a blue dotted sphere"), [ball]).all_found
    assert not judge(parse("a red and green dotted sphere"), [ball]).all_found
    assert judge(parse("a red and blue striped sphere"), [ball]).all_found  # kinds: not its job
    assert not judge(parse("a red and blue dotted sphere"), [thing("red sphere")]).all_found


def test_counts():
    cases = [
        ("a red cube", [RED]),
        ("a red sphere", [RED]),
        ("a red cube left of a blue sphere", [RED, BLUE]),
        ("a red cube right of a blue sphere", [RED, BLUE]),
        ("a red cube behind a green sphere", [RED, BLUE]),
        ("a small red cube and a rubber blue sphere", [RED, BLUE, thing("gray torus")]),
        ("a red cube, a blue sphere and a gray cone", [RED, BLUE]),
    ]
    found = CaptionScores.of([judge(parse(text), seen) for text, seen in cases])
    assert found.one == Rate(1, 2)
    assert found.two == Rate(3, 4)
    assert found.three == Rate(0, 1)
    assert found.four == Rate(0, 0)
    assert found.relation == Rate(1, 2)
    assert found.mention == Rate(1 + 0 + 2 + 2 + 1 + 2 + 2, 13)
    assert found.material == Rate(0, 1)
    assert found.size == Rate(1, 1)
    assert found.number == Rate(5, 7)
    assert found.whole == Rate(2, 7)


def test_rates():
    assert Rate.count([True, None, False, True]) == Rate(2, 3)
    assert Rate(1, 4).share == 0.25
    assert Rate().share is None
    assert str(Rate()) == "-"
    low, high = Rate(45, 50).interval  # Wilson's own formula, worked by hand
    assert (low, high) == pytest.approx((0.7864, 0.9565), abs=1e-3)
    assert Rate(0, 0).interval == (0, 1)


@pytest.fixture(scope="module")
def held_out():
    captions = held_out_captions(60, seed=9)
    return captions, real_renders(captions)


def other(name, choices):
    return choices[(choices.index(name) + 3) % len(choices)]


def test_true_captions_are_right(held_out):
    captions, pictures = held_out
    report = score_captions(pictures, captions)
    assert report.scores == report.upper_bound  # the same renders
    assert report.scores.one.share >= 0.95
    assert report.scores.two.share >= 0.9
    assert report.scores.relation.share >= 0.95
    assert report.scores.number.share >= 0.9


@pytest.mark.parametrize("lie", ["colour", "shape", "swapped", "relation", "missing"])
def test_wrong_captions_are_wrong(held_out, lie):
    captions, pictures = held_out
    changed, kept = [], []
    for caption, picture in zip(captions, pictures, strict=True):
        first, *rest = caption.mentions
        others = [m.colour for m in rest] + [m.shape for m in rest]
        if lie in ("colour", "shape") and getattr(first, lie):
            new = other(getattr(first, lie), COLOURS if lie == "colour" else SHAPES)
            if new in others:
                continue
            told = replace(caption, mentions=(replace(first, **{lie: new}), *rest))
        elif lie == "swapped" and len(rest) == 1 and first.colour and rest[0].colour:
            if first.colour == rest[0].colour or None in (first.shape, rest[0].shape):
                continue
            if first.shape == rest[0].shape:
                continue
            pair = (replace(first, colour=rest[0].colour), replace(rest[0], colour=first.colour))
            told = replace(caption, mentions=pair)
        elif lie == "relation" and len(rest) == 1:
            relation = caption.relations[0]
            turned = replace(relation, first=relation.second, second=relation.first)
            told = replace(caption, relations=(turned,))
        elif lie == "missing" and len(rest) == 1:
            told = replace(caption, mentions=(first, rest[0], replace(first, size=None)))
        else:
            continue
        changed.append(told)
        kept.append(picture)
    assert len(changed) >= 8
    report = score_captions(np.stack(kept), changed, real_images=np.stack(kept))
    judged = report.judgements
    assert sum(j.right for j in judged) <= 0.05 * len(judged)


def test_report(held_out):
    captions, pictures = held_out
    report = score_captions(np.zeros_like(pictures), [c.text for c in captions])
    assert report.scores.one.right == 0
    assert report.upper_bound.one.share > 0.9
    assert "upper bound" in report.table()
    assert "0.0 %" in report.table()
    told = report.to_json()
    assert told["scores"]["one"]["share"] == 0
    assert told["upper_bound"]["one"]["of"] == told["scores"]["one"]["of"]
    assert len(told["pictures"]) == 60


def test_wrong_arguments(held_out):
    _, pictures = held_out
    with pytest.raises(InputError, match="empty"):
        score_captions(pictures, [])
    with pytest.raises(InputError, match="captions 1"):
        score_captions(pictures, ["a red cube"])
    with pytest.raises(InputError, match="giraffe"):
        score_captions(pictures[:1], ["a red giraffe"])
    with pytest.raises(InputTypeError, match="list"):
        score_captions(pictures[:1], "a red cube")
    with pytest.raises(InputTypeError, match="7"):
        score_captions(pictures[:1], [7])
    with pytest.raises(InputError, match="real_images"):
        score_captions(pictures[:1], ["a red cube"], real_images=pictures[:2])
