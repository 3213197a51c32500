"""Notes: what a user should know about a photo that was masked all the same."""

from __future__ import annotations

from enum import StrEnum


class Note(StrEnum):
    """A kind of note; its value stands in the journal, in ``report.csv`` and in ``run.json``."""

    TURNED = "turned upright for the network"
    TURNED_WITH_MASK = "turned upright with its mask"
    FIRST_PAGE = "only the first page or frame"


SUMMARIES = {
    Note.TURNED: "Turned upright for the network by their EXIF orientation: {photos} (masks lie on the stored"
    " pixels; --exif apply turns them, too)",
    Note.TURNED_WITH_MASK: "Turned upright by their EXIF orientation, and so are their masks: {photos}",
    Note.FIRST_PAGE: "Only the first page or frame was masked: {photos}",
}
"""The line at the end of a run for each kind; ``{photos}`` stands for their number, such as ``4 photos``."""
