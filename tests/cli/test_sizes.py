"""The size at which a model works on a picture."""

import itertools

import numpy as np
import pytest
from PIL import Image

from underdraw.cli.sizes import Size, fitted, fitted_size, wanted_size
from underdraw.errors import InputError

SIDES = (8, 9, 45, 75, 128, 500, 2000, 3000, 12000)


@pytest.mark.parametrize("trained", [(128, 128), (512, 512), (64, 96)])
@pytest.mark.parametrize("factor", [4, 8])
def test_no_picture_is_larger_than_a_model_can_bear(trained, factor):
    pixels = trained[0] * trained[1]
    for size in itertools.product(SIDES, SIDES):
        wide, high = fitted_size(size, Size(), trained, factor)
        assert wide % factor == high % factor == 0 < min(wide, high)
        assert wide * high <= 2 * pixels or max(wide, high) == factor
        if size[0] * size[1] <= pixels and min(size) <= min(trained):
            assert (wide, high) == (size[0] - size[0] % factor, size[1] - size[1] % factor)
        if max(size) <= 2 * min(size) and min(size) >= 500:  # proportions, but for cells
            assert abs(wide / high - size[0] / size[1]) < 0.1 * size[0] / size[1]


@pytest.mark.parametrize(
    ("size", "wanted", "becomes"),
    [
        ((3000, 2000), Size(), (192, 128)),
        ((2000, 3000), Size(), (128, 192)),
        ((3000, 2000), Size(about=64), (96, 64)),
        ((30, 20), Size(about=64), (96, 64)),
        ((3000, 2000), Size(height=64), (96, 64)),
        ((3000, 2000), Size(width=96), (96, 64)),
        ((3000, 2000), Size(height=64, width=64), (64, 64)),
        ((128, 128), Size(), (128, 128)),
        ((130, 128), Size(), (128, 128)),
        ((75, 45), Size(), (72, 40)),
        ((12000, 12), Size(), (4096, 8)),
    ],
)
def test_fitted_sizes(size, wanted, becomes):
    assert fitted_size(size, wanted, (128, 128), 8) == becomes


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((None, None, None), Size()),
        ((None, 8, None), Size(8)),
        (("64", None, None), Size(about=64)),
        (("64x96", None, None), Size(64, 96)),
        ((" 64X96 ", None, None), Size(64, 96)),
    ],
)
def test_what_is_said_of_sizes(arguments, wanted):
    assert wanted_size(*arguments) == wanted
    assert wanted.given == (arguments != (None, None, None))


@pytest.mark.parametrize("text", ["", "x", "64x", "x64", "-8", "8.5", "0x8", "8x8x8", "9" * 9])
def test_what_is_no_size(text):
    with pytest.raises(InputError, match="is not HEIGHTxWIDTH"):
        wanted_size(text, None, None)


def test_proportions_are_kept_by_cutting_both_ends():
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 32:96] = 255
    made = np.asarray(fitted(Image.fromarray(pixels), (32, 32)))
    assert made.shape == (32, 32, 3)
    assert made[:, 2:-2].min() > 250
