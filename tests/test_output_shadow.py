"""The shadow below a car on another ground."""

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from carvana_batch.output.backgrounds import put_on_background
from carvana_batch.output.shadow import _hull_below, contact_shadow


def make_car(lift=0):
    """A box on two wheels, the right one ``lift`` pixels higher, with a mirror: (200, 400) bool."""
    mask = np.zeros((200, 400), bool)
    mask[60:130, 100:300] = True
    mask[130:160, 120:150] = True
    mask[130 : 160 - lift, 250:280] = True
    mask[80:84, 92:100] = True
    return mask


def test_it_lies_below_the_car_and_only_there():
    car = make_car()
    dark = contact_shadow(car)
    assert dark.dtype == np.float32
    assert (dark.min(), dark.max() < 1) == (0, True)
    assert (dark[150:158, 151:249] > 0.45).all()  # between the wheels
    assert (dark[161, 125:145] > 0.3).all()  # right below a wheel
    assert not dark[:100].any()
    assert not dark[190:].any()
    assert dark[:, 85:98].max() < 0.2  # not from the mirror down
    column = dark[161:, 200]
    assert (np.diff(column) <= 0).all()  # fades out downwards


def test_it_follows_the_line_from_wheel_to_wheel():
    dark = contact_shadow(make_car(lift=20))
    line = np.interp(200, [149, 279], [159, 139])
    assert dark[int(line) - 2, 200] > 0.5
    assert dark[int(line) + 14, 200] < 0.2
    mirrored = contact_shadow(make_car(lift=20)[:, ::-1])
    assert np.allclose(dark[:, ::-1], mirrored, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_hull_is_that_of_another_implementation(seed):
    rows = np.random.default_rng(seed).integers(0, 50, 40)
    columns = np.arange(40)
    points = np.stack((columns, rows), 1)
    vertices = {tuple(points[index]) for index in ConvexHull(points).vertices}
    hull = _hull_below(columns, rows)
    assert set(hull) <= vertices
    ground = np.interp(columns, [x for x, _ in hull], [y for _, y in hull])
    assert (rows <= ground + 1e-9).all()


def test_edges_of_the_photo_and_empty_masks():
    assert not contact_shadow(np.zeros((5, 7), bool)).any()
    assert not contact_shadow(np.ones((5, 7), bool))[:3].all()
    for row, column in ((0, 0), (4, 6), (2, 3)):
        mask = np.zeros((5, 7), bool)
        mask[row, column] = True
        assert contact_shadow(mask).shape == (5, 7)


def test_the_car_itself_is_not_darker():
    car = make_car()
    photo = np.full((200, 400, 3), 100, np.uint8)
    arguments = (photo, car, car.astype(np.float32), 0.5, (200, 200, 200))
    plain = put_on_background(*arguments).astype(int)
    shaded = put_on_background(*arguments, shadow=True).astype(int)
    assert np.array_equal(plain[car], shaded[car])
    dark = contact_shadow(car)
    far = ~car & (dark > 0)
    expected = np.rint(plain[far] * (1 - dark[far])[:, None])
    # At the soft edge, car and ground are mixed.
    assert (np.abs(shaded[far] - expected) <= 1).mean() > 0.8
    assert (shaded[far] <= plain[far]).all()
    assert np.array_equal(plain[dark == 0], shaded[dark == 0])
