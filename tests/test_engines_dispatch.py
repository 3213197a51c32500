from dataclasses import replace
from pathlib import Path

import pytest

from carvana_batch import __version__
from carvana_batch.engines.absolute import absolute
from carvana_batch.engines.contract import Account, Hello, Job
from carvana_batch.engines.crew import Died, Ended, Greeted, Loaded, Refused, Returned, Unavailable
from carvana_batch.engines.dispatch import MOST_DEATHS_IN_A_ROW, MOST_FAILED_STARTS, WAIT_SECONDS, Dispatcher
from carvana_batch.errors import CarvanaBatchError, OutOfSpaceError
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.masks.folder import MaskFolder
from carvana_batch.options import Choice, Options
from carvana_batch.output.journal import Entry
from carvana_batch.output.ownership import Ownership
from carvana_batch.output.paths import OutPaths
from carvana_batch.output.writer import Written
from carvana_batch.stopping import StopFlag
from carvana_batch.values import Failure, ImageRef

CHOICE = Choice("cpu", "fp32", 4, 1000)
VERSIONS = {"carvana-batch": __version__, "torch": "2"}


class FakeCrew:
    """Workers that mask a photo each time that events are asked for, and in which things go wrong.

    Args:
        photo: called with worker and key before a photo is masked; returns what happens instead: "die",
            "lose node", "unavailable", an error, or "twice" for a result that is returned twice.
        start: called with the number of a worker; returns why it dies before its hello, or "never".
        hello: called with the worker and the choice that it is told; returns its hello or an error.
    """

    name = "fake"

    def __init__(self, photo=None, start=None, hello=None, wanted=lambda: 2):
        self.photo = photo or (lambda worker, key: None)
        self.on_start = start or (lambda number: None)
        self.hello = hello or (lambda worker, chosen: Hello(chosen or CHOICE, "d", VERSIONS, "", worker))
        self.wanted = wanted
        self.news, self.calls, self.masked, self.begun, self.unseen = [], {}, [], [], {}
        self.number, self.now = 0, 0.0
        self.stopped = self.closed = False
        self.most_calls, self.most_photos = 0, 0

    def open(self, job, chosen):
        self.job, self.chosen = job, chosen

    def describe_wanted(self):
        return "1 CPU"

    def start(self):
        self.number += 1
        worker = f"w{self.number}"
        reason = self.on_start(self.number)
        if reason != "never":
            self.news.append(Loaded(worker) if reason is None else Died(worker, reason))
        return worker

    def begin(self, worker, chosen):
        self.begun.append((worker, chosen))
        hello = self.hello(worker, chosen)
        if isinstance(hello, Died | Unavailable):
            self.news.append(hello)
        elif isinstance(hello, Hello):
            self.calls.setdefault(worker, [])
            self.news.append(Greeted(worker, hello))
        else:
            self.news.append(Refused(worker, hello))

    def give(self, worker, call, tasks):
        self.calls[worker].append((call, list(tasks)))
        self.most_calls = max(self.most_calls, len(self.calls[worker]))
        self.most_photos = max(self.most_photos, len(tasks))

    def events(self, seconds):
        self.now += 0.25
        events, self.news = self.news, []
        for worker in list(self.calls):
            events += self.work(worker)
        return events

    def work(self, worker):
        if not self.calls[worker]:
            return []
        number, tasks = self.calls[worker][0]
        if not tasks or self.stopped:
            self.calls[worker].pop(0)
            return [Ended(worker, number)]
        task = tasks.pop(0)
        fault = self.photo(worker, task.key)
        if fault in ("die", "lose node"):
            del self.calls[worker]
            return [Died(worker, "was killed", fault == "lose node")]
        if fault == "unavailable":
            self.calls[worker] = []
            return [Unavailable(worker)]
        if isinstance(fault, CarvanaBatchError):
            return [Refused(worker, fault)]
        if fault == "unseen" and task.must_exist:
            return [Returned(worker, number, [], account(), [task.key])]
        self.masked.append(task.key)
        returned = Returned(worker, number, [result_of(task)], account())
        return [returned, returned] if fault == "twice" else [returned]

    def stop(self):
        self.stopped = True

    def close(self):
        self.closed = True


