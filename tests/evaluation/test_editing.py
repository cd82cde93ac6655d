"""Masks, backgrounds, signal to noise, and things that an edit should leave alone."""

import numpy as np
import pytest
from evaluation.hands import thing

from underdraw.errors import InputError
from underdraw.evaluation import (
    Rate,
    background_change,
    load_evaluator,
    mask_iou,
    psnr,
    unchanged_objects,
)
from underdraw.scenes import PAIR_KINDS, pair

LEFT, RIGHT = (0.1, 0.2, 0.4, 0.6), (0.6, 0.2, 0.9, 0.6)


def test_mask_iou():
    a, b = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    assert mask_iou(a, b) == 1
    a[:, :4] = True
    assert mask_iou(a, b) == 0
    b[:, 2:] = True
    assert mask_iou(a, b) == pytest.approx(2 / 6)
    assert mask_iou(a, b.astype(np.float32)) == pytest.approx(2 / 6)
    assert mask_iou(a * 255, a) == 1


def test_background_change_and_psnr():
    before = np.full((40, 50, 3), 0.5)
    after, mask = before.copy(), np.zeros((40, 50), bool)
    mask[:, :10] = True
    after[mask] = 1
    assert background_change(before, after, mask) == 0
    after[:, 30:] += 2 / 255
    assert background_change(before, after, mask) == pytest.approx(1 / 255, rel=1e-5)
    assert psnr(before, before) == np.inf
    assert psnr(before, before + 0.1) == pytest.approx(20, abs=1e-3)
    eight_bit = np.round(before * 255).astype(np.uint8)
    assert psnr(eight_bit, eight_bit.astype(np.float32) / 255) == np.inf


def test_unchanged_by_hand():
    before = [thing("red cube", LEFT), thing("blue sphere", RIGHT)]
    moved = (0.1, 0.45, 0.4, 0.85)
    assert unchanged_objects(before, before) == Rate(2, 2)
    assert unchanged_objects(before, before[:1]) == Rate(1, 2)
    assert unchanged_objects(before, before[:1], edited=[RIGHT]) == Rate(1, 1)
    assert unchanged_objects(before, [thing("red cube", moved)], [RIGHT]) == Rate(0, 1)
    assert unchanged_objects(before, [thing("green cube", LEFT)], [RIGHT]) == Rate(0, 1)
    assert unchanged_objects(before[:1], [], [LEFT]) == Rate(0, 0)
    # A new thing far from all others takes nobody out.
    assert unchanged_objects(before, before, [(0.4, 0.7, 0.5, 0.9)]) == Rate(2, 2)
    # One thing afterwards cannot stand for two.
    twins = [thing("red cube", LEFT), thing("red cube", (0.12, 0.2, 0.42, 0.6))]
    assert unchanged_objects(twins, twins[:1]) == Rate(1, 2)
    dots = [thing("red and blue dotted cube", LEFT)]
    assert unchanged_objects(dots, [thing("blue and red dotted cube", LEFT)]) == Rate(1, 1)


def test_unchanged_on_real_pairs():
    rng = np.random.default_rng(8)
    evaluator = load_evaluator()
    right, lost = Rate(), Rate()
    for n in range(24):
        made = pair(rng, PAIR_KINDS[n % 4], count=2 + n % 3)
        before, after = made.before.rendering, made.after.rendering
        seen = evaluator.detect([before.image, after.image, np.zeros_like(after.image)])
        edited = () if made.kind == "addition" else before.boxes[made.index][None]
        kept = unchanged_objects(seen[0], seen[1], edited)
        gone = unchanged_objects(seen[0], seen[2], edited)
        right = Rate(right.right + kept.right, right.of + kept.of)
        lost = Rate(lost.right + gone.right, lost.of + gone.of)
        assert background_change(before.image, after.image, made.mask) < 1 / 255
        assert background_change(before.image, after.image, ~made.mask) > 4 / 255
    assert right.of > 30
    assert right.share > 0.93
    assert lost.right == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mask_iou(np.zeros((4, 4)), np.zeros((4, 5))), "4, 5"),
        (lambda: mask_iou(np.zeros((4, 4, 1)), np.zeros((4, 4))), "height, width"),
        (lambda: mask_iou(np.full((4, 4), np.nan), np.zeros((4, 4))), "finite"),
        (lambda: psnr(np.zeros((40, 40, 3)), np.zeros((40, 41, 3))), "reference"),
        (lambda: psnr(np.zeros((40, 40)), np.zeros((40, 40))), "height, width, 3"),
        (
            lambda: background_change(
                np.zeros((40, 40, 3)), np.zeros((40, 40, 3)), np.ones((40, 40))
            ),
            "whole picture",
        ),
        (
            lambda: background_change(
                np.zeros((40, 40, 3)), np.zeros((40, 40, 3)), np.ones((40, 30))
            ),
            "mask",
        ),
    ],
)
def test_wrong_arguments(call, words):
    with pytest.raises(InputError, match=words):
        call()
