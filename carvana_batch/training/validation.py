"""Validation at full resolution, with masks exactly as ``predict`` makes them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence

import torch

from carvana_batch.decode.loader import DecodeOptions, PhotoLoader
from carvana_batch.errors import ImageError
from carvana_batch.inference.planning import default_workers, make_predictor
from carvana_batch.network.model import Model
from carvana_batch.options import DEFAULT_PIXEL_LIMIT, Options
from carvana_batch.orientation import Layout
from carvana_batch.scoring.scores import Score, score_mask
from carvana_batch.training.pairs import Pair
from carvana_batch.values import Failure, ImageRef, PackedMask, Prediction


def validate(
    model: Model,
    pairs: Sequence[Pair],
    device: torch.device,
    precision: str,
) -> Generator[Score]:
    """Yield the scores of each pair's hard mask at full resolution, in the pixels whose true mask is known.

    Args:
        model: the model to validate.
        pairs: photos with their true masks.
        device: where the network runs.
        precision: number format of the forward pass.

    Raises:
        ImageError: a photo cannot be masked, or a mask cannot be read.
    """
    with contextlib.closing(predict_pairs(model, pairs, device, precision)) as predicted:
        for pair, prediction in predicted:
            yield score_mask(pair.id, prediction.mask, read_true(pair, prediction))


def read_true(pair: Pair, prediction: Prediction) -> PackedMask:
    """Read the true mask of a pair, on the grid of the predicted one.

    Raises:
        ImageError: it cannot be read, or has another size.
    """
    mask, photo = prediction.mask, prediction.photo
    return pair.read_mask(Layout(mask.width, mask.height, photo.orientation)).mask


def predict_pairs(
    model: Model, pairs: Sequence[Pair], device: torch.device, precision: str
) -> Generator[tuple[Pair, Prediction]]:
    """Yield each pair with the model's prediction for its photo; see :func:`validate` for the arguments.

    Raises:
        ImageError: a photo cannot be masked.
    """
    predictor, _ = make_predictor(model, Options(device=str(device), precision=precision))
    by_id = {pair.id: pair for pair in pairs}
    refs = [ImageRef(pair.id, pair.image) for pair in pairs]
    decoding = DecodeOptions(DEFAULT_PIXEL_LIMIT, apply_exif=False)
    loader = PhotoLoader(refs, decoding, default_workers(device, len(refs)))
    with (
        contextlib.closing(iter(loader)) as photos,
        contextlib.closing(predictor.predict(photos)) as predictions,
    ):
        for result in predictions:
            if isinstance(result, Failure):
                raise ImageError(f"{result.source}: {result.reason}")
            yield by_id[result.photo.ref.key], result
