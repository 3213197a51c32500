"""Masks that a second network checks, and if need be replaces."""

import numpy as np
import pytest
import torch
from networks import Redness, make_predictor
from short_memory import ShortMemory
from torch import Tensor

import carvana_batch.inference.checked
from carvana_batch.errors import CarvanaBatchError
from carvana_batch.inference.checked import CheckedPredictor, find_box, sample
from carvana_batch.inference.doubt import FACTOR, FLOOR, POWERS, estimate_doubt
from carvana_batch.inference.planning import make_predictor as make_from_options
from carvana_batch.masks.counts import count
from carvana_batch.network.checkpoints import load_model
from carvana_batch.notes import Note
from carvana_batch.options import Options
from carvana_batch.orientation import inverse, turn
from carvana_batch.output.report import MOST_DOUBT
from carvana_batch.values import Failure, ImageRef, PackedMask, Photo, Prediction

HEIGHT, WIDTH = 768, 1152


class NeverFinite(Redness):
    def padded_logits(self, images: Tensor) -> Tensor:
        return super().padded_logits(images) * float("nan")


class Greenness(Redness):
    """The logit of a pixel is proportional to its own normalised green."""

    def padded_logits(self, images: Tensor) -> Tensor:
        return self.gain * images[:, 1:2]


class Corner(Redness):
    """Sees a car in four pixels of one corner, whatever the photo shows."""

    def __init__(self, corner: int) -> None:
        super().__init__()
        self.corner = corner

    def padded_logits(self, images: Tensor) -> Tensor:
        logits = torch.full_like(images[:, :1], -9)
        rows, columns = (slice(-2, None) if self.corner & bit else slice(2) for bit in (1, 2))
        logits[:, :, rows, columns] = 9
        return logits


def rectangle(top, bottom, left, right, height=HEIGHT, width=WIDTH):
    bits = np.zeros((height, width), bool)
    bits[top:bottom, left:right] = True
    return bits


def photo_of(red, green, orientation=1):
    """A photo in which the first network sees one mask, and the second one another."""
    pixels = np.zeros((*red.shape, 3), np.uint8)
    pixels[red, 0] = pixels[green, 1] = 255
    stored = np.ascontiguousarray(turn(pixels, inverse(orientation)))
    return Photo(ImageRef("a", "a.jpg"), stored, orientation)


def checked_by(second, **options):
    first = make_predictor(Redness(), **options)
    return CheckedPredictor(first, make_predictor(second, keep_probability=True), 0.5, **options)


def check(photo, second=None, **options):
    (result,) = checked_by(second or Greenness(), **options).predict([photo])
    return result


CAR = rectangle(200, 600, 300, 900)


def test_where_both_agree_the_mask_is_that_of_the_first():
    almost = rectangle(206, 600, 300, 900)
    result = check(photo_of(CAR, almost))
    np.testing.assert_array_equal(result.mask.to_bool(), CAR)
    assert result.photo.notes == ()
    # At half the size, they have 200 and 197 rows.
    disagreement = 1 - 2 * 197 / (200 + 197)
    assert result.doubt == pytest.approx(estimate_doubt(result.expected_dice, disagreement))


@pytest.mark.parametrize("keep_probability", [False, True])
@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_where_they_disagree_the_mask_is_that_of_the_second(orientation, keep_probability):
    other = rectangle(100, 400, 300, 900)
    photo = photo_of(CAR, other, orientation)
    result = check(photo, keep_probability=keep_probability)
    upright = turn(result.mask.to_bool(), orientation)
    assert np.count_nonzero(upright != other) < 0.01 * np.count_nonzero(other)  # it was resized
    assert result.photo.notes == (Note.SECOND_NETWORK,)
    assert (result.probability is None) == (not keep_probability)
    if keep_probability:
        assert result.probability.shape == photo.pixels.shape[:2]
        np.testing.assert_array_equal(result.probability > 0.5, result.mask.to_bool())


