"""Before/after pairs, subjects, and drawings."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from underdraw.scenes import (
    PAIR_KINDS,
    describe,
    draw,
    has_reserved_pair,
    pair,
    phrases,
    render,
    sample_at,
    sample_subject,
    scene_at,
    subject_scene,
    subject_view,
)


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_pairs_differ_in_one_thing(kind):
    rng = np.random.default_rng(4)
    for _ in range(12):
        made = pair(rng, kind, 64, 80)
        before, after = made.before.scene, made.after.scene
        assert replace(before, objects=()) == replace(after, objects=())
        a, b = list(before.objects), list(after.objects)
        if kind == "removal":
            del a[made.index]
        elif kind == "addition":
            assert made.index == len(b) - 1
            del b[made.index]
        else:
            old, new = a.pop(made.index), b.pop(made.index)
            differing = {
                name
                for name in ("shape", "colour", "material", "size", "position")
                if getattr(old, name) != getattr(new, name)
            }
            assert differing == {kind}
        assert a == b
        assert not has_reserved_pair(before) and not has_reserved_pair(after)


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_nothing_changes_outside_the_mask(kind):
    rng = np.random.default_rng(6)
    for _ in range(6):
        made = pair(rng, kind, 64, 80)
        a, b = made.before.rendering.image, made.after.rendering.image
        assert np.abs(a - b)[~made.mask].max(initial=0) <= 1 / 255 + 1e-6
        assert made.mask.shape == made.object_mask.shape == (64, 80)
        assert made.object_mask.any() and not (made.object_mask & ~made.mask).any()
        assert made.mask.mean() < 0.6


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_captions_of_pairs_are_true_and_tell_the_change(kind):
    rng = np.random.default_rng(8)
    for _ in range(12):
        made = pair(rng, kind, 64, 64)
        assert made.before.caption.text != made.after.caption.text
        for sample in (made.before, made.after):
            for mention in sample.caption.mentions:
                assert mention.matches(sample.scene.objects[mention.object])
        if kind in ("colour", "shape"):
            for sample in (made.before, made.after):
                (told,) = [m for m in sample.caption.mentions if m.object == made.index]
                assert getattr(told, kind) == getattr(sample.scene.objects[made.index], kind)


def test_pairs_are_seeded():
    a, b = (pair(np.random.default_rng(3), None, 64, 64) for _ in range(2))
    assert a.before.scene == b.before.scene and a.after.caption == b.after.caption
    np.testing.assert_array_equal(a.mask, b.mask)


def test_pairs_refuse():
    with pytest.raises(ValueError, match="kind='size'"):
        pair(np.random.default_rng(0), "size")
    with pytest.raises(ValueError, match=r"count=1.*removal"):
        pair(np.random.default_rng(0), "removal", count=1)


def test_a_subject_keeps_its_looks():
    rng = np.random.default_rng(1)
    for _ in range(10):
        subject = sample_subject(rng)
        views = [subject_view(subject, rng), subject_view(subject, rng)]
        assert views[0] != views[1]
        among = subject_scene(subject, rng, 3)
        for obj in (*(view.objects[0] for view in views), among.objects[0]):
            assert describe(obj) == describe(subject) and obj.texture == subject.texture
        assert all(o.texture is None for o in among.objects[1:])
        truth = render(views[0], 64, 64)
        assert truth.visible[0] > 0.98
        assert (truth.segmentation == 1).mean() > 0.03


@pytest.mark.parametrize("kind", ["striped", "dotted", "checked", "swirled"])
def test_textures_show_both_colours(kind):
    subject = sample_subject(np.random.default_rng(0))
    subject = replace(
        subject,
        shape="sphere",
        material="rubber",
        colour="red",
        texture=replace(subject.texture, kind=kind, second="blue"),
    )
    truth = render(subject_view(subject, np.random.default_rng(2)), 128, 128)
    pixels = truth.image[truth.segmentation == 1]
    red = (pixels[:, 0] > 2 * pixels[:, 2]).mean()
    blue = (pixels[:, 2] > 2 * pixels[:, 0]).mean()
    assert red > 0.1 and blue > 0.1 and red + blue > 0.7


def test_subjects_differ():
    rng = np.random.default_rng(0)
    assert len({sample_subject(rng).texture for _ in range(50)}) == 50


def test_subjects_refuse():
    plain, rng = scene_at(0, 0).objects[0], np.random.default_rng(0)
    with pytest.raises(ValueError, match="no texture"):
        subject_view(plain, rng)
    with pytest.raises(ValueError, match="no texture"):
        subject_scene(plain, rng)
    with pytest.raises(ValueError, match="count=9"):
        subject_scene(sample_subject(rng), rng, 9)


def test_drawings_have_the_size_of_the_picture():
    sample = sample_at(0, 1, 64, 96)
    truth = sample.rendering
    boxed = draw.draw_boxes(truth.image, truth.boxes, phrases(sample.scene), scale=2)
    assert boxed.size == (192, 128)
    plain = np.asarray(draw.draw_boxes(truth.image, []))
    np.testing.assert_allclose(plain / 255, truth.image, atol=0.5 / 255 + 1e-6)
    for image in (
        draw.draw_segmentation(truth.image, truth.segmentation),
        draw.draw_edges(truth.edges),
        draw.draw_depth(truth.depth),
        draw.draw_normals(truth.normals),
    ):
        assert image.size == (96, 64) and image.mode == "RGB"
    assert draw.truth_sheet([sample], scale=1).size == (6 * 98 + 2, 68)


def test_drawings_leave_the_picture_alone():
    picture = Image.new("RGB", (64, 64))
    draw.draw_boxes(picture, [(0.1, 0.1, 0.5, 0.5)])
    assert not np.asarray(picture).any()


def test_contact_sheet():
    pictures = [np.full((8, 12, 3), k / 5, np.float32) for k in range(5)]
    sheet = draw.contact_sheet(pictures, columns=3, gap=1)
    assert sheet.size == (3 * 13 + 1, 2 * 9 + 1)
    assert sheet.getpixel((1 + 13, 1 + 9)) == (204, 204, 204)
    with pytest.raises(ValueError, match="empty"):
        draw.contact_sheet([])
    with pytest.raises(ValueError, match="differ in size"):
        draw.contact_sheet([pictures[0], np.zeros((4, 4, 3))])
    with pytest.raises(ValueError, match="picture has shape"):
        draw.to_image(np.zeros((3, 8, 8, 3)))
    with pytest.raises(ValueError, match="labels has 1"):
        draw.draw_boxes(pictures[0], [(0, 0, 1, 1)] * 2, ["one"])
    with pytest.raises(ValueError, match="scale=0"):
        draw.draw_boxes(pictures[0], [], scale=0)
    with pytest.raises(ValueError, match="segmentation has shape"):
        draw.draw_segmentation(pictures[0], np.zeros((3, 3), int))


@pytest.mark.parametrize("kind", [("orange", "cylinder"), ("gray", "sphere"), ("red", "cube")])
def test_every_subject_has_a_held_out_scene_of_two(kind):
    rng = np.random.default_rng(0)
    subject = replace(sample_subject(rng), colour=kind[0], shape=kind[1])
    scene = subject_scene(subject, rng, 2, "held_out")
    assert [scene.objects[0].colour, scene.objects[0].shape] == list(kind)
    assert len(scene.objects) == 2
