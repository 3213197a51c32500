import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from carvana_batch.errors import UsageError
from carvana_batch.inference.tiles import (
    SMALLEST_WEIGHT,
    TilePlan,
    Tiling,
    align,
    blend_weights,
    plan_fewest_tiles,
    plan_tiles,
    round_up,
    weight_sums,
)

# Plans


@st.composite
def tile_requests(draw):
    """(height, width, tile_height, tile_width, overlap, stride); the overlap leaves room for a step."""
    stride = draw(st.sampled_from([1, 2, 8, 32]))
    height, width = (draw(st.integers(1, 30 * stride)) for _ in range(2))
    tile_height, tile_width = (draw(st.integers(1, 12 * stride)) for _ in range(2))
    most_overlap = round_up(min(tile_height, tile_width), stride) - stride
    return height, width, tile_height, tile_width, draw(st.integers(0, most_overlap)), stride


def is_covered(starts: tuple[int, ...], tile: int, length: int) -> bool:
    """Whether tiles of one axis cover each of ``length`` pixels."""
    pixels = np.zeros(length, bool)
    for start in starts:
        pixels[start : start + tile] = True
    return bool(pixels.all())


@settings(deadline=None)
@given(tile_requests())
def test_windows_cover_the_image_evenly_on_the_stride_grid(request):
    height, width, tile_height, tile_width, overlap, stride = request
    plan = plan_tiles(height, width, tile_height, tile_width, overlap, stride)
    for length, wanted, starts, tile in (
        (height, tile_height, plan.tops, plan.tile_height),
        (width, tile_width, plan.lefts, plan.tile_width),
    ):
        assert starts[-1] + tile == length
        assert tile == length or round_up(wanted, stride) <= tile < round_up(wanted, stride) + stride
        assert tile < length or round_up(wanted, stride) > length - stride
        assert all(start % stride == 0 for start in starts)
        assert starts[0] == 0
        assert is_covered(starts, tile, length)
        steps = np.diff(starts)
        if len(steps):
            assert steps.min() > 0
            assert tile - steps.max() >= overlap
            assert steps.max() - steps.min() <= stride


@settings(deadline=None)
@given(tile_requests())
def test_fewer_windows_of_this_size_would_not_suffice(request):
    height, width, tile_height, tile_width, overlap, stride = request
    plan = plan_tiles(height, width, tile_height, tile_width, overlap, stride)
    assert len(plan.tops) == fewest_windows(plan.padded_height, plan.tile_height, overlap, stride)
    assert len(plan.lefts) == fewest_windows(plan.padded_width, plan.tile_width, overlap, stride)


@settings(deadline=None)
@given(tile_requests())
def test_counts_and_redundancy_are_those_of_the_windows(request):
    plan = plan_tiles(*request)
    windows = list(plan.windows())
    assert windows == [(top, left) for top in plan.tops for left in plan.lefts]
    assert len(windows) == plan.tile_count
    visits = np.zeros((plan.padded_height, plan.padded_width), int)
    for top, left in windows:
        visits[top : top + plan.tile_height, left : left + plan.tile_width] += 1
    assert plan.redundancy == pytest.approx(visits.mean())


@pytest.mark.parametrize(
    ("size", "stride", "rounded"), [(1, 1, 1), (1, 128, 128), (128, 128, 128), (129, 128, 256)]
)
def test_round_up(size, stride, rounded):
    assert round_up(size, stride) == rounded


@settings(deadline=None)
@given(st.integers(-50, 200), st.integers(1, 200), st.integers(1, 64))
def test_align(size, length, stride):
    candidates = [number for number in range(size, size + stride) if (length - number) % stride == 0]
    assert [align(size, length, stride)] == candidates


def fewest_windows(length: int, tile: int, overlap: int, stride: int) -> int | None:
    """The number of windows if each is as far from the previous one as possible; None if they cannot advance.

    The last one may reach beyond the image; moved back so that it ends with the image, it stays on the grid.
    """
    assert (length - tile) % stride == 0
    count, end = 1, tile
    while end < length:
        starts = [start for start in range(end - tile + 1, end - overlap + 1) if start % stride == 0]
        if not starts:
            return None
        count, end = count + 1, starts[-1] + tile
    return count


def brute_force(height: int, width: int, most_pixels: int, overlap: int, stride: int):
    """(tile count, pixels of a tile) of the best plan of all tile sizes on the grid, None if none fits."""
    found = []
    for tile_height in range(height, 0, -stride):
        for tile_width in range(width, 0, -stride):
            rows = fewest_windows(height, tile_height, overlap, stride)
            columns = fewest_windows(width, tile_width, overlap, stride)
            if tile_height * tile_width <= most_pixels and rows and columns:
                found.append((rows * columns, tile_height * tile_width))
    return min(found, default=None)


