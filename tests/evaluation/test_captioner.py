"""Captions of real renders state what is there, in words that `scenes.parse` reads."""

from dataclasses import replace

import numpy as np

from underdraw import scenes
from underdraw.evaluation import SceneCaptioner, held_out_captions, load_evaluator, stage
from underdraw.evaluation.detector import Detection

THING = Detection(0.9, (0.1, 0.1, 0.3, 0.3), (0.2, 0.3), "sphere", "red", "rubber", "small")
OTHER = replace(THING, shape="cube", colour="orange", foot=(0.7, 0.31))


def test_words():
    told = SceneCaptioner().words
    assert told([]) == "an empty table"
    assert told([THING]) == "a red sphere"
    assert told([OTHER, THING]) == told([THING, OTHER]) == "a red sphere left of an orange cube"
    behind = replace(OTHER, foot=(0.21, 0.8))
    assert told([behind, THING]) == "a red sphere behind an orange cube"
    assert told([THING, replace(OTHER, foot=(0.21, 0.31))]) == "a red sphere and an orange cube"
    third = replace(THING, foot=(0.9, 0.3), size="large")
    assert (
        told([THING, OTHER, third]) == "a small red sphere, an orange cube and a large red sphere"
    )
    metal = replace(THING, foot=(0.9, 0.3), material="metal")
    assert told([THING, metal]) == "a small red rubber sphere left of a small red metal sphere"
    striped = replace(THING, texture="striped", second_colour="blue")
    assert told([striped]) == "a red and blue striped sphere"


def test_captions_of_renders():
    """Of renders that nobody captioned by hand at least nine in ten are told right."""
    captioner, right, count = SceneCaptioner(load_evaluator()), 0, 20
    for caption in held_out_captions(count, mix={1: 1, 2: 1}):
        scene = stage(caption, np.random.default_rng(3))
        said = scenes.parse(captioner(scenes.render(scene, 128, 128).image))
        fits = [sum(m.matches(obj) for m in said.mentions) == 1 for obj in scene.objects]
        right += all(fits) and len(said.mentions) == len(scene.objects)
    assert right >= 0.9 * count


def test_it_serves_where_a_captioner_is_wanted():
    from PIL import Image

    from underdraw.text.automatic import describe

    scene = stage("a red sphere left of a blue cube", np.random.default_rng(0))
    picture = Image.fromarray((scenes.render(scene, 128, 128).image * 255).astype(np.uint8))
    said = describe(picture, SceneCaptioner())
    assert said == "a red sphere left of a blue cube"
