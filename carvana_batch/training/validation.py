"""Validation is what the user gets: photos as `predict` masks them, at full resolution, counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from carvana_batch.loader import DecodeOptions, PhotoLoader
from carvana_batch.models.checkpoints import Model
from carvana_batch.options import DEFAULT_PIXEL_LIMIT, Options
from carvana_batch.planning import default_workers, make_predictor
from carvana_batch.records import Failure, ImageError, ImageRef, Prediction
from carvana_batch.scoring import Score, score_mask
from carvana_batch.training.pairs import Pair


def validate(
    model: Model,
    pairs: Sequence[Pair],
    device: torch.device,
    precision: str,
    on_progress: Callable[[int, int], object] = lambda *_: None,
) -> list[Score]:
    """Each pair's hard metrics at full resolution, in the order of the pairs.

    Raises:
        ImageError: a photo that cannot be masked, or a mask that cannot be read.
    """
    scores: dict[str, Score] = {}
    for pair, prediction in predict_pairs(model, pairs, device, precision):
        mask = prediction.mask
        scores[pair.id] = score_mask(pair.id, mask, pair.read_mask(mask.width, mask.height))
        on_progress(len(scores), len(pairs))
    return [scores[pair.id] for pair in pairs]


def predict_pairs(
    model: Model, pairs: Sequence[Pair], device: torch.device, precision: str
) -> Iterator[tuple[Pair, Prediction]]:
    """Each pair with what the model makes of its photo; raises ImageError for one that cannot be masked."""
    predictor, _ = make_predictor(model, Options(device=str(device), precision=precision), {})
    by_id = {pair.id: pair for pair in pairs}
    refs = [ImageRef(pair.id, pair.image) for pair in pairs]
    decoding = DecodeOptions(DEFAULT_PIXEL_LIMIT, apply_exif=False)
    photos = iter(PhotoLoader(refs, decoding, default_workers(device, len(refs))))
    with contextlib.closing(predictor.predict(photos)) as predictions:
        for result in predictions:
            if isinstance(result, Failure):
                raise ImageError(f"{result.ref.path}: {result.reason}")
            yield by_id[result.photo.ref.key], result
