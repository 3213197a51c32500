"""Find damage in HEIC and AVIF files that their decoders pass over without an error.

The boxes are described in ISO/IEC 14496-12 (section 8.11) and 23008-12, the data of HEIC in ISO/IEC 23008-2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from carvana_batch.decode.jpeg import BARE_LINE_FEED, FEWEST_LINE_ENDS, TEXT_MODE

ZEROED = "is damaged: a part of its picture data has been replaced by zeros"

CORRUPT = "is damaged: its picture data are corrupt"

ERASED = "is damaged: a part of its picture data has been erased"

ZEROS, ONES = bytes(256), b"\xff" * 256
"""So many zeros, or 0xFF, in a row are damage. Photos, also with white or black areas, have 26 at most."""

MOST_ZEROS_AT_END = 32
"""Of a part of HEIC data, which should have none there."""

FORBIDDEN = re.compile(rb"\x00\x00[\x00-\x02]")
"""What the data of a HEIC never contain: a 3 is inserted after two zeros."""


class Box(NamedTuple):
    """A box: its four letters, and where its content starts and ends in the file."""

    kind: bytes
    start: int
    end: int


class _Reader:
    """Reads big-endian numbers of 0 to 8 bytes, one after the other; the end reads as zeros."""

    def __init__(self, content: bytes, position: int) -> None:
        self._content, self._position = content, position

    def read(self, size: int) -> int:
        """Return the next number."""
        value = int.from_bytes(self._content[self._position : self._position + size])
        self._position += size
        return value


def find_heif_damage(file: BinaryIO) -> str | None:
    """Return why the picture of a HEIC or AVIF is damaged, or None.

    Thumbnails and auxiliary pictures are not checked, nor are files without a still picture.
    """
    content = file.read()
    outer = list(read_boxes(content, 0, len(content)))
    if outer and _is_text_mode(content, len(content) - outer[-1].end):
        return TEXT_MODE
    meta = next((box for box in outer if box.kind == b"meta"), None)
    if meta is None:
        return None
    boxes = {box.kind: box for box in read_boxes(content, meta.start + 4, meta.end)}
    if not {b"pitm", b"iinf", b"iloc"} <= boxes.keys():
        return None
    length_size = _length_size(content, boxes)
    kinds = _item_kinds(content, boxes[b"iinf"])
    picture = _items_of_picture(content, boxes)
    coded = {item for item in picture if kinds.get(item) in {b"hvc1", b"hev1", b"av01"}}
    for item, data in _item_data(content, boxes, coded):
        if ZEROS in data:
            return ZEROED
        if ONES in data:
            return ERASED
        damage = None if kinds[item] == b"av01" else _find_hevc_damage(data, length_size)
        if damage is not None:
            return damage
    return None


def read_boxes(content: bytes, start: int, end: int) -> Iterator[Box]:
    """Yield the boxes of a part of a file, up to the first that does not fit."""
    while start + 8 <= end:
        size, kind = int.from_bytes(content[start : start + 4]), content[start + 4 : start + 8]
        header = 8
        if size == 1:  # the size follows in 8 bytes
            size, header = int.from_bytes(content[start + 8 : start + 16]), 16
        elif size == 0:  # up to the end
            size = end - start
        if size < header or start + size > end:
            return
        yield Box(kind, start + header, start + size)
        start += size


def _is_text_mode(content: bytes, excess: int) -> bool:
    """Return whether a file has grown by so many bytes, a \\r before each \\n from some place on."""
    last_bare = max((match.end() for match in BARE_LINE_FEED.finditer(content)), default=0)
    return excess > 0 and content.count(b"\r\n", last_bare) >= max(FEWEST_LINE_ENDS, excess)


def _length_size(content: bytes, boxes: dict[bytes, Box]) -> int:
    """Return how many bytes the length of a part of HEVC data has."""
    if b"iprp" in boxes:
        for container in read_boxes(content, boxes[b"iprp"].start, boxes[b"iprp"].end):
            for box in read_boxes(content, container.start, container.end):
                if box.kind == b"hvcC":
                    return 1 + (content[box.start + 21] & 3)
    return 4


def _item_kinds(content: bytes, iinf: Box) -> dict[int, bytes]:
    """Return the four letters of each item."""
    kinds = {}
    header = 6 if content[iinf.start] == 0 else 8
    for box in read_boxes(content, iinf.start + header, iinf.end):
        wide = 2 if content[box.start] == 3 else 0
        number = int.from_bytes(content[box.start + 4 : box.start + 6 + wide])
        kinds[number] = content[box.start + 8 + wide : box.start + 12 + wide]
    return kinds


def _items_of_picture(content: bytes, boxes: dict[bytes, Box]) -> set[int]:
    """Return the primary item, and those from which it is derived, such as the tiles of a grid."""
    pitm = boxes[b"pitm"]
    items = {int.from_bytes(content[pitm.start + 4 : pitm.end])}
    iref = boxes.get(b"iref")
    if iref is None:
        return items
    size = 2 if content[iref.start] == 0 else 4
    for _ in range(3):  # a turned grid of tiles is derived twice
        for box in read_boxes(content, iref.start + 4, iref.end):
            reader = _Reader(content, box.start)
            if box.kind == b"dimg" and reader.read(size) in items:
                items.update(reader.read(size) for _ in range(reader.read(2)))
    return items


def _item_data(content: bytes, boxes: dict[bytes, Box], items: set[int]) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the data of each of the items that are stored in the file itself."""
    iloc = boxes[b"iloc"]
    version = content[iloc.start]
    reader = _Reader(content, iloc.start + 4)
    sizes, more = reader.read(1), reader.read(1)
    offset_size, length_size, base_size = sizes >> 4, sizes & 15, more >> 4
    index_size = more & 15 if version else 0
    wide = 4 if version == 2 else 2
    for _ in range(min(reader.read(wide), (iloc.end - iloc.start) // 6)):
        item = reader.read(wide)
        method = reader.read(2) & 15 if version else 0
        reader.read(2)
        base = reader.read(base_size)
        data = b""
        for _ in range(min(reader.read(2), (iloc.end - iloc.start) // 2)):
            reader.read(index_size)
            start, length = base + reader.read(offset_size), reader.read(length_size)
            if method == 1 and b"idat" in boxes:
                start += boxes[b"idat"].start
            if item in items and len(data) < len(content):  # extents that overlap must not fill memory
                data += content[start : start + length if length else len(content)]
        if item in items and method in {0, 1}:
            yield item, data


def _find_hevc_damage(data: bytes, length_size: int) -> str | None:
    """Return why HEVC data, parts that each have their length before them, are damaged, or None."""
    position = 0
    while position < len(data):
        start = position + length_size
        length = int.from_bytes(data[position:start])
        position = start + length
        if not length or position > len(data):
            return CORRUPT
        part = data[start:position]
        coded = part.rstrip(b"\0")
        if len(part) - len(coded) > MOST_ZEROS_AT_END:
            return ZEROED
        forbidden = FORBIDDEN.search(coded)
        if forbidden is not None:
            return ZEROED if forbidden[0] == bytes(3) else CORRUPT
    return None
