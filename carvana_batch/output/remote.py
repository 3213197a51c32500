"""The seam for photos or an out folder that are elsewhere, such as in a bucket; see the room ``cloud``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from carvana_batch.errors import UsageError
from carvana_batch.output.journal import Entry
from carvana_batch.output.paths import OutPaths
from carvana_batch.text import shown
from carvana_batch.values import ImageRef


@dataclass(frozen=True)
class RemoteJob:
    """What a worker needs to know of photos or an out folder that are elsewhere.

    Attributes:
        source: URL of the folder of the photos; "" if they are local.
        source_folder: the folder, on the machine of the run, in which they have their paths.
        out: URL of the out folder; "" if it is local.
        lock: name of the lock below ``out``.
        run: identifies the run that holds the lock.
    """

    source: str = ""
    source_folder: str = ""
    out: str = ""
    lock: str = ""
    run: str = ""


def another_out(sizes: Mapping[str, int] | None) -> str:
    """What to do if masks would be replaced; see :attr:`Remote.sizes`: in a bucket, none can be."""
    if sizes is not None:
        return "Choose another OUT."
    return "Choose another OUT, or use --overwrite to replace it."


class Remote:
    """What a run does about photos or an out folder that are elsewhere: nothing, as both are local.

    Attributes:
        job: what workers need to know; None if all is local.
        sizes: of the files of an out folder that is elsewhere, in bytes, by their POSIX path below it; None
            if it is local.
    """

    job: RemoteJob | None = None
    sizes: Mapping[str, int] | None = None

    def in_words(self, text: str) -> str:
        """A text for the user, with the URLs of files in place of their local paths."""
        return text

    def check(self) -> None:
        """Check that this run still holds the out folder.

        Raises:
            CarvanaBatchError: another one does, or it cannot be reached.
        """

    def refuse_foreign(
        self, photos: Sequence[ImageRef], entries: Mapping[str, Entry], paths: OutPaths, extras: Sequence[str]
    ) -> None:
        """Check that no file which a run has not made, or has made of another photo, would be replaced.

        Args:
            photos: those that are to be masked.
            entries: what the journals say, by key.
            paths: the out folder.
            extras: kinds of extra files that each photo gets.

        Raises:
            UsageError: one would be.
        """
        for ref in photos:
            source, entry = self.in_words(ref.path_text), entries.get(ref.key)
            if entry is not None and entry.masked and "://" in entry.source and entry.source != source:
                mask = self.in_words(str(paths.mask(ref.key)))
                raise UsageError(
                    f"{shown(mask)} is the mask of {shown(entry.source)}, and would be replaced by that of"
                    f" {shown(source)}. {another_out(self.sizes)}"
                )

    def commit(self, entry: Entry) -> None:
        """Pass an entry of the journal on, after the files of its photo.

        Raises:
            CarvanaBatchError: that is impossible.
        """

    def put(self, path: Path) -> None:
        """Pass on a file of the out folder that is neither a mask nor an extra file.

        Raises:
            CarvanaBatchError: that is impossible.
        """

    def settle(self) -> None:
        """Pass on all that is left of the journal, and look again which files there are.

        Raises:
            CarvanaBatchError: that is impossible.
        """


LOCAL = Remote()
"""Photos and out folder are local."""
