"""Decode JPEG data with libjpeg-turbo, and find damage that decoders pass over without an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from carvana_batch.decode.jpeg_markers import (
    END,
    END_OF_IMAGE,
    HUFFMAN_TABLES,
    PROGRESSIVE,
    SCAN,
    SEQUENTIAL,
    START_OF_FRAME,
    START_OF_IMAGE,
    Scan,
    Segment,
    has_end,
    read_huffman_tables,
    read_scan,
    read_segments,
)
from carvana_batch.decode.pixels import CUT_SHORT

TEXT_MODE = "is damaged: each \\n in it has become \\r\\n, as in a transfer in text mode"

BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")

FEWEST_LINE_ENDS = 8
"""Fewer may be by chance."""

COLORSPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""Names that libjpeg-turbo has for modes of Pillow; its CMYK is inverted."""

COMPONENTS = {1: "GRAY", 3: "RGB", 4: "CMYK"}
"""Colour spaces by the number of components."""

ZEROS = bytes(256)
"""So many zeros in a row are damage, unless they are the code of a flat area.

Disks lose sectors of 512 bytes. Photos have up to 56 zeros in a row.
"""

MOST_CODED_ZEROS = 32
"""Zero bytes that data may end with, besides padding."""

USEFUL_METADATA = {0xE1: (b"Exif\0\0", 14), 0xEE: (b"Adobe", 12)}
"""Metadata that :func:`without_odd_metadata` keeps, by marker: how they begin, and their least length."""

PADDING = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


def decode_jpeg(
    content: bytes, mode: str, room: NDArray[np.uint8] | None, on_damage: Callable[[str], None]
) -> NDArray[np.uint8] | None:
    """Decode a JPEG.

    Args:
        content: of the file.
        mode: Pillow's mode of the image.
        room: memory for the pixels; it may be overwritten, and the result may be a view of it.
        on_damage: called with the reason if the data are damaged; it may raise.

    Returns:
        (H, W, C) uint8 of a colour space of ``COLORSPACES``, or None if libjpeg-turbo cannot decode it.
    """
    colorspace = COLORSPACES.get(mode)
    pixels = None
    if colorspace is not None:
        try:
            pixels = simplejpeg.decode_jpeg(content, colorspace=colorspace, strict=True, buffer=room)
        except (RuntimeError, ValueError):  # also for harmless oddities
            pixels = None
    damage = find_damage(content, is_clean=pixels is not None, room=room)
    if damage is not None:
        on_damage(damage)
    if pixels is None and colorspace is not None:
        try:
            pixels = simplejpeg.decode_jpeg(content, colorspace=colorspace, strict=False, buffer=room)
        except (RuntimeError, ValueError):
            pixels = None
    if pixels is None and not has_end(content):  # Pillow notices most missing ends, but not all
        on_damage(CUT_SHORT)
    return pixels


def find_damage(
    content: bytes, *, is_clean: bool = False, room: NDArray[np.uint8] | None = None
) -> str | None:
    """Return why the picture data of a JPEG are damaged, or None if no damage is found.

    Odd metadata, bytes between segments, padding, and anything after the end are not damage, and neither is a
    missing end marker after a whole picture.

    Args:
        content: the JPEG.
        is_clean: whether libjpeg-turbo has decoded it without a warning.
        room: memory for the pixels, which is overwritten if it has not.
    """
    segments = list(read_segments(content))
    if not is_clean:
        warning = _find_warning(segments, room)
        if warning is not None:
            if segments[-1].marker != END:
                return CUT_SHORT
            if is_text_mode(content):
                return TEXT_MODE
            return f"is damaged: its picture data are corrupt or incomplete ({warning})"
        if segments[-1].marker == END:  # zeros before it are padding that was not decoded
            segments = [segment._replace(rest=segment.rest.rstrip(b"\0")) for segment in segments]
    gaps = _find_gaps(segments)
    return CUT_SHORT if gaps is not None and segments[-1].marker != END else gaps


def is_text_mode(content: bytes) -> bool:
    """Return whether all line feeds of compressed data follow a carriage return, and there are enough."""
    return BARE_LINE_FEED.search(content) is None and content.count(b"\r\n") >= FEWEST_LINE_ENDS


