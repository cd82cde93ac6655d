"""Held-out captions, and scenes made for captions."""

from collections import Counter

import numpy as np
import pytest

from underdraw.errors import InputError, InputTypeError
from underdraw.evaluation import held_out_captions, real_renders, stage
from underdraw.scenes import is_reserved, parse, scene_relations
from underdraw.scenes.layout import visible_fractions


def test_the_stated_mix():
    captions = held_out_captions()
    assert Counter(len(c.mentions) for c in captions) == {1: 40, 2: 56, 3: 16, 4: 16}
    assert all(c.relations for c in captions if len(c.mentions) == 2)
    assert len({c.text for c in captions}) == 128
    assert captions == held_out_captions()
    assert captions[0] != held_out_captions(seed=1)[0]
    assert Counter(len(c.mentions) for c in held_out_captions(7, mix={2: 1, 4: 1})) == {2: 4, 4: 3}


def test_two_things_are_a_pair_that_training_never_shows():
    for caption in held_out_captions(30, mix={2: 1}):
        a, b = caption.mentions
        if None not in (a.colour, a.shape, b.colour, b.shape):
            assert is_reserved((a.colour, a.shape), (b.colour, b.shape))


TEXTS = [c.text for c in held_out_captions(24, seed=5)] + [
    "an empty table",
    "from left to right a red cube, a blue sphere, a small green torus and a small gray cone",
    "a cube left of a cube",
    "a thing behind a small shiny thing on a marble floor",
    "a red and blue striped cone in front of a dotted torus",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_staged_scene_is_what_its_caption_says(text):
    told = parse(text)
    scene = stage(text, np.random.default_rng(1))
    assert len(scene.objects) == len(told.mentions)
    assert all(m.matches(o) for m, o in zip(told.mentions, scene.objects, strict=True))
    for r in told.relations:
        assert r.kind in scene_relations(scene, r.first, r.second)
    assert told.floor in (None, scene.floor.kind)
    assert told.light in (None, scene.light.kind)
    assert not scene.objects or min(visible_fractions(scene)) > 0.4
    assert scene == stage(told, np.random.default_rng(1))


def test_real_renders():
    pictures = real_renders(["a red cube", "a cone behind a torus"], [4, 9], 64, 96)
    assert pictures.shape == (2, 64, 96, 3)
    assert pictures.dtype == np.float32
    again = real_renders(["a cone behind a torus"], [9], 64, 96)
    assert np.array_equal(pictures[1], again[0])
    assert not np.array_equal(pictures[1], real_renders(["a cone behind a torus"], [8], 64, 96)[0])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: held_out_captions(0), InputError, "count=0"),
        (lambda: held_out_captions(mix={}), InputError, "mix"),
        (lambda: held_out_captions(mix={5: 1}), InputError, "1 to 4"),
        (lambda: held_out_captions(mix={1: -1, 2: 2}), InputError, "mix"),
        (lambda: real_renders([]), InputError, "empty"),
        (lambda: real_renders(["a cube"], [1, 2]), InputError, "seeds"),
        (lambda: real_renders("a cube"), InputTypeError, "one string"),
        (
            lambda: stage("a cube, a cone, a torus, a cone and a cone", np.random.default_rng(0)),
            InputError,
            "more than 4",
        ),
    ],
)
def test_wrong_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_contradictions_are_found_out(monkeypatch):
    monkeypatch.setattr("underdraw.evaluation.staging._ATTEMPTS", 60)
    text = "a red cube left of a cone, the red cube is right of the cone"
    with pytest.raises(InputError, match="no scene was found"):
        stage(text, np.random.default_rng(0))
