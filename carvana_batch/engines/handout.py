"""Which photos are given to which worker, and what becomes of those that a worker did not return.

This knows nothing of processes or machines: it is told what happened. What grows with the number of photos is
a byte for each.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.output.announced import LISTS_IN_FLIGHT

CALLS_IN_FLIGHT = LISTS_IN_FLIGHT
"""Calls that a worker is given at a time, so that it never waits for the next one."""

CHUNK_SECONDS = 30.0
"""Work of a call: long compared with the pause between two calls, short compared with what a death costs."""

FIRST_CHUNK = 4
"""Photos of a call to a worker whose pace is not known."""

SMALLEST_SECONDS = 3.0
"""Work of the last calls of a run, which are small so that no worker waits long for another."""

LARGEST_CHUNK = 2000

SUSPECTS = 8
"""Photos, from the first one that a dead worker did not return, that are run alone. More are hardly ever
worked on at a time; if it was another one, the next death comes closer to it."""

MOST_DEATHS_ALONE = 2
"""Workers that may die with a photo alone until it is given up; one may have died for another reason, such as
that memory was short. If its machine was lost, that counts half."""


@dataclass
class Call:
    """Photos that were given to a worker together.

    Attributes:
        number: unique.
        worker: its name.
        waiting: indexes by key of the photos that it has not returned, in the order of the work.
        size: number of photos at first.
        alone: whether the photo is a suspect.
        taken_back: whether the photos were given to others as well.
        began: when work on it can have begun, None while the call before it is not finished.
    """

    number: int
    worker: str
    waiting: dict[str, int]
    size: int
    alone: bool
    taken_back: bool = False
    began: float | None = None


class Handout:
    """Gives out photos until each of them is settled.

    Args:
        photos: all of them.
        clock: tells the time in seconds.

    Attributes:
        left: number of photos that are not settled.
    """

    def __init__(self, photos: PhotoList, clock: Callable[[], float] = time.monotonic) -> None:
        self.photos, self._clock = photos, clock
        self.left = len(photos)
        self._settled = bytearray(len(photos))
        self._next = 0
        self._again: deque[int] = deque()
        self._suspects: deque[int] = deque()
        self._deaths_alone: dict[int, float] = {}
        self._calls: dict[int, Call] = {}
        self._number = 0
        self._pace: dict[str, float] = {}

    def in_flight(self, worker: str | None = None) -> list[Call]:
        """The calls that have not ended, of a worker or of all, the earliest first."""
        return [call for call in self._calls.values() if worker in (None, call.worker)]

    def give(self, worker: str, workers: int) -> Call | None:
        """The next call for a ready worker; None if it has enough, or there is nothing to give.

        Args:
            worker: its name.
            workers: number of workers that are ready, or will be.
        """
        calls = self.in_flight(worker)
        if len(calls) >= CALLS_IN_FLIGHT or any(call.alone for call in calls):
            return None
        suspects = self._drop_settled(self._suspects)
        if suspects and calls:  # a suspect has to be alone
            return None
        alone = bool(suspects)
        indexes = [suspects.popleft()] if alone else list(self._take(self._size(worker, workers)))
        if not indexes:
            return None
        self._number += 1
        waiting = {self.photos[index].key: index for index in indexes}
        call = Call(self._number, worker, waiting, len(indexes), alone)
        call.began = None if calls else self._clock()
        self._calls[call.number] = call
        return call

    def settle(self, number: int, key: str) -> int | None:
        """Take note that a call has returned a photo.

        Returns:
            The index of the photo; None if another result of it came before.
        """
        call = self._calls.get(number)
        index = None if call is None else call.waiting.pop(key, None)
        if index is None or self._settled[index]:
            return None
        self._settle(index)
        return index

    def end(self, number: int, stopped: bool = False) -> list[int]:
        """Take note that a call has ended; what it did not return is treated as after a death.

        Args:
            number: of the call.
            stopped: whether workers were told to stop, so that nothing is suspected.

        Returns:
            The indexes of the photos that are settled by this, without a result.
        """
        call = self._calls.pop(number, None)
        if call is None:
            return []
        now = self._clock()
        if call.began is not None and not call.waiting:
            self._pace[call.worker] = (now - call.began) / call.size
        for following in self.in_flight(call.worker)[:1]:
            following.began = now
        return [] if call.taken_back or stopped else self._lose(call, node_lost=False)

    def lose_worker(self, worker: str, node_lost: bool) -> list[int]:
        """Take note that a worker has died.

        The first photos that it has not returned are suspects, and are run alone. A photo that was alone with
        ``MOST_DEATHS_ALONE`` of such workers is settled.

        Returns:
            The indexes of the photos that are settled by this, without a result.
        """
        calls = [call for call in self.in_flight(worker) if not call.taken_back]
        self._forget(worker)
        given_up: list[int] = []
        working = next((call for call in calls if call.waiting), None)
        for call in reversed(calls):
            if call is working:
                given_up = self._lose(call, node_lost)
            else:
                self._give_again(list(call.waiting.values()))
        return given_up

    def take_back(self, worker: str) -> None:
        """Give the photos of a worker to others, although it may still return them."""
        for call in reversed(self.in_flight(worker)):
            if not call.taken_back:
                call.taken_back = True
                self._return(call)

    def give_again(self, number: int, key: str) -> int | None:
        """Take note that a call will not return a photo, which is given again.

        Returns:
            The index of the photo; None if it is settled, or was given again already.
        """
        call = self._calls.get(number)
        index = None if call is None else call.waiting.pop(key, None)
        if call is None or index is None or self._settled[index] or call.taken_back:
            return None
        self._again.appendleft(index)
        return index

    def drop(self, worker: str) -> None:
        """Forget a worker without blame; its photos are given again."""
        self.take_back(worker)
        self._forget(worker)

    def _forget(self, worker: str) -> None:
        for call in self.in_flight(worker):
            del self._calls[call.number]
        self._pace.pop(worker, None)

    def _return(self, call: Call) -> None:
        indexes = list(call.waiting.values())
        if call.alone:
            self._suspects.extendleft(reversed(indexes))
        else:
            self._give_again(indexes)

    def _give_again(self, indexes: list[int]) -> None:
        self._again.extendleft(reversed(indexes))

    def _lose(self, call: Call, node_lost: bool) -> list[int]:
        """Suspect the first photos of a call that it has not returned; see :meth:`lose_worker`."""
        indexes = [index for index in call.waiting.values() if not self._settled[index]]
        if not call.alone:
            for index in indexes[:SUSPECTS]:
                self._deaths_alone.setdefault(index, 0)
                self._suspects.append(index)
            self._give_again(indexes[SUSPECTS:])
            return []
        given_up = []
        for index in indexes:
            self._deaths_alone[index] += 0.5 if node_lost else 1
            if self._deaths_alone[index] < MOST_DEATHS_ALONE:
                self._suspects.append(index)
            else:
                self._settle(index)
                given_up.append(index)
        return given_up

    def _settle(self, index: int) -> None:
        self._settled[index] = True
        self._deaths_alone.pop(index, None)
        self.left -= 1

    def _drop_settled(self, indexes: deque[int]) -> deque[int]:
        while indexes and self._settled[indexes[0]]:
            indexes.popleft()
        return indexes

    def _take(self, count: int) -> Iterator[int]:
        """The next indexes, those first that are given again."""
        while count and (self._drop_settled(self._again) or self._next < len(self.photos)):
            if self._again:
                yield self._again.popleft()
            else:
                self._next += 1
                yield self._next - 1
            count -= 1

    def _size(self, worker: str, workers: int) -> int:
        """Photos of the next call: about ``CHUNK_SECONDS`` of work, less at the end, when others wait."""
        if worker not in self._pace:
            return FIRST_CHUNK
        not_given = len(self._again) + len(self.photos) - self._next
        share = math.ceil(not_given / (CALLS_IN_FLIGHT * workers)) if workers > 1 else not_given
        pace = max(self._pace[worker], CHUNK_SECONDS / LARGEST_CHUNK)
        return max(1, min(int(CHUNK_SECONDS / pace), max(share, int(SMALLEST_SECONDS / pace))))
