"""A folder in a bucket as a local folder: each object is an empty file of its size until it is fetched."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from carvana_batch.cloud.stand_ins import StandIns, make_empty
from carvana_batch.cloud.urls import BucketUrl, StoreError, is_no_bucket, open_store, raise_store_error
from carvana_batch.errors import UsageError
from carvana_batch.files import write_error
from carvana_batch.inputs.find import may_be_image
from carvana_batch.inputs.formats import HEAD_BYTES
from carvana_batch.text import shown

THREADS = 16

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Listed(NamedTuple):
    """An object.

    Attributes:
        name: below the folder that was listed.
        size: in bytes.
        time: of its last change, in ns, of full seconds.
    """

    name: str
    size: int
    time: int


def list_objects(url: BucketUrl) -> Iterator[Listed]:
    """The objects below a folder in a bucket; a request tells of about a thousand.

    Raises:
        StoreError: they cannot be listed.
    """
    import obstore

    try:
        for chunk in obstore.list(open_store(url)):
            for each in chunk:
                yield Listed(each["path"], each["size"], nanoseconds(each["last_modified"]))
    except (obstore.exceptions.BaseError, OSError, ValueError) as error:
        raise_store_error(url, error)


def nanoseconds(time: datetime) -> int:
    """A time in ns since 1970, of full seconds: some stores tell more of it in listings than elsewhere."""
    return (time - EPOCH) // timedelta(seconds=1) * 10**9


class Mirror(StandIns):
    """A folder in a bucket, and the local folder that looks like it.

    Args:
        url: the folder in the bucket.
        folder, most_bytes: see :class:`StandIns`.
    """

    def __init__(self, url: BucketUrl, folder: Path, most_bytes: int | None = None) -> None:
        super().__init__(folder, most_bytes)
        self.url = url
        self._store = open_store(url)
        self._prefix = f"{folder}{os.sep}"

    def list(self, exclude: BucketUrl | None = None) -> int:
        """Make the local folder, with a file for each object; returns their number.

        Args:
            exclude: a folder to leave out.

        Raises:
            StoreError: the objects cannot be listed.
            UsageError: a name cannot be that of a file.
        """
        left_out = None
        if exclude is not None and exclude.is_below(self.url):
            left_out = f"{exclude.prefix[len(self.url.prefix) :].strip('/')}/"
        self.folder.mkdir(parents=True, exist_ok=True)
        count = 0
        unclear: list[str] = []  # names that do not tell whether these are images
        for listed in list_objects(self.url):
            if left_out is None or not listed.name.startswith(left_out):
                self._stand_in(listed)
                count += 1
                if listed.size and may_be_image(listed.name):
                    unclear.append(listed.name)
        self._fetch_heads(unclear)
        return count

    def list_one(self, name: str) -> bool:
        """The same for a single object; False if there is none of this name.

        Raises:
            StoreError, UsageError: see :meth:`list`.
        """
        import obstore

        try:
            meta = obstore.head(self._store, name)
        except FileNotFoundError as error:
            if is_no_bucket(error):
                raise_store_error(self.url, error)
            return False
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise_store_error(self.url / name, error)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stand_in(Listed(name, meta["size"], nanoseconds(meta["last_modified"])))
        return True

    def _fetch_heads(self, names: Sequence[str]) -> None:
        """Fetch the first bytes of some objects, which tell whether they are images."""
        import obstore

        def fetch_head(name: str) -> None:
            path = self.folder / name
            time = path.stat().st_mtime_ns
            try:
                head = obstore.get_range(self._store, name, start=0, length=HEAD_BYTES)
            except FileNotFoundError:
                return
            except (obstore.exceptions.BaseError, ValueError) as error:
                raise_store_error(self.url / name, error)
            with path.open("r+b") as file:
                file.write(bytes(head))
            os.utime(path, ns=(time, time))

        with ThreadPoolExecutor(THREADS) as threads:
            for _ in threads.map(fetch_head, names):
                pass

    def _stand_in(self, listed: Listed) -> None:
        path = self.folder / listed.name
        try:
            with contextlib.suppress(IsADirectoryError):
                try:
                    make_empty(path, listed.size, listed.time)
                except (FileNotFoundError, NotADirectoryError):
                    self._make_folders(path.parent)
                    make_empty(path, listed.size, listed.time)
                return
        except OSError as error:
            raise UsageError(
                f"{shown(str(self.url / listed.name))} cannot be the name of a file:"
                f" {error.strerror or error}. Rename the object."
            ) from error
        if listed.size:  # otherwise it only marks a folder
            raise UsageError(f"{shown(str(self.url / listed.name))} is both an object and a folder.")

    def _make_folders(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            marker = next(each for each in (folder, *folder.parents) if each.is_file())
            if marker.stat().st_size:
                raise
            marker.unlink()  # an object without content that only marks a folder
            folder.mkdir(parents=True, exist_ok=True)

    def fetch(self, path: Path) -> None:
        """Replace a file of the local folder by its object; remove it if the object is gone, or too large.

        Several threads may call it at once.

        Raises:
            StoreError: the store failed.
            OutOfSpaceError: the local disk is full.
        """
        import obstore

        name = path.as_posix().removeprefix(self._prefix)
        part = path.with_name(f".part-{os.getpid()}-{threading.get_ident()}")
        try:
            got = obstore.get(self._store, name)
        except FileNotFoundError as error:
            if is_no_bucket(error):
                raise_store_error(self.url, error)
            path.unlink(missing_ok=True)
            return
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise_store_error(self.url / name, error)
        if problem := self.size_problem(got.meta["size"]):
            self.leave_out(path, problem)
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                for chunk in got.stream(min_chunk_size=2**20):
                    file.write(chunk)
            if part.stat().st_size != got.meta["size"]:
                raise StoreError(f"{self.url / name}: the store sent only a part of the object.")
            time = nanoseconds(got.meta["last_modified"])
            os.utime(part, ns=(time, time))
            part.replace(path)
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise_store_error(self.url / name, error)
        except OSError as error:
            if error.errno is None:
                raise_store_error(self.url / name, error)
            raise write_error(path, error) from error
        finally:
            part.unlink(missing_ok=True)