class FakeOut:
    """What the dispatcher needs of the out folder."""

    def __init__(self):
        self.paths = OutPaths(Path("out"))
        self.ownership = Ownership(self.paths)
        self.choices, self.announced = [], []

    def check(self):
        pass

    def commit(self, entry):
        raise AssertionError("only the run adds to the journal")

    def record_choice(self, choice):
        self.choices.append(choice)

    def learn_announced(self, keys):
        self.announced += keys


def account(choice=CHOICE, warnings=()):
    return Account({"decode": 1.0, "predict": 2.0, "write": 0.5}, 1.5, 0.25, 100, warnings, choice)


def result_of(task):
    if task.key.startswith("bad"):
        return Failure(task.key, "decode", "is empty", task.path)
    return Written(Entry(task.key, task.path, 1, 1), None, 0.0)


JOB = Job("d", Options(), Path("out"), None, "run", 1)


def photos_of(count):
    return PhotoList(ImageRef(f"{n:03}", f"in/{n:03}.jpg") for n in range(count))


def mask(crew, photos=None, stop=None, chosen=None, job=JOB, on_wait=lambda line: None, out=None):
    """The results of photos by key, and the dispatcher."""
    photos = photos_of(40) if photos is None else photos
    stop = stop or StopFlag()
    dispatcher = Dispatcher(crew, on_wait, lambda: crew.now)
    hello = dispatcher.begin(job, out or FakeOut(), chosen, stop)
    results = {}
    if hello is not None:
        dispatcher.bind(chosen or hello.choice)
        for result in dispatcher.results(photos, stop):
            key = result.id if isinstance(result, Failure) else result.entry.key
            assert key not in results, "two results of a photo"
            results[key] = result
        assert crew.closed
    return results, dispatcher


def failures_in(results):
    return {key: result for key, result in results.items() if isinstance(result, Failure)}


def once(worker, key, fault="die"):
    """A fault of one worker at one photo, which does not come again."""
    left = [fault]
    return lambda by, photo: left.pop() if left and (by, photo) == (worker, key) else None


def test_each_photo_is_masked_once_by_some_worker():
    crew = FakeCrew()
    results, dispatcher = mask(crew)
    assert sorted(crew.masked) == sorted(results) == [f"{n:03}" for n in range(40)]
    assert failures_in(results) == {}
    assert (dispatcher.summary.handed_out, dispatcher.summary.lost_workers) == (40, 0)
    assert sum(dispatcher.summary.nodes.values()) == 40
    assert dispatcher.summary.nodes.keys() == {"w1", "w2"}
    assert crew.most_calls == 2


