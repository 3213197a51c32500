"""IN and OUT of a run that are URLs: local folders in their places, while the run lasts."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from carvana_batch.cloud.bucket_out import LOCK_NAME, BucketOut
from carvana_batch.cloud.mirror import Mirror
from carvana_batch.cloud.stand_ins import named
from carvana_batch.cloud.urls import BucketUrl
from carvana_batch.errors import UsageError
from carvana_batch.output.journal import Entry
from carvana_batch.output.paths import OutPaths
from carvana_batch.output.remote import LOCAL, Remote, RemoteJob
from carvana_batch.temporary_folder import temporary_folder
from carvana_batch.values import ImageRef

SCRATCH_PREFIX = "carvana-batch-bucket-"


class InBuckets(Remote):
    """The photos, the out folder or both are in buckets.

    Args:
        names: the URLs of local folders, by the path of these.
        out: the out folder, entered; None if it is local.
        job: what workers need to know.
    """

    def __init__(self, names: Mapping[str, str], out: BucketOut | None, job: RemoteJob) -> None:
        self._names, self._out, self.job = names, out, job
        self.sizes = None if out is None else out.sizes

    def in_words(self, text: str) -> str:
        for folder, url in self._names.items():
            text = text.replace(folder, url)
        return text

    def check(self) -> None:
        if self._out is not None:
            self._out.check()

    def refuse_foreign(
        self, photos: Sequence[ImageRef], entries: Mapping[str, Entry], paths: OutPaths, extras: Sequence[str]
    ) -> None:
        super().refuse_foreign(photos, entries, paths, extras)
        if self._out is not None:
            self._out.refuse_foreign(photos, paths, extras)

    def commit(self, entry: Entry) -> None:
        if self._out is not None:
            self._out.add(entry)

    def put(self, path: Path) -> None:
        if self._out is not None:
            self._out.put(path)

    def settle(self) -> None:
        if self._out is not None:
            self._out.settle()


@dataclass(frozen=True)
class Places:
    """Where a run finds its photos and puts its masks, on this machine.

    Attributes:
        source: IN; None if photos are listed.
        out: OUT.
        remote: what to do about those that are elsewhere.
    """

    source: Path | None
    out: Path
    remote: Remote = LOCAL


@contextlib.contextmanager
def enter_places(
    source: Path | BucketUrl | None,
    out: Path | BucketUrl,
    hold: bool = True,
    say: Callable[[str], object] = lambda line: None,
) -> Iterator[Places]:
    """A with block with local folders in the places of URLs, in which errors name the URLs.

    Args:
        source: IN; None if photos are listed.
        out: OUT.
        hold: whether to hold an OUT in a bucket, rather than only look at it.
        say: called with a line for the user, if there is something to wait for.

    Raises:
        CarvanaBatchError: a bucket cannot be used; or see :class:`BucketOut`.
    """
    if not isinstance(source, BucketUrl) and not isinstance(out, BucketUrl):
        yield Places(source, out)
        return
    _refuse_overlap(source, out)
    names: dict[str, str] = {}
    with (
        temporary_folder(Path(tempfile.gettempdir()), SCRATCH_PREFIX) as scratch,
        named(names),
        contextlib.ExitStack() as stack,
    ):
        source_url = out_url = ""
        source_folder, held = scratch / "in", None
        if isinstance(source, BucketUrl):
            source_url, source = _mirror(source, source_folder, out, names)
        if isinstance(out, BucketUrl):
            names[str(scratch / "out")] = out_url = str(out)
            held = stack.enter_context(BucketOut(out, scratch / "out", hold, say=say))
            out = scratch / "out"
        run = "" if held is None else held.run
        job = RemoteJob(source_url, str(source_folder), out_url, LOCK_NAME, run)
        yield Places(source, out, InBuckets(names, held, job))


def _mirror(
    source: BucketUrl, folder: Path, out: Path | BucketUrl, names: dict[str, str]
) -> tuple[str, Path]:
    """Make the local folder of IN, or of the folder of a single photo; returns the URL of it, and IN."""
    names[str(folder)] = str(source)
    if Mirror(source, folder).list(out if isinstance(out, BucketUrl) else None) or not source.prefix:
        return str(source), folder
    names[str(folder)] = str(source.parent)
    if Mirror(source.parent, folder).list_one(source.name):
        return str(source.parent), folder / source.name
    raise UsageError(f"There are no objects in {source}, and there is none of this name.")


def _refuse_overlap(source: Path | BucketUrl | None, out: Path | BucketUrl) -> None:
    if isinstance(source, BucketUrl) and isinstance(out, BucketUrl) and source.is_below(out):
        raise UsageError(
            f"The photos in {source} lie in OUT, {out}, where submit and score would take them for masks."
            " Choose another OUT."
        )
