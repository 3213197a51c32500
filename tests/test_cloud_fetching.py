"""Photos are fetched ahead of who needs them, in bounded numbers."""

import threading
import time
from pathlib import Path

import pytest

from carvana_batch.cloud.fetching import Prefetcher
from carvana_batch.errors import CarvanaBatchError
from carvana_batch.values import ImageRef


class Store:
    """Fetches nothing, and takes note; ``held`` are those that were fetched and not emptied."""

    def __init__(self, delay=0.0, bad=()):
        self.delay, self.bad = delay, bad
        self.held, self.most, self.lock = set(), 0, threading.Lock()

    def fetch(self, path):
        time.sleep(self.delay)
        if path.name in self.bad:
            raise CarvanaBatchError("the store is away")
        with self.lock:
            self.held.add(path.name)
            self.most = max(self.most, len(self.held))

    def empty(self, path):
        with self.lock:
            self.held.discard(path.name)


def photos(count, folder=Path("none"), size=None):
    refs = [ImageRef(f"{number:03}", folder / f"{number:03}") for number in range(count)]
    for ref in refs if size is not None else ():
        ref.path.write_bytes(bytes(size))
    return refs


def consume(store, refs, kept=3, **limits):
    """Ask for all photos in order, as decoders do, and release each ``kept`` photos later."""
    with Prefetcher(refs, store.fetch, store.empty, **limits) as prefetcher:
        for index, ref in enumerate(refs):
            prefetcher.arrive(index)
            assert ref.path.name in store.held
            if index >= kept:
                prefetcher.release(refs[index - kept].key)
                assert refs[index - kept].path.name not in store.held


def test_each_photo_is_there_when_it_is_asked_for_and_few_are_at_a_time():
    store = Store(delay=0.001)
    consume(store, photos(200), kept=3, ahead=8)
    assert store.held == set()
    assert store.most <= 8 + 3 + 2


def test_bytes_ahead_are_bounded(tmp_path):
    store = Store()
    consume(store, photos(60, tmp_path, size=1000), kept=0, ahead=40, bytes_ahead=5000)
    assert store.most <= 5 + 2


def test_latency_is_hidden():
    """One after the other, 200 photos would take ten seconds."""
    store, start = Store(delay=0.05), time.monotonic()
    consume(store, photos(200))
    assert time.monotonic() - start < 3


def test_a_failure_comes_with_the_photo_that_it_concerns():
    store, refs = Store(bad={"007"}), photos(20)
    with Prefetcher(refs, store.fetch, store.empty) as prefetcher:
        for index in range(7):
            prefetcher.arrive(index)
        with pytest.raises(CarvanaBatchError, match="away"):
            prefetcher.arrive(7)
    assert store.held == set()


def test_what_was_fetched_in_vain_is_removed():
    store, refs = Store(), photos(30)
    with Prefetcher(refs, store.fetch, store.empty) as prefetcher:
        prefetcher.arrive(2)
    assert store.held == set()