def test_paths_are_absolute_for_workers_and_as_given_in_results(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    crew = FakeCrew()
    truth = MaskFolder(Path("truth"), {"a": Path("truth/a.png")})
    photos = PhotoList([ImageRef("a", "in/a.jpg"), ImageRef("bad", "in/bad.jpg")])
    results, _ = mask(crew, photos, job=replace(JOB, truth=truth))
    assert crew.job.root == tmp_path / "out"
    assert crew.job.truth.files == {"a": tmp_path / "truth" / "a.png"}
    assert results["a"].entry.source == "in/a.jpg"
    assert results["bad"] == Failure("bad", "decode", "is empty", "in/bad.jpg")


def test_reasons_name_paths_as_they_were_given(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "test_engines_dispatch.result_of",
        lambda task: Failure(task.key, "write", f"{tmp_path}/out/000.png is there already", task.path),
    )
    results, _ = mask(FakeCrew(), photos_of(1))
    assert results["000"].reason == "out/000.png is there already"


def test_absolute_paths(monkeypatch, tmp_path):
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/deep")
    monkeypatch.chdir(tmp_path)
    assert absolute("link/a.jpg") == f"{tmp_path}/link/a.jpg"
    assert absolute("/x/a\udcff.jpg") == "/x/a\udcff.jpg"
    assert absolute("link/../a.jpg") == f"{tmp_path}/far/a.jpg"


def test_the_choice_of_the_first_worker_binds_all():
    crew = FakeCrew(
        hello=lambda worker, chosen: hello_of(worker, chosen or replace(CHOICE, batch=int(worker[1])))
    )
    mask(crew)
    assert crew.begun == [("w1", None), ("w2", replace(CHOICE, batch=1))]


def hello_of(worker, choice=CHOICE, **changes):
    return replace(Hello(choice, "d", VERSIONS, "", worker), **changes)


def test_the_choice_of_an_earlier_run_binds_all():
    crew = FakeCrew()
    mask(crew, chosen=replace(CHOICE, batch=2))
    assert {chosen for _, chosen in crew.begun} == {crew.chosen} == {replace(CHOICE, batch=2)}


def test_another_choice_reaches_the_first_worker_too():
    crew = FakeCrew()
    dispatcher = Dispatcher(crew, clock=lambda: crew.now)
    dispatcher.begin(JOB, FakeOut(), None, StopFlag())
    dispatcher.bind(replace(CHOICE, batch=2))
    assert len(list(dispatcher.results(photos_of(8), StopFlag()))) == 8
    assert ("w1", replace(CHOICE, batch=2)) in crew.begun


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (CarvanaBatchError("no cuda"), "no cuda"),
        (hello_of("w2", digest="e"), "it has weights e, and this job d"),
        (
            hello_of("w2", replace(CHOICE, batch=2)),
            "it has the choice Choice(device='cpu', precision='fp32', b",
        ),
        (hello_of("w2", versions=VERSIONS | {"carvana-batch": "0.1"}), "it has carvana-batch 0.1, and this"),
    ],
)
def test_a_worker_that_cannot_keep_the_choice_is_refused(answer, why):
    crew = FakeCrew(hello=lambda worker, chosen: answer if worker == "w2" else hello_of(worker))
    results, dispatcher = mask(crew)
    assert len(results) == 40
    assert dispatcher.summary.nodes == {"w1": 40}
    assert crew.number == 2, "none is started in its place"
    (warning,) = dispatcher.account().warnings
    assert why in warning


def test_if_all_workers_are_refused_the_run_ends_with_the_reason():
    with pytest.raises(CarvanaBatchError, match=r"No worker can do this job\. A worker on .* no cuda"):
        mask(FakeCrew(hello=lambda worker, chosen: CarvanaBatchError("no cuda")))


def test_after_a_death_a_new_worker_goes_on():
    crew = FakeCrew(photo=once("w1", "001"))
    out = FakeOut()
    results, dispatcher = mask(crew, out=out)
    assert len(results) == 40
    assert failures_in(results) == {}
    assert (crew.number, dispatcher.summary.lost_workers) == (3, 1)
    assert crew.begun[-1] == ("w3", CHOICE)
    assert sorted(crew.masked) == sorted(results)
    assert "001" in out.announced, "the files that it has written are of this run"
    assert dispatcher.account().warnings == ("A worker on w1 died and was replaced: was killed",)


def test_a_poisonous_photo_fails_and_no_other():
    crew = FakeCrew(photo=lambda worker, key: "die" if key == "007" else None)
    results, dispatcher = mask(crew)
    assert len(results) == 40
    assert failures_in(results).keys() == {"007"}
    assert results["007"].stage == "predict"
    assert results["007"].reason == (
        "two workers died with this photo alone, the second one because: was killed"
    )
    assert dispatcher.summary.lost_workers == 3


def test_a_photo_is_not_blamed_for_lost_machines():
    left = ["lose node"] * 3
    crew = FakeCrew(photo=lambda worker, key: left.pop() if left and key == "002" else None)
    results, _ = mask(crew)
    assert failures_in(results) == {}
    assert len(results) == 40


