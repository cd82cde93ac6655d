"""The evaluator that ships: how well it sees real renders, whole and blurred; what it refuses."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from underdraw.errors import InputError, InputTypeError, NotFoundError, WeightError
from underdraw.evaluation import (
    BoxScores,
    Evaluator,
    load_evaluator,
    score_boxes,
    wanted_in,
)
from underdraw.evaluation.augment import blotches, blur, jpeg, resample
from underdraw.evaluation.detector import WEIGHTS
from underdraw.scenes import (
    describe,
    render,
    render_many,
    sample_subject,
    scene_relations,
    subject_scene,
)

pytestmark = pytest.mark.usefixtures("onednn")
FRESH = 424_242  # no training uses it


@pytest.fixture(scope="module")
def samples():
    return list(render_many(FRESH, 0, 120, split="held_out"))


@pytest.fixture(scope="module")
def pictures(samples):
    return np.stack([sample.rendering.image for sample in samples])


def scores_of(samples, pictures) -> BoxScores:
    wanted = [wanted_in(s.rendering.boxes, s.scene.objects) for s in samples]
    return score_boxes(load_evaluator().detect(pictures), wanted)


def test_sees_fresh_renders(samples, pictures):
    found = scores_of(samples, pictures)
    assert found.ap50 > 0.98
    assert found.mean_iou > 0.85
    assert found.colour.share > 0.98
    assert found.shape.share > 0.97
    assert found.material.share > 0.93
    assert found.size.share > 0.97


@pytest.mark.parametrize("damage", ["blur", "half size", "jpeg", "blotches"])
def test_is_fair_to_damaged_pictures(samples, pictures, damage):
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    x = {
        "blur": lambda: blur(x, 1.2),
        "half size": lambda: resample(x, 2.0),
        "jpeg": lambda: jpeg(x, 50),
        "blotches": lambda: blotches(x, 0.02, np.random.default_rng(0)),
    }[damage]()
    found = scores_of(samples, x.clamp(0, 1).permute(0, 2, 3, 1).numpy())
    assert found.ap50 > 0.96
    assert found.colour.share > 0.97
    assert found.shape.share > 0.95
    assert found.material.share > 0.88


def test_knows_where_things_stand(samples, pictures):
    right = wrong = 0
    for sample, seen in zip(samples, load_evaluator().detect(pictures), strict=True):
        for i in range(len(sample.scene.objects)):
            for k in range(len(sample.scene.objects)):
                things = [sample.scene.objects[n] for n in (i, k)]
                told = [[d for d in seen if d.is_kind(describe(o))] for o in things]
                if i == k or not all(told):
                    continue
                for kind in scene_relations(sample.scene, i, k):
                    held = told[0][0].stands(kind, told[1][0])
                    assert held != told[1][0].stands(kind, told[0][0])  # one of two ways round
                    right, wrong = right + held, wrong + (not held)
    assert right + wrong > 200
    assert right / (right + wrong) > 0.98


@pytest.mark.parametrize(("height", "width"), [(96, 160), (200, 128), (72, 72)])
def test_other_sizes(height, width):
    samples = list(render_many(FRESH + 1, 0, 24, height, width))
    found = scores_of(samples, [s.rendering.image for s in samples])
    assert found.ap50 > 0.9
    assert found.colour.share > 0.95


def test_subjects_are_told_apart():
    rng = np.random.default_rng(3)
    subjects = [sample_subject(rng) for _ in range(30)]
    truths = [render(subject_scene(s, rng, 2)) for s in subjects]
    seen = load_evaluator().detect([t.image for t in truths])
    wanted = [wanted_in(t.boxes[:1], [s]) for t, s in zip(truths, subjects, strict=True)]
    others = [wanted_in(t.boxes[:1], [s]) for t, s in zip(truths, subjects[::-1], strict=True)]
    assert score_boxes(seen, wanted).subject.share > 0.5
    assert score_boxes(seen, others).subject.share < 0.1


def test_a_picture_does_not_depend_on_its_batch(pictures):
    evaluator = load_evaluator()
    together = evaluator.detect(pictures[:7], batch=7)
    alone = [evaluator.detect([picture])[0] for picture in pictures[:7]]
    for a, b in zip(together, alone, strict=True):
        assert [d.phrase() for d in a] == [d.phrase() for d in b]
        assert np.allclose([d.box for d in a], [d.box for d in b], atol=1e-4)


def test_boxes_and_scores_stay_in_range(pictures):
    noise = np.random.default_rng(0).random((3, 64, 160, 3)).astype(np.float32)
    for seen in load_evaluator().detect(noise) + load_evaluator().detect(pictures[:20]):
        for thing in seen:
            assert 0 < thing.score <= 1
            assert 0 <= thing.box[0] <= thing.box[2] <= 1
            assert 0 <= thing.box[1] <= thing.box[3] <= 1


def test_flat_pictures_show_nothing():
    flat = np.full((2, 128, 128, 3), 0.5, np.float32)
    flat[1] = 0
    assert load_evaluator().detect(flat) == [(), ()]


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        ([], InputError, "empty"),
        (np.zeros((0, 64, 64, 3), np.float32), InputError, "empty"),
        (np.zeros((64, 64, 3), np.float32), InputError, "shape"),
        (np.zeros((2, 3, 64, 64), np.float32), InputError, "height, width, 3"),
        (np.zeros((1, 16, 64, 3), np.float32), InputError, "32"),
        (np.full((1, 64, 64, 3), np.nan, np.float32), InputError, "nan"),
        (np.full((1, 64, 64, 3), 7.0, np.float32), InputError, "0, 1"),
        (np.zeros((1, 64, 64, 3), np.int64), InputError, "int64"),
        ([np.zeros((64, 64, 3)), np.zeros((64, 80, 3))], InputError, "differ"),
        (["a.png"], InputTypeError, "str"),
        ("a.png", InputTypeError, "str"),
        (torch.zeros(1, 3, 64, 64), InputTypeError, "Tensor"),
    ],
)
def test_wrong_pictures(images, error, words):
    with pytest.raises(error, match=words):
        load_evaluator().detect(images)


def test_wrong_weights(tmp_path):
    with pytest.raises(NotFoundError, match="no evaluator weights"):
        load_evaluator(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("not tensors")
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    save_file({"a": np.zeros(3)}, tmp_path / "keys.safetensors", {"widths": "[8, 8, 8, 8]"})
    for name in ("text", "other", "keys"):
        with pytest.raises(WeightError, match=name):
            load_evaluator(tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="threshold"):
        Evaluator(load_evaluator().network, threshold=1.5)


def test_ships_small_and_loads_late():
    assert WEIGHTS.stat().st_size < 2_000_000
    code = (
        "import sys, underdraw.evaluation; "
        "print({'torch', 'PIL', 'tqdm', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
