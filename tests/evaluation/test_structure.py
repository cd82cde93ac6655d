"""Pictures along maps are judged right: a perfect generator, one that ignores maps, bad ones."""

import json

import numpy as np
import pytest
from PIL import Image

from underdraw.errors import InputError, NotFoundError, WeightError
from underdraw.evaluation import detector
from underdraw.evaluation.depth import load_depth_estimator
from underdraw.evaluation.following import (
    correlation,
    edge_rates,
    score_depth,
    score_edges,
    widened,
)
from underdraw.evaluation.structure import evaluate_structure, held_out_maps
from underdraw.preprocessors.canny import lines

MAPS = held_out_maps(8, seed=5)
QUIET = {"progress": False, "batch": 3}


def perfect(maps, seeds):
    """The scene itself along a map, another scene by the prompt alone."""
    others = [MAPS[(MAPS.index(one.along(None)) + 5) % 8] for one in maps]
    shown = [one if one.kind else other for one, other in zip(maps, others, strict=True)]
    return np.stack([one.picture for one in shown])


def blind(maps, seeds):
    return np.stack([MAPS[(seed + 3) % 8].picture for seed in seeds])


@pytest.fixture(autouse=True)
def same_by_identity(monkeypatch):
    """Arrays have no truth value, so maps are told apart by their prompt."""
    monkeypatch.setattr(type(MAPS[0]), "__eq__", lambda a, b: a.prompt == b.prompt)


def test_maps_are_held_out_and_the_same_each_time():
    assert [len(one.scene.objects) for one in MAPS] == [1, 2, 3, 4] * 2
    assert held_out_maps.__wrapped__(2, seed=5)[1].prompt == MAPS[1].prompt
    assert held_out_maps(1, seed=6)[0].prompt != MAPS[0].prompt
    for one in MAPS:
        assert one.map is None and one.along("edges").map is one.edges
        np.testing.assert_array_equal(one.edges > 0, lines(one.picture))
        assert one.depth.min() == 0 and one.depth.max() == 1
        # Where nothing stands it is the empty table; where something does, nearer.
        assert (one.depth >= one.empty - 1e-5).all() and (one.depth > one.empty + 0.01).any()


def test_who_follows_the_maps_is_told_from_who_does_not(tmp_path):
    good = evaluate_structure(perfect, MAPS, folder=tmp_path / "good", **QUIET)
    for kind in ("edges", "depth"):
        assert good.along[kind].edges.f1 == 1
        assert good.along[kind].mentions.share > 0.9
    assert good.along["edges"] == good.upper_bound
    assert good.prompts.edges.f1 < 0.5
    assert good.prompts.depth.things < 0.5 < 0.8 < good.upper_bound.depth.things
    assert good.upper_bound.depth.whole > 0.95
    bad = evaluate_structure(blind, MAPS, kinds=("depth",), **QUIET)
    assert list(bad.along) == ["depth"] and bad.along["depth"] == bad.prompts
    assert "along edges" not in bad.table() and "along depth" in bad.table()
    kept = json.loads((tmp_path / "good" / "report.json").read_text())
    assert kept["along"]["edges"]["edges"]["f1"] == 1
    assert (tmp_path / "good" / "table.txt").read_text().startswith(" ")
    with Image.open(tmp_path / "good" / "sheet.png") as sheet:
        assert sheet.size == (8 * 130 + 2, 5 * 130 + 2)


def test_a_run_goes_on_and_belongs_to_one_model(tmp_path):
    evaluate_structure(perfect, MAPS[:3], folder=tmp_path, settings={"model": 1}, **QUIET)

    def never(maps, seeds):
        raise AssertionError

    evaluate_structure(never, MAPS[:3], folder=tmp_path, settings={"model": 1}, **QUIET)
    with pytest.raises(InputError, match="other model"):
        evaluate_structure(never, MAPS[:3], folder=tmp_path, settings={"model": 2}, **QUIET)


def test_real_renders_go_through_the_autoencoder():
    blurred = evaluate_structure(perfect, MAPS[:4], round_trip=lambda x: x * 0 + 0.5, **QUIET)
    assert blurred.upper_bound.edges.recall == 0 and blurred.along["edges"].edges.f1 == 1