def test_all_workers_may_die_at_once():
    crew = FakeCrew(photo=lambda worker, key: "die" if worker in ("w1", "w2") else None)
    results, _ = mask(crew)
    assert (len(results), failures_in(results), crew.number) == (40, {}, 4)


def test_results_that_come_twice_count_once():
    crew = FakeCrew(photo=lambda worker, key: "twice")
    assert len(mask(crew)[0]) == 40


def test_an_unavailable_worker_is_asked_again_and_goes_on():
    crew = FakeCrew(photo=once("w1", "002", "unavailable"))
    results, dispatcher = mask(crew)
    assert len(results) == 40
    assert failures_in(results) == {}
    assert (crew.number, dispatcher.summary.lost_workers) == (2, 0)
    assert [worker for worker, _ in crew.begun].count("w1") == 2


def test_a_worker_that_cannot_be_reached_for_long_keeps_its_photos():
    """Until it is known to be dead; others go on meanwhile."""
    answers = iter([Unavailable("w1")] * 5)

    def hello(worker, chosen):
        asked = [name for name, _ in crew.begun].count(worker)
        answer = hello_of(worker, chosen or CHOICE)
        return next(answers, answer) if asked > 1 else answer

    crew = FakeCrew(photo=once("w1", "002", "unavailable"), hello=hello)
    results, dispatcher = mask(crew)
    assert (len(results), failures_in(results)) == (40, {})
    assert [worker for worker, _ in crew.begun].count("w1") == 7
    assert dispatcher.summary.lost_workers == 0


def test_an_unavailable_worker_that_is_dead_leaves_suspects():
    """Otherwise a photo that kills its workers would be handed out for ever."""

    def hello(worker, chosen):
        asked = [name for name, _ in crew.begun].count(worker)
        return Died(worker, "was killed") if asked > 1 else hello_of(worker, chosen or CHOICE)

    crew = FakeCrew(photo=lambda worker, key: "unavailable" if key == "002" else None, hello=hello)
    results, _ = mask(crew)
    assert len(results) == 40
    assert failures_in(results).keys() == {"002"}


def test_four_failed_starts_in_a_row_end_the_run_with_the_reason():
    crew = FakeCrew(start=lambda number: f"no module {number}")
    with pytest.raises(CarvanaBatchError, match=r"4 workers in a row could not be started; .* no module 4"):
        mask(crew)
    assert MOST_FAILED_STARTS == 4


def test_failed_starts_with_others_in_between_do_not():
    """Workers die after each photo; of those that are started then, three of four fail."""
    deaths = iter("die" if n % 4 == 0 else None for n in range(1000))
    crew = FakeCrew(
        photo=lambda worker, key: next(deaths), start=lambda n: "no" if n % 4 else None, wanted=lambda: 1
    )
    results, _ = mask(crew)
    assert len(results) == 40
    assert crew.number > 20


def test_failed_starts_after_a_death_end_the_run():
    crew = FakeCrew(
        photo=lambda worker, key: "die" if key > "010" else None, start=lambda n: "no" if n > 2 else None
    )
    with pytest.raises(CarvanaBatchError, match="4 workers in a row"):
        mask(crew)
    assert crew.closed


def test_if_all_photos_kill_their_workers_the_run_ends():
    crew = FakeCrew(photo=lambda worker, key: "die")
    with pytest.raises(CarvanaBatchError, match=f"{MOST_DEATHS_IN_A_ROW} workers in a row died without"):
        mask(crew)


def test_the_first_hello_may_be_that_of_the_second_worker():
    crew = FakeCrew(
        hello=lambda w, chosen: Died(w, "was killed") if w == "w1" else hello_of(w, chosen or CHOICE)
    )
    results, dispatcher = mask(crew)
    assert len(results) == 40
    assert "w1" not in dispatcher.summary.nodes


def test_an_error_of_a_worker_moves_its_photos_elsewhere():
    crew = FakeCrew(photo=lambda worker, key: CarvanaBatchError("no memory") if worker == "w1" else None)
    results, dispatcher = mask(crew)
    assert (len(results), failures_in(results)) == (40, {})
    assert dispatcher.account().warnings == ("A worker on w1 was not used: no memory",)


