"""Pictures and their truth: same seed same picture, axes not swapped, boxes tight, colours true."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest

from underdraw.scenes import Scene, SceneObject, render, sample_at, scene_at, vocabulary
from underdraw.scenes.world import Camera, Floor, Light, Texture

SIZES = [(128, 128), (64, 64), (96, 160), (168, 72), (65, 83)]


def simple(shape="cube", **change) -> SceneObject:
    return replace(SceneObject(shape, "red", "rubber", "large", (0.0, 0.0), 0.3), **change)


def test_three_hundred_scenes_hold_their_promises():
    for index in range(300):
        sample = sample_at(7, index, 64, 64, split=("train", "held_out")[index % 2])
        truth = sample.rendering
        assert truth.image.dtype == np.float32
        assert truth.image.min() >= 0 and truth.image.max() <= 1
        assert np.isfinite(truth.depth).all() and (truth.depth > 0).all()
        assert truth.visible.min() >= 0.4  # sampled for 0.45 on a coarser grid
        assert set(np.unique(truth.segmentation)) == set(range(len(sample.scene.objects) + 1))


def test_a_scene_does_not_depend_on_what_was_rendered_before():
    first = sample_at(3, 5, 64, 96)
    for index in (9, 2):
        sample_at(3, index, 64, 64)
    again = sample_at(3, 5, 64, 96)
    assert first.scene == again.scene and first.caption == again.caption
    for name in ("image", "depth", "segmentation", "normals", "edges", "boxes", "visible"):
        np.testing.assert_array_equal(
            getattr(first.rendering, name), getattr(again.rendering, name)
        )
    assert sample_at(4, 5).scene != first.scene != sample_at(3, 6).scene


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_shapes_follow_height_and_width(height, width):
    truth = render(scene_at(1, 0, 3), height, width)
    assert truth.image.shape == truth.normals.shape == (height, width, 3)
    for map_ in (truth.depth, truth.segmentation, truth.edges):
        assert map_.shape == (height, width)
    assert truth.boxes.shape == (3, 4) and truth.visible.shape == (3,)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_boxes_hug_the_segmentation(height, width):
    for index in range(8):
        truth = render(scene_at(2, index), height, width)
        for i, box in enumerate(truth.boxes):
            rows, columns = np.nonzero(truth.segmentation == i + 1)
            expected = (
                columns.min() / width,
                rows.min() / height,
                (columns.max() + 1) / width,
                (rows.max() + 1) / height,
            )
            np.testing.assert_allclose(box, expected, atol=1e-6)


def test_a_wider_picture_shows_more_at_the_sides_and_nothing_else_changes():
    scene = scene_at(5, 1, 2)
    square, wide = render(scene, 96, 96), render(scene, 96, 160)
    np.testing.assert_allclose(wide.image[:, 32:128], square.image, atol=2e-3)
    np.testing.assert_array_equal(wide.segmentation[:, 32:128], square.segmentation)
    tall = render(scene, 160, 96)
    np.testing.assert_array_equal(tall.segmentation[32:128], square.segmentation)


def test_right_is_right_and_near_is_low():
    objects = (simple(position=(1.0, 0.0)), simple("sphere", position=(-1.0, 1.2)))
    truth = render(Scene(objects), 64, 96)
    assert truth.boxes[0, 0] > 0.5 > truth.boxes[1, 2]
    assert truth.boxes[0, 3] > truth.boxes[1, 3]
    near, far = (truth.depth[truth.segmentation == i].mean() for i in (1, 2))
    assert near < far


def test_depth_of_a_sphere_is_right():
    scene = Scene((simple("sphere"),), camera=Camera(0.5, 9.0))
    truth = render(scene, 128, 128)
    eye = scene.camera.origin
    middle = np.array([0, 0, scene.objects[0].radius])
    axis = scene.camera.axes[2]
    nearest = float(axis @ (middle - eye)) - scene.objects[0].radius
    assert truth.depth[truth.segmentation == 1].min() == pytest.approx(nearest, abs=5e-3)


@pytest.mark.parametrize("shape", vocabulary.SHAPES)
def test_every_hit_lies_on_the_surface_and_faces_the_camera(shape):
    from underdraw.scenes.render import trace
    from underdraw.scenes.solids import SOLIDS, to_own

    scene = Scene((simple(shape, rotation=0.5),))
    samples = trace(scene, 64, 64)
    row, column = np.nonzero(samples.ids)
    rays = samples.rays(row, column)
    points = scene.camera.origin[:, None] + rays * samples.depth[row, column]
    own = to_own(scene.objects[0], points)
    assert np.abs(SOLIDS[shape].distance(own)).max() < 4e-3
    truth = render(scene, 64, 64)
    inside = truth.segmentation == 1
    np.testing.assert_allclose(np.linalg.norm(truth.normals, axis=2), 1, atol=1e-5)
    assert (truth.normals[inside][:, 2] > -0.15).mean() > 0.99


def test_what_is_behind_is_hidden_and_counted_so():
    behind = simple("cube", position=(0.0, 1.5), size="small")
    truth = render(Scene((simple("cylinder", position=(0.0, -0.5)), behind)), 128, 128)
    assert truth.visible[0] == 1
    assert 0 <= truth.visible[1] < 0.9
    alone = render(Scene((behind,)), 128, 128)
    assert alone.visible[0] == 1


def test_what_leaves_the_frame_counts_as_hidden():
    truth = render(Scene((simple(position=(2.2, 0.0)),)), 128, 128)
    assert 0.2 < truth.visible[0] < 0.8
    assert truth.boxes[0, 2] == 1
    outside = render(Scene((simple(position=(6.0, 0.0)),)), 128, 128)
    assert outside.visible[0] == 0 and (outside.boxes[0] == 0).all()


def test_shadows_fall_away_from_the_lamp():
    light = Light(azimuth=1.57, elevation=0.8)  # from the right
    with_it = render(Scene((simple("sphere"),), light=light), 128, 128)
    without = render(Scene((), light=light), 128, 128)
    darker = (without.image - with_it.image).mean(2) * (with_it.segmentation == 0)
    columns = np.maximum(darker, 0).sum(0)  # its own outline is blended in and may be brighter
    assert columns[:64].sum() > 3 * columns[64:].sum()


def test_edges_run_along_the_outlines():
    truth = render(scene_at(1, 3, 2), 128, 128)
    changes = truth.segmentation[:, 1:] != truth.segmentation[:, :-1]
    assert truth.edges[:, :-1][changes].all()
    assert 0.005 < truth.edges.mean() < 0.15


def test_colours_can_be_told_by_their_hue():
    hues = {
        name: colorsys.rgb_to_hsv(*rgb)[0]
        for name, rgb in vocabulary.COLOUR_VALUES.items()
        if name != "gray"
    }
    right = total = 0
    for index in range(120):
        sample = sample_at(11, index, 64, 64)
        for i, obj in enumerate(sample.scene.objects):
            seen = sample.rendering.image[sample.rendering.segmentation == i + 1].mean(0)
            hue, saturation, _ = colorsys.rgb_to_hsv(*seen)
            told = min(hues, key=lambda c: abs((hue - hues[c] + 0.5) % 1 - 0.5))
            right += obj.colour == ("gray" if saturation < 0.3 else told)
            total += 1
    assert right / total > 0.98


def test_metal_shines():
    shiny, dull = (
        render(Scene((simple("sphere", material=m, colour="blue"),)), 128, 128).image
        for m in ("metal", "rubber")
    )
    assert (shiny.min(2) > 0.9).sum() > 10 > (dull.min(2) > 0.9).sum()


def test_two_lights_and_two_floors_look_different():
    objects = (simple(),)
    plain = render(Scene(objects)).image
    assert np.abs(render(Scene(objects, light=Light("warm"))).image - plain).mean() > 0.01
    for kind in vocabulary.FLOORS[1:]:
        assert np.abs(render(Scene(objects, Floor(kind))).image - plain).mean() > 0.003


@pytest.mark.parametrize("value", [63, 0, -1, 64.0, "128", None])
def test_bad_sizes_name_the_argument(value):
    with pytest.raises(ValueError, match=r"height=.*64"):
        render(Scene(()), value, 64)
    with pytest.raises(ValueError, match=r"width=.*64"):
        render(Scene(()), 64, value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: simple("ball"), "shape='ball'.*sphere"),
        (lambda: simple(colour="pink"), "colour='pink'.*red"),
        (lambda: simple(material="wood"), "material='wood'.*metal"),
        (lambda: simple(size="huge"), "size='huge'.*large"),
        (lambda: simple(position=(0.0, float("nan"))), "position"),
        (lambda: simple(position=(0.0,)), "position"),
        (lambda: Floor("carpet"), "Floor.kind='carpet'"),
        (lambda: Floor(tone=2), "Floor.tone=2"),
        (lambda: Light("green"), "Light.kind"),
        (lambda: Light(elevation=0), "Light.elevation"),
        (lambda: Light(softness=0), "Light.softness"),
        (lambda: Camera(pitch=0), "Camera.pitch"),
        (lambda: Camera(distance=1), "Camera.distance"),
        (lambda: Texture("furry", "red"), "Texture.kind"),
        (lambda: Texture("striped", "red", 99), "Texture.frequency"),
        (lambda: Scene((simple(),) * 5), "at most 4"),
        (lambda: Scene([simple()]), "not a tuple"),
        (lambda: Scene((simple(position=(0.0, 50.0)),)), "not on the table"),
        (lambda: Scene((simple(position=(0.0, -9.0)),)), "not on the table"),
    ],
)
def test_impossible_scenes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