@st.composite
def memory_requests(draw):
    """(height, width, most_pixels, overlap, stride); for some, no tile fits."""
    stride = draw(st.sampled_from([1, 4, 32]))
    height, width = (draw(st.integers(1, 14 * stride)) for _ in range(2))
    return height, width, draw(st.integers(1, 2 * height * width)), draw(st.integers(0, 4 * stride)), stride


@settings(deadline=None, max_examples=300)
@given(memory_requests())
@example((32, 384, 32 * 192, 40, 32))  # the overlap is no multiple of the stride
@example((32, 384, 32 * 96, 64, 32))
@example((320, 384, 1, 40, 32))
def test_no_plan_with_fewer_tiles_fits(request):
    height, width, most_pixels, overlap, stride = request
    plan = plan_fewest_tiles(height, width, most_pixels, overlap, stride)
    best = brute_force(height, width, most_pixels, overlap, stride)
    if best is not None:
        assert (plan.tile_count, plan.tile_height * plan.tile_width) == best
    else:
        assert plan.tile_height == min(align(overlap + stride, height, stride), height)
        assert plan.tile_width == min(align(overlap + stride, width, stride), width)
    for starts, tile, length in (
        (plan.tops, plan.tile_height, height),
        (plan.lefts, plan.tile_width, width),
    ):
        assert starts[-1] + tile == length
        assert is_covered(starts, tile, length)
        assert all(tile - step >= overlap for step in np.diff(starts))


# By hand, for 1920x1280 pixels and an overlap of 192: two columns are (1920 + 192) / 2 = 1056 wide, two rows
# (1280 + 192) / 2 = 736 high.
@pytest.mark.parametrize(
    ("most_pixels", "plan", "redundancy"),
    [
        (1920 * 1280, TilePlan((0,), (0,), 1280, 1920), 1.0),
        (1920 * 1280 - 1, TilePlan((0,), (0, 864), 1280, 1056), 1.1),
        (1056 * 1280, TilePlan((0,), (0, 864), 1280, 1056), 1.1),
        (1056 * 736, TilePlan((0, 544), (0, 864), 736, 1056), 1.265),
    ],
)
def test_plans_of_a_carvana_photo_by_hand(most_pixels, plan, redundancy):
    assert plan_fewest_tiles(1280, 1920, most_pixels, 192, 32) == plan
    assert plan.redundancy == pytest.approx(redundancy)


def test_the_last_tile_ends_with_the_photo():
    # 1918 is 30 more than a multiple of 32, and so is 222, the smallest possible overlap of two columns. The
    # next such number after (1918 + 222) / 2 = 1070 is 1086.
    assert plan_fewest_tiles(1280, 1918, 1280 * 1100, 192, 32) == TilePlan((0,), (0, 832), 1280, 1086)


def test_redundancy_of_small_tiles_of_a_carvana_photo():
    # 7 columns and 4 rows of 512 pixels: 28 x 512 x 512 / (1920 x 1280)
    plan = plan_tiles(1280, 1920, 512, 512, 256, 32)
    assert (len(plan.tops), len(plan.lefts)) == (4, 7)
    assert plan.redundancy == pytest.approx(2.98667, abs=1e-5)


@pytest.mark.parametrize(("tile", "overlap"), [(256, 256), (256, 300), (256, 225), (240, 230)])
def test_an_overlap_without_room_for_a_step_is_rejected(tile, overlap):
    with pytest.raises(UsageError, match=f"--overlap {overlap} .* 256 .* 224 at most") as caught:
        plan_tiles(1280, 1918, tile, tile, overlap, 32)
    least = int(str(caught.value).partition("--tile ")[2].split()[0])
    assert plan_tiles(1280, 1918, least, least, overlap, 32).tops[1] == 32
    assert plan_tiles(1280, 1918, tile, tile, 224, 32).tops[1] == 32


def test_a_tile_that_has_room_for_no_overlap_is_rejected():
    with pytest.raises(UsageError, match=r"Give --tile 64 at least\.$"):
        plan_tiles(1280, 1918, 32, 32, 32, 32)


def test_the_overlap_does_not_matter_for_a_single_tile():
    assert plan_tiles(100, 200, 128, 256, 1000, 32) == TilePlan((0,), (0,), 100, 200)


# Weights


