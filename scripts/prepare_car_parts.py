#!/usr/bin/env python
"""Make training data of photos with polygons of the parts of a car, as in the Car Parts Dataset.

    scripts/prepare_car_parts.py car-parts/ street/

The folder holds images/ and annotations.json in the form of COCO. Written are street/train and street/val
(each images/ and masks/ of 768x512, for `train --also street/train --ignore-value 128`), street/check (the
val photos as they are, for `bench_doubt.py --more street/check`), and street/backgrounds (for `train
--backgrounds`).

What is in the polygons of a part is car (255), without a margin of two pixels, as polygons are rough. Roof,
pillars and sills are in no part: a band around the convex hull of all parts is unknown (128), and all that is
farther away is background (0). Every fifth photo is held out, and photos that look like one of these are left
out. Photos are widened to 3:2 by their mirror image, which is unknown.

Source of the data: Pasupa et al., "Evaluation of deep learning algorithms for semantic segmentation of car
parts", Complex & Intelligent Systems, 2021, https://doi.org/10.1007/s40747-021-00397-8.
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import ConvexHull

Bits = NDArray[np.bool_]

WIDTH = 768
CAR, UNKNOWN = 255, 128
FEWEST_CAR_PIXELS = 2000
SIDE_BAND, TOP_BAND = 0.035, 0.07
"""Width of the unknown band, as a share of the diagonal of the parts, and above them of their height."""

SAME_PHOTO = 0.9
"""Correlation of two thumbnails above which they may show the same car at the same place."""


class Labelled(NamedTuple):
    """A photo, where it surely shows car, and where it may; all of the same size."""

    photo: Image.Image
    car: Bits
    maybe_car: Bits

    @property
    def mask(self) -> NDArray[np.uint8]:
        """(H, W), 255 for car, 128 for unknown."""
        return np.where(self.car, CAR, np.where(self.maybe_car, UNKNOWN, 0)).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", type=Path, metavar="CAR-PARTS", help="folder with images/ and annotations.json"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    arguments = parser.parse_args()
    labelled = dict(sorted(read_all(arguments.source).items()))
    held_out = {number for number in labelled if number % 5 == 0}
    left_out = find_similar(labelled, held_out)
    backgrounds = 0
    for number, item in labelled.items():
        if number in held_out:
            save(arguments.out / "check", number, item.photo, item.mask)
            save(arguments.out / "val", number, *widened(item))
        elif number not in left_out:
            save(arguments.out / "train", number, *widened(item))
            backgrounds += save_background(arguments.out / "backgrounds", number, item)
    trained = len(labelled) - len(held_out) - len(left_out)
    print(
        f"{trained} photos to train on, {len(held_out)} held out, {len(left_out)} left out because they look"
        f" like one of these; {backgrounds} backgrounds"
    )


def read_all(source: Path) -> dict[int, Labelled]:
    """Read the photos that show enough of a car, by the number in their names."""
    content = json.loads((source / "annotations.json").read_text())
    polygons: dict[int, list[list[float]]] = defaultdict(list)
    for annotation in content["annotations"]:
        polygons[annotation["image_id"]] += annotation["segmentation"]
    labelled = {}
    for image in content["images"]:
        with Image.open(source / "images" / image["file_name"]) as file:
            photo = file.convert("RGB")
        parts = Image.new("1", photo.size)
        for polygon in polygons[image["id"]]:
            if len(polygon) >= 6:
                ImageDraw.Draw(parts).polygon(polygon, fill=1)
        if (covered := np.asarray(parts)).sum() >= FEWEST_CAR_PIXELS:
            number = int(re.sub(r"\D", "", image["file_name"]))
            car = ndimage.binary_erosion(covered, iterations=2)
            labelled[number] = Labelled(photo, car, find_outer_limit(covered) & ~car)
    return labelled


def find_outer_limit(parts: Bits) -> Bits:
    """Return the pixels that may be car, according to those of its parts."""
    rows, columns = np.nonzero(parts)
    points = np.column_stack([columns, rows])
    drawn = Image.new("1", parts.shape[::-1])
    corners = [tuple(map(int, corner)) for corner in points[ConvexHull(points).vertices]]
    ImageDraw.Draw(drawn).polygon(corners, fill=1)
    hull = np.asarray(drawn)
    band = max(4, int(SIDE_BAND * np.hypot(np.ptp(rows), np.ptp(columns))))
    raised = hull.copy()
    for height in range(1, max(4, int(TOP_BAND * np.ptp(rows))) + 1):  # roofs reach above the windows
        raised[:-height] |= hull[height:]
    return np.asarray(
        (ndimage.distance_transform_edt(~hull) <= band) | (ndimage.distance_transform_edt(~raised) <= 3)
    )


def find_similar(labelled: dict[int, Labelled], held_out: set[int]) -> set[int]:
    """Return the numbers of other photos whose thumbnails look like that of a photo held out."""
    small = [item.photo.resize((16, 16)).convert("L") for item in labelled.values()]
    thumbnails = np.array([np.asarray(thumbnail, float).ravel() for thumbnail in small])
    correlation = np.corrcoef(thumbnails)
    numbers = list(labelled)
    is_held_out = np.array([number in held_out for number in numbers])
    similar = (correlation[:, is_held_out] > SAME_PHOTO).any(axis=1) & ~is_held_out
    return {number for number, is_similar in zip(numbers, similar, strict=True) if is_similar}


def widened(item: Labelled) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Return photo and mask with the mirror image of the photo at both sides, which is unknown."""
    extra = WIDTH - item.photo.width
    sides = (0, 0), (extra // 2, extra - extra // 2)
    photo = np.pad(np.asarray(item.photo), (*sides, (0, 0)), mode="reflect")
    return Image.fromarray(photo), np.pad(item.mask, sides, constant_values=UNKNOWN)


def save(folder: Path, number: int, photo: Image.Image, mask: NDArray[np.uint8]) -> None:
    for name, picture in (("images", photo), ("masks", Image.fromarray(mask))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        picture.save(folder / name / f"street{number}_01.png")


def save_background(folder: Path, number: int, item: Labelled) -> bool:
    """Save the largest rectangle beside the car, if it is large enough and not of one colour."""
    rows, columns = np.nonzero(item.car | item.maybe_car)
    width, height = item.photo.size
    boxes = [
        (0, 0, width, int(rows.min())),
        (0, 0, int(columns.min()), height),
        (int(columns.max()) + 1, 0, width, height),
        (0, int(rows.max()) + 1, width, height),
    ]
    left, top, right, bottom = max(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    if min(right - left, bottom - top) < 90:
        return False
    part = item.photo.crop((left, top, right, bottom))
    if np.asarray(part).std() < 12:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    enlarged = part.resize((3 * part.width, 3 * part.height), Image.Resampling.BICUBIC)
    enlarged.save(folder / f"street{number}.jpg", quality=92)
    return True


if __name__ == "__main__":
    main()
