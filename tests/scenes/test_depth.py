"""Depth of scenes without a picture: that of the picture."""

import numpy as np
import pytest

from underdraw.scenes import render, sample_at
from underdraw.scenes.depth import depth_of


@pytest.mark.parametrize(("height", "width"), [(96, 96), (64, 100), (110, 70)])
def test_depth_is_that_of_the_render(height, width):
    for index in range(3):
        scene = sample_at(5, index).scene
        expected, found = render(scene, height, width).depth, depth_of(scene, height, width)
        assert found.shape == (height, width) and found.dtype == np.float32
        off = np.abs(found - expected) > 0.02 * expected
        assert off.mean() < 0.02  # outlines, where a pixel is two things
