"""The kinds of masks in docs/formats.md: files of each kind, and what the product must make of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt

from carvana_batch.errors import ImageError, UsageError
from carvana_batch.inputs.masks import find_masks
from carvana_batch.masks.folder import MaskFolder

ROWS, COLUMNS = np.mgrid[:64, :96]

Car = NDArray[np.bool_]

WHITE_IS_CAR, HIGHER_IS_CAR, AT_HALF = (
    "white is car",
    "the higher value is car",
    "at least half of white is car",
)
REFUSED = "refused: "


class MaskKind(NamedTuple):
    """A row of the table.

    Attributes:
        format: of the files.
        contents: what is in them.
        reading: how they are read, or ``REFUSED`` and a part of the reason.
        encode: makes the file of a car.
        suffix: of the files.
        car: values of ``--car-value``.
        ignored: values of ``--ignore-value``.
    """

    format: str
    contents: str
    reading: str
    encode: Callable[[Car], bytes]
    suffix: str = "png"
    car: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()


def car_of(number: int) -> Car:
    return np.asarray((COLUMNS - 40 - 5 * number) ** 2 + 3 * (ROWS - 30) ** 2 < 900)


def grey(background: int, car: int, dtype: type = np.uint8) -> Callable[[Car], NDArray[Any]]:
    return lambda shape: np.where(shape, car, background).astype(dtype)


def labels(shape: Car) -> NDArray[Any]:
    """Road 3, sky 11, car 13, and 255 where nobody knows."""
    values = np.where(ROWS < 12, 11, 3).astype(np.uint8)
    values[shape] = 13
    values[-4:] = 255
    return values


def soft(shape: Car) -> NDArray[Any]:
    """The mask averaged over 3x3 pixels."""
    padded = np.pad(shape.astype(float), 1, mode="edge")
    total = sum(padded[y : y + 64, x : x + 96] for y in range(3) for x in range(3))
    return np.asarray(np.rint(255 * total / 9).astype(np.uint8))


def save(values: NDArray[Any] | Image.Image, suffix: str, **options: Any) -> bytes:
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options)
    return buffer.getvalue()


def palette(shape: Car, *colours: int, indexes: tuple[int, int] = (0, 1)) -> Image.Image:
    image = Image.fromarray(np.where(shape, indexes[1], indexes[0]).astype(np.uint8))
    image.putpalette(colours)
    return image


def one_hot(shape: Car) -> bytes:
    buffer = io.BytesIO()
    samples = np.dstack([~shape, shape]).astype(np.uint8) * 255
    tifffile.imwrite(buffer, samples, photometric="minisblack", planarconfig="contig")
    return buffer.getvalue()


def pages(shape: Car) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.stack([~shape, shape]).astype(np.uint8) * 255, photometric="minisblack")
    return buffer.getvalue()


def transparent(shape: Car) -> NDArray[Any]:
    return np.dstack([grey(0, 255)(shape)] * 3 + [np.where(COLUMNS < 9, 0, 255).astype(np.uint8)])


def deep_colours(shape: Car) -> bytes:
    return bytes(imagecodecs.png_encode(np.dstack([grey(0, 255, np.uint16)(shape)] * 3)))


def jpeg_labels(shape: Car) -> bytes:
    values = grey(0, 255)(shape)
    values[:24, :24] = 128
    return save(values, "jpg", quality=95)


def jpeg_trimap(shape: Car) -> bytes:
    depth = distance_transform_edt(shape)
    return save(np.where(depth > 3, 255, np.where(depth > 0, 128, 0)).astype(np.uint8), "jpg", quality=92)


def turned(shape: Car) -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return save(grey(0, 255)(shape), "png", exif=exif)


KINDS = (
    MaskKind("PNG, GIF, TIFF", "1 bit", WHITE_IS_CAR, lambda shape: save(Image.fromarray(shape), "png")),
    MaskKind("PNG, TIFF", "0 and 255", HIGHER_IS_CAR, lambda shape: save(grey(0, 255)(shape), "png")),
    MaskKind("PNG, TIFF", "0 and 1", HIGHER_IS_CAR, lambda shape: save(grey(0, 1)(shape), "png")),
    MaskKind("PNG, TIFF", "0 and 2, or any two", HIGHER_IS_CAR, lambda shape: save(grey(0, 2)(shape), "png")),
    MaskKind(
        "PNG, TIFF",
        "16 bit, 0 and 65535",
        HIGHER_IS_CAR,
        lambda shape: save(grey(0, 65535, np.uint16)(shape), "png"),
    ),
    MaskKind(
        "PNG, TIFF",
        "16 bit, 0 and 255",
        HIGHER_IS_CAR,
        lambda shape: save(grey(0, 255, np.uint16)(shape), "png"),
    ),
    MaskKind(
        "PNG, TIFF",
        "three equal channels",
        HIGHER_IS_CAR,
        lambda shape: save(np.dstack([grey(0, 255)(shape)] * 3), "png"),
    ),
    MaskKind(
        "PNG, TIFF", "soft, many levels from black to white", AT_HALF, lambda shape: save(soft(shape), "png")
    ),
    MaskKind(
        "PNG, GIF",
        "palette of black and white",
        WHITE_IS_CAR,
        lambda shape: save(palette(shape, 0, 0, 0, 255, 255, 255), "gif"),
        "gif",
    ),
    MaskKind(
        "PNG, GIF",
        "palette of two colours",
        "the brighter colour is car",
        lambda shape: save(palette(shape, 200, 200, 0, 0, 0, 90, indexes=(1, 0)), "png"),
    ),
    MaskKind(
        "JPEG",
        "0 and 255, with compression noise",
        HIGHER_IS_CAR,
        lambda shape: save(grey(0, 255)(shape), "jpg"),
        "jpg",
    ),
    MaskKind(
        "JPEG",
        "0 and 100, with compression noise",
        HIGHER_IS_CAR,
        lambda shape: save(grey(0, 100)(shape), "jpg"),
        "jpg",
    ),
    MaskKind(
        "JPEG",
        "0 and 1",
        f"{REFUSED}JPEG does not keep values as close as 0 and 1",
        lambda shape: save(grey(0, 1)(shape), "jpg", quality=100),
        "jpg",
    ),
    MaskKind(
        "all", "label map", f"{REFUSED}not clear which pixels", lambda shape: save(labels(shape), "png")
    ),
    MaskKind(
        "all",
        "label map, `--car-value 13 --ignore-value 255`",
        "13 is car, 255 counts nowhere, all else is background",
        lambda shape: save(labels(shape), "png"),
        car=(13,),
        ignored=(255,),
    ),
    MaskKind("PNG, TIFF", "16 bit, three equal channels", HIGHER_IS_CAR, deep_colours),
    MaskKind("JPEG", "three levels", f"{REFUSED}JPEG does not keep the values", jpeg_labels, "jpg"),
    MaskKind(
        "JPEG",
        "trimap: a band of a third level along the outline",
        f"{REFUSED}JPEG does not keep the values",
        jpeg_trimap,
        "jpg",
    ),
    MaskKind(
        "JPEG",
        "any, with `--ignore-value` of a third value",
        f"{REFUSED}does not keep the value 128 of --ignore-value",
        lambda shape: save(grey(0, 255)(shape), "jpg"),
        "jpg",
        ignored=(128,),
    ),
    MaskKind("all", "an EXIF orientation", f"{REFUSED}has the EXIF orientation 6", turned),
    MaskKind("TIFF", "several samples that differ", f"{REFUSED}has several samples", one_hot, "tif"),
    MaskKind("TIFF, GIF, PNG", "several pages or frames", f"{REFUSED}has 2 pages", pages, "tif"),
    MaskKind(
        "PNG",
        "transparent in parts",
        f"{REFUSED}has transparent pixels",
        lambda shape: save(transparent(shape), "png"),
    ),
    MaskKind(
        "all",
        "colours",
        f"{REFUSED}has coloured pixels",
        lambda shape: save(np.dstack([grey(0, 200)(shape)] * 2 + [grey(0, 90)(shape)]), "png"),
    ),
)


def check_kind(kind: MaskKind, folder: Path) -> None:
    """Write a folder of masks of a kind, read it, and compare the pixels with the cars they were made of."""
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.{kind.suffix}").write_bytes(kind.encode(car_of(number)))
    try:
        masks = MaskFolder(folder, find_masks(folder)).decide(kind.car, kind.ignored)
        read = [masks.read(str(number)) for number in range(3)]
    except (ImageError, UsageError) as error:
        assert kind.reading.startswith(REFUSED), (kind.contents, str(error))
        assert kind.reading.removeprefix(REFUSED) in str(error), (kind.contents, str(error))
        return
    assert not kind.reading.startswith(REFUSED), f"{kind.contents}: not refused"
    for number, mask in enumerate(read):
        expected = car_of(number)
        if kind.ignored:
            expected = expected & (ROWS < 60)
            np.testing.assert_array_equal(mask.ignored_to_bool(), ROWS >= 60)
        elif kind.reading == AT_HALF:
            expected = soft(expected) >= 128
        np.testing.assert_array_equal(mask.to_bool(), expected, err_msg=kind.contents)


def table_rows() -> Iterator[str]:
    """Yield the rows of the table in the document."""
    for kind in KINDS:
        yield f"| {kind.format} | {kind.contents} | {kind.reading} |"
