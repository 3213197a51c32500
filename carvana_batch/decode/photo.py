"""Decode photos to (H, W, 3) uint8 RGB."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.decode.image_file import (
    DECODER_ERRORS,
    JPEG_FORMATS,
    damage_as_image_error,
    decode_pixels,
    open_image_file,
    read_header,
    refuse_damage,
    report_damage,
    without_metadata_warnings,
)
from carvana_batch.decode.jpeg import decode_jpeg
from carvana_batch.decode.pixels import (
    NOTES,
    ORIENTATION,
    PAGES,
    SIGNIFICANT_BITS,
    check_size,
    scale_to_eight_bits,
)
from carvana_batch.decode.png_chunks import BITS_OF_PNG, decode_by_libpng
from carvana_batch.errors import ImageError
from carvana_batch.notes import Note
from carvana_batch.options import DEFAULT_PIXEL_LIMIT
from carvana_batch.orientation import ORIENTATIONS, UPRIGHT, Layout, turn

UNUSED_ALPHA = 1
"""Alpha that never exceeds this, of 255, is ignored: nothing would be seen.

Some programs write 0 when they do not use alpha; others write 1 for opaque, or 255 of 65535.
"""


class DecodedImage(NamedTuple):
    """A decoded photo without its name.

    Attributes:
        pixels: (H, W, 3) uint8, RGB, C-contiguous and writable.
        orientation: the EXIF orientation of the pixels, 1 to 8.
        notes: what the user should know about it.
        damage: why the photo is damaged; "" if it is not.
    """

    pixels: NDArray[np.uint8]
    orientation: int = UPRIGHT
    notes: tuple[Note, ...] = ()
    damage: str = ""

    @property
    def layout(self) -> Layout:
        """Size and orientation of the pixels."""
        height, width = self.pixels.shape[:2]
        return Layout(width, height, self.orientation)


def read_image(
    path: Path, *, pixel_limit: int = DEFAULT_PIXEL_LIMIT, apply_exif: bool = False
) -> NDArray[np.uint8]:
    """Decode a photo to (H, W, 3) uint8, RGB, without notes; see :func:`decode_image`."""
    return decode_image(path, pixel_limit=pixel_limit, apply_exif=apply_exif).pixels


def decode_image(
    path: Path,
    *,
    pixel_limit: int = DEFAULT_PIXEL_LIMIT,
    apply_exif: bool = False,
    find_room: Callable[[int], NDArray[np.uint8] | None] | None = None,
    accept_damage: bool = False,
) -> DecodedImage:
    """Decode a photo.

    The content determines the format, not the suffix; ``docs/formats.md`` lists them. Grey becomes three
    equal channels, CMYK becomes RGB, and transparent pixels are composited over white; if all pixels are
    transparent (to within 1 of 255), alpha is ignored. Values of more than 8 bits are scaled to 8; 16-bit
    values from fewer bits if all fit into 14. Floating-point TIFFs must contain values from 0 to 1. The
    pictures of HEIC, AVIF and JPEG XL are turned as they are meant to be seen in any case.

    Args:
        path: the file.
        pixel_limit: most pixels that the photo may have.
        apply_exif: turn the photo upright by its orientation, instead of keeping the stored pixel grid.
        find_room: returns uint8 memory for a number of bytes, or None. It may be overwritten, and the
            result may be a view of it.
        accept_damage: return the pixels of a damaged photo that can be decoded, and the damage.

    Raises:
        ImageError: the file cannot be decoded, or has more than ``pixel_limit`` pixels.
        DamageError: the photo is damaged, although pixels can be decoded, and ``accept_damage`` is false.
    """
    damage: list[str] = []
    on_damage = damage.append if accept_damage else refuse_damage
    with open_image_file(path) as file:
        image = read_header(file, pixel_limit, on_damage)
        notes: list[Note] = []
        pixels = _decode_colour_jpeg(image, file, find_room, on_damage)
        if pixels is None:
            decoded = _decode_difficult_png(image, file, on_damage) or decode_pixels(image, file, on_damage)
            notes.extend(decoded.info.get(NOTES, ()))
            pixels = _to_rgb(decoded)
        orientation = find_orientation(image)
        if orientation != UPRIGHT:
            notes.append(Note.TURNED_WITH_MASK if apply_exif else Note.TURNED)
        if _has_further_pages(image):
            notes.append(Note.FIRST_PAGE)
        if damage:
            notes.append(Note.DAMAGED)
        if apply_exif:
            pixels, orientation = np.ascontiguousarray(turn(pixels, orientation)), UPRIGHT
        reason = damage[0].removeprefix("is ").removeprefix("damaged: ") if damage else ""
        return DecodedImage(pixels, orientation, tuple(notes), reason)


def from_pillow(
    image: Image.Image, *, pixel_limit: int = DEFAULT_PIXEL_LIMIT, apply_exif: bool = False
) -> DecodedImage:
    """The photo that a Pillow image holds, as :func:`decode_image` would give it.

    Raises:
        ImageError: the image has more pixels than ``pixel_limit``, or pixels of a kind that Pillow does not
            scale to 8 bits; or it is the lazily read image of a damaged file.
    """
    try:
        check_size(image.width, image.height, pixel_limit)
        if image.mode.startswith("I;16"):  # only the file tells in how many of the bits they are
            raise ImageError("has 16 bits a pixel; give the path of the file instead")
        with damage_as_image_error():
            image.load()
        pixels = _to_rgb(image)
    except ImageError as error:
        raise ImageError(f"the image {error}") from error
    orientation = find_orientation(image)
    notes: tuple[Note, ...] = ()
    if orientation != UPRIGHT:
        notes = (Note.TURNED_WITH_MASK if apply_exif else Note.TURNED,)
    if apply_exif:
        pixels, orientation = np.ascontiguousarray(turn(pixels, orientation)), UPRIGHT
    return DecodedImage(pixels, orientation, notes)


def read_layout(path: Path, *, pixel_limit: int = DEFAULT_PIXEL_LIMIT) -> Layout:
    """Read how a photo is stored. Only of TIFF, AVIF and JPEG XL are the pixels decoded.

    Raises:
        ImageError: the header cannot be read, or the photo has more than ``pixel_limit`` pixels.
    """
    with open_image_file(path) as file:
        image = read_header(file, pixel_limit)
        return Layout(image.width, image.height, find_orientation(image))


def _decode_colour_jpeg(
    image: Image.Image,
    file: BinaryIO,
    find_room: Callable[[int], NDArray[np.uint8] | None] | None,
    on_damage: Callable[[str], None],
) -> NDArray[np.uint8] | None:
    """Decode a colour JPEG without the detour of a Pillow image; None if it is something else."""
    if image.format not in JPEG_FORMATS or image.mode != "RGB":
        return None
    file.seek(0)
    room = None if find_room is None else find_room(3 * image.width * image.height)
    return decode_jpeg(file.read(), image.mode, room, on_damage)


def _decode_difficult_png(
    image: Image.Image, file: BinaryIO, on_damage: Callable[[str], None]
) -> Image.Image | None:
    """Decode a PNG with 16 bits or with a transparent colour; None for all other images."""
    if image.format != "PNG" or image.mode == "P":
        return None
    file.seek(BITS_OF_PNG)
    if file.read(1) != b"\x10" and "transparency" not in image.info:
        return None
    with damage_as_image_error():
        decoded = decode_by_libpng(file)
    report_damage(image, file, on_damage)
    return decoded


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):  # Pillow would clip the values
        grey = scale_to_eight_bits(np.asarray(image), image.info.get(SIGNIFICANT_BITS, 16))
        return np.repeat(grey[..., np.newaxis], 3, axis=2)
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        if np.asarray(colours.getchannel("A")).max() <= UNUSED_ALPHA:
            if image.mode == "RGBa":  # not multiplied by such an alpha
                colours = Image.merge("RGBA", image.split())
            colours.putalpha(255)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
    elif image.mode not in {"1", "L", "P", "RGB", "CMYK"}:
        raise ImageError(f"has pixels of the kind {image.mode}, which is not supported; save it as RGB")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def find_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8."""
    try:
        with without_metadata_warnings():
            value = image.getexif().get(ORIENTATION, UPRIGHT)
    except DECODER_ERRORS:  # the pixels are not affected
        return UPRIGHT
    return value if isinstance(value, int) and value in ORIENTATIONS else UPRIGHT


def _has_further_pages(image: Image.Image) -> bool:
    """Whether the file has pages or frames after the first; call it when that one's pixels are decoded."""
    if image.format in JPEG_FORMATS:  # what follows in an MPO are previews, or other views of the same scene
        return False
    try:
        return int(image.info.get(PAGES, 1)) > 1 or bool(getattr(image, "is_animated", False))
    except DECODER_ERRORS:  # the pixels are not affected
        return False
