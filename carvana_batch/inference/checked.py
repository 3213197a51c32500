"""A second network looks at each photo, masks those unlike a studio's, and tells how doubtful masks are."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from carvana_batch.errors import CarvanaBatchError
from carvana_batch.inference.doubt import estimate_doubt
from carvana_batch.inference.memory import FreedMemory, OutOfMemoryGuard, release_unused_memory
from carvana_batch.inference.predictor import AnyPredictor, Predictor
from carvana_batch.inference.recovery import too_large_photo
from carvana_batch.inference.resizing import MOST_ENLARGEMENT, resize_photo, resize_probability
from carvana_batch.inference.runner import make_prediction
from carvana_batch.inference.thresholding import threshold_and_pack
from carvana_batch.inference.transfer import works_ahead
from carvana_batch.masks.counts import count
from carvana_batch.masks.specks import clean
from carvana_batch.notes import Note
from carvana_batch.orientation import turn
from carvana_batch.values import Failure, PackedMask, Photo, Prediction

FIRST_LOOK = 384
"""Pixels of the short side of a photo as the second network sees it first; few, as each photo has to pay."""

CLOSER_LOOK = 512
"""The same if it masks the photo; that is the scale of its training."""

MOST_ELONGATED = 4
"""The long side has at most so many times these pixels; that of a strip would have far more."""

MOST_DISAGREEMENT = 0.03
"""Up to this 1 - Dice of the two masks of a photo, the first network's is taken. On photos like those of its
training, the masks differ by 0.007 in the median and by 0.017 at most."""

SIZE_STEP = 32
"""Photos are reduced to multiples of this many pixels, which changes the aspect ratio by 5 % at most, but for
tiny photos and strips."""

MARGIN = 0.15
"""Part of its sides by which the box around the car is widened for a closer look."""

SMALLEST_MARGIN = 8
"""Pixels of the reduced photo by which the box is widened at least."""


REDUCING_THREADS = 4
"""Threads that reduce photos for the first look beside a device that works asynchronously."""


class CheckedPredictor(AnyPredictor):
    """Masks photos with one network, and checks each mask with a second one that sees the photo reduced.

    Where the networks agree, the mask is that of the first, which is more exact on photos like those of its
    training. Where they do not, it is that of the second, which was trained on photos of many kinds; it then
    looks at the car once more, and closer.

    Args:
        first: masks photos at full size.
        second: masks reduced photos, and keeps their probability maps.
        threshold: probability above which a pixel is car.
        keep_probability: put the probability map into predictions.
    """

    def __init__(
        self, first: Predictor, second: Predictor, threshold: float, keep_probability: bool = False
    ) -> None:
        self.first, self.second = first, second
        self.threshold, self.keep_probability = threshold, keep_probability
        self._reduced: dict[str, tuple[Photo, Future[NDArray[np.uint8]]]] = {}
        second.runner.freed_memory = FreedMemory(second.device, is_in_charge=False)
        self.device, self.limits = first.device, first.limits
        self.warnings = second.warnings = first.warnings

    def predict(self, photos: Iterable[Photo | Failure]) -> Generator[Prediction | Failure]:
        """Mask a stream of photos; see :meth:`Predictor.predict`.

        On a device that works asynchronously, threads reduce the photos for the first look, so that this one
        always has work for the device.
        """
        with contextlib.ExitStack() as stack:
            if works_ahead(self.device):
                pool = stack.enter_context(ThreadPoolExecutor(REDUCING_THREADS))
                photos = self._reduce_ahead(photos, pool)
            for result in self.first.predict(photos):
                self.limits = self.first.limits
                if isinstance(result, Failure):
                    self._reduced.pop(result.id, None)
                    yield result
                else:
                    yield self._check(result)

    def _reduce_ahead(
        self, photos: Iterable[Photo | Failure], pool: ThreadPoolExecutor
    ) -> Iterator[Photo | Failure]:
        """Pass the photos on, and have them reduced in the meantime."""
        self._reduced.clear()  # of a stream that was abandoned
        for photo in photos:
            if isinstance(photo, Photo):
                self._reduced[photo.ref.key] = photo, pool.submit(reduce_photo, photo)
            yield photo

    def _check(self, prediction: Prediction) -> Prediction | Failure:
        """Compare and choose, twice if memory runs out; the photo has failed if it does so again."""
        error = ""
        for _ in range(2):
            with OutOfMemoryGuard() as guard:
                return self._compare(prediction)
            error = str(guard.error)
            release_unused_memory(self.device)
        return too_large_photo(prediction.photo, self.device, error)

    @torch.inference_mode()
    def _compare(self, prediction: Prediction) -> Prediction:
        """Choose between the masks of the two networks, and estimate the doubt of the chosen one."""
        photo = prediction.photo
        upright = turn(photo.pixels, photo.orientation)
        source, ahead = self._reduced.pop(photo.ref.key, (None, None))
        if ahead is None or source is not photo:  # a second try, or another photo of the same key
            pixels = reduce_for_look(upright, FIRST_LOOK)
        else:
            pixels = ahead.result()
        reduced = self._look(photo, pixels)
        if reduced is None:
            return replace(prediction, doubt=1.0)
        disagreement = self._disagreement(prediction, reduced)
        if disagreement > MOST_DISAGREEMENT:
            prediction = self._mask_by_second(photo, upright, reduced)
            disagreement = self._disagreement(prediction, reduced)
        return replace(prediction, doubt=estimate_doubt(prediction.expected_dice, disagreement))

    def _disagreement(self, prediction: Prediction, reduced: NDArray[np.float32]) -> float:
        """1 - Dice of a mask and that of the second network's first look, whose map is given."""
        upright = prediction.mask.turned(prediction.photo.orientation)
        sampled = PackedMask.from_bool(sample(upright, *reduced.shape))
        return 1 - count(sampled, PackedMask.from_bool(reduced > self.threshold)).dice

    def _look(self, photo: Photo, pixels: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """The map of the second network of what :func:`reduce_for_look` gives, (h, w) float32 in [0, 1].

        None if it has none, because memory does not suffice or its output is not finite.
        """
        try:
            (result,) = self.second.predict([Photo(photo.ref, pixels)])
        except CarvanaBatchError:  # not even its smallest tile fits, while those of the first network do
            return None
        return None if isinstance(result, Failure) else result.probability

    def _mask_by_second(
        self,
        photo: Photo,
        upright: NDArray[np.uint8],
        reduced: NDArray[np.float32],
    ) -> Prediction:
        """The prediction of the second network, from a closer look at the car.

        Args:
            photo: as it is stored.
            upright: (H, W, 3), its pixels turned upright.
            reduced: (h, w), the map of the first look.
        """
        height, width = upright.shape[:2]
        box = find_box(clean(PackedMask.from_bool(reduced > self.threshold)), height, width)
        closer = self._look(photo, reduce_for_look(upright[box], CLOSER_LOOK))
        if closer is None:
            probability = resize_probability(torch.from_numpy(reduced), height, width)
        else:
            probability = torch.zeros((height, width))
            part = probability[box].shape
            probability[box] = resize_probability(torch.from_numpy(closer), part[0], part[1])
        packed, sums = threshold_and_pack(probability, self.threshold)
        noted = replace(photo, notes=(*photo.notes, Note.SECOND_NETWORK))
        return make_prediction(noted, packed, sums, probability if self.keep_probability else None)


def reduce_photo(photo: Photo) -> NDArray[np.uint8]:
    """A photo as the second network sees it first."""
    return reduce_for_look(turn(photo.pixels, photo.orientation), FIRST_LOOK)


def reduce_for_look(upright: NDArray[np.uint8], short_side: int) -> NDArray[np.uint8]:
    """Reduce an upright photo or a part of it, (H, W, 3), so that its short side has about so many pixels."""
    height, width = upright.shape[:2]
    longest = MOST_ELONGATED * short_side
    factor = min(short_side / min(height, width), longest / max(height, width), MOST_ENLARGEMENT)
    # Of few sizes, because freed memory would be fragmented by many.
    size = [SIZE_STEP * max(1, round(factor * side / SIZE_STEP)) for side in (height, width)]
    return np.ascontiguousarray(resize_photo(upright, *size))


def sample(mask: PackedMask, height: int, width: int) -> NDArray[np.bool_]:
    """The (height, width) pixels of a mask that are nearest to those of a smaller or larger grid."""
    rows = ((np.arange(height) + 0.5) * mask.height / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * mask.width / width).astype(np.int64)
    return PackedMask(mask.rows[rows], mask.width).to_bool()[:, columns]


def find_box(mask: PackedMask, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a photo around the car of its reduced mask, with a margin; all without a car.

    Args:
        mask: the mask.
        height: of the photo.
        width: of the photo.
    """
    bits = mask.to_bool()
    box = []
    for axis, length in ((1, height), (0, width)):
        places = np.flatnonzero(bits.any(axis=axis))
        if not len(places):
            return slice(0, height), slice(0, width)
        margin = MARGIN * (places[-1] + 1 - places[0]) + SMALLEST_MARGIN
        scale = length / bits.shape[1 - axis]
        first = max(0, math.floor((places[0] - margin) * scale))
        # At least one pixel, also of an enlarged photo.
        box.append(slice(first, min(length, math.ceil((places[-1] + 1 + margin) * scale))))
    return box[0], box[1]
