"""Parse the markers of a JPEG: its size according to the header, its scans, and whether it has an end."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""Markers with a segment after them, and the end marker.

Entropy-coded data never contains these: there, \\xff is always followed by zero or by a restart marker.
"""

START_OF_IMAGE, END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"

END, HUFFMAN_TABLES, SCAN = 0xD9, 0xC4, 0xDA
"""The last byte of the markers of the end, of Huffman tables, and of a scan."""

START_OF_FRAME = {*range(0xC0, 0xD0)} - {HUFFMAN_TABLES, 0xC8, 0xCC}
"""The markers whose segment contains the size of the image."""

JPEG_LS = 0xF7
"""The marker of the size of a JPEG-LS."""

SEQUENTIAL, PROGRESSIVE = {0xC0, 0xC1}, 0xC2
"""Frames with Huffman codes."""


class Segment(NamedTuple):
    """A marker and what follows it.

    Attributes:
        marker: its last byte.
        body: content of the segment, without marker and length.
        rest: what stands between the segment and the next marker; in a scan, the entropy-coded data.
    """

    marker: int
    body: bytes
    rest: bytes


class Scan(NamedTuple):
    """The header of a scan.

    Attributes:
        components: of each component, its id and the numbers of its two Huffman tables.
        first: of the coefficients in the scan, 0 to 63.
        last: of the coefficients.
        high: bit position where earlier scans of the coefficients have ended; 0 if there were none.
        low: bit position of the coefficients in this scan; 0 in the last scan of a coefficient.
    """

    components: tuple[tuple[int, int, int], ...]
    first: int
    last: int
    high: int
    low: int


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Return the (width, height) in the header of a JPEG, in pixels, or None if there is none."""
    for segment in read_segments(content):
        if segment.marker in START_OF_FRAME and len(segment.body) >= 5:
            height, width = struct.unpack_from(">HH", segment.body, 1)
            return width, height
    return None


def unread_jpeg(content: bytes) -> str | None:
    """Return what to call a JPEG of a kind that libjpeg-turbo and Pillow do not read, or None."""
    for segment in read_segments(content):
        if segment.marker == JPEG_LS:
            return "a JPEG-LS"
        if segment.marker in START_OF_FRAME and segment.body:
            return None if segment.body[0] == 8 else f"a JPEG of {segment.body[0]} bits"
    return None


def has_end(content: bytes) -> bool:
    """Return whether a JPEG contains its end marker; anything may follow it."""
    return any(segment.marker == END for segment in read_segments(content))


def read_segments(content: bytes) -> Iterator[Segment]:
    """Yield each segment up to the end of the image."""
    match = MARKER.search(content)
    while match is not None:
        marker, start = content[match.end() - 1], match.end()
        if marker == END:
            yield Segment(marker, b"", b"")
            return
        # Skip the segment, because its bytes may look like markers.
        end = start + int.from_bytes(content[start : start + 2])
        match = MARKER.search(content, end)
        next_marker = len(content) if match is None else match.start()
        yield Segment(marker, content[start + 2 : end], content[end:next_marker])


def read_scan(body: bytes) -> Scan | None:
    """Return the header of a scan from the body of its segment; None if it is damaged."""
    count = body[0] if body else 0
    if not 1 <= count <= 4 or len(body) != 2 * count + 4:
        return None
    components = zip(body[1 : 1 + 2 * count : 2], body[2 : 2 + 2 * count : 2], strict=True)
    first, last, bits = body[-3:]
    if last > 63:
        return None
    return Scan(
        tuple((id_, byte >> 4, byte & 15) for id_, byte in components), first, last, bits >> 4, bits & 15
    )


def read_huffman_tables(body: bytes) -> dict[tuple[int, int], int]:
    """Return what the code of zeros stands for in each Huffman table of a segment.

    Returns:
        (class, number) of the table -> symbol; the class is 0 for DC and 1 for AC coefficients.
    """
    symbols, offset = {}, 0
    while offset + 17 < len(body):
        kind = body[offset]
        symbols[kind >> 4, kind & 15] = body[offset + 17]  # symbols are in the order of their codes
        offset += 17 + sum(body[offset + 1 : offset + 17])
    return symbols
