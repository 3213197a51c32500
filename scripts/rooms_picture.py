#!/usr/bin/env python
"""Draw docs/rooms.svg: which room of the package imports which, by the table in tests/test_rooms.py.

scripts/write_reference

What a room is for is read from CONTRIBUTING.md. Arrows that follow from others are left out, and so is the
ground floor, which all rooms may import. A test fails if the file shows anything else.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import mean

CHECKOUT = Path(__file__).parent.parent

sys.path.append(str(CHECKOUT / "tests"))
from test_rooms import GROUND_FLOOR, ROOMS  # noqa: E402

TARGET = CHECKOUT / "docs" / "rooms.svg"

WIDTH = 960
"""Of the picture, in pixels, as all that follows."""

BOX = 190, 44

FLOOR = 84
"""Distance of two floors."""

GAP = 16

LINE = 31
"""Most characters in a line of a box."""

Point = str | tuple[str, str, int]
"""A room; or where an arrow from one to another passes a floor."""


def main() -> None:
    TARGET.write_text(draw_rooms(), encoding="utf-8")
    print(TARGET)


def draw_rooms() -> str:
    """The picture as SVG."""
    rooms = {room: set(below) - GROUND_FLOOR for room, below in ROOMS.items() if room not in GROUND_FLOOR}
    arrows = find_needed(rooms)
    depths = find_depths(arrows)
    ways: list[list[Point]] = [
        [upper, *((upper, lower, floor) for floor in range(depths[upper] + 1, depths[lower])), lower]
        for upper in arrows
        for lower in sorted(arrows[upper])
    ]
    places = place(depths, ways)
    purposes = read_purposes((CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    ground = (max(depths.values()) + 1) * FLOOR + GAP
    lines = [draw_way([places[point] for point in way]) for way in ways]
    boxes = [draw_box(room, purposes.get(room, ""), places[room]) for room in arrows]
    modules = ", ".join(sorted(GROUND_FLOOR))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ground + BOX[1] + GAP}"'
            ' font-family="sans-serif" font-size="11">',
            '<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7"'
            ' orient="auto"><path d="M0 0 8 4 0 8z" fill="#69757c"/></marker>',
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *lines,
            *boxes,
            f'<rect x="{GAP}" y="{ground}" width="{WIDTH - 2 * GAP}" height="{BOX[1]}" rx="5"'
            ' fill="#eef0f1" stroke="#69757c"/>',
            write(WIDTH // 2, ground + 18, "the ground floor, which all rooms may import", bold=True),
            write(WIDTH // 2, ground + 35, modules),
            "</svg>\n",
        ]
    )


def find_needed(rooms: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that do not follow from others."""

    @cache
    def reach(room: str) -> frozenset[str]:
        return frozenset(rooms[room]).union(*map(reach, rooms[room]))

    return {
        room: {lower for lower in below if not any(lower in reach(other) for other in below - {lower})}
        for room, below in rooms.items()
    }


def find_depths(arrows: Mapping[str, set[str]]) -> dict[str, int]:
    """The floor of each room, counted from the top: the one below the lowest room that needs it."""
    users = {room: [upper for upper, below in arrows.items() if room in below] for room in arrows}

    @cache
    def depth(room: str) -> int:
        return 1 + max(map(depth, users[room]), default=-1)

    return {room: depth(room) for room in arrows}


def place(depths: Mapping[str, int], ways: Sequence[Sequence[Point]]) -> dict[Point, tuple[int, int]]:
    """Centre and top of each point: as near below those above it as its neighbours on the floor allow."""
    above: dict[Point, list[Point]] = {}
    for way in ways:
        for upper, lower in pairwise(way):
            above.setdefault(lower, []).append(upper)
    floors: dict[int, list[Point]] = {}
    for point in {*depths, *above}:
        floors.setdefault(depths[point] if isinstance(point, str) else point[2], []).append(point)
    places: dict[Point, tuple[int, int]] = {}
    for floor, row in sorted(floors.items()):
        wanted = {
            point: mean(places[upper][0] for upper in above[point]) if point in above else WIDTH / 2
            for point in row
        }
        row.sort(key=lambda point: (wanted[point], str(point)))
        halves = [BOX[0] / 2 if isinstance(point, str) else 0 for point in row]
        centres = push_apart([wanted[point] for point in row], halves)
        shift = mean(wanted[point] - centre for point, centre in zip(row, centres, strict=True))
        # Back into the picture: from the right, then from the left.
        mirrored = push_apart([WIDTH - centre - shift for centre in centres[::-1]], halves[::-1])
        centres = push_apart([WIDTH - centre for centre in mirrored[::-1]], halves)
        for point, centre in zip(row, centres, strict=True):
            places[point] = (round(centre), GAP + floor * FLOOR)
    return places


def push_apart(centres: Sequence[float], halves: Sequence[float]) -> list[float]:
    """Move boxes to the right until none overlaps the one before it, or the margin; ``halves``: of widths."""
    pushed, right = [], 0.0
    for centre, half in zip(centres, halves, strict=True):
        pushed.append(max(centre, right + GAP + half))
        right = pushed[-1] + half
    return pushed


def read_purposes(text: str) -> dict[str, str]:
    """What each room is for: the text beside its name, up to the first mark."""
    pairs = re.findall(r"^    ([a-z]+)(?:/|\.py) +([^,;:(.\n]+)", text, re.M)
    return {name: " ".join(purpose.split()) for name, purpose in pairs}


def draw_way(places: Sequence[tuple[int, int]]) -> str:
    """An arrow from the bottom of the first box to the top of the last one."""
    x, y = places[0][0], places[0][1] + BOX[1]
    path = f"M{x} {y}"
    for to_x, to_y in places[1:]:
        bend = (to_y - y) // 2
        path += f"C{x} {y + bend} {to_x} {to_y - bend} {to_x} {to_y}"
        x, y = to_x, to_y + BOX[1]
        path += f"V{y}" if (to_x, to_y) != places[-1] else ""
    return f'<path d="{path}" fill="none" stroke="#69757c" marker-end="url(#head)"/>'


def draw_box(name: str, purpose: str, place: tuple[int, int]) -> str:
    centre, top = place
    if len(purpose) > LINE:
        purpose = purpose[: LINE + 1].rpartition(" ")[0] + " …"
    return (
        f'<rect x="{centre - BOX[0] // 2}" y="{top}" width="{BOX[0]}" height="{BOX[1]}" rx="5"'
        ' fill="#e3f1ec" stroke="#00684a"/>\n'
        + write(centre, top + 18, name, bold=True)
        + "\n"
        + write(centre, top + 35, purpose)
    )


def write(x: int, y: int, text: str, bold: bool = False) -> str:
    weight = ' font-weight="bold" font-size="13"' if bold else ""
    return f'<text x="{x}" y="{y}" text-anchor="middle" fill="#14191c"{weight}>{escape(text)}</text>'


if __name__ == "__main__":
    main()
