"""Which room of the package may import which: imports point down only.

``python tests/test_rooms.py [PACKAGE]`` counts boxes, floors and arrows of a package folder. A box is a
folder or module directly in the package. An arrow is one box importing another, whether at the top of a
module, in a function or for type checking only. The number of floors is the length of the longest chain of
arrows; boxes that import each other in a cycle share a floor.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
from scipy.sparse.csgraph import connected_components

PACKAGE = Path(__file__).parent.parent / "carvana_batch"
NAME = "carvana_batch"

GROUND_FLOOR = {
    "colours",
    "errors",
    "files",
    "garbage",
    "main_memory",
    "model_settings",
    "notes",
    "options",
    "orientation",
    "parallel",
    "settings_file",
    "stopping",
    "temporary_folder",
    "text",
    "values",
}
ROOMS = {
    "colours": set(),
    "errors": set(),
    "garbage": set(),
    "main_memory": set(),
    "settings_file": {"errors", "text"},
    "stopping": set(),
    "temporary_folder": set(),
    "text": set(),
    "notes": set(),
    "orientation": set(),
    "pages": {"text"},
    "values": {"notes", "orientation"},
    "files": {"errors", "text"},
    "parallel": {"errors"},
    "model_settings": {"errors", "text"},
    "options": {"errors", "colours", "model_settings"},
    "demo": set(),
    "inputs": GROUND_FLOOR,
    "network": GROUND_FLOOR,
    "decode": GROUND_FLOOR | {"inputs"},
    "inference": GROUND_FLOOR | {"network", "masks"},
    "masks": GROUND_FLOOR | {"inputs", "decode"},
    "submission": GROUND_FLOOR | {"inputs", "masks"},
    "output": GROUND_FLOOR | {"inputs", "masks", "submission"},
    "scoring": GROUND_FLOOR | {"inputs", "decode", "masks", "submission", "pages"},
    "cloud": GROUND_FLOOR | {"inputs", "output"},
    "archives": GROUND_FLOOR | {"inputs", "output", "cloud"},
    "engines": GROUND_FLOOR
    | {"inputs", "decode", "network", "inference", "masks", "output", "cloud", "archives"},
    "drawing": GROUND_FLOOR | {"inputs", "decode", "output", "cloud", "engines"},
    "run": GROUND_FLOOR
    | {"inputs", "network", "masks", "submission", "output", "cloud", "archives", "engines", "drawing"},
}
ROOMS["review"] = GROUND_FLOOR | {"inputs", "decode", "masks", "output", "pages"}
ROOMS["training"] = GROUND_FLOOR | {
    "inputs",
    "decode",
    "network",
    "inference",
    "masks",
    "submission",
    "output",
    "scoring",
}
ROOMS["commands"] = ROOMS["training"] | {"demo", "engines", "run", "training", "review", "cloud", "archives"}
ROOMS["api"] = GROUND_FLOOR | {
    "commands",
    "inputs",
    "decode",
    "network",
    "inference",
    "masks",
    "submission",
    "output",
    "scoring",
    "run",
}
"""For each room, the rooms that it may import. All may import the package itself, which holds the version."""


def imports_of(package: Path) -> Iterator[tuple[str, str, str]]:
    """(box, box that it imports, module that does so) for each import between boxes."""
    boxes = boxes_of(package)
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package)
        box = module.parts[0].removesuffix(".py")
        if box not in boxes:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                top, *rest = name.split(".")
                if top == NAME and rest and rest[0] in boxes and rest[0] != box:
                    yield box, rest[0], str(module)


def boxes_of(package: Path) -> set[str]:
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    return folders | {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}


def count_floors(arrows: set[tuple[str, str]]) -> tuple[int, int]:
    """The number of floors, and the number of boxes that are in a cycle."""
    boxes = sorted({box for arrow in arrows for box in arrow})
    matrix = np.zeros((len(boxes), len(boxes)), bool)
    for upper, lower in arrows:
        matrix[boxes.index(upper), boxes.index(lower)] = True
    count, component = connected_components(matrix, connection="strong")
    below: dict[int, set[int]] = {number: set() for number in range(count)}
    for upper, lower in np.argwhere(matrix):
        if component[upper] != component[lower]:
            below[component[upper]].add(component[lower])
    floors: dict[int, int] = {}
    for number in TopologicalSorter(below).static_order():
        floors[number] = 1 + max((floors[other] for other in below[number]), default=0)
    return max(floors.values()), sum(size for size in np.bincount(component) if size > 1)


def describe(package: Path) -> str:
    arrows = {(upper, lower) for upper, lower, _ in imports_of(package)}
    floors, in_cycles = count_floors(arrows)
    return f"{len(boxes_of(package))} boxes, {floors} floors, {len(arrows)} arrows, {in_cycles} in cycles"


def forbidden(allowed: Mapping[str, set[str]]) -> list[str]:
    return [
        f"{module}: {upper} imports {lower}"
        for upper, lower, module in imports_of(PACKAGE)
        if upper in allowed and lower not in allowed[upper]
    ]


def test_imports_point_down_only():
    assert forbidden(ROOMS) == []


def test_only_one_module_needs_ray():
    """The others are tested without it."""
    modules = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if name.partition(".")[0] == "ray"
    }
    assert modules == {"engines/ray.py"}


def test_every_box_is_a_room():
    assert boxes_of(PACKAGE) == ROOMS.keys()


def test_nothing_may_import_in_a_circle():
    floors, in_cycles = count_floors(
        {(upper, lower) for upper, allowed in ROOMS.items() for lower in allowed}
    )
    assert in_cycles == 0
    assert floors <= 15


def test_cycles_are_counted():
    assert count_floors({("a", "b"), ("b", "c"), ("c", "b")}) == (2, 2)
    assert count_floors({("a", "b"), ("b", "c"), ("a", "c")}) == (3, 0)


def test_a_forbidden_import_is_reported():
    assert forbidden(ROOMS | {"output": ROOMS["output"] - {"masks"}}) != []


if __name__ == "__main__":
    sys.stdout.write(describe(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE) + "\n")
