"""Metrics of regions: computed by hand for a drawn car, and compared with slow second implementations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial.distance import cdist

from carvana_batch.colours import srgb_to_lab
from carvana_batch.masks.morphology import find_pixels
from carvana_batch.scoring.compare import add_outline_metrics
from carvana_batch.scoring.regions import (
    OutlineErrors,
    find_lower_outline,
    find_similar_outline,
    find_thin_structures,
)
from carvana_batch.scoring.scores import score_mask
from carvana_batch.values import PackedMask

pairs = st.tuples(st.integers(1, 24), st.integers(1, 30)).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


def pack(mask):
    return PackedMask.from_bool(mask)


@pytest.fixture
def car():
    """A mask with a body of 60x100 pixels, an antenna three pixels wide on top, and two wheels below."""
    mask = np.zeros((140, 160), bool)
    mask[40:100, 30:130] = True
    mask[10:40, 60:63] = True
    mask[100:115, 40:60] = True
    mask[100:115, 100:120] = True
    return mask


def outline_of(mask):
    return np.argwhere(mask & ~ndimage.binary_erosion(mask))


def draw_disc(diameter):
    y, x = np.mgrid[-8:9, -8:9]
    return y**2 + x**2 <= (diameter / 2) ** 2


def test_antenna_is_thin_and_corners_are_not(car):
    thin = find_thin_structures(pack(car)).to_bool()
    expected = np.zeros_like(car)
    expected[10:38, 60:63] = True  # except two rows next to the body
    np.testing.assert_array_equal(thin, expected)


@settings(deadline=None)
@given(st.tuples(st.integers(1, 30), st.integers(1, 40)).flatmap(lambda shape: hnp.arrays(bool, shape)))
def test_thin_structures_match_a_morphological_opening(mask):
    opened = ndimage.binary_opening(mask, draw_disc(9))
    body = ndimage.distance_transform_edt(~opened) <= 2.5 if opened.any() else opened
    np.testing.assert_array_equal(find_thin_structures(pack(mask)).to_bool(), mask & ~body)


def test_bar_is_thin_below_nine_pixels():
    for width, is_thin in [(8, True), (9, False)]:
        mask = np.zeros((40, 60), bool)
        mask[10 : 10 + width, 5:55] = True
        assert find_thin_structures(pack(mask)).to_bool().any() == is_thin


def test_lower_outline_runs_along_body_and_wheels(car):
    lower = find_lower_outline(pack(car))
    expected = {(99, x) for x in range(130) if car[99, x] and not car[100, x]}
    expected |= {(114, x) for x in (*range(40, 60), *range(100, 120))}
    expected |= {(y, x) for y in range(100, 115) for x in (40, 59, 100, 119)}
    assert set(map(tuple, lower.tolist())) == expected


def test_lower_outline_excludes_mirrors(car):
    with_mirror = car.copy()
    with_mirror[45:50, 10:30] = True
    lower = find_lower_outline(pack(with_mirror))
    assert lower[:, 1].min() == 30
    assert lower[:, 0].min() == 62  # the middle of rows 10 to 114: the side of the body, below the mirror
    assert (find_lower_outline(pack(car))[:, 0] >= 99).all()


def find_lower_naively(mask):
    rows = np.flatnonzero(mask.any(axis=1))
    found = []
    for y, x in np.argwhere(mask).tolist():
        touches = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        inside = [(v, u) for v, u in touches if 0 <= v < mask.shape[0] and 0 <= u < mask.shape[1]]
        ground = [(v, u) for v, u in inside if mask[:, u].any() and not mask[v:, u].any()]
        if ground and y >= (rows[0] + rows[-1]) / 2:
            found.append((y, x))
    return found


@settings(deadline=None)
@given(pairs)
def test_lower_outline_matches_a_loop_over_pixels(pair):
    assert list(map(tuple, find_lower_outline(pack(pair[0])).tolist())) == find_lower_naively(pair[0])


def test_no_lower_outline_at_the_image_border():
    mask = np.zeros((20, 20), bool)
    mask[5:, 5:15] = True
    assert find_lower_outline(pack(mask)).shape == (0, 2)
    assert find_lower_outline(pack(np.zeros((20, 20), bool))).shape == (0, 2)


def test_outline_error_is_the_thickness_of_the_error(car):
    predicted = car.copy()
    predicted[115:118, 40:60] = True  # three rows of shadow under one wheel
    predicted[50:60, 50:60] = False  # a hole in the door, at least ten rows from the outline
    predicted[0, 0] = True  # too far away to count
    errors = OutlineErrors(pack(predicted), pack(car))
    np.testing.assert_array_equal(errors.outline, outline_of(car))
    tyre = np.array([(114, x) for x in range(40, 60)])
    assert errors.along(tyre) == 3
    roof = np.array([(40, x) for x in range(30, 130) if not 60 <= x < 63])
    assert errors.along(roof) == pytest.approx(100 / len(roof))
    assert errors.overall == pytest.approx((60 + 100) / len(outline_of(car)))
    assert errors.along(roof[:0]) is None


def test_one_pixel_too_large_is_an_error_of_about_one(car):
    grown = ndimage.binary_dilation(car)
    errors = OutlineErrors(pack(grown), pack(car))
    assert errors.overall == pytest.approx(1, abs=0.02)
    assert errors.along(find_lower_outline(pack(car))) == pytest.approx(1, abs=0.1)


def test_error_is_undefined_without_a_true_outline(car):
    errors = OutlineErrors(pack(car), pack(np.zeros_like(car)))
    assert errors.overall is None
    assert errors.along(errors.outline) is None


@settings(deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_errors_match_all_pairs_of_pixels(pair, random):
    predicted, true = pair
    errors = OutlineErrors(pack(predicted), pack(true))
    outline, wrong = outline_of(true), np.argwhere(predicted != true)
    if not len(outline):
        return
    distances = cdist(wrong, outline)
    near = distances.min(axis=1) <= 20
    assert errors.overall == pytest.approx(near.sum() / len(outline), abs=1e-9)
    chosen = np.array(sorted(random.sample(range(len(outline)), random.randint(1, len(outline)))))
    nearest = near & (distances[:, chosen].min(axis=1) == distances.min(axis=1))
    assert errors.along(outline[chosen]) == pytest.approx(nearest.sum() / len(chosen), abs=1e-9)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((1, 1, 1), (0.27, 0, 0)),
    ],
)
def test_lab_matches_published_values(rgb, lab):
    assert srgb_to_lab(np.array(rgb, float)) == pytest.approx(lab, abs=0.01)


def find_similar_naively(mask, photo):
    found = []
    for y, x in outline_of(mask).tolist():
        window = np.s_[max(y - 5, 0) : y + 6, max(x - 5, 0) : x + 6]
        inside, colours = mask[window], photo[window].astype(float)
        if inside.all():
            continue
        difference = srgb_to_lab(colours[inside].mean(axis=0)) - srgb_to_lab(colours[~inside].mean(axis=0))
        if np.sqrt((difference**2).sum()) < 10:
            found.append((y, x))
    return found


@settings(deadline=None, max_examples=50)
@given(pairs, st.integers(0, 9))
def test_similar_outline_matches_a_loop_over_pixels(pair, seed):
    mask, patches = pair
    noise = np.random.default_rng(seed).integers(0, 30, (*mask.shape, 3), np.uint8)
    photo = noise + (90 * ndimage.binary_dilation(patches, iterations=2))[:, :, None].astype(np.uint8)
    similar = find_similar_outline(pack(mask), photo, find_pixels(pack(mask & ~ndimage.binary_erosion(mask))))
    assert list(map(tuple, similar.tolist())) == find_similar_naively(mask, photo)


def test_white_car_in_front_of_a_half_white_wall(car, monkeypatch):
    photo = np.where(car, 240, 60).astype(np.uint8)[:, :, None].repeat(3, axis=2)
    photo[:70] = 245
    outline = outline_of(car)
    similar = find_similar_outline(pack(car), photo, outline)
    # the 11x11 square extends 5 rows beyond the edge of the wall
    assert {y for y, _ in similar.tolist()} >= set(range(10, 65))
    assert not {y for y, _ in similar.tolist()} & set(range(75, 140))
    monkeypatch.setattr("carvana_batch.scoring.regions.CHUNK_PIXELS", 100)
    np.testing.assert_array_equal(find_similar_outline(pack(car), photo, outline), similar)


def measure_all(predicted, true, photo):
    score = score_mask("a", predicted, true)
    return add_outline_metrics(score, predicted, true, photo)


@pytest.mark.parametrize("seed", range(6))
def test_ignored_pixels_count_in_no_metric(seed):
    """Whatever is predicted there, all metrics are the same."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:60, :90]
    car = (columns - 40) ** 2 + 3 * (rows - 30) ** 2 < 900
    car[5:20, 38:41] = True  # an antenna
    ignored = np.hypot(rows - generator.integers(60), columns - generator.integers(90)) < 15
    true = PackedMask.from_bool(car, ignored)
    wrong = generator.random(car.shape) < 0.02
    photo = generator.integers(0, 256, (*car.shape, 3), np.uint8)
    scores = {
        measure_all(PackedMask.from_bool(np.where(ignored, filling, car ^ wrong)), true, photo)
        for filling in (False, True, car, generator.random(car.shape) < 0.5)
    }
    (score,) = scores
    known, predicted = ~ignored, (car ^ wrong) & ~ignored
    assert score.area_true == (car & known).sum()
    assert score.area_predicted == predicted.sum()
    assert score.pixel_accuracy == ((car == (car ^ wrong)) & known).sum() / known.sum()
    assert score.dice == 2 * (predicted & car).sum() / (predicted.sum() + (car & known).sum())


def test_a_band_of_ignored_pixels_hides_the_outline():
    rows, columns = np.mgrid[:60, :90]
    distance = np.hypot(rows - 30, columns - 45)
    true = PackedMask.from_bool(distance < 20, (distance > 17) & (distance < 23))
    score = measure_all(PackedMask.from_bool(distance < 21), true, np.zeros((60, 90, 3), np.uint8))
    assert (score.dice, score.pixel_accuracy) == (1, 1)
    assert (score.outline_pixels, score.thin_pixels, score.lower_pixels) == (0, 0, 0)
    assert (score.boundary_mean, score.band_dice, score.outline_error) == (None, None, None)


def test_ignored_pixels_cut_no_thin_structures():
    """Between ignored pixels, a strip of the car is narrow, but the car is not."""
    car = np.zeros((60, 90), bool)
    car[20:50, 10:80] = True
    ignored = np.zeros_like(car)
    ignored[20:32], ignored[36:50] = True, True
    assert not find_thin_structures(PackedMask.from_bool(car, ignored)).rows.any()
    assert find_thin_structures(PackedMask.from_bool(car & ~ignored)).rows.any()
