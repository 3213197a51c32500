import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from carvana_batch.errors import UsageError
from carvana_batch.inference.tiles import (
    FAINT,
    TilePlan,
    align,
    blend_weights,
    plan_fewest_tiles,
    plan_tiles,
    round_up,
    weight_sums,
)


@st.composite
def tile_requests(draw):
    """(height, width, tile_height, tile_width, overlap, stride) that leave room for a step."""
    stride = draw(st.sampled_from([1, 2, 8, 32]))
    height, width = (draw(st.integers(1, 30 * stride)) for _ in range(2))
    tile_height, tile_width = (draw(st.integers(1, 12 * stride)) for _ in range(2))
    most = round_up(min(tile_height, tile_width), stride) - stride
    return height, width, tile_height, tile_width, draw(st.integers(0, most)), stride


def covered(starts: tuple[int, ...], tile: int, length: int) -> bool:
    pixels = np.zeros(length, bool)
    for start in starts:
        pixels[start : start + tile] = True
    return bool(pixels.all())


@settings(deadline=None)
@given(tile_requests())
def test_windows_cover_the_image_evenly_on_the_stride_grid_and_end_with_it(request):
    height, width, tile_height, tile_width, overlap, stride = request
    plan = plan_tiles(height, width, tile_height, tile_width, overlap, stride)
    for length, asked, starts, tile in (
        (height, tile_height, plan.tops, plan.tile_height),
        (width, tile_width, plan.lefts, plan.tile_width),
    ):
        assert starts[-1] + tile == length
        assert tile == length or round_up(asked, stride) <= tile < round_up(asked, stride) + stride
        assert tile < length or round_up(asked, stride) > length - stride
        assert all(start % stride == 0 for start in starts)
        assert starts[0] == 0
        assert covered(starts, tile, length)
        steps = np.diff(starts)
        if len(steps):
            assert steps.min() > 0
            assert tile - steps.max() >= overlap
            assert steps.max() - steps.min() <= stride


@settings(deadline=None)
@given(tile_requests())
def test_no_fewer_windows_of_the_size_would_do(request):
    height, width, tile_height, tile_width, overlap, stride = request
    plan = plan_tiles(height, width, tile_height, tile_width, overlap, stride)
    assert len(plan.tops) == fewest_windows(plan.padded_height, plan.tile_height, overlap, stride)
    assert len(plan.lefts) == fewest_windows(plan.padded_width, plan.tile_width, overlap, stride)