def test_blend_weights_by_hand():
    np.testing.assert_array_equal(blend_weights((0,), 3, 0), [1, 1, 1])
    # Of an overlap of two pixels, (2 x 7) // 16 = 0 have practically no weight.
    np.testing.assert_array_equal(blend_weights((0, 2), 4, 0), [1, 0.75, 0.5, 0.25])
    np.testing.assert_array_equal(blend_weights((0, 2), 4, 2), [0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(blend_weights((0, 2, 4), 4, 2), [0.25, 0.5, 0.5, 0.25])
    np.testing.assert_array_equal(weight_sums((0, 2), 4), [1, 0.75, 0.75, 0.75, 0.75, 1])
    # Of an overlap of three, one has; the other two have the weights of 1 and 2 pixels.
    smallest = np.float32(SMALLEST_WEIGHT) / 4
    np.testing.assert_array_equal(blend_weights((0, 1), 4, 1), [smallest, 0.25, 0.5, 0.75])
    assert blend_weights((0, 1), 4, 1).dtype == weight_sums((0, 2), 4).dtype == np.float32


@settings(deadline=None)
@given(tile_requests())
def test_windows_with_too_little_context_have_no_weight(request):
    plan = plan_tiles(*request)
    for starts, tile in ((plan.tops, plan.tile_height), (plan.lefts, plan.tile_width)):
        length = starts[-1] + tile
        weights = np.zeros((len(starts), length))
        context = np.full((len(starts), length), -1)
        for window, start in enumerate(starts):
            weights[window, start : start + tile] = blend_weights(starts, tile, start)
            before = np.arange(tile) if start > 0 else np.full(tile, length)
            after = np.arange(tile)[::-1] if start < starts[-1] else np.full(tile, length)
            context[window, start : start + tile] = np.minimum(before, after)
        assert weights.max() <= 1
        assert (weights.sum(0) > 0).all()
        shares = weights / weights.sum(0)
        most_needed = min((tile - step for step in np.diff(starts)), default=length) * 7 // 16
        assert shares[context < most_needed].max(initial=0) <= SMALLEST_WEIGHT
        # The window with the most context has the largest weight.
        np.testing.assert_array_equal(weights.max(0), weights[context.argmax(0), np.arange(length)])


@settings(deadline=None)
@given(tile_requests())
def test_weight_sums_are_those_of_all_weight_maps(request):
    plan = plan_tiles(*request)
    sums = np.zeros((plan.padded_height, plan.padded_width))
    for top, left in plan.windows():
        rows = blend_weights(plan.tops, plan.tile_height, top)
        columns = blend_weights(plan.lefts, plan.tile_width, left)
        sums[top : top + plan.tile_height, left : left + plan.tile_width] += np.outer(rows, columns)
    product = np.outer(weight_sums(plan.tops, plan.tile_height), weight_sums(plan.lefts, plan.tile_width))
    assert product.min() > 0
    np.testing.assert_allclose(product, sums, rtol=1e-5)


# Tiles of a photo


def test_tiles_are_width_by_height():
    plan = Tiling((64, 16), 0, 0).plan(32, 128, stride=4, unit=4)
    assert (plan.tile_width, plan.tile_height) == (64, 16)
    assert (len(plan.lefts), len(plan.tops)) == (2, 2)


def test_a_whole_photo_is_padded_to_the_unit_not_the_stride():
    plan = Tiling(None, 10**6, 0).plan(13, 6, stride=16, unit=4)
    assert (plan.tile_height, plan.tile_width, plan.tile_count) == (16, 8, 1)


def test_tiles_are_cut_from_the_photo_padded_to_the_unit():
    plan = Tiling(None, 16 * 24, 0).plan(13, 38, stride=16, unit=4)
    assert (plan.padded_height, plan.padded_width) == (16, 40)
    assert (plan.tile_height, plan.tile_width, plan.tile_count) == (16, 24, 2)


def test_large_maps_reduce_the_tiles():
    tiling = Tiling(None, 1_000_000, 64, map_share=0.05)

    def tile_pixels(height, width, limit=None):
        plan = tiling.plan(height, width, 4, 4, limit)
        return plan.tile_height * plan.tile_width

    assert tile_pixels(1000, 1000) == 1_000_000  # a photo of a single tile needs no maps in addition
    assert 350_000 < tile_pixels(3000, 4000) <= 1_000_000 - 600_000
    # Tiles are not smaller than sensible unless memory or a limit demands it.
    assert 200_000 < tile_pixels(10_000, 10_000) <= 512**2
    assert tile_pixels(10_000, 10_000, limit=100_000) <= 100_000
    small = dataclasses.replace(tiling, most_pixels=80_000).plan(5000, 5000, 4, 4)
    assert 50_000 < small.tile_height * small.tile_width <= 80_000
