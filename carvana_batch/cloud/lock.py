"""The lock of an out folder in a bucket: an object that only one run can make, or take over once it expires.

The holder writes it anew every few seconds, each time on the condition that it is still its own. A run that
finds the object of another one watches it: if it changes, that run is alive; if it does not for as long as
its holder has said, the run is dead, and the lock is taken over on the condition that it is still unchanged.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from carvana_batch.cloud.mirror import nanoseconds
from carvana_batch.cloud.urls import BucketUrl, Store, StoreError, open_store, raise_store_error
from carvana_batch.errors import FolderChangedError, FolderInUseError, UsageError
from carvana_batch.text import shown

LEASE = 30.0
"""Seconds without a sign of life after which a lock may be taken over."""

BEAT = 5.0
"""Seconds between two signs of life."""

WATCH = 0.5
"""Seconds between two looks at the lock of another run."""

WRITERS = 4
"""Of the probe, of which exactly one may win."""


def put_if(store: Store, name: str, content: bytes, version: dict[str, str] | None) -> dict[str, str] | None:
    """Write an object if there is none, or if it is still of a version.

    Args:
        store: the store.
        name: of the object.
        content: what to write, which is of this call alone: if the answer of the store is lost, and the
            client asks again, this is how the object is known to be its own.
        version: the version that it must have; None if there must be none.

    Returns:
        The new version; None if the condition does not hold.

    Raises:
        obstore.exceptions.BaseError: the store failed.
    """
    import obstore

    mode: Any = "create" if version is None else version
    try:
        return version_of(obstore.put(store, name, content, mode=mode, use_multipart=False))
    except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError, FileNotFoundError):
        try:
            got = obstore.get(store, name)
            return version_of(got.meta) if bytes(got.bytes()) == content else None
        except FileNotFoundError:
            return None


def version_of(meta: Any) -> dict[str, str]:
    """The version of an object, from what the client says about it."""
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}


def probe(url: BucketUrl, folder: str, store: Store | None = None) -> int:
    """Check that a store keeps to conditions, by objects that are removed again.

    Args:
        url: the out folder, for messages.
        folder: where to put the objects, below it.
        store: the store of ``url``.

    Returns:
        The present time of the store, in ns.

    Raises:
        UsageError: it ignores conditions, so that two runs could not be kept apart.
        StoreError: it failed.
    """
    import obstore

    store = store or open_store(url)
    name = f"{folder}/probe-{uuid.uuid4().hex}"

    def write(number: int) -> dict[str, str] | None:
        return put_if(store, name, f"{number}".encode(), None)

    try:
        with ThreadPoolExecutor(WRITERS) as threads:
            won = [version for version in threads.map(write, range(WRITERS)) if version is not None]
        try:
            now = nanoseconds(obstore.head(store, name)["last_modified"])
            kept = len(won) == 1 and write(WRITERS) is None
            if kept:
                newer = put_if(store, name, b"newer", won[0])
                kept = newer is not None and put_if(store, name, b"again", won[0]) is None
        finally:
            obstore.delete(store, name)
    except (obstore.exceptions.BaseError, OSError, ValueError) as error:
        raise_store_error(url, error)
    if not kept:
        raise UsageError(
            f"The store of {url} ignores the conditions of a request (If-None-Match, If-Match), so two runs"
            " with this OUT could not be kept apart. Use a store that keeps to them, or a local OUT."
        )
    return now


class BucketLock:
    """The lock of an out folder in a bucket.

    Args:
        url: the out folder.
        name: of the object, below it.
        run: identifies the run that takes the lock.
        lease: seconds without a sign of life after which another run may take it over.
        say: called with a line for the user, if there is something to wait for.
        watch: seconds between two looks at the lock of another run.
    """

    def __init__(
        self,
        url: BucketUrl,
        name: str,
        run: str,
        lease: float = LEASE,
        say: Callable[[str], object] = lambda line: None,
        watch: float = WATCH,
    ) -> None:
        self.url, self.name, self.run, self.lease, self.say, self._watch = url, name, run, lease, say, watch
        self._store = open_store(url)
        self._version: dict[str, str] | None = None
        self._beats = 0

    def acquire(self) -> None:
        """Take the lock; waits until that of a dead run has expired.

        Raises:
            FolderInUseError: another run holds it, and is alive.
            UsageError: see :func:`probe`.
            StoreError: the store failed.
        """
        import obstore

        now = probe(self.url, self.name.rpartition("/")[0], self._store)
        try:
            self._version = put_if(self._store, self.name, self._content(), None)
            if self._version is None:
                self._version = put_if(self._store, self.name, self._content(), self._wait_for_expiry(now))
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise_store_error(self.url, error)
        if self._version is None:
            raise self._in_use({})

    def beat(self) -> None:
        """Give a sign of life.

        Raises:
            FolderChangedError: another run has the lock now.
            StoreError: the store failed.
        """
        import obstore

        try:
            version = put_if(self._store, self.name, self._content(), self._version)
            if version is None:  # perhaps an earlier sign of life arrived whose answer was lost
                holder, version, _ = self._look()
                version = version if holder.get("run") == self.run and holder.get("held") else None
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise_store_error(self.url, error)
        self._version = version
        if version is None:
            raise lost_lock(self.url)

    def release(self) -> None:
        """Give the lock up, if it is still held. The object stays, as nobody's."""
        import obstore

        version, self._version = self._version, None
        if version is not None:
            try:
                put_if(self._store, self.name, self._content(held=False), version)
            except (obstore.exceptions.BaseError, OSError, ValueError) as error:
                raise_store_error(self.url, error)

    def _content(self, held: bool = True) -> bytes:
        self._beats += 1
        values = {"held": held, "run": self.run, "pid": os.getpid(), "host": socket.gethostname()}
        return json.dumps(values | {"lease": self.lease, "beat": self._beats}).encode()

    def _wait_for_expiry(self, now: int) -> dict[str, str] | None:
        """Wait until the lock of another run is free; returns its version.

        Raises:
            FolderInUseError: that run is alive.
        """
        import obstore

        holder, version, changed = self._look()
        if version is None or holder.get("held") is False:
            return version
        lease = holder.get("lease")
        lease = float(lease) if isinstance(lease, int | float) else LEASE
        # By the clock of the store alone; a second more, because it tells full seconds.
        left = max(0.0, lease + 1 - (now - changed) / 1e9)
        if left > self._watch:
            self.say(
                f"{self.url} was in use by {_describe(holder)}; waiting up to {left:.0f} s for a sign of life"
            )
        deadline = time.monotonic() + left
        while time.monotonic() < deadline:
            time.sleep(self._watch)
            try:
                again = version_of(obstore.head(self._store, self.name))
            except FileNotFoundError:
                return None
            if again != version:
                holder, version, _ = self._look()
                if version is None or holder.get("held") is False:
                    return version
                raise self._in_use(holder)
        return version

    def _look(self) -> tuple[dict[str, Any], dict[str, str] | None, int]:
        """What the lock says, its version, and when it was written in ns; None if there is no lock."""
        import obstore

        try:
            got = obstore.get(self._store, self.name)
            content = bytes(got.bytes())
        except FileNotFoundError:
            return {}, None, 0
        try:
            holder = dict(json.loads(content))
        except (ValueError, TypeError):
            holder = {}
        return holder, version_of(got.meta), nanoseconds(got.meta["last_modified"])

    def _in_use(self, holder: dict[str, Any]) -> FolderInUseError:
        return FolderInUseError(
            f"{self.url} is in use by {_describe(holder)}. Wait for it to end, or choose another OUT."
        )


def held_by(url: BucketUrl, name: str) -> str:
    """The run that holds a lock; "" if none does.

    Raises:
        StoreError: the store failed.
    """
    import obstore

    try:
        holder = json.loads(bytes(obstore.get(open_store(url), name).bytes()))
        return str(holder["run"]) if holder["held"] else ""
    except FileNotFoundError:
        return ""
    except (obstore.exceptions.BaseError, OSError) as error:
        raise_store_error(url, error)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{url / name} is damaged ({error}).") from error


def lost_lock(url: BucketUrl) -> FolderChangedError:
    """What to raise if another run has taken an out folder over."""
    return FolderChangedError(
        f"{url} was taken over by another run, because this one gave no sign of life for long, so it has"
        " stopped. Nothing is lost; the other run does the rest."
    )


def _describe(holder: dict[str, Any]) -> str:
    try:
        return shown(f"process {holder['pid']} on {holder['host']}")
    except (KeyError, TypeError):
        return "another run"
