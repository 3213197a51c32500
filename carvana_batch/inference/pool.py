"""The photos of one stream between their arrival and their masks."""

from __future__ import annotations

from collections import deque

from carvana_batch.inference.canvas import Canvas, Window
from carvana_batch.inference.recovery import Recovery
from carvana_batch.inference.transfer import Download
from carvana_batch.values import Photo


class TilePool:
    """The photos of one stream, and their tiles that are waiting for a batch.

    Each stream has its own pool, so that a stream abandoned halfway does not leave its photos to the next.

    Attributes:
        waiting: photos that are not on the device yet.
        canvases: photos on the device, in the order of arrival.
        finished: photos whose packed masks are on their way to main memory.
        windows: windows waiting for a batch, by tile size (height, width).
        recovery: what has been reduced for the first photo because memory ran out.
    """

    def __init__(self) -> None:
        self.waiting: deque[Photo] = deque()
        self.canvases: list[Canvas] = []
        self.finished: deque[tuple[Photo, Download]] = deque()
        self.windows: dict[tuple[int, int], deque[Window]] = {}
        self.recovery = Recovery()

    @property
    def photo_pixels(self) -> int:
        """Number of pixels of all photos on the device."""
        return sum(canvas.pixels.shape[0] * canvas.pixels.shape[1] for canvas in self.canvases)

    @property
    def largest_tile(self) -> int:
        """Number of pixels of the largest tile that is waiting, 0 if none is."""
        return max((height * width for height, width in self.windows), default=0)

    def add(self, canvas: Canvas) -> None:
        """Add a photo that is on the device now, with all its windows."""
        self.canvases.append(canvas)
        size = canvas.plan.tile_height, canvas.plan.tile_width
        self.windows.setdefault(size, deque()).extend(canvas.windows())

    def next_batch(self, size: int, allow_partial: bool) -> list[Window]:
        """Up to ``size`` waiting windows of one tile size, none if too few; they stay in the pool."""
        enough = 1 if allow_partial else size
        for windows in self.windows.values():
            if len(windows) >= enough:
                return [windows[index] for index in range(min(size, len(windows)))]
        return []

    def remove_window(self, window: Window) -> None:
        """Remove a window, the first one of its tile size, after it was run."""
        size = window.canvas.plan.tile_height, window.canvas.plan.tile_width
        self.windows[size].popleft()
        if not self.windows[size]:
            del self.windows[size]

    def finish(self, canvas: Canvas, mask: Download) -> None:
        """Move a photo from the device to those whose masks are on their way."""
        self.finished.append((canvas.photo, mask))
        self.canvases.remove(canvas)
        canvas.total = None  # free its memory while the caller is busy with the mask

    def clear_device(self) -> None:
        """Take all unfinished photos off the device; they start again from the beginning."""
        self.waiting.extendleft(canvas.photo for canvas in reversed(self.canvases))
        self.canvases.clear()
        self.windows.clear()

    def start_again(self) -> None:
        """Let all photos start again, also those whose masks could not be read."""
        self.clear_device()
        self.waiting.extendleft(photo for photo, _ in reversed(self.finished))
        self.finished.clear()

    def reset_recovery(self) -> None:
        """Start anew after the first photo was masked or has failed."""
        self.recovery = Recovery()
