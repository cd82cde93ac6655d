"""Maps from pictures: edges as OpenCV finds them, soft edges, depth by another's network."""

import numpy as np
import pytest
from PIL import Image

from underdraw import preprocessors
from underdraw.errors import InputError, NotFoundError


def pictures():
    """Noise of several sizes and sharpness, down to one pixel."""
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (2, 9), (17, 5), (31, 64), (48, 40)):
        for sharpness in (1, 3):
            coarse = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            pixels = np.asarray(picture, np.float32)
            yield np.clip((pixels - 128) * sharpness + 128, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("thresholds", [(100, 200), (50.5, 100.7), (0, 0), (300, 300)])
def test_edges_have_the_bits_of_opencv(thresholds):
    cv2, found = pytest.importorskip("cv2"), 0
    for pixels in pictures():
        expected = cv2.Canny(np.ascontiguousarray(pixels), *thresholds)
        made = preprocessors.canny(Image.fromarray(pixels), *thresholds)
        np.testing.assert_array_equal(np.asarray(made), expected)
        found += int((expected > 0).sum())
    assert found > 100


def test_soft_edges_are_bright_where_a_picture_changes_much():
    pixels = np.full((96, 64, 3), 0.2, np.float32)
    pixels[:, 32:], pixels[48:, :32] = 0.9, 0.3
    soft = np.asarray(preprocessors.soft_edges(pixels), np.float32)
    assert soft.shape == (96, 64)
    assert soft[24, 32] > 250 and soft[24, 36] < soft[24, 33]
    assert 20 < soft[48, 8] < 100  # a tenth of the contrast there
    assert soft[12, 12] == 0
    plain = preprocessors.soft_edges(np.full((40, 40, 3), 0.5, np.float32))
    assert not np.asarray(plain).any()


@pytest.mark.parametrize("metres", [False, True])
def test_depth_is_what_a_network_says_near_is_white(metres):
    told = np.arange(12.0).reshape(3, 4) + 1

    def estimator(picture):
        assert picture.mode == "RGB"
        return {"predicted_depth": told[None]}

    made = np.asarray(preprocessors.depth(Image.new("L", (8, 6)), estimator, metres=metres))
    assert made.shape == (6, 8)
    far, near = (made[-1, -1], made[0, 0]) if metres else (made[0, 0], made[-1, -1])
    assert far < 10 and near > 245


def wrong_depth(told):
    return lambda: preprocessors.depth(Image.new("RGB", (8, 8)), lambda picture: told)


PHOTO = Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: preprocessors.canny(PHOTO, 200, 100), "low=200 is above high=100"),
        (lambda: preprocessors.canny(PHOTO, float("nan")), "low"),
        (lambda: preprocessors.canny(PHOTO, 0, 9000), "high"),
        (lambda: preprocessors.canny(np.full((8, 8, 3), np.nan, np.float32)), "image"),
        (lambda: preprocessors.canny([PHOTO, PHOTO]), "image"),
        (lambda: preprocessors.soft_edges(PHOTO, scale=0), "scale"),
        (lambda: preprocessors.soft_edges("photo.png"), "image"),
        (wrong_depth({"depth": 1}), "predicted_depth"),
        (wrong_depth({"predicted_depth": np.full((2, 2), np.nan)}), "depth of shape"),
        (wrong_depth({"predicted_depth": np.zeros(3)}), r"shape \(3,\)"),
    ],
)
def test_what_is_no_picture_or_number_is_an_error(call, says):
    with pytest.raises((InputError, TypeError), match=says):
        call()


def test_depth_needs_an_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NotFoundError, match="transformers"):
        preprocessors.depth(PHOTO, "some/model")
