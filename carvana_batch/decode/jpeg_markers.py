"""Parse the markers of a JPEG: its size according to the header, and whether its end is present."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""Markers with a segment after them, and the end marker.

Entropy-coded data never contains these: there, \\xff is always followed by zero or by a restart marker.
"""

END_OF_IMAGE = 0xD9

START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""The markers whose segment contains the size of the image."""


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Return the (width, height) in the header of a JPEG, in pixels, or None if there is none."""
    for marker, offset in _find_markers(content):
        if marker in START_OF_FRAME and offset + 7 <= len(content):
            height, width = struct.unpack_from(">HH", content, offset + 3)
            return width, height
    return None


def has_end(content: bytes) -> bool:
    """Return whether a JPEG contains its end marker; anything may follow it."""
    return any(marker == END_OF_IMAGE for marker, _ in _find_markers(content))


def _find_markers(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield each marker up to the end of the image, with the offset of the byte after it."""
    marker = offset = 0
    while marker != END_OF_IMAGE and (match := MARKER.search(content, offset)):
        marker, offset = content[match.end() - 1], match.end()
        yield marker, offset
        # Skip the segment, because its bytes may look like markers.
        offset += int.from_bytes(content[offset : offset + 2])
