"""Notes: what a user should know about a photo that was masked all the same."""

from __future__ import annotations

from enum import StrEnum


class Note(StrEnum):
    """A kind of note; its value stands in the journal, in ``report.csv`` and in ``run.json``."""

    TURNED = "turned upright for the network"
    TURNED_WITH_MASK = "turned upright with its mask"
    FIRST_PAGE = "only the first page or frame"
    GUESSED_COLOURS = "colours guessed, because a TIFF tag is missing or wrong"
    SCALED_8 = "scaled from 8 bits"
    SCALED_9 = "scaled from 9 bits"
    SCALED_10 = "scaled from 10 bits"
    SCALED_11 = "scaled from 11 bits"
    SCALED_12 = "scaled from 12 bits"
    SCALED_13 = "scaled from 13 bits"
    SCALED_14 = "scaled from 14 bits"
    TRUE_MASK_TURNED = "true mask turned"
    TRUE_MASK_UNCLEAR = "true mask upright or as stored"
    TRUE_MASK_OTHERWISE = "true mask fits far better if turned"
    SECOND_NETWORK = "masked by the second network"
    DAMAGED = "damaged"
    NOT_RECOLOURED = "not recoloured, because the car has no colour"


TURNED = frozenset({Note.TURNED, Note.TURNED_WITH_MASK})
"""Notes on photos with an EXIF orientation other than upright."""

TRUE_MASK = frozenset({Note.TRUE_MASK_TURNED, Note.TRUE_MASK_UNCLEAR, Note.TRUE_MASK_OTHERWISE})
"""Notes on the comparison with a true mask."""


SUMMARIES = {
    Note.TURNED: "Turned upright for the network by their EXIF orientation: {photos} (masks lie on the stored"
    " pixels; --exif apply turns them, too)",
    Note.TURNED_WITH_MASK: "Turned upright by their EXIF orientation, and so are their masks: {photos}",
    Note.FIRST_PAGE: "Only the first page or frame was masked: {photos}",
    Note.GUESSED_COLOURS: "Colours guessed, because a TIFF tag is missing or wrong: {photos}",
    **{
        Note(
            f"scaled from {bits} bits"
        ): f"Scaled from {bits} bits, into which all 16-bit values but hot pixels fit: {{photos}}"
        for bits in range(8, 15)
    },
    Note.TRUE_MASK_TURNED: "True masks turned by the EXIF orientation, to compare with the masks: {photos}",
    Note.TRUE_MASK_UNCLEAR: "True masks compared as they are, because their size does not tell whether they"
    " are upright or as the photo is stored: {photos} (--exif apply makes upright masks)",
    Note.TRUE_MASK_OTHERWISE: "Warning: true masks that would fit far better if turned by the EXIF"
    " orientation: {photos}. Mask the photos into another OUT, with --exif apply if the true"
    " masks are upright",
    Note.SECOND_NETWORK: "Masked by the second network, for photos unlike those of a studio: {photos}",
    Note.NOT_RECOLOURED: "Not recoloured, because the car is black, grey, silver or white: {photos}",
    Note.DAMAGED: "Masked although damaged (--damaged accept): {photos}{see}",
}
"""The line at the end of a run for each kind; ``{photos}`` stands for their number, such as ``4 photos``,
``{see}`` for where to look, such as
``; see out/report.csv``, or nothing."""
