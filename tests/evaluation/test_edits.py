"""Edits judged: perfect ones, ones that change nothing, and whole runs of a tiny pipeline."""

import numpy as np
import pytest
from pipelines import tiny

from underdraw import DDIMScheduler, InputError, StableDiffusionDiffEditPipeline
from underdraw.evaluation import (
    edits,
    evaluate_editing,
    held_out_pairs,
    load_evaluator,
    score_edits,
)
from underdraw.scenes import PAIR_KINDS

pytestmark = pytest.mark.usefixtures("onednn")


@pytest.fixture(scope="module")
def pairs():
    return held_out_pairs(8)


def of(pairs, side):
    return np.stack([getattr(pair, side).rendering.image for pair in pairs])


def test_pairs_are_held_out_and_the_same_each_time(pairs):
    assert [pair.kind for pair in pairs] == [*PAIR_KINDS, *PAIR_KINDS]
    again = held_out_pairs(3)
    assert [p.after.caption.text for p in again] == [p.after.caption.text for p in pairs[:3]]
    with pytest.raises(InputError, match="count=0"):
        held_out_pairs(0)


def test_the_real_change_is_right_and_no_change_is_wrong(pairs):
    before, after = of(pairs, "before"), of(pairs, "after")
    masks = [pair.mask for pair in pairs]
    real = score_edits(pairs, after, before, masks=masks)
    assert real.edited.right >= 7
    assert real.others.share > 0.9
    assert real.background < 1 / 255
    assert real.outside == real.background
    none = score_edits(pairs, before, before)
    assert none.edited.right <= 1
    assert none.others.share > 0.95
    assert none.background == 0
    assert none.outside is None
    lost = score_edits(pairs, np.zeros_like(before), before)
    assert lost.others.right == 0
    assert lost.background > 0.2
    assert lost.removal.share == 1
    assert lost.colour.right == lost.shape.right == lost.addition.right == 0


def test_a_run_survives_an_interruption(tmp_path, monkeypatch):
    parts = tiny.components(scheduler=DDIMScheduler(**tiny.SCHEDULE, clip_sample=False))
    pipe = StableDiffusionDiffEditPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    short = {"num_inference_steps": 4, "num_maps_per_mask": 2, "guidance_scale": 2.0}
    options = {"batch": 2, "folder": tmp_path / "run", "progress": False, **short}
    made, work = [], edits._edited

    def counted(pipe, chosen, *rest):
        made.append(len(chosen))
        if len(made) == 2:
            raise KeyboardInterrupt
        return work(pipe, chosen, *rest)

    monkeypatch.setattr(edits, "_edited", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_editing(pipe, 3, **options)
    report = evaluate_editing(pipe, 3, **options)
    assert made == [2, 1, 1]
    assert {p.name for p in (tmp_path / "run").glob("[rst]*")} == {
        "report.json",
        "run.json",
        "sheet.png",
        "table.txt",
    }
    assert report.pasted == 0
    assert report.edits.edited.of == report.img2img.edited.of == 3
    assert 0 <= report.mask_iou < report.mask_bound <= 1
    assert report.reconstruction <= report.round_trip + 1
    assert "img2img" in report.table()
    with pytest.raises(InputError, match="arguments"):
        evaluate_editing(pipe, 3, **{**options, "guidance_scale": 3.0})


def test_the_evaluator_that_ships_is_used(pairs):
    ours = score_edits(pairs[:2], of(pairs[:2], "after"), of(pairs[:2], "before"))
    same = {"evaluator": load_evaluator()}
    assert ours == score_edits(pairs[:2], of(pairs[:2], "after"), of(pairs[:2], "before"), **same)