def test_a_full_disk_ends_the_run():
    crew = FakeCrew(photo=lambda worker, key: OutOfSpaceError("out/: the disk is full"))
    with pytest.raises(OutOfSpaceError):
        mask(crew)
    assert crew.closed


def test_a_worker_that_does_not_see_the_photos_is_refused(tmp_path):
    photos = PhotoList(ImageRef(f"{n}", tmp_path / f"{n}.jpg") for n in range(20))
    for ref in photos:
        ref.path.touch()
    crew = FakeCrew(photo=lambda worker, key: "unseen" if worker == "w1" else None)
    results, dispatcher = mask(crew, photos)
    assert (len(results), failures_in(results)) == (20, {})
    assert dispatcher.summary.nodes == {"w2": 20}
    assert "is not there: share IN under the same path on all machines" in dispatcher.account().warnings[0]


def test_photos_that_are_gone_fail_as_in_a_single_process(tmp_path):
    photos = PhotoList(ImageRef(f"bad{n}", tmp_path / f"{n}.jpg") for n in range(20))
    crew = FakeCrew(photo=lambda worker, key: "unseen")
    results, dispatcher = mask(crew, photos)
    assert len(failures_in(results)) == 20
    assert dispatcher.account().warnings == ()


def test_reduced_limits_are_written_down_and_bind_new_workers(monkeypatch):
    less = replace(CHOICE, batch=1)
    reduced = account(less, ("out of memory",))
    monkeypatch.setattr("test_engines_dispatch.account", lambda: reduced)
    crew, out = FakeCrew(photo=once("w1", "001")), FakeOut()
    _, dispatcher = mask(crew, out=out)
    assert set(out.choices) == {less}
    assert crew.begun[-1] == ("w3", less)
    assert dispatcher.account().choice == less


def test_the_account_adds_up_workers_also_dead_ones():
    results, dispatcher = mask(FakeCrew(photo=once("w1", "002")))
    assert len(results) == 40
    total = dispatcher.account()
    assert total.stages == {"decode": 3.0, "predict": 6.0, "write": 1.5}
    assert (total.decode_seconds, total.write_seconds, total.peak_memory) == (4.5, 0.75, 100)


def test_a_signal_ends_the_run_after_the_photos_in_flight():
    stop = StopFlag()

    def photo(_worker, key):
        if key == "008":
            stop.signal = 2

    crew = FakeCrew(photo=photo)
    results, _ = mask(crew, stop=stop)
    assert crew.stopped
    assert "008" in results
    assert sorted(results) == sorted(crew.masked)
    assert len(results) < 40


def test_a_signal_ends_waiting_for_workers():
    stop, lines = StopFlag(), []
    crew = FakeCrew(start=lambda number: "never")

    def say(line):
        lines.append((crew.now, line))
        stop.signal = 15

    assert mask(crew, stop=stop, on_wait=say)[0] == {}
    ((when, line),) = lines
    assert line == "Waiting for a worker, which needs 1 CPU."
    assert WAIT_SECONDS < when < WAIT_SECONDS + 2


def test_the_number_of_workers_follows_the_machines():
    asked = iter(range(10**6))
    crew = FakeCrew(wanted=lambda: 1 if next(asked) < 16 else 3)
    results, dispatcher = mask(crew, photos_of(1000))
    assert (len(results), crew.number) == (1000, 3)
    assert len(dispatcher.summary.nodes) == 3


def test_the_progress_names_machines_and_rates():
    crew = FakeCrew(wanted=lambda: 5)
    dispatcher = Dispatcher(crew, clock=lambda: crew.now)
    dispatcher.begin(JOB, FakeOut(), None, StopFlag())
    dispatcher.bind(CHOICE)
    lines = [dispatcher.describe_nodes() for _ in dispatcher.results(photos_of(100), StopFlag())]
    assert lines[-1].startswith("5 workers: w")
    assert lines[-1].endswith("/s, 2 more")