@settings(deadline=None)
@given(tile_requests())
def test_the_plan_counts_what_it_lists(request):
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
    """How many windows it takes if each lies as far from the one before as it may; None: no end.

    Where the last one has to be moved back to end with the image, it stays on the grid.
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
    """(tiles, pixels of a tile) of the best plan among all tile sizes on the grid, None if none fits."""
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
    """(height, width, most_pixels, overlap, stride), of which some fit no tile at all."""
    stride = draw(st.sampled_from([1, 4, 32]))
    height, width = (draw(st.integers(1, 14 * stride)) for _ in range(2))
    return height, width, draw(st.integers(1, 2 * height * width)), draw(st.integers(0, 4 * stride)), stride


@settings(deadline=None, max_examples=300)
@given(memory_requests())
@example((32, 384, 32 * 192, 40, 32))  # the overlap, no multiple of the stride, once cost a column more
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
        assert covered(starts, tile, length)
        assert all(tile - step >= overlap for step in np.diff(starts))


# By hand, for 1920x1280 pixels: two columns share 192, so each is (1920 + 192) / 2 = 1056 wide, and two rows
# are (1280 + 192) / 2 = 736 tall.
@pytest.mark.parametrize(
    ("most_pixels", "plan", "redundancy"),
    [
        (1920 * 1280, TilePlan((0,), (0,), 1280, 1920), 1.0),
        (1920 * 1280 - 1, TilePlan((0,), (0, 864), 1280, 1056), 1.1),
        (1056 * 1280, TilePlan((0,), (0, 864), 1280, 1056), 1.1),
        (1056 * 736, TilePlan((0, 544), (0, 864), 736, 1056), 1.265),
    ],
)
def test_the_plans_of_a_carvana_photo(most_pixels, plan, redundancy):
    assert plan_fewest_tiles(1280, 1920, most_pixels, 192, 32) == plan
    assert plan.redundancy == pytest.approx(redundancy)


def test_tiles_end_where_a_photo_ends_that_is_no_multiple_of_the_stride():
    # 1918 is 30 more than a multiple of 32, and so is 222, the least that two columns can share. The next
    # such number after (1918 + 222) / 2 = 1070 is 1086.
    assert plan_fewest_tiles(1280, 1918, 1280 * 1100, 192, 32) == TilePlan((0,), (0, 832), 1280, 1086)


def test_redundancy_of_small_tiles_of_a_carvana_photo():
    # 7 columns and 4 rows of 512 pixels: 28 x 512 x 512 / (1920 x 1280)
    plan = plan_tiles(1280, 1920, 512, 512, 256, 32)
    assert (len(plan.tops), len(plan.lefts)) == (4, 7)
    assert plan.redundancy == pytest.approx(2.98667, abs=1e-5)


@pytest.mark.parametrize(("tile", "overlap"), [(256, 256), (256, 300), (256, 225), (240, 230)])
def test_an_overlap_that_leaves_no_step_is_refused(tile, overlap):
    with pytest.raises(UsageError, match=f"--overlap {overlap} .* 256 .*at most 224"):
        plan_tiles(1280, 1918, tile, tile, overlap, 32)
    assert plan_tiles(1280, 1918, tile, tile, 224, 32).tops[1] == 32


def test_the_overlap_does_not_matter_where_one_tile_is_enough():
    assert plan_tiles(100, 200, 128, 256, 1000, 32) == TilePlan((0,), (0,), 100, 200)


def test_weights_by_hand():
    np.testing.assert_array_equal(blend_weights((0,), 3, 0), [1, 1, 1])
    # Two pixels shared: (2 x 7) // 16 = 0 of them count for nothing.
    np.testing.assert_array_equal(blend_weights((0, 2), 4, 0), [1, 0.75, 0.5, 0.25])
    np.testing.assert_array_equal(blend_weights((0, 2), 4, 2), [0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(blend_weights((0, 2, 4), 4, 2), [0.25, 0.5, 0.5, 0.25])
    np.testing.assert_array_equal(weight_sums((0, 2), 4), [1, 0.75, 0.75, 0.75, 0.75, 1])
    # Three shared: one counts for nothing, the other two for 1 and 2 pixels.
    faint = np.float32(FAINT) / 4
    np.testing.assert_array_equal(blend_weights((0, 1), 4, 1), [faint, 0.25, 0.5, 0.75])
    assert blend_weights((0, 1), 4, 1).dtype == weight_sums((0, 2), 4).dtype == np.float32


@settings(deadline=None)
@given(tile_requests())
def test_each_pixel_is_told_by_tiles_that_see_enough_around_it(request):
    plan = plan_tiles(*request)
    for starts, tile in ((plan.tops, plan.tile_height), (plan.lefts, plan.tile_width)):
        length = starts[-1] + tile
        weights = np.zeros((len(starts), length))
        sight = np.full((len(starts), length), -1)
        for window, start in enumerate(starts):
            weights[window, start : start + tile] = blend_weights(starts, tile, start)
            before = np.arange(tile) if start > 0 else np.full(tile, length)
            after = np.arange(tile)[::-1] if start < starts[-1] else np.full(tile, length)
            sight[window, start : start + tile] = np.minimum(before, after)
        assert weights.max() <= 1
        assert (weights.sum(0) > 0).all()
        shares = weights / weights.sum(0)
        most_needed = min((tile - step for step in np.diff(starts)), default=length) * 7 // 16
        assert shares[sight < most_needed].max(initial=0) <= FAINT
        # What is seen best counts most, and weights fall towards the edges.
        np.testing.assert_array_equal(weights.max(0), weights[sight.argmax(0), np.arange(length)])


@settings(deadline=None)
@given(tile_requests())
def test_sums_are_those_of_the_weight_maps_of_all_windows(request):
    plan = plan_tiles(*request)
    sums = np.zeros((plan.padded_height, plan.padded_width))
    for top, left in plan.windows():
        rows = blend_weights(plan.tops, plan.tile_height, top)
        columns = blend_weights(plan.lefts, plan.tile_width, left)
        sums[top : top + plan.tile_height, left : left + plan.tile_width] += np.outer(rows, columns)
    product = np.outer(weight_sums(plan.tops, plan.tile_height), weight_sums(plan.lefts, plan.tile_width))
    assert product.min() > 0
    np.testing.assert_allclose(product, sums, rtol=1e-5)
