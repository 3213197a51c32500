"""The photos between arrival and mask, and their tiles that wait for a batch."""

from __future__ import annotations

from collections import deque

from carvana_batch.inference.canvas import Canvas
from carvana_batch.inference.tiles import Tiling
from carvana_batch.inference.transfer import Download
from carvana_batch.values import Photo


class _Queue:
    """The photos of one stream between arrival and mask.

    Each stream has its own, so that one left halfway does not leave its photos to the next.

    Attributes:
        waiting: photos that are not on the device yet.
        canvases: those that are, in the order in which they came.
        unread: photos that are done there, with their packed masks on the way into main memory.
        pools: their windows (canvas, top, left) that wait for a batch, by (height, width).
        limit: most pixels of a tile of the first photo, if memory ran out for it.
        last_try: whether memory ran out for the first photo in the smallest tiles.
        before: batch, tiling and number of warnings before anything gave way for the first photo.
    """

    def __init__(self, photo: Photo | None = None) -> None:
        self.waiting = deque([] if photo is None else [photo])
        self.canvases: list[Canvas] = []
        self.unread: deque[tuple[Photo, Download]] = deque()
        self.pools: dict[tuple[int, int], deque[tuple[Canvas, int, int]]] = {}
        self.forget_troubles()

    def forget_troubles(self) -> None:
        self.limit: int | None = None
        self.last_try = False
        self.before: tuple[int, Tiling, int] | None = None

    @property
    def is_in_trouble(self) -> bool:
        """Whether memory ran out for the first photo, and it has not been masked since."""
        return self.limit is not None or self.last_try or self.before is not None

    @property
    def photo_pixels(self) -> int:
        """Pixels of the photos on the device."""
        return sum(canvas.pixels.shape[0] * canvas.pixels.shape[1] for canvas in self.canvases)

    def add(self, canvas: Canvas) -> None:
        self.canvases.append(canvas)
        pool = self.pools.setdefault((canvas.plan.tile_height, canvas.plan.tile_width), deque())
        pool.extend((canvas, top, left) for top, left in canvas.plan.windows())

    def remove(self, canvas: Canvas) -> None:
        self.canvases.remove(canvas)
        canvas.total = None  # not to be kept while the caller is busy with the mask

    def clear_device(self) -> None:
        """Photos that are not done begin again."""
        self.waiting.extendleft(canvas.photo for canvas in reversed(self.canvases))
        self.canvases.clear()
        self.pools.clear()

    def start_again(self) -> None:
        """All photos begin again, also those whose masks could not be read."""
        self.clear_device()
        self.waiting.extendleft(photo for photo, _ in reversed(self.unread))
        self.unread.clear()
