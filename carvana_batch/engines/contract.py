"""What a run and its engine, and an engine and its workers, have to agree on.

The run (``run.py``) is the coordinator: it holds the out folder, adds each result to the journal and writes
the report. An engine masks the photos, with one worker in this process or with many in others. Masking a
photo may be repeated at any time, also by two workers at once: the bytes are the same, and each file gets its
final name when it is complete.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from carvana_batch.archives.archive import Archive
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.masks.folder import MaskFolder
from carvana_batch.options import Choice, Options
from carvana_batch.output.backgrounds import Background
from carvana_batch.output.journal import Entry
from carvana_batch.output.ownership import Ownership
from carvana_batch.output.paths import OutPaths
from carvana_batch.output.remote import RemoteJob
from carvana_batch.output.writer import Written
from carvana_batch.stopping import StopFlag
from carvana_batch.values import Failure, ImageRef

Result = Written | Failure
"""What comes of a photo."""


@dataclass(frozen=True)
class Job:
    """What workers have to know before the first photo.

    Attributes:
        digest: of the weights; see :class:`Model`.
        options: what was asked for.
        root: the out folder.
        truth: the true masks by the ``pairing_name`` of their id, None if there are none to compare with.
        run: identifies the run that holds the out folder; see :meth:`FolderLock.write_holder`.
        generation: of the lines that the run adds to the journal; see :class:`Entry`.
        background: the new ground that ``options.background`` names, read; None if there is none.
        remote: which of photos and out folder are elsewhere; None if all are local.
        archive: what holds the photos; None if they are files of their own.
    """

    digest: str
    options: Options
    root: Path
    truth: MaskFolder | None
    run: str
    generation: int
    background: Background | None = field(default=None, repr=False)
    remote: RemoteJob | None = None
    archive: Archive | None = None


@dataclass(frozen=True)
class Hello:
    """What a worker says before its first photo.

    Attributes:
        choice: what it chose, or was told to choose.
        digest: of its weights.
        versions: of what masks may depend on, by name.
        device: description of its device.
        node: name of its machine; "" for this process.
    """

    choice: Choice
    digest: str
    versions: dict[str, str]
    device: str
    node: str = ""


@dataclass(frozen=True)
class Account:
    """What one worker, or all of an engine, did so far. Times are in seconds.

    Attributes:
        stages: time of the thread with the network by what it waited for (decode, write) or did (predict).
        decode_seconds: total time of all processes that decode.
        write_seconds: total time of all writer threads.
        peak_memory: the most main memory that a process with a network has held, in bytes.
        warnings: one line for each restriction that was necessary.
        choice: the present one, which differs from that of the hello once memory has run out.
    """

    stages: dict[str, float]
    decode_seconds: float
    write_seconds: float
    peak_memory: int
    warnings: tuple[str, ...]
    choice: Choice


class Out(Protocol):
    """The out folder as a worker sees it; see :class:`OutFolder`."""

    @property
    def paths(self) -> OutPaths: ...
    @property
    def ownership(self) -> Ownership: ...
    def check(self) -> None: ...
    def commit(self, entry: Entry) -> None:
        """Write down which files are about to be written; called from several threads."""

    def record_choice(self, choice: Choice) -> None:
        """Write down the limits to which memory has been reduced."""


class Worker(Protocol):
    """Loads the weights once, and then masks any number of lists of photos."""

    def begin(self, chosen: Choice | None) -> Hello:
        """Set up the network; may be called again.

        Args:
            chosen: what the first worker of the job chose; None for the first one.

        Raises:
            CarvanaBatchError: this worker cannot choose the same, or its device cannot be used.
        """

    def run(self, photos: Sequence[ImageRef]) -> Generator[Result]:
        """Mask photos.

        Yields:
            Exactly one result for each photo, after its mask has its final name, in no particular order.

        Raises:
            CarvanaBatchError: no photo can be masked, whatever it is; such as if the disk is full.
        """

    def account(self) -> Account:
        """What it did so far."""


@dataclass
class Summary:
    """How the work was shared out, for ``run.json``.

    Attributes:
        engine: its name.
        nodes: number of photos that each machine has masked, or found out that it cannot.
        handed_out: photos given to workers, each as often as it was given.
        lost_workers: number of workers that died after their hello.
    """

    engine: str = "local"
    nodes: dict[str, int] = field(default_factory=dict)
    handed_out: int = 0
    lost_workers: int = 0

    def describe(self) -> dict[str, Any]:
        """The entry of ``run.json``."""
        if self.engine == "local":
            return {"name": self.engine}
        return {
            "name": self.engine,
            "nodes": self.nodes,
            "handed_out": self.handed_out,
            "lost_workers": self.lost_workers,
        }


class OutOfRun(Out, Protocol):
    """The out folder as the engine sees it, in the process of the run."""

    def learn_announced(self, keys: Collection[str]) -> None:
        """Find out which files the workers of this run have announced of some photos."""


class Engine(Protocol):
    """Masks the photos of a run.

    Attributes:
        summary: how the work was shared out so far.
    """

    summary: Summary

    def begin(self, job: Job, out: OutOfRun, chosen: Choice | None, stop: StopFlag) -> Hello | None:
        """Get ready, at least with a first worker; call it once.

        Args:
            job: what is to be done.
            out: the out folder, entered.
            chosen: what the first worker of the job chose in an earlier run, None if there was none.
            stop: when its signal is set, waiting for workers ends.

        Returns:
            The hello of the first worker; None if the signal was set before it came.

        Raises:
            CarvanaBatchError: no worker can be had.
        """

    def bind(self, chosen: Choice) -> Hello:
        """Let all workers choose the same, also the first one; call it once, after :meth:`begin`.

        Raises:
            CarvanaBatchError: the first worker cannot.
        """

    def results(self, photos: PhotoList, stop: StopFlag) -> Generator[Result]:
        """Mask photos; close the generator in any case, so that all workers end.

        Args:
            photos: the photos.
            stop: when its signal is set, no more photos are read, and those in flight are finished.

        Yields:
            One result for each photo that was read, in no particular order.

        Raises:
            CarvanaBatchError: no photo can be masked, whatever it is; such as if the disk is full.
        """

    def account(self) -> Account:
        """What its workers did, once there are no more results."""

    def describe_nodes(self) -> str:
        """The machines at work and their rates, for the progress bar; "" if it is this one alone."""

    def close(self) -> None:
        """End all workers; may be called at any time, and again."""
