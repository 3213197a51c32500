"""The result for one photo, as a notebook wants it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.output.extras import draw_cutout, draw_overlay
from carvana_batch.output.report import MOST_DOUBT
from carvana_batch.values import Prediction

SHOWN_SIDE = 640
"""Pixels of the long side of the picture that a notebook shows."""


class MaskedPhoto:
    """A photo and its mask. A notebook shows the photo with the car tinted.

    Attributes:
        key: POSIX path of the photo below its folder, without suffix; ``image`` if it was no file.
        path: of the photo; None if it was no file.
        pixels: (H, W, 3) uint8, RGB, on the grid of the mask.
        mask: (H, W) bool.
        probability: (H, W) float32 in [0, 1], that each pixel is car, before specks were removed.
        expected_dice: the Dice to be expected from the probability alone, in [0, 1].
        doubt: the estimated 1 - Dice, in [0, 1], by a second network; None if the model has none.
        notes: what one should know about the photo, such as that it has further pages.
    """

    def __init__(self, prediction: Prediction) -> None:
        if prediction.probability is None:
            raise ValueError("the predictor was not told to keep probabilities")
        photo = prediction.photo
        is_file = photo.ref.path_text != photo.ref.key
        self.key: str = photo.ref.key
        self.path: Path | None = photo.ref.path if is_file else None
        self.pixels: NDArray[np.uint8] = photo.pixels
        self.mask: NDArray[np.bool_] = prediction.mask.to_bool()
        self.probability: NDArray[np.float32] = prediction.probability
        self.expected_dice: float = prediction.expected_dice
        self.doubt: float | None = prediction.doubt
        self.notes: tuple[str, ...] = tuple(str(note) for note in photo.notes)

    @property
    def is_doubtful(self) -> bool:
        """Whether the mask should be looked at: the photo is unlike those that the model was trained on."""
        return self.doubt is not None and self.doubt > MOST_DOUBT

    def overlay(self) -> Image.Image:
        """The photo with the car tinted, an RGB image of the photo's size."""
        return Image.fromarray(draw_overlay(self.pixels, self.mask))

    def cutout(self) -> Image.Image:
        """The car alone, an RGBA image of the photo's size."""
        return Image.fromarray(draw_cutout(self.pixels, self.mask))

    def __repr__(self) -> str:
        height, width = self.mask.shape
        doubt = "" if self.doubt is None else f", doubt {self.doubt:.4f}"
        notes = f", notes: {'; '.join(self.notes)}" if self.notes else ""
        return (
            f"<MaskedPhoto {self.key!r}, {width}x{height}, {self.mask.mean():.1%} car, expected Dice"
            f" {self.expected_dice:.4f}{doubt}{notes}>"
        )

    def _repr_jpeg_(self) -> bytes:
        """The picture that a notebook shows."""
        picture = self.overlay()
        picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG")
        return buffer.getvalue()