def test_lines_count_where_they_nearly_lie():
    wanted = np.zeros((12, 9), bool)
    wanted[:, 4] = True
    for shift, right in ((0, 1.0), (1, 1.0), (-1, 1.0), (2, 0.0)):
        assert edge_rates(np.roll(wanted, shift, 1), wanted) == (right, right)
    half = wanted.copy()
    half[6:] = False
    assert edge_rates(half, wanted) == (1.0, 7 / 12)
    assert edge_rates(half, wanted, tolerance=0) == (1.0, 0.5)
    none = np.zeros_like(wanted)
    assert edge_rates(none, wanted) == (1.0, 0.0) and edge_rates(none, none) == (1.0, 1.0)
    score = score_edges([half, none], [wanted, wanted])
    assert score.f1 == pytest.approx(7 / 19) and score.recall == pytest.approx(7 / 24)
    one = np.zeros((9, 9), bool)
    one[4, 4] = True
    assert widened(one, 2).sum() == 25
    assert widened(wanted, 3)[:, 1:8].all() and not widened(wanted, 3)[:, 0].any()


def test_depth_of_things_is_what_they_add_to_the_table():
    table = np.linspace(0, 1, 40)[:, None] * np.ones((40, 30))
    thing = np.zeros((40, 30))
    thing[10:20, 5:15] = 0.3
    right = score_depth([2 * (table + thing) + 1], [table + thing], [table])
    assert right.whole == pytest.approx(1) and right.things == pytest.approx(1)
    alone = score_depth([table], [table + thing], [table])
    assert alone.whole > 0.9 and abs(alone.things) < 0.3
    assert score_depth([table * 0], [table], [table * 0.5]).whole == 0
    assert correlation(table, -table) == pytest.approx(-1)


def test_the_estimator_takes_pictures_of_all_sizes_and_not_from_their_batch():
    estimator = load_depth_estimator()
    pictures = np.stack([one.picture for one in MAPS])
    together = estimator.estimate(pictures)
    alone = np.concatenate([estimator.estimate(pictures[i : i + 1]) for i in range(8)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert (together.min(axis=(1, 2)) == 0).all() and (together.max(axis=(1, 2)) == 1).all()
    wide = np.asarray(Image.fromarray(pictures[0]).resize((250, 200)))[None]
    found = estimator.estimate(wide)
    assert found.shape == (1, 200, 250)
    sized = np.asarray(Image.fromarray(found[0]).resize((128, 128)))
    assert correlation(sized, together[0]) > 0.9


def test_wrong_weights_of_the_estimator(tmp_path):
    with pytest.raises(NotFoundError, match="no depth estimator weights"):
        load_depth_estimator(tmp_path / "none.safetensors")
    with pytest.raises(WeightError, match="does not hold depth estimator weights"):
        load_depth_estimator(detector.WEIGHTS)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: evaluate_structure(perfect, []), "maps is empty"),
        (lambda: evaluate_structure(perfect, MAPS, batch=0), "batch=0"),
        (lambda: evaluate_structure(perfect, MAPS, seed=-1), "seed=0"),
        (lambda: evaluate_structure(perfect, MAPS, kinds=()), r"kinds=\[\]"),
        (lambda: evaluate_structure(perfect, MAPS, kinds=("pose",)), "allowed: .*edges, depth"),
        (lambda: evaluate_structure(lambda m, s: blind(m, s)[:1], MAPS, **QUIET), "lengths differ"),
        (lambda: evaluate_structure(lambda m, s: None, MAPS, **QUIET), "generated pictures"),
        (lambda: held_out_maps(0), "count=0"),
        (
            lambda: score_edges([np.zeros((3, 3), bool)], [np.zeros((3, 4), bool)]),
            "found has shape",
        ),
        (lambda: score_edges([], []), "found is empty"),
        (lambda: score_depth([np.zeros((3, 3))], [np.zeros((3, 3))], []), "lengths differ"),
    ],
)
def test_wrong_arguments_are_told(call, says):
    with pytest.raises((InputError, TypeError), match=says):
        call()