def test_photos_that_are_reduced_ahead_get_the_same_masks(monkeypatch):
    """As on a device that works asynchronously; with photos of the same key, and one that failed."""
    masks = [rectangle(100, 400 + step, 300, 900) for step in (0, 10, 200)]
    photos = [photo_of(CAR, mask, orientation) for mask in masks for orientation in (1, 6)]
    stream = [*photos, photos[0], Failure("a", "decode", "broken"), *photos[::-1]]
    expected = list(checked_by(Greenness()).predict(stream))
    calls = []
    reduce_photo = carvana_batch.inference.checked.reduce_photo

    def reduce_and_note(photo):
        calls.append(photo)
        return reduce_photo(photo)

    monkeypatch.setattr(carvana_batch.inference.checked, "works_ahead", lambda device: True)
    monkeypatch.setattr(carvana_batch.inference.checked, "reduce_photo", reduce_and_note)
    predictor = checked_by(Greenness())
    for result, other in zip(predictor.predict(stream), expected, strict=True):
        if isinstance(other, Failure):
            assert result == other
            continue
        assert result.photo.notes == other.photo.notes
        assert result.doubt == other.doubt
        np.testing.assert_array_equal(result.mask.rows, other.mask.rows)
    assert len(calls) == 13
    abandoned = predictor.predict(iter(photos))
    next(abandoned)
    abandoned.close()


def test_the_second_network_looks_closer_at_small_cars():
    """Stripes of three pixels are lost when the whole photo is reduced to half its size, and seen closer."""
    small = rectangle(300, 400, 500, 700)
    small[:, 502:700:6] = small[:, 503:700:6] = small[:, 504:700:6] = False
    result = check(photo_of(CAR, small))
    np.testing.assert_array_equal(result.mask.to_bool(), small)


@pytest.mark.parametrize(
    ("red", "green"),
    [(rectangle(0, 0, 0, 0), rectangle(0, 0, 0, 0)), (rectangle(0, HEIGHT, 0, WIDTH),) * 2],
)
def test_empty_and_full_masks(red, green):
    result = check(photo_of(red, green))
    np.testing.assert_array_equal(result.mask.to_bool(), red)


def test_a_car_that_only_one_network_sees_is_doubtful():
    nothing = rectangle(0, 0, 0, 0)
    result = check(photo_of(CAR, nothing))
    assert not result.mask.to_bool().any()
    assert result.doubt > MOST_DOUBT


def test_a_mask_that_cannot_be_checked_is_of_the_greatest_doubt():
    result = check(photo_of(CAR, CAR), NeverFinite())
    np.testing.assert_array_equal(result.mask.to_bool(), CAR)
    assert result.doubt == 1


@pytest.mark.parametrize("name", ["turn", "resize_photo", "sample", "resize_probability"])
@pytest.mark.parametrize("times", [1, 2])
def test_memory_that_runs_out_once_more_costs_one_photo(monkeypatch, name, times):
    """With an error of Python, which pixels outside of torch raise."""
    faults = []

    def run_out(*arguments):
        if len(faults) < times:
            faults.append(name)
            raise MemoryError
        return function(*arguments)

    function = getattr(carvana_batch.inference.checked, name)
    monkeypatch.setattr(carvana_batch.inference.checked, name, run_out)
    photo = photo_of(CAR, rectangle(100, 400, 300, 900))
    first, second = checked_by(Greenness()).predict([photo, photo])
    assert isinstance(first, Failure) == (times == 2)
    assert isinstance(second, Prediction)
    if times == 2:
        assert "1152x768 pixels do not fit into the memory of cpu" in first.reason


def test_out_of_memory_at_any_operation_changes_no_mask():
    photo = photo_of(*(rectangle(20, bottom, 20, 100, 90, 120) for bottom in (40, 70)))

    def predict(at):
        predictor = checked_by(Greenness())
        with ShortMemory(at) as memory:
            (result,) = predictor.predict([photo])
        return result, memory

    expected, memory = predict(None)
    assert expected.photo.notes == (Note.SECOND_NETWORK,)
    assert memory.count > 200
    for at in range(1, memory.count + 1):
        result, _ = predict(at)
        assert isinstance(result, Prediction), (at, result)
        np.testing.assert_array_equal(result.mask.rows, expected.mask.rows)
        assert result.doubt == pytest.approx(expected.doubt, rel=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (2, 5)])
@pytest.mark.parametrize("corner", range(4))
def test_tiny_photos_in_which_the_second_network_sees_little(shape, corner):
    pixels = np.zeros((*shape, 3), np.uint8)
    photo = Photo(ImageRef("a", "a.jpg"), pixels)
    result = check(photo, Corner(corner))
    assert result.mask.to_bool().shape == shape
    assert result.doubt > MOST_DOUBT


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((1280, 1918), (384, 576)),
        ((1918, 1280), (576, 384)),
        ((100, 100), (288, 288)),  # enlarged by 3 at most
        ((400, 1600), (384, 1536)),
        ((20, 5000), (32, 1536)),  # a strip is not enlarged
        ((5000, 20), (1536, 32)),
        ((1, 1), (32, 32)),
    ],
)
def test_the_size_in_which_the_second_network_sees_photos_first(shape, seen):
    sizes = []

    class Watched(Greenness):
        def padded_logits(self, images: Tensor) -> Tensor:
            sizes.append(tuple(images.shape[2:]))
            return super().padded_logits(images)

    nothing = np.zeros(shape, bool)
    check(photo_of(nothing, nothing), Watched())
    assert sizes == [seen]


