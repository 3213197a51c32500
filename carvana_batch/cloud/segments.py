"""The journal of an out folder in a bucket: numbered objects, each of which only one run can make.

A run that was taken over by another one finds its next number taken, and stops: what it knows is not mixed
with what the other one does.
"""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

from carvana_batch.cloud.lock import lost_lock, put_if
from carvana_batch.cloud.mirror import list_objects
from carvana_batch.cloud.urls import BucketUrl, open_store, raise_store_error

THREADS = 16

NAME = re.compile(r"([0-9]{10})\.jsonl")


class Segments:
    """The segments of a journal. Several threads may use it at once.

    Args:
        url: the folder of the segments.
        out: the out folder, for messages.
        run: identifies the run that adds segments.
    """

    def __init__(self, url: BucketUrl, out: BucketUrl, run: str) -> None:
        self.url, self.out, self.run = url, out, run
        self._store = open_store(url)
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._sending: list[str] = []  # sent again as they are, because the store may have them already
        self._number = 0

    def read(self) -> bytes:
        """The lines of all segments, in order.

        Raises:
            StoreError: they cannot be read.
        """
        import obstore

        def fetch(name: str) -> bytes:
            try:
                return bytes(obstore.get(self._store, name).bytes())
            except (obstore.exceptions.BaseError, OSError, ValueError) as error:
                raise_store_error(self.url / name, error)

        names = sorted(each.name for each in list_objects(self.url) if NAME.fullmatch(each.name))
        if names:
            self._number = int(names[-1].partition(".")[0])
        with ThreadPoolExecutor(THREADS) as threads:
            return b"\n".join(threads.map(fetch, names))

    def begin(self) -> bytes:
        """Read all segments, and add one, so that no run that began earlier can add any more.

        Returns:
            The lines of the segments that were there.

        Raises:
            StoreError: the store failed.
        """
        while True:
            lines = self.read()
            if self._put([]):
                return lines

    def add(self, line: str) -> int:
        """Add a line to the next segment; returns the number of its lines so far."""
        with self._lock:
            self._lines.append(line)
            return len(self._lines) + len(self._sending)

    def flush(self) -> None:
        """Write the lines that were added into a segment, if there are any.

        Raises:
            FolderChangedError: another run has taken its number.
            StoreError: the store failed; the lines are kept for the next time.
        """
        with self._lock:
            while self._sending or self._lines:
                if not self._sending:
                    self._sending, self._lines = self._lines, []
                if not self._put(self._sending):
                    raise lost_lock(self.out)
                self._sending = []

    def _put(self, lines: list[str]) -> bool:
        import obstore

        number = self._number + 1
        first = json.dumps({"segment": number, "run": self.run})
        content = "\n".join([first, *lines]).encode()
        try:
            if put_if(self._store, f"{number:010}.jsonl", content, None) is None:
                return False
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise_store_error(self.out, error)
        self._number = number
        return True
