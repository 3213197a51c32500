"""Putting a car on another ground."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carvana_batch.output.backgrounds import put_on_background, soften

CAR, OLD, NEW = (40, 40, 160), (250, 250, 250), (10, 10, 10)


def make_disc(radius=30, size=100):
    """How much of each pixel a disc covers, computed from 64 points per pixel."""
    points = (np.arange(8 * size) + 0.5) / 8 - size / 2
    inside = np.hypot(*np.meshgrid(points, points)) <= radius
    return inside.reshape(size, 8, size, 8).mean((1, 3)).astype(np.float32)


def mix(share, first, second):
    return share[..., None] * np.array(first) + (1 - share[..., None]) * np.array(second)


def test_an_edge_without_a_halo():
    """A dark car before a white wall: on a black ground nothing of the wall is left."""
    cover = make_disc()
    photo = np.rint(mix(cover, CAR, OLD)).astype(np.uint8)
    picture = put_on_background(photo, cover > 0.5, cover, 0.5, NEW)
    wanted = mix(cover, CAR, NEW)
    assert np.abs(picture - wanted).max() <= 12
    brightest = np.maximum(CAR, NEW)
    assert (picture <= brightest + 1).all()
    # A hard mask leaves the wall in the pixels at the edge.
    hard = np.where((cover > 0.5)[..., None], photo, NEW)
    assert (hard > brightest + 1).any()


def test_far_from_the_outline_the_mask_counts():
    """What cleaning removed from the mask, or filled in it, is not seen, whatever its probability."""
    cover = make_disc()
    probability = cover.copy()
    probability[5:8, 5:8] = 0.9
    probability[48:52, 48:52] = 0.1
    alpha = soften(cover > 0.5, probability, 0.5, 3)
    assert not alpha[5:8, 5:8].any()
    assert (alpha[48:52, 48:52] == 1).all()


@given(st.floats(0.05, 0.95), st.integers(0, 99))
def test_opacity_agrees_with_the_mask(threshold, seed):
    probability = np.random.default_rng(seed).random((12, 17), np.float32)
    mask = probability > threshold
    alpha = soften(mask, probability, threshold, 2)
    assert ((alpha >= 0) & (alpha <= 1)).all()
    assert (alpha[mask] >= 0.5).all()
    assert (alpha[~mask] <= 0.5).all()


def test_thin_parts_keep_their_own_colours():
    """An antenna, far from the car's inside, is not painted like the car."""
    cover = np.zeros((80, 80), np.float32)
    cover[50:75, 10:70] = 1
    cover[5:50, 40] = 1
    photo = np.full((80, 80, 3), OLD, np.uint8)
    photo[50:75, 10:70] = CAR
    photo[5:50, 40] = 0, 0, 0
    picture = put_on_background(photo, cover > 0.5, cover, 0.5, (0, 200, 0))
    assert (picture[5:40, 40] == 0).all()
    assert (picture[5:40, [39, 41]] == (0, 200, 0)).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_masks_of_nothing_and_of_everything(share):
    photo = np.full((20, 30, 3), CAR, np.uint8)
    probability = np.full((20, 30), share, np.float32)
    picture = put_on_background(photo, probability > 0.5, probability, 0.5, NEW)
    assert (picture == (CAR if share else NEW)).all()


def test_a_picture_covers_the_photo():
    """A ground of another shape is cropped at both sides, not distorted."""
    ground = np.zeros((10, 60, 3), np.uint8)
    ground[:, 15:45] = 200
    probability = np.zeros((40, 80), np.float32)
    picture = put_on_background(np.zeros((40, 80, 3), np.uint8), probability > 0.5, probability, 0.5, ground)
    assert picture.shape == (40, 80, 3)
    assert (picture[:, 5:75] >= 190).all()
