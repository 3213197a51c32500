import tracemalloc

import numpy as np
import pytest

from carvana_batch.engines.handout import (
    CHUNK_SECONDS,
    FIRST_CHUNK,
    MOST_DEATHS_ALONE,
    SMALLEST_SECONDS,
    SUSPECTS,
    Handout,
)
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.values import ImageRef


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(clock):
    return lambda count: Handout(
        PhotoList(ImageRef(f"{n:04}", f"in/{n:04}.jpg") for n in range(count)), clock
    )


def give(handout, worker="a", workers=1):
    """The next call and the keys of its photos."""
    call = handout.give(worker, workers)
    return call.number, list(call.waiting)


def do_all(handout, number):
    call = next(call for call in handout.in_flight() if call.number == number)
    keys = list(call.waiting)
    assert all(handout.settle(number, key) is not None for key in keys)
    assert handout.end(number) == []
    return keys


def test_every_photo_is_given_once_and_in_order(make):
    handout, keys = make(10), []
    while (call := handout.give("a", 1)) is not None:
        keys += do_all(handout, call.number)
    assert keys == [f"{n:04}" for n in range(10)]
    assert (handout.left, handout.in_flight()) == (0, [])


def test_two_calls_are_in_flight_for_each_worker(make):
    handout = make(100)
    for worker in "ab":
        assert [handout.give(worker, 2) is None for _ in range(3)] == [False, False, True]
    do_all(handout, handout.in_flight("a")[0].number)
    assert handout.give("a", 2) is not None
    assert handout.give("b", 2) is None


def test_calls_take_about_the_same_time(make, clock):
    handout = make(100_000)
    first, keys = give(handout)
    assert len(keys) == FIRST_CHUNK
    clock.now = FIRST_CHUNK / 5  # five photos a second
    do_all(handout, first)
    assert len(give(handout)[1]) == pytest.approx(5 * CHUNK_SECONDS, abs=1)


def test_the_last_calls_are_small_so_that_no_worker_waits_for_another(make, clock):
    handout, sizes = make(400), []
    while handout.left:
        for worker in "ab":
            if (call := handout.give(worker, 2)) is not None:
                clock.now += 0.5 * call.size
                sizes.append(call.size)
                do_all(handout, call.number)
    assert sum(sizes) == 400
    assert max(sizes) == CHUNK_SECONDS / 0.5
    assert sizes[-1] <= SMALLEST_SECONDS / 0.5


def test_a_result_counts_once(make):
    handout = make(4)
    number, keys = give(handout)
    handout.take_back("a")
    again, same = give(handout, "b")
    assert same == keys
    assert handout.settle(again, "0002") == 2
    assert [handout.settle(number, key) for key in ("0002", "0001", "0001", "other")] == [None, 1, None, None]
    assert handout.left == 2


def test_the_first_photos_that_a_dead_worker_did_not_return_run_alone(make, clock):
    handout = make(400)
    first, _ = give(handout)
    clock.now += 1
    do_all(handout, first)
    number, keys = give(handout)
    _, later = give(handout)
    handout.settle(number, keys[0])
    assert handout.lose_worker("a", node_lost=False) == []
    alone = []
    while len(alone) < min(SUSPECTS, len(keys) - 1):
        call = handout.give("b", 1)
        assert (call.alone, call.size) == (True, 1)
        assert handout.give("b", 1) is None, "nothing runs beside it"
        alone += do_all(handout, call.number)
    assert alone == keys[1 : 1 + SUSPECTS]
    rest = []
    while (call := handout.give("b", 1)) is not None:
        assert not call.alone
        rest += do_all(handout, call.number)
    assert rest == keys[1 + SUSPECTS :] + later + rest[len(keys[1 + SUSPECTS :]) + len(later) :]
    assert handout.left == 0


def test_suspects_wait_for_an_idle_worker(make):
    handout = make(100)
    give(handout, "a")
    busy, _ = give(handout, "b", 2)
    handout.lose_worker("a", node_lost=False)
    assert handout.give("b", 1) is None
    do_all(handout, busy)
    assert handout.give("b", 1).alone


