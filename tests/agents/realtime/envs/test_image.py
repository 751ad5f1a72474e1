"""Pictures become 84 x 84 by areas."""

import numpy as np
import pytest

from fox.agents.realtime.envs.image import gray, shrink


@pytest.mark.parametrize("size", [(84, 84), (168, 252), (210, 160), (37, 501)], ids=str)
def test_each_pixel_is_the_mean_of_the_area_that_it_covers(size):
    image = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    # Each old pixel drawn 84 times as high and wide: then every area is a block of whole pixels.
    height, width = size
    fine = image.astype(np.float64).repeat(84, axis=0).reshape(84, height, width).mean(axis=1)
    fine = fine.repeat(84, axis=1).reshape(84, 84, width).mean(axis=2)
    assert np.abs(shrink(image) - fine).max() <= 0.501


def test_gray_is_the_luma_of_the_colours():
    colours = np.array([[[255, 255, 255], [255, 0, 0]], [[0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(gray(colours), [[255, 76.245], [149.685, 29.07]], rtol=1e-5)
