"""The markers of a JPEG: how large it says that it is, and whether its end is there."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""All but those that stand alone. In the coded picture, such a one or a zero stands behind each \\xff."""

END = 0xD9

SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""The markers that size and kind of the picture follow."""


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height that the header says, None if it does not."""
    for marker, position in _find_markers(content):
        if marker in SIZES and position + 7 <= len(content):
            height, width = struct.unpack_from(">HH", content, position + 3)
            return width, height
    return None


def has_end(content: bytes) -> bool:
    """Whether a JPEG goes on to the marker at its end, whatever may follow."""
    return any(marker == END for marker, _ in _find_markers(content))


def _find_markers(content: bytes) -> Iterator[tuple[int, int]]:
    """Each marker with the position behind it, as far as the end of the picture."""
    marker = position = 0
    while marker != END and (match := MARKER.search(content, position)):
        marker, position = content[match.end() - 1], match.end()
        yield marker, position
        position += int.from_bytes(content[position : position + 2])  # may look like markers
