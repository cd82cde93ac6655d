"""Boxes, styles, layouts and strengths refuse what cannot work, and say what it is."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from PIL import Image

from underdraw import Box, Layout, PerImage, Style
from underdraw.controls import Call, Strength
from underdraw.errors import InputError, InputTypeError

CORNERS = (0.1, 0.2, 0.4, 0.6)
RED = Image.new("RGB", (6, 4), "red")


class Foreign:
    """An array of another framework."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_a_box_by_position_by_name_and_from_arrays():
    one = Box("a red ball", CORNERS)
    assert one == Box(box=list(CORNERS), phrase="a red ball")
    assert one == Box("a red ball", np.array(CORNERS)) and isinstance(one.box, tuple)
    assert Box("a", torch.tensor([0, 0.5, 1, 1])).box == (0, 0.5, 1, 1)
    with pytest.raises(FrozenInstanceError):
        one.phrase = "another"


@pytest.mark.parametrize(
    "image",
    [
        RED,
        RED.convert("RGBA"),
        np.asarray(RED),
        np.asarray(RED, np.float32) / 255,
        torch.tensor(np.asarray(RED) / 255.0).permute(2, 0, 1),
        torch.tensor(np.asarray(RED)).permute(2, 0, 1),
        torch.tensor(np.asarray(RED) / 255.0, dtype=torch.bfloat16).permute(2, 0, 1),
        Foreign(np.asarray(RED, np.float32).transpose(2, 0, 1) / 255),
    ],
)
def test_images_in_any_form_are_the_same_value(image):
    assert Box(image=image, box=CORNERS) == Box(image=RED, box=CORNERS)
    assert Style(image) == Style(RED)


def test_arrays_of_frameworks_have_their_colours_first():
    pixels = np.asarray(RED) / np.float32(255)
    with pytest.raises(InputError, match=r"\(4, 6, 3\); needed is \(3, height, width\)"):
        Style(torch.tensor(pixels))
    with pytest.raises(InputError, match=r"\(3, 4, 6\); needed is \(height, width, 3\)"):
        Style(pixels.transpose(2, 0, 1))


def test_an_array_may_change_after_the_box_was_made():
    pixels = np.asarray(RED).copy()
    box = Box(image=pixels, box=CORNERS)
    pixels[:] = 0
    assert box == Box(image=RED, box=CORNERS)


WRONG = [
    ({"box": CORNERS}, InputError, "neither phrase nor image"),
    ({"phrase": 3, "box": CORNERS}, InputTypeError, "phrase=3"),
    ({"phrase": "a"}, InputError, "has 0 numbers"),
    ({"phrase": "a", "box": (0, 0, 1)}, InputError, "has 3 numbers"),
    ({"phrase": "a", "box": "0011"}, InputTypeError, "'0011' is not"),
    ({"phrase": "a", "box": (0, 0, 1, "1")}, InputTypeError, "'1', which is not a number"),
    ({"phrase": "a", "box": (0, 0, 1, True)}, InputTypeError, "True, which is not"),
    ({"phrase": "a", "box": (0, 0, 1, 1.01)}, InputError, "holds 1.01; allowed: .* 0 .. 1"),
    ({"phrase": "a", "box": (-0.1, 0, 1, 1)}, InputError, "holds -0.1"),
    ({"phrase": "a", "box": (0, 0, 1, float("nan"))}, InputError, "holds nan"),
    ({"phrase": "a", "box": (0, 0, 512, 512)}, InputError, "holds 512"),
    ({"phrase": "a", "box": (0.5, 0, 0.5, 1)}, InputError, "x_max=0.5 not above x_min=0.5"),
    ({"phrase": "a", "box": (0, 0.9, 1, 0.1)}, InputError, "y_max=0.1 not above y_min=0.9"),
    ({"phrase": "a", "box": (0, 1, 0, 1)}, InputError, "x_max"),
    ({"image": "a.png", "box": CORNERS}, InputTypeError, "image.*str"),
    ({"image": np.zeros((4, 4)), "box": CORNERS}, InputError, r"\(4, 4\)"),
    ({"image": np.full((4, 4, 3), 2.0), "box": CORNERS}, InputError, r"outside \[0, 1\]"),
    ({"image": np.full((4, 4, 3), np.nan), "box": CORNERS}, InputError, "outside"),
]


@pytest.mark.parametrize(("fields", "error", "message"), WRONG)
def test_wrong_boxes(fields, error, message):
    with pytest.raises(error, match=message):
        Box(**fields)


def test_wrong_styles_and_layouts():
    box = Box("a", CORNERS)
    with pytest.raises(InputTypeError, match="NoneType"):
        Style(None)
    with pytest.raises(InputTypeError, match="holds 'a', which is neither"):
        Layout(["a"])
    with pytest.raises(InputTypeError, match="not a list"):
        Layout(box)
    with pytest.raises(InputError, match="31 entries; allowed: at most 30"):
        Layout([box] * 31)
    assert len(Layout([box] * 30).boxes) == 30
    with pytest.raises(InputError, match=r"PerImage\[1\].*31 entries"):
        PerImage([box], [box] * 31)
    with pytest.raises(InputError, match="no layouts"):
        PerImage()
    with pytest.raises(InputTypeError, match=r"PerImage\[0\]"):
        PerImage(box)


@pytest.mark.parametrize(
    ("strength", "error", "message"),
    [
        ((0.5, 0.5, 0.5), InputError, "add up to 1"),
        ((1.5, 0, -0.5), InputError, "fractions"),
        ((float("nan"), 0, 1), InputError, "fractions"),
        (("1", 0, 0), InputTypeError, "numbers"),
        (0.3, InputTypeError, "not .on, decay, off."),
        ((0.3, 0.7), InputTypeError, "not .on, decay, off."),
    ],
)
def test_wrong_strengths(strength, error, message):
    with pytest.raises(error, match=message):
        Layout([Box("a", CORNERS)], strength)


def test_defaults_of_the_original():
    text, image = Box("a", CORNERS), Box("a", CORNERS, RED)
    assert Layout([text]).strength == Strength(0.3, 0, 0.7)
    for parts in ([image], [text, image], [text, Style(RED)]):
        assert Layout(parts).strength == Strength(1, 0, 0)
    assert Layout([image], (0.5, 0, 0.5)).strength == Strength(0.5, 0, 0.5)


@pytest.mark.parametrize(
    ("strength", "count", "wanted"),
    [
        ((0.3, 0, 0.7), 10, [1] * 3 + [0] * 7),
        ((1, 0, 0), 3, [1] * 3),
        ((0, 0, 1), 3, [0] * 3),
        ((0.2, 0.4, 0.4), 10, [1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0]),
        ((0, 1, 0), 4, [0.75, 0.5, 0.25, 0]),
        ((0.3, 0, 0.7), 3, [0, 0, 0]),  # a third of three calls is none, as in the original
    ],
)
def test_strength_over_a_run(strength, count, wanted):
    made = [Strength(*strength).at(Call(i, count, 0.0, True)) for i in range(count)]
    assert made == pytest.approx(wanted)