def _find_warning(segments: list[Segment], room: NDArray[np.uint8] | None) -> str | None:
    """Return what libjpeg-turbo warns about in the picture data alone."""
    components = next((s.body[5] for s in segments if s.marker in START_OF_FRAME and len(s.body) > 5), 0)
    colorspace = COMPONENTS.get(components)
    if colorspace is None:
        return None
    content = _without_metadata(segments)
    warning = _decoding_warning(content, colorspace, room)
    padding = PADDING.search(warning or "")
    if padding is not None:
        number = int(padding[1])
        data = content.removesuffix(END_OF_IMAGE)
        last = data[-1:]
        coded = len(data) - len(data.rstrip(last)) - number
        if 0 <= coded <= MOST_CODED_ZEROS:
            return _decoding_warning(data[:-number] + END_OF_IMAGE, colorspace, room)
    return warning


def without_odd_metadata(content: bytes) -> bytes:
    """Return a JPEG without metadata other than its orientation and colour model.

    Pillow gives up when other metadata are cut short.
    """
    return _without_metadata(read_segments(content), USEFUL_METADATA)


def _without_metadata(
    segments: Iterable[Segment], useful: dict[int, tuple[bytes, int]] | None = None
) -> bytes:
    """Join the segments that concern the picture, and useful metadata as in ``USEFUL_METADATA``.

    Only the last of several warnings is known, and it must not be one about metadata.
    """
    parts = [START_OF_IMAGE]
    sequential = False
    for marker, body, rest in segments:
        name, shortest = (useful or {}).get(marker, (b"", 0))
        is_useful = bool(name) and body.startswith(name) and len(body) >= shortest
        if (marker >= 0xE0 and not is_useful) or marker == END:  # metadata and comments
            continue
        if marker in START_OF_FRAME:
            sequential = marker in SEQUENTIAL
        if marker == SCAN and sequential:  # these values are not used there, and some programs set others
            body = body[:-3] + b"\0\x3f\0"
        parts += [bytes([0xFF, marker]), (len(body) + 2).to_bytes(2), body]
        if marker == SCAN:
            parts.append(rest)
    return b"".join([*parts, END_OF_IMAGE])


def _decoding_warning(content: bytes, colorspace: str, room: NDArray[np.uint8] | None) -> str | None:
    try:
        simplejpeg.decode_jpeg(content, colorspace=colorspace, strict=True, buffer=room)
    except (RuntimeError, ValueError) as error:
        # If it cannot decode them at all, Pillow may, or says why not.
        try:
            simplejpeg.decode_jpeg(content, colorspace=colorspace, strict=False, buffer=room)
        except (RuntimeError, ValueError):
            return None
        return " ".join(str(error).removeprefix("Corrupt JPEG data: ").split())
    return None


def _find_gaps(segments: list[Segment]) -> str | None:
    """Return which part of the data is missing or zero, according to the headers of its scans."""
    frame, tables = 0, dict[tuple[int, int], int]()
    missing: dict[int, list[int]] = {}
    for marker, body, rest in segments:
        if marker == HUFFMAN_TABLES:
            tables |= read_huffman_tables(body)
        elif marker in START_OF_FRAME:
            frame = marker
            missing = {id_: [1] * 64 for id_ in body[6::3]}
        elif marker == SCAN and (scan := read_scan(body)) is not None:
            for id_, _, _ in scan.components:
                if frame == PROGRESSIVE and id_ in missing:
                    missing[id_][scan.first : scan.last + 1] = [scan.low] * (scan.last + 1 - scan.first)
                else:
                    missing.pop(id_, None)
            if ZEROS in rest and not _zeros_are_flat(frame, scan, tables):
                return "is damaged: a part of its picture data has been replaced by zeros"
    if any(any(low) for low in missing.values()):
        return "is damaged: the last part of its picture data is missing"
    return None


def _zeros_are_flat(frame: int, scan: Scan, tables: dict[tuple[int, int], int]) -> bool:
    """Return whether zeros in a scan may stand for an area of one colour.

    With Huffman tables made for the photo, the shortest code, which is all zeros, may mean "as before". In
    the usual tables, it never means so for all components.
    """
    if frame != PROGRESSIVE and frame not in SEQUENTIAL:
        return True
    if frame == PROGRESSIVE and scan.high > 0:  # single bits of coefficients
        return True
    for _, dc, ac in scan.components:
        if scan.first == 0 and tables.get((0, dc), 0) != 0:
            return False
        symbol = tables.get((1, ac), 0)
        if scan.last > 0 and (symbol & 15 != 0 or symbol == 0xF0):
            return False
    return True
