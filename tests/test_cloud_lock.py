"""The lock of an out folder in a bucket, and its journal: one run at a time, and none that was taken over."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from s3_server import found_by_clients

pytest.importorskip("obstore", reason="needs the extra cloud")

from carvana_batch.cloud.lock import BucketLock, held_by
from carvana_batch.cloud.segments import Segments
from carvana_batch.cloud.urls import BucketUrl
from carvana_batch.errors import FolderChangedError, FolderInUseError, UsageError

OUT = BucketUrl.parse("s3://photos/out")

NAME = ".carvana-batch/lock.json"

SHORT = 1.0
"""A lease in seconds; that of the store's clock adds one."""


@pytest.fixture
def server(monkeypatch):
    with found_by_clients(monkeypatch) as server:
        yield server


def lock(run, **options):
    return BucketLock(OUT, NAME, run, **options)


def age_lock(server, seconds):
    """Let the lock be as old as if its holder had given no sign of life for so long."""
    key = f"out/{NAME}"
    server.objects[key] = server.objects[key]._replace(time=time.time() - seconds)


@pytest.mark.long
def test_of_eight_that_race_one_wins_each_of_twenty_times(server):
    for number in range(20):
        barrier = threading.Barrier(8)
        url = BucketUrl.parse(f"s3://photos/race{number}")

        def take(run, url=url, barrier=barrier):
            racer = BucketLock(url, NAME, str(run), watch=0.05)
            barrier.wait()
            try:
                racer.acquire()
            except FolderInUseError:
                return 0
            return 1

        # The losers would watch for a sign of life: give it, as the winner's own thread does.
        stop = threading.Event()

        def beat(key=f"race{number}/{NAME}", stop=stop):
            while not stop.wait(0.02):
                with server.lock:
                    if key in server.objects:
                        server.objects[key] = server.objects[key]._replace(time=time.time())

        beating = threading.Thread(target=beat)
        beating.start()
        with ThreadPoolExecutor(8) as threads:
            won = sum(threads.map(take, range(8)))
        stop.set()
        beating.join()
        assert won == 1


def test_a_lock_that_was_given_up_is_free_at_once(server):
    first, second = lock("first"), lock("second")
    first.acquire()
    assert held_by(OUT, NAME) == "first"
    first.release()
    assert held_by(OUT, NAME) == ""
    start = time.monotonic()
    second.acquire()
    assert time.monotonic() - start < 1
    assert held_by(OUT, NAME) == "second"
    assert not [key for key in server.objects if "probe" in key]


@pytest.mark.usefixtures("server")
def test_the_lock_of_a_dead_run_is_taken_over_once_it_has_expired():
    said = []
    dead, living = lock("dead", lease=SHORT), lock("living", say=said.append)
    dead.acquire()
    living.acquire()  # waits
    assert held_by(OUT, NAME) == "living"
    assert "waiting up to" in said[0] and "process" in said[0]
    with pytest.raises(FolderChangedError, match="taken over"):
        dead.beat()
    dead.release()
    assert held_by(OUT, NAME) == "living"


def test_one_that_expired_long_ago_is_taken_over_without_waiting(server):
    lock("dead").acquire()
    age_lock(server, 3600)
    start = time.monotonic()
    lock("living").acquire()
    assert time.monotonic() - start < 1


def test_of_those_that_take_an_expired_lock_over_one_wins(server):
    for number in range(3):
        if number == 0:
            lock("dead").acquire()
        age_lock(server, 3600)
        barrier = threading.Barrier(8)

        def take(run, barrier=barrier):
            racer = lock(run, watch=0.05)
            barrier.wait()
            try:
                racer.acquire()
            except FolderInUseError:
                return 0
            return 1

        # Whoever comes late finds a new lock, and would wait for it to expire: let it see signs of life.
        stop = threading.Event()

        def beat(stop=stop):
            while not stop.wait(0.02):
                with server.lock:
                    stored = server.objects[f"out/{NAME}"]
                    if time.time() - stored.time < 1000:
                        server.objects[f"out/{NAME}"] = stored._replace(time=time.time())

        beating = threading.Thread(target=beat)
        beating.start()
        with ThreadPoolExecutor(8) as threads:
            won = sum(threads.map(take, [f"{number}-{run}" for run in range(8)]))
        stop.set()
        beating.join()
        assert won == 1


