"""Turning compared with Pillow's."""

import numpy as np
import pytest
from helpers import store, with_orientation
from PIL import Image, ImageOps

from carvana_batch.orientation import ORIENTATIONS, inverse, turn
from carvana_batch.values import ImageRef, PackedMask, Photo

STORED = np.arange(4 * 9 * 3, dtype=np.uint8).reshape(4, 9, 3)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_turning_is_that_of_pillow(orientation):
    expected = np.asarray(ImageOps.exif_transpose(with_orientation(Image.fromarray(STORED), orientation)))
    np.testing.assert_array_equal(turn(STORED, orientation), expected)
    np.testing.assert_array_equal(turn(expected, inverse(orientation)), STORED)
    assert Photo(ImageRef("a", "a.jpg"), STORED, orientation).upright_shape == expected.shape[:2]
    bits = STORED[..., 0] % 5 > 1
    mask = PackedMask.from_bool(bits).turned(orientation)
    np.testing.assert_array_equal(mask.to_bool(), expected[..., 0] % 5 > 1)
    np.testing.assert_array_equal(np.asarray(store(Image.fromarray(expected), orientation)), STORED)


def test_what_is_upright_is_not_copied():
    assert np.shares_memory(np.ascontiguousarray(turn(STORED, 1)), STORED)
    mask = PackedMask.from_bool(STORED[..., 0] > 50)
    assert mask.turned(1) is mask
