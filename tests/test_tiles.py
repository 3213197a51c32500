import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from carvana_batch.records import UsageError
from carvana_batch.tiles import (
    TilePlan,
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
def test_windows_cover_the_padded_image_evenly_on_the_stride_grid(request):
    height, width, tile_height, tile_width, overlap, stride = request
    plan = plan_tiles(height, width, tile_height, tile_width, overlap, stride)
    for length, asked, starts, tile in (
        (height, tile_height, plan.tops, plan.tile_height),
        (width, tile_width, plan.lefts, plan.tile_width),
    ):
        padded = starts[-1] + tile
        assert length <= padded < length + stride
        assert padded % stride == 0
        assert tile % stride == 0
        assert tile == padded if asked > padded else asked <= tile < asked + stride
        assert all(start % stride == 0 for start in starts)
        assert starts[0] == 0
        assert covered(starts, tile, padded)
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


def fewest_windows(length: int, tile: int, overlap: int, stride: int) -> int | None:
    """How many windows it takes if each lies as far from the one before as it may; None: no end."""
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
    for tile_height in range(stride, round_up(height, stride) + 1, stride):
        for tile_width in range(stride, round_up(width, stride) + 1, stride):
            rows = fewest_windows(round_up(height, stride), tile_height, overlap, stride)
            columns = fewest_windows(round_up(width, stride), tile_width, overlap, stride)
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
        smallest = round_up(overlap + stride, stride)
        assert plan.tile_height == min(smallest, round_up(height, stride))
        assert plan.tile_width == min(smallest, round_up(width, stride))
    for starts, tile, length in (
        (plan.tops, plan.tile_height, height),
        (plan.lefts, plan.tile_width, width),
    ):
        assert starts[-1] + tile == round_up(length, stride)
        assert covered(starts, tile, starts[-1] + tile)
        assert all(tile - step >= overlap for step in np.diff(starts))


# By hand, for 1920x1280 padded pixels: two columns share 192, so each is (1920 + 192) / 2 = 1056 wide, and
# two rows are (1280 + 192) / 2 = 736 tall.
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
    assert plan_fewest_tiles(1280, 1918, most_pixels, 192, 32) == plan
    assert plan.redundancy == pytest.approx(redundancy)


def test_redundancy_of_small_tiles_of_a_carvana_photo():
    # 7 columns and 4 rows of 512 pixels: 28 x 512 x 512 / (1920 x 1280)
    plan = plan_tiles(1280, 1918, 512, 512, 256, 32)
    assert (len(plan.tops), len(plan.lefts)) == (4, 7)
    assert plan.redundancy == pytest.approx(2.98667, abs=1e-5)


@pytest.mark.parametrize(("tile", "overlap"), [(256, 256), (256, 300), (256, 225), (240, 230)])
def test_an_overlap_that_leaves_no_step_is_refused(tile, overlap):
    with pytest.raises(UsageError, match=f"--overlap {overlap} .* 256 .*at most 224"):
        plan_tiles(1280, 1918, tile, tile, overlap, 32)
    assert plan_tiles(1280, 1918, tile, tile, 224, 32).tops[1] == 32


def test_the_overlap_does_not_matter_where_one_tile_is_enough():
    assert plan_tiles(100, 200, 128, 256, 1000, 32) == TilePlan((0,), (0,), 128, 224)


def test_weights_by_hand():
    np.testing.assert_array_equal(blend_weights(1), [1])
    np.testing.assert_array_equal(blend_weights(3), [0.5, 1, 0.5])
    np.testing.assert_array_equal(blend_weights(4), [0.5, 1, 1, 0.5])
    np.testing.assert_array_equal(weight_sums((0, 2), 4), [0.5, 1, 1.5, 1.5, 1, 0.5])
    assert blend_weights(4).dtype == weight_sums((0, 2), 4).dtype == np.float32


@settings(deadline=None)
@given(st.integers(1, 3000))
def test_weights_are_positive_symmetric_and_highest_in_the_middle(length):
    weights = blend_weights(length)
    assert weights.shape == (length,)
    assert weights.min() > 0
    assert weights.max() == weights[length // 2] == 1
    np.testing.assert_array_equal(weights, weights[::-1])
    assert (np.diff(weights[: (length + 1) // 2]) > 0).all()


@settings(deadline=None)
@given(tile_requests())
def test_sums_are_those_of_the_weight_maps_of_all_windows(request):
    plan = plan_tiles(*request)
    window = np.outer(blend_weights(plan.tile_height), blend_weights(plan.tile_width))
    sums = np.zeros((plan.padded_height, plan.padded_width))
    for top, left in plan.windows():
        sums[top : top + plan.tile_height, left : left + plan.tile_width] += window
    product = np.outer(weight_sums(plan.tops, plan.tile_height), weight_sums(plan.lefts, plan.tile_width))
    assert product.min() > 0
    np.testing.assert_allclose(product, sums, rtol=1e-5)