def test_a_second_death_alone_is_a_failure(make):
    handout = make(3)
    give(handout)
    handout.lose_worker("a", node_lost=False)
    given_up, runs = [], []
    while not given_up:
        runs += give(handout, "b")[1]
        given_up = handout.lose_worker("b", node_lost=False)
    assert given_up == [0]
    assert runs == ["0000", "0001", "0002", "0000"]
    assert (runs.count("0000"), handout.left) == (MOST_DEATHS_ALONE, 2)


def test_an_innocent_suspect_survives_the_death_of_its_next_worker(make):
    handout = make(1)
    give(handout)
    for worker in "ab":
        assert handout.lose_worker(worker, node_lost=False) == []
        number, _ = give(handout, "b")
    do_all(handout, number)


def test_a_photo_is_not_blamed_for_the_loss_of_a_machine(make):
    handout = make(1)
    give(handout)
    handout.lose_worker("a", node_lost=True)
    for _ in range(2 * MOST_DEATHS_ALONE - 1):
        assert give(handout, "b")[1] == ["0000"]
        assert handout.lose_worker("b", node_lost=True) == []
    give(handout, "b")
    assert handout.lose_worker("b", node_lost=True) == [0], "but it is not tried for ever"


def test_a_call_that_returns_too_little_is_like_a_death(make):
    handout = make(2)
    number, keys = give(handout)
    handout.settle(number, keys[0])
    assert handout.end(number) == []
    for settled in ([], [1]):
        alone, keys = give(handout)
        assert keys == ["0001"]
        assert handout.end(alone) == settled
    assert handout.left == 0


def test_a_call_that_was_stopped_leaves_no_suspects(make):
    handout = make(2)
    number, keys = give(handout)
    handout.settle(number, keys[0])
    assert handout.end(number, stopped=True) == []
    assert (handout.left, handout.in_flight(), handout.give("a", 1)) == (1, [], None)


def test_a_photo_that_a_worker_does_not_see_is_given_again(make):
    handout = make(2)
    number, _ = give(handout)
    assert handout.give_again(number, "0000") == 0
    handout.settle(number, "0001")
    assert handout.end(number) == []
    assert give(handout, "b")[1] == ["0000"]


def test_a_million_photos_take_a_byte_each(clock):
    photos = PhotoList([ImageRef("a", "in/a.jpg")]).select(np.zeros(10**6, np.int64))
    tracemalloc.start()
    try:
        handout = Handout(photos, clock)
        for _ in range(1000):
            handout.end(handout.give("a", 1).number)
            handout.take_back("a")
        assert tracemalloc.get_traced_memory()[1] < 1.5e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("seed", range(20))
def test_every_photo_is_settled_whatever_happens(make, clock, seed):
    """Workers die, photos kill their workers, results come twice; each photo gets one result all the same."""
    chance = np.random.default_rng(seed)
    handout, settled, poisonous = make(200), [], set(chance.choice(200, 3, replace=False).tolist())
    names, workers = iter(range(10**6)), ["first"]
    for _ in range(10_000):
        if not handout.left:
            break
        clock.now += 0.1
        worker = workers[chance.integers(len(workers))]
        handout.give(worker, len(workers))
        calls = handout.in_flight(worker)
        match chance.integers(20):
            case 0:
                workers.append(f"new {next(names)}")
            case 1 if len(workers) > 1:
                settled += handout.lose_worker(worker, node_lost=bool(chance.integers(2)))
                workers.remove(worker)
            case 2:
                handout.take_back(worker)
            case _ if calls:
                call = calls[0]
                keys = list(call.waiting)[:3]
                for key in keys:
                    if int(key) in poisonous:
                        settled += handout.lose_worker(worker, node_lost=False)
                        workers[workers.index(worker)] = f"new {next(names)}"
                        break
                    index = handout.settle(call.number, key)
                    settled += [] if index is None else [index]
                else:
                    if not call.waiting:
                        settled += handout.end(call.number)
    assert handout.left == 0
    assert sorted(settled) == list(range(200))
