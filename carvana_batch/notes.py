"""Notes: what a user should know about a photo that was masked all the same."""

from __future__ import annotations

from enum import StrEnum


class Note(StrEnum):
    """A kind of note; its value stands in the journal, in ``report.csv`` and in ``run.json``."""

    FIRST_PAGE = "only the first page or frame"


SUMMARIES = {
    Note.FIRST_PAGE: "Only the first page or frame was masked: {photos}",
}
"""The line at the end of a run for each kind; ``{photos}`` stands for their number, such as ``4 photos``."""