def test_failures_pass_and_one_photo_does_not_affect_another():
    predictor = checked_by(Greenness())
    other = rectangle(100, 400, 300, 900)
    failure = Failure("b", "decode", "is empty")
    photos = [photo_of(CAR, CAR), failure, photo_of(CAR, other), photo_of(CAR, CAR)]
    first, passed, _, last = predictor.predict(photos)
    assert passed is failure
    assert (first.doubt, first.expected_dice) == (last.doubt, last.expected_dice)
    np.testing.assert_array_equal(first.mask.rows, last.mask.rows)


def test_warnings_of_both_networks_are_kept():
    predictor = checked_by(Greenness())
    predictor.first.warnings += ["first"]
    predictor.second.warnings += ["second"]
    assert predictor.warnings == ["first", "second"]


@pytest.mark.parametrize("size", [(7, 5), (20, 30), (41, 33)])
def test_sampling_takes_the_nearest_pixels(size):
    bits = np.random.default_rng(0).random((20, 30)) > 0.5
    expected = [
        [
            bits[int((row + 0.5) * 20 / size[0]), int((column + 0.5) * 30 / size[1])]
            for column in range(size[1])
        ]
        for row in range(size[0])
    ]
    np.testing.assert_array_equal(sample(PackedMask.from_bool(bits), *size), expected)


def test_dice_of_masks():
    def dice(first, second):
        return count(PackedMask.from_bool(first), PackedMask.from_bool(second)).dice

    assert dice(rectangle(0, 4, 0, 10), rectangle(2, 6, 0, 10)) == 0.5
    assert dice(rectangle(0, 0, 0, 0), rectangle(0, 0, 0, 0)) == 1
    assert dice(CAR, ~CAR) == 0


def test_the_box_has_a_margin_and_ends_at_the_border():
    mask = PackedMask.from_bool(rectangle(40, 60, 0, 100, 100, 300))
    # 15 % of 20 pixels and 8 more above and below; of 100 pixels and 8 more at the right
    assert find_box(mask, 100, 300) == (slice(29, 71), slice(0, 123))
    assert find_box(mask, 200, 600) == (slice(58, 142), slice(0, 246))
    empty = PackedMask.from_bool(rectangle(0, 0, 0, 0, 100, 300))
    assert find_box(empty, 200, 600) == (slice(0, 200), slice(0, 600))


def test_doubt_is_a_product_of_powers():
    for expected_dice, disagreement in ((1.0, 0.0), (0.99, 0.02), (0.9, 0.3)):
        doubt = FACTOR * (1 - expected_dice + FLOOR) ** POWERS[0] * (disagreement + FLOOR) ** POWERS[1]
        assert estimate_doubt(expected_dice, disagreement) == pytest.approx(doubt)
    assert estimate_doubt(0.0, 1.0) == 1


def test_doubt_grows_with_both_signs():
    assert 0 < estimate_doubt(0.999, 0.005) < 0.005
    assert estimate_doubt(0.9, 0.01) > estimate_doubt(0.95, 0.01) > estimate_doubt(0.99, 0.01)
    assert estimate_doubt(0.99, 0.1) >= estimate_doubt(0.99, 0.03) >= estimate_doubt(0.99, 0.01)


def test_the_bundled_pair():
    predictor, _ = make_from_options(load_model("auto"), Options(precision="fp32"))
    assert isinstance(predictor, CheckedPredictor)
    assert predictor.second.model.digest == load_model("segunet-s-anywhere").digest
    assert predictor.first.model.network.stride == predictor.second.model.network.stride


def test_a_pair_has_a_digest_of_its_own():
    pair, first, second = (load_model(name) for name in ("auto", "segunet-s", "segunet-s-anywhere"))
    assert len({pair.digest, first.digest, second.digest}) == 3
    assert pair.second is not None
    assert pair.second.digest == second.digest


def test_a_second_network_without_memory_for_a_single_tile(monkeypatch):
    def fail(_photos):
        raise CarvanaBatchError("not enough memory for the smallest tile")

    predictor = checked_by(Greenness())
    monkeypatch.setattr(predictor.second, "predict", fail)
    (result,) = predictor.predict([photo_of(CAR, CAR)])
    np.testing.assert_array_equal(result.mask.to_bool(), CAR)
    assert result.doubt == 1
