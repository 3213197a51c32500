"""The folder of a training run.

RUN/config.toml        the settings, for --config
RUN/split.json         the cars and photos to train on and to validate on
RUN/checkpoint.pt      all that is needed to resume the run
RUN/log.jsonl          a line for every 50 steps and for every validation
RUN/best.safetensors   the averaged weights with the best validation so far
RUN/last.safetensors   the latest averaged weights
RUN/val.csv            scores of the best weights on each validation photo
RUN/samples.jpg        the first samples, as the network sees them
RUN/curves.png         learning curves, drawn at the end
RUN/worst.jpg          the validation photos with the lowest Dice, drawn at the end
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from carvana_batch.errors import FolderChangedError, FolderInUseError, UsageError
from carvana_batch.files import atomic_writer, find_leftovers, not_writable, write_error
from carvana_batch.network.pickled import load_pickled
from carvana_batch.output.held import HeldFolders
from carvana_batch.output.lock import FolderLock, describe_holder
from carvana_batch.text import shown
from carvana_batch.training.settings import (
    TrainingSettings,
    describe_settings,
    format_settings,
    read_settings,
)


class RunFolder:
    """The locked folder of a run; use it as a context manager.

    Entering locks the folder, makes it if needed, and removes temporary files of a killed run. If an error
    comes before anything is written into a new folder, nothing is left of it.

    Raises:
        UsageError: on entry, the folder cannot be made or written.
        FolderInUseError: on entry, another run has locked it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        state = root / ".carvana-batch"
        self._state = state
        self._lock = FolderLock(state / "lock", state / "holder.json")
        self._held: HeldFolders | None = None

    def __enter__(self) -> RunFolder:
        try:
            self._take_lock()
            self._hold()
            self._lock.write_holder()
            for leftover in find_leftovers(self.root):
                leftover.unlink()
        except BaseException:
            self._let_go()
            self._lock.undo()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._let_go()
        is_elsewhere = kind is not None and issubclass(kind, FolderChangedError)
        if kind is not None and not (is_elsewhere or self.samples.exists() or self.config.exists()):
            self._lock.undo()
        else:
            self._lock.release()

    def _take_lock(self) -> None:
        try:
            acquired = self._lock.acquire()
        except OSError as error:
            raise not_writable(self.root, error.strerror or str(error), "RUN") from error
        if not acquired:
            raise FolderInUseError(
                f"{shown(self.root)} is in use by {describe_holder(self._lock.holder)}. Wait for it to end,"
                " or choose another RUN."
            )

    def _hold(self) -> None:
        try:
            self._held = HeldFolders([self.root, self._state])
        except OSError as error:
            raise not_writable(self.root, error.strerror or str(error), "RUN") from error

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.close()
        self._held = None

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def split(self) -> Path:
        return self.root / "split.json"

    @property
    def log(self) -> Path:
        return self.root / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint.pt"

    @property
    def best(self) -> Path:
        return self.root / "best.safetensors"

    @property
    def last(self) -> Path:
        return self.root / "last.safetensors"

    @property
    def samples(self) -> Path:
        return self.root / "samples.jpg"

    @property
    def panels(self) -> Path:
        return self.root / "worst.jpg"

    @property
    def curves(self) -> Path:
        return self.root / "curves.png"

    @property
    def scores(self) -> Path:
        return self.root / "val.csv"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    def write_split(self, split: dict[str, Any]) -> None:
        self._write_text(self.split, json.dumps(split, indent=2) + "\n")

    def begin(self, settings: TrainingSettings) -> None:
        """Write the settings and an empty log."""
        self._write_text(self.log, "")
        self._write_text(self.config, format_settings(settings))

    def check(self, settings: TrainingSettings, split: dict[str, Any], resume: bool) -> None:
        """Check that the folder is free for a new run, or holds the run that is to be resumed.

        Args:
            settings: settings of the new or resumed run.
            split: what split.json of that run holds.
            resume: whether to resume a run.

        Raises:
            UsageError: there is already a run or other files, there is no run to resume, or it has other
                settings or another split.
        """
        if not resume:
            if self.checkpoint.exists() or self.best.exists():
                raise UsageError(
                    f"{shown(self.root)} holds a run already. Use --resume to go on with it, or another RUN."
                )
            if (self.config.exists() or self.log.exists()) and not self.split.exists():
                raise UsageError(f"{shown(self.root)} holds files that are not a run's. Choose another RUN.")
            return
        if not self.checkpoint.exists():
            advice = (
                f"begin another RUN with --init {shown(self.best)}"
                if self.best.exists()
                else "leave the option out to begin one"
            )
            raise UsageError(f"--resume: {shown(self.root)} holds no run with a checkpoint; {advice}.")
        # A run of an older version has no value for a setting that did not exist then.
        defaults = _normalised_settings(describe_settings(TrainingSettings()))
        earlier = defaults | _normalised_settings(read_settings(self.config))
        now = _normalised_settings(describe_settings(settings))
        differences = [
            f"{name}: {earlier.get(name)!r} before, {now.get(name)!r} now"
            for name in sorted(earlier.keys() | now.keys())
            if earlier.get(name) != now.get(name)
        ]
        if differences:
            raise UsageError(
                f"--resume: the run in {shown(self.root)} has other settings ({'; '.join(differences)})."
                f" Leave those options out, or begin another RUN; --init {shown(self.root)} starts from its"
                " weights."
            )
        if self._read_json(self.split) != split:
            raise UsageError(
                f"--resume: DATA or the cars to measure on have changed since {shown(self.root)} was begun."
                " Bring them back, or begin another RUN."
            )

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Load the checkpoint, if there is one, and remove lines of the log that are newer than it.

        Raises:
            UsageError: the checkpoint is damaged or of another version.
        """
        if not self.checkpoint.exists():
            return None
        try:
            state: dict[str, Any] = load_pickled(self.checkpoint)
        # A damaged pickle raises many kinds of exceptions, such as IndexError or struct.error.
        except Exception as error:
            raise UsageError(
                f"{shown(self.checkpoint)} is damaged ({type(error).__name__}); begin another RUN, with"
                f" --init {shown(self.last)} if that is there."
            ) from error
        try:
            last = {"loss": state["step"], "val": state["validated"]}
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"{shown(self.checkpoint)} is not of this version of carvana-batch; begin another RUN."
            ) from error
        lines = [line for line in self.read_log() if line["step"] <= last["val" if "val" in line else "loss"]]
        self._write_text(self.log, "".join(json.dumps(line) + "\n" for line in lines))
        return state

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        self.check_place()
        with atomic_writer(self.checkpoint) as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # how torch ends an archive after the file has raised an OSError
                raise _find_os_error(error) or error from error

    def add_to_log(self, line: dict[str, Any]) -> None:
        self.check_place()
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise write_error(self.log, error) from error

    def read_log(self) -> list[dict[str, Any]]:
        """Read the lines of the log, except for an incomplete one that a killed run left."""
        lines = []
        for text in self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []:
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
        return lines

    def check_place(self) -> None:
        """Check that the folder is still what and where it was when the run began.

        Raises:
            FolderChangedError: it was renamed, removed or replaced.
            CarvanaBatchError: it cannot be looked at.
        """
        if self._held is None:
            return
        try:
            self._held.check()
        except FolderChangedError as error:
            raise FolderChangedError(f"{error} A run with a checkpoint goes on with --resume.") from error

    def _write_text(self, path: Path, text: str) -> None:
        self.check_place()
        with atomic_writer(path, "w") as file:
            file.write(text)

    def _read_json(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{shown(path)} cannot be read ({error}); begin another RUN.") from error


def _find_os_error(error: BaseException | None) -> OSError | None:
    """Return the first OSError among an exception and those that were being handled when it was raised."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _normalised_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Bring settings from a file and from options into the same form: names with dashes, values as lists."""
    return {
        name.replace("_", "-"): list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }
