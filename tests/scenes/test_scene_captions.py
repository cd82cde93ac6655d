"""Captions are true, unambiguous, within the vocabulary, and can be read back."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from underdraw.scenes import (
    box_relation,
    caption,
    parse,
    phrases,
    render,
    sample_subject,
    scene_at,
    scene_relations,
    subject_scene,
    words,
)
from underdraw.scenes.captions import Mention, Relation
from underdraw.scenes.relations import MARGIN_ACROSS

MANY = 400


def stated(told):
    """A caption without what a text cannot know."""
    mentions = tuple(replace(m, object=None) for m in told.mentions)
    return mentions, told.relations, told.floor, told.light


@cache
def each_caption():
    made = []
    for index in range(MANY):
        scene = scene_at(21, index)
        made.append((scene, caption(scene, np.random.default_rng(index))))
    rng = np.random.default_rng(5)
    for _ in range(60):
        scene = subject_scene(sample_subject(rng), rng)
        made.append((scene, caption(scene, rng)))
    return tuple(made)


def test_mentions_fit_their_object_and_no_other():
    named = 0
    for scene, told in each_caption():
        for mention in told.mentions:
            fitting = [k for k, obj in enumerate(scene.objects) if mention.matches(obj)]
            assert fitting == [mention.object], told.text
        named += len(told.mentions) == len(scene.objects)
        assert told.floor in (None, scene.floor.kind) and told.light in (None, scene.light.kind)
    assert named > 0.9 * MANY


def test_texts_keep_to_the_vocabulary_and_are_short():
    for _, told in each_caption():
        assert told.text == told.text.lower() and len(told.text.split()) <= 45
        assert set(told.text.replace(",", "").split()) <= set(words())


def test_parse_reads_back_what_a_caption_states():
    for _, told in each_caption():
        assert stated(parse(told.text)) == stated(told), told.text


def test_relations_hold_in_the_picture():
    checked = 0
    for index in range(250):
        scene = scene_at(22, index)
        told = caption(scene, np.random.default_rng(index))
        if not told.relations:
            continue
        truth = render(scene, 64, 64)
        for relation in told.relations:
            first, second = (told.mentions[k].object for k in (relation.first, relation.second))
            assert relation.kind in scene_relations(scene, first, second)
            if min(truth.visible[[first, second]]) > 0.85:  # hidden parts move a box
                a, b = truth.boxes[first], truth.boxes[second]
                assert box_relation(a, b, relation.kind, 0.02), told.text
                checked += 1
    assert checked > 60


def test_relations_are_opposite_the_other_way_round():
    opposite = {"left of": "right of", "in front of": "behind"}
    opposite |= {b: a for a, b in opposite.items()}
    for index in range(60):
        scene = scene_at(23, index, 2)
        there, back = scene_relations(scene, 0, 1), scene_relations(scene, 1, 0)
        assert tuple(opposite[kind] for kind in there) == back


def test_box_relation():
    left, right = (0.1, 0.2, 0.3, 0.5), (0.6, 0.2, 0.8, 0.7)
    assert box_relation(left, right, "left of", MARGIN_ACROSS)
    assert not box_relation(left, right, "right of")
    assert box_relation(right, left, "in front of", 0.1)
    assert box_relation(left, right, "behind", 0.1)
    with pytest.raises(ValueError, match="kind='above'"):
        box_relation(left, right, "above")


def test_all_kinds_of_captions_occur():
    texts = [told.text for _, told in each_caption()]
    for part in ("left of", "right of", "in front of", "behind", "from left to right", " is "):
        assert any(part in text for text in texts), part
    for part in ("floor", "light", "on the table", "a picture of", "thing", "shiny", "an orange"):
        assert any(part in text for text in texts), part
    assert not any("a orange" in text for text in texts)


def test_phrases():
    scene = scene_at(1, 2, 3)
    for phrase, obj in zip(phrases(scene), scene.objects, strict=True):
        assert phrase.removeprefix("a ").removeprefix("an ").split() == [
            obj.size,
            obj.colour,
            obj.material,
            obj.shape,
        ]
    for seed in range(20):
        for k, phrase in enumerate(phrases(scene, np.random.default_rng(seed))):
            (mention,) = parse(phrase).mentions
            assert [i for i, o in enumerate(scene.objects) if mention.matches(o)] == [k]


def test_parse_of_free_text():
    told = parse("A small shiny red cube to the left of the blue sphere, behind a thing.")
    assert (
        told.mentions
        == (
            Mention(None, "small", "red", None, None, "metal", "cube"),
            Mention(None, None, "blue", None, None, None, "sphere"),
            Mention(),
        )
        or told.mentions[0].material == "metal"
    )
    told = parse("a red sphere, a blue cube, the cube is behind the sphere")
    assert told.relations == (Relation(1, "behind", 0),)
    assert parse("a red and blue striped cone").mentions[0].second_colour == "blue"
    assert parse("").mentions == ()


def test_parse_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"outside the vocabulary.*dragon, pink"):
        parse("a pink dragon and a red cube")
    with pytest.raises(TypeError, match="text=3"):
        parse(3)


def test_an_empty_table():
    scene = replace(scene_at(0, 0), objects=())
    assert caption(scene, np.random.default_rng(0)).text == "an empty table"
    assert render(scene, 64, 64).boxes.shape == (0, 4)