@pytest.mark.usefixtures("server")
def test_the_lock_of_a_run_that_lives_is_not():
    living = lock("living", lease=SHORT)
    living.acquire()
    stop = threading.Event()

    def beat():
        while not stop.wait(0.2):
            living.beat()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(FolderInUseError, match="in use by process"):
            lock("other").acquire()
    finally:
        stop.set()
        thread.join()


def test_a_store_that_ignores_conditions_is_refused(server):
    server.conditions = False
    with pytest.raises(UsageError, match="ignores the conditions") as caught:
        lock("run").acquire()
    assert str(OUT) in str(caught.value)
    assert server.objects == {}


def test_a_lost_answer_is_no_lost_race(server):
    """The store has done what was asked, but fails to say so; the client asks again, and finds it done."""
    failed = set()

    def fail_once(request):
        if request.method == "PUT" and request.key not in failed:
            failed.add(request.key)
            return 500
        return None

    def done_but_failed(request):
        if "lock.json" in request.key or "journal" in request.key:
            server.late_faults += [request] if fail_once(request) else []

    server.late_faults = []
    run = lock("run")
    original = server.after
    server.after = done_but_failed
    # The answer is replaced after the object was written.
    handler = server.RequestHandlerClass
    answer = handler._answer

    def answer_or_fail(self, status, body, headers=None):
        if server.late_faults:
            server.late_faults.clear()
            status, body, headers = 500, b"", {}
        answer(self, status, body, headers)

    handler._answer = answer_or_fail
    try:
        run.acquire()
        failed.clear()
        run.beat()
        failed.clear()
        segments = Segments(OUT / ".carvana-batch/journal", OUT, "run")
        segments.begin()
        segments.add("{}")
        failed.clear()
        segments.flush()
    finally:
        handler._answer, server.after = answer, original
    assert held_by(OUT, NAME) == "run"
    assert len(server.below("out/.carvana-batch/journal")) == 2


def segments(run):
    return Segments(OUT / ".carvana-batch/journal", OUT, run)


def lines_of(content):
    return [line for line in content.decode().splitlines() if '"segment"' not in line]


def test_what_one_run_wrote_the_next_one_reads_in_order(server):
    first = segments("first")
    assert lines_of(first.begin()) == []
    for number in range(25):
        first.add(f'{{"number": {number}}}')
        if number % 10 == 9:
            first.flush()
    first.flush()
    first.flush()  # nothing is left, so no object
    assert len(server.below("out/.carvana-batch/journal")) == 4
    assert lines_of(segments("second").begin()) == [f'{{"number": {number}}}' for number in range(25)]


@pytest.mark.usefixtures("server")
def test_a_run_that_was_taken_over_cannot_add_to_the_journal():
    zombie, living = segments("zombie"), segments("living")
    zombie.begin()
    zombie.add('{"of": "zombie"}')
    living.begin()
    with pytest.raises(FolderChangedError, match="taken over"):
        zombie.flush()
    living.add('{"of": "living"}')
    living.flush()
    assert lines_of(segments("third").begin()) == ['{"of": "living"}']


def test_what_a_zombie_wrote_just_before_is_read(server):
    """It comes between the listing of the next run and that run's first segment."""
    zombie, living = segments("zombie"), segments("living")
    zombie.begin()
    zombie.add('{"of": "zombie"}')
    calls = []

    def meanwhile(request):
        if "list-type" in request.query and not calls:
            calls.append(request)
            zombie.flush()

    server.after = meanwhile
    assert lines_of(living.begin()) == ['{"of": "zombie"}']


def test_lines_are_kept_while_the_store_is_away(server, monkeypatch):
    monkeypatch.setattr("carvana_batch.cloud.urls.RETRY_SECONDS", 0.1)
    run = segments("run")
    run.begin()
    run.add('{"number": 1}')
    server.fault = lambda request: 500
    with pytest.raises(Exception, match="the store failed"):
        run.flush()
    server.fault = lambda request: None
    run.add('{"number": 2}')
    run.flush()
    assert lines_of(segments("next").begin()) == ['{"number": 1}', '{"number": 2}']
