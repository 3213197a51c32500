"""What a training run starts from: a new network, existing weights, or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low
from typing import Any

import numpy as np
import torch

from carvana_batch.errors import ModelError, UsageError
from carvana_batch.inference.precision import PRECISIONS, choose_precision
from carvana_batch.inference.resizing import InputSize
from carvana_batch.masks.values import describe_corners
from carvana_batch.network import NETWORKS
from carvana_batch.network.checkpoints import load_model
from carvana_batch.network.model import Model
from carvana_batch.text import NAMED, counted, shown
from carvana_batch.training.pairs import CheckedPair, Pair, load_pair
from carvana_batch.training.settings import TrainingSettings

SOME_PHOTOS = 64
"""About how many photos the scale, mean and standard deviation of the input are computed from."""

INIT_NOTE = "init"
"""Name of the note in a weights file that describes the weights its training started from."""


def input_statistics(
    pairs: Sequence[Pair],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Compute mean and standard deviation of the R, G and B channels over some photos, scaled to [0, 1]."""
    pixels = [np.asarray(load_pair(pair, (96, 64))[0]).reshape(-1, 3) for pair in _some(pairs)]
    values = np.concatenate(pixels) / 255
    red, green, blue = values.mean(axis=0).round(4).tolist()
    deviations = np.maximum(values.std(axis=0), 0.01).round(4).tolist()
    return (red, green, blue), (deviations[0], deviations[1], deviations[2])


def training_scale(pairs: Sequence[Pair], settings: TrainingSettings) -> int | None:
    """Find the scale of the photos as :class:`~carvana_batch.network.model.Model` records it.

    Returns:
        The median of the long sides of some photos; None if they differ too much for one scale, or if photos
        are resized for training anyway.
    """
    if settings.size is not None:
        return None
    sides = [max(load_pair(pair, None)[0].size) for pair in _some(pairs)]
    scale = median_low(sides)
    seen = InputSize(scale=scale)
    return scale if all(seen.of(side, side) == (side, side) for side in sides) else None


def _some(pairs: Sequence[Pair]) -> Sequence[Pair]:
    return pairs[:: max(1, len(pairs) // SOME_PHOTOS)]


def check_batch(settings: TrainingSettings, processes: int) -> None:
    """Check that the photos of a step can be divided evenly into passes and processes.

    Raises:
        UsageError: they cannot.
    """
    passes = settings.accumulate * processes
    if settings.batch % passes:
        raise UsageError(
            f"--batch {settings.batch} cannot be split evenly into {settings.accumulate} passes"
            f" (--accumulate) of {processes} processes; use a multiple of {passes}."
        )


def check_cache(settings: TrainingSettings, device: torch.device) -> None:
    """Check that samples can be made where photos are kept.

    Raises:
        UsageError: they cannot.
    """
    if settings.cache == "main":
        return
    if settings.backgrounds is not None:
        raise UsageError("--cache device puts no cars over --backgrounds. Leave one of them out.")
    if device.type == "mps":
        raise UsageError("--cache device needs a CUDA device, or the CPU. Leave it out on mps.")


def load_initial(settings: TrainingSettings) -> Model:
    """Load the model ``settings.init``.

    Raises:
        UsageError: it has another network than ``settings.model``, or cannot be loaded.
    """
    try:
        model = load_model(str(settings.init))
    except ModelError as error:
        raise UsageError(f"--init {settings.init}: {error}") from error
    if model.name != settings.model:
        raise UsageError(f"--init {settings.init}: weights of {model.name}, but --model is {settings.model}.")
    return model


def start_model(pairs: Sequence[Pair], settings: TrainingSettings) -> Model:
    """Load the model ``settings.init``, or make a new one with the input statistics of the photos.

    In either case it gets the scale of the photos. The notes of a loaded model describe where its weights
    come from.

    Raises:
        UsageError: see :func:`load_initial`.
    """
    scale = training_scale(pairs, settings)
    if settings.init is None:
        torch.manual_seed(settings.seed)
        mean, deviation = input_statistics(pairs)
        network = NETWORKS[settings.model]()
        return Model(settings.model, network, mean, deviation, "", size=settings.size, scale=scale)
    model = load_initial(settings)
    origin = (
        f"{settings.init}, sha256 {model.digest[:16]}, trained on {model.notes.get('data', 'unknown data')}"
    )
    if INIT_NOTE in model.notes:
        origin += f", from {model.notes[INIT_NOTE]}"
    notes = {INIT_NOTE: origin}
    return Model(model.name, model.network, model.mean, model.deviation, "", notes, settings.size, scale)


def start_precision(model: Model, settings: TrainingSettings, device: torch.device) -> str:
    """Return the name of the number format: the requested one, or with "auto" the best for the device."""
    if settings.precision != "auto":
        return settings.precision
    dtype, _ = choose_precision(model.network, device)
    return next(name for name, value in PRECISIONS.items() if value == dtype)


def start_from_checkpoint(state: dict[str, Any], settings: TrainingSettings) -> tuple[Model, str]:
    """Return the model of a checkpoint, without loading its weights, and the name of its number format.

    Raises:
        UsageError: the checkpoint is of another version or network.
    """
    try:
        mean, deviation, notes = tuple(state["mean"]), tuple(state["deviation"]), dict(state["notes"])
        precision, scale = state["precision"], state.get("scale")  # version 0.2.0 did not record it
    except (KeyError, TypeError) as error:
        raise unusable_checkpoint(error) from error
    if precision not in PRECISIONS:
        raise unusable_checkpoint(ValueError(f"precision {precision!r}"))
    network = NETWORKS[settings.model]()
    return Model(settings.model, network, mean, deviation, "", notes, settings.size, scale), precision


def unusable_checkpoint(error: Exception) -> UsageError:
    """Make the exception for a checkpoint that cannot be restored."""
    return UsageError(
        f"The run's checkpoint.pt is of another version or network ({type(error).__name__}:"
        f" {shown(str(error)[:100])}). Begin another RUN."
    )


def check_cars(pairs: Sequence[Pair], checked: Sequence[CheckedPair], purpose: str) -> list[str]:
    """Check that the masks show cars, because a network that learns from empty ones finds none.

    Args:
        pairs: the pairs of one side of the split.
        checked: what their check has found out, in the same order.
        purpose: what the pairs are for, such as "to train on".

    Returns:
        Warnings: the number of empty masks and some of their names, if there are any; and that most masks
        seem to be inverted, if they do.

    Raises:
        UsageError: all masks are empty.
    """
    empty = [shown(pair.id) for pair, found in zip(pairs, checked, strict=True) if not found.has_car]
    warnings = list[str]()
    doubt = describe_corners([found.covers_corners for found in checked], f"the masks {purpose}")
    if doubt:
        warnings.append(doubt)
    if not empty:
        return warnings
    if len(empty) == len(pairs):
        raise UsageError(
            f"No mask {purpose} shows a car: all pixels of {counted(len(pairs), 'mask')} are background."
            " Check that these are the right masks, or choose other photos."
        )
    more = f" and {len(empty) - NAMED:,} more" if len(empty) > NAMED else ""
    names = ", ".join(empty[:NAMED]) + more
    return [
        f"Warning: no car in {len(empty):,} of {counted(len(pairs), 'mask')} {purpose}: {names}",
        *warnings,
    ]
