"""Box scores worked by hand, and on real renders."""

import numpy as np
import pytest
from evaluation.hands import thing
from hypothesis import given, settings, strategies as st

from underdraw.errors import InputError
from underdraw.evaluation import (
    BoxReport,
    Rate,
    Wanted,
    assign,
    average_precision,
    box_iou,
    load_evaluator,
    score_boxes,
    wanted_in,
)
from underdraw.scenes import phrases, render_many

pytestmark = pytest.mark.usefixtures("onednn")
A, B, C = (0.0, 0.0, 0.4, 0.4), (0.5, 0.5, 0.9, 0.9), (0.5, 0.0, 0.9, 0.4)


def shifted(box, amount):
    return (box[0] + amount, box[1], box[2] + amount, box[3])


corner = st.floats(0, 1, width=16)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(corner, corner, corner, corner), min_size=2, max_size=4))
def test_iou_is_what_pixels_say(corners):
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]
    boxes = [tuple(round(x * 16) / 16 for x in box) for box in boxes]
    grid = (np.arange(16) + 0.5) / 16
    masks = [
        ((grid > b[0]) & (grid < b[2]))[None] & ((grid > b[1]) & (grid < b[3]))[:, None]
        for b in boxes
    ]
    found = box_iou(boxes, boxes)
    for i, first in enumerate(masks):
        for k, second in enumerate(masks):
            union = (first | second).sum()
            want = (first & second).sum() / union if union else 0
            assert found[i, k] == pytest.approx(want, abs=1e-9)


def test_assignment_is_the_best_in_sum():
    # Box A alone would take the first detection; then B's would have none that fits.
    wanted = [Wanted((0.0, 0.0, 0.4, 0.4)), Wanted((0.2, 0.0, 0.6, 0.4))]
    seen = [thing("red cube", (0.1, 0.0, 0.5, 0.4)), thing("red cube", (0.0, 0.0, 0.3, 0.4))]
    (first, one), (second, two) = assign(seen, wanted)
    assert (first, second) == (1, 0)
    assert (one, two) == pytest.approx((0.75, 0.6))
    assert assign([], wanted) == [(None, 0.0)] * 2
    assert assign([thing("red cube", B)], [Wanted(A)]) == [(None, 0.0)]
    many = [Wanted(shifted((0.0, 0.0, 0.1, 0.1), 0.1 * i)) for i in range(8)]
    seen = [thing("red cube", want.box) for want in many[::-1]]
    assert [place for place, _ in assign(seen, many)] == list(range(8))[::-1]


def test_average_precision_by_hand():
    want = [[Wanted(A), Wanted(B)], [Wanted(C)]]
    seen = [
        [
            thing("red cube", A, score=0.9),
            thing("red cube", shifted(A, 0.01), score=0.8),  # seen twice: wrong
            thing("red cube", B, score=0.3),
        ],
        [thing("red cube", shifted(C, 0.05), score=0.6)],
    ]
    # Right at ranks 1, 3, 4 of 4: precision 1, 2/3, 3/4; its envelope 1, 3/4, 3/4.
    assert average_precision(seen, want) == pytest.approx((1 + 0.75 + 0.75) / 3)
    assert average_precision(seen, want, threshold=0.9) == pytest.approx((1 + 2 / 4) / 3)
    assert average_precision([[], []], want) == 0
    perfect = [[thing("red cube", w.box) for w in boxes] for boxes in want]
    assert average_precision(perfect, want) == 1
    # An unwanted thing that is surer than all others costs precision.
    perfect[0].append(thing("red cube", (0.0, 0.6, 0.2, 0.9), score=0.99))
    assert average_precision(perfect, want) < 1


def test_average_precision_of_kinds():
    want = [list(wanted_in([A, B], ["a red cube", "a blue sphere"]))]
    seen = [[thing("blue sphere", A), thing("blue sphere", B, score=0.5)]]
    assert average_precision(seen, want) == 1
    assert average_precision(seen, want, kinds=True) == pytest.approx(0.5 / 2)


def test_scores_by_hand():
    want = [
        wanted_in([A, B], ["a small red metal cube", "a blue sphere"]),
        wanted_in([C], ["a red and green striped torus"]),
    ]
    seen = [
        [thing("large red metal cube", A), thing("green sphere", shifted(B, 0.1))],
        [thing("green and red dotted torus", C)],
    ]
    found = score_boxes(seen, want)
    assert found.mean_iou == pytest.approx((1 + 0.6 + 1) / 3)
    assert found.ap50 == 1
    assert found.attributes == Rate(1, 3)
    assert found.pattern == Rate(0, 1)
    assert found.colour == Rate(2, 3)
    assert found.shape == Rate(3, 3)
    assert found.material == Rate(1, 1)
    assert found.size == Rate(0, 1)
    assert found.subject == Rate(1, 1)
    nothing = score_boxes([[], []], want)
    assert nothing.attributes == Rate(0, 3)
    assert nothing.subject == Rate(0, 1)
    assert nothing.colour == Rate(0, 0)
    assert nothing.mean_iou == 0
    report = BoxReport(nothing, found)
    assert "upper bound" in report.table()
    assert report.to_json()["upper_bound"]["ap50"] == 1
    assert report.to_json()["scores"]["attributes"]["share"] == 0


def test_on_real_renders_and_on_shuffled_ones():
    samples = list(render_many(424_243, 0, 40, 96, 144))
    seen = load_evaluator().detect([s.rendering.image for s in samples])
    wanted = [wanted_in(s.rendering.boxes, phrases(s.scene)) for s in samples]
    good, bad = score_boxes(seen, wanted), score_boxes(seen[1:] + seen[:1], wanted)
    assert good.ap50 > 0.9
    assert good.mean_iou > 0.75
    assert good.attributes.share > 0.75
    assert bad.ap50 < 0.3
    assert bad.attributes.share < 0.1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: box_iou([[0, 0, 1]], [A]), "shape"),
        (lambda: box_iou([[0.5, 0, 0.1, 1]], [A]), "x_min"),
        (lambda: box_iou([[0, 0, np.nan, 1]], [A]), "x_min"),
        (lambda: Wanted((0.5, 0.5, 0.4, 0.9)), "Wanted.box"),
        (lambda: wanted_in([A], ["a red cube", "a cone"]), "2 entries for 1"),
        (lambda: wanted_in([A], ["a red cube and a cone"]), "names 2 things"),
        (lambda: average_precision([], []), "empty"),
        (lambda: average_precision([[]], [[]]), "no box"),
        (lambda: score_boxes([[]], [[Wanted(A)], [Wanted(B)]]), "wanted 2"),
    ],
)
def test_wrong_arguments(call, words):
    with pytest.raises(InputError, match=words):
        call()
