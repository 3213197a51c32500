"""docs/formats.md: how each kind of photo and mask is read, by reading one of each.

``python tests/test_formats.py`` writes the document; the test fails if it differs from what is written.
"""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile
from mask_kinds import KINDS, check_kind, table_rows
from numpy.typing import NDArray
from PIL import Image
from test_decode_phone_formats import ENCODERS, SMOOTH, deep_avif, deep_heic, exif_of, pillow_heif, saved
from test_decode_photo import png, png_chunk, tiff

from carvana_batch.decode.photo import decode_image
from carvana_batch.errors import ImageError

DOCUMENT = Path(__file__).parent.parent / "docs" / "formats.md"

HEIGHT, WIDTH = SMOOTH.shape[:2]
Y, X = np.mgrid[:HEIGHT, :WIDTH]
GREY = SMOOTH[..., 0]
BLACK_AND_WHITE = np.where((X // 8 + Y // 8) % 2, 255, 0).astype(np.uint8)
CLEAR = (X >= WIDTH // 2)[..., np.newaxis]  # transparent pixels
ALPHA = np.where(CLEAR, 0, 255).astype(np.uint8)
RGBA = np.dstack([SMOOTH, ALPHA])
DEEP = SMOOTH.astype(np.uint16) * 257
RAW12 = SMOOTH.astype(np.uint16) << 4

EXACT, ROUNDED, LOSSY = "exact", "to within 1 of 255", "as compressed"
"""How closely the pixels agree: they differ by 0, by 1 at most, or by less than 4 on average."""


ORDER = ("JPEG", "PNG", "TIFF", "WebP", "HEIC", "AVIF", "JPEG XL", "JPEG 2000", "GIF", "BMP", "others")

HEAD = """\
# How image formats are read

Written by `python tests/test_formats.py`, which makes a file of each kind, reads it, and compares the pixels
with those that it was made of. The test of the same name fails if this document says anything else.

## Photos

`predict` needs 8-bit RGB. The content of a file determines its format, not the suffix. More bits are scaled
to 8, grey becomes RGB, transparent parts become white, and embedded colour profiles are ignored. Only the
first page or frame is read, with the note *only the first page or frame*. Notes are in `report.csv`, and
their number is printed at the end of a run. HEIC needs the extra `heic`.

In files of 16 bits, values that all fit into 14 bits or fewer are taken for those of a camera that stores
them as they are, and scaled from that depth, with a note; so are floating-point values as small as that. At
most 16 larger values, or 1 in 100,000, are taken for hot pixels; values of 14 bits may exceed that by
1,024, a level of black. This brightens photos that are as dark as that; a TIFF can forbid it with the tag
MaxSampleValue 65535, a PNG with the chunk sBIT 16.

| format | contents | pixels | note |
|---|---|---|---|
"""

TURNS = """
### Orientation

On which grid the mask of a photo lies that is stored on its side, with the orientation 6; the network sees it
upright in any case. In HEIC, AVIF and JPEG XL, the turn belongs to the picture, and every program shows it
turned; EXIF is ignored there.

| format | `--exif ignore` | `--exif apply` |
|---|---|---|
"""

MASKS = """
## Masks

`score`, `submit`, `train` and `predict --gt` read masks from PNG, GIF, TIFF and JPEG files. Which of their
two values is car is decided for all masks of a folder, by the majority; files with other values are named.

A JPEG does not keep values. A band of a third level along the outline, as trimaps have it, was noticed in
all of 580 JPEGs of qualities from 75 on, with bands 1 to 20 pixels wide; 600 masks that were resized and
saved with qualities from 50 on were all read. Lower qualities, fainter bands, and bands along less than
about half of the outline may pass unnoticed; the file is then divided halfway between its two most frequent
levels. The same goes for PNG and TIFF trimaps that were resized smoothly: their bands are noticed if they
stay about 5 pixels wide.

| format | contents | how it is read |
|---|---|---|
"""


class Row(NamedTuple):
    """A row of the table: a file, and what the product must make of it.

    Attributes:
        format: name of the format.
        contents: what is in the file.
        data: the file.
        expected: (H, W, 3) pixels, or the beginning of the reason why the file is refused.
        agreement: how closely the pixels must agree.
        note: the note, if any.
    """

    format: str
    contents: str
    data: bytes
    expected: NDArray[Any] | str
    agreement: str = EXACT
    note: str = ""


def grey(values: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(values[..., np.newaxis], 3, axis=2)


def over_white(colours: NDArray[Any]) -> NDArray[Any]:
    return np.where(CLEAR, 255, colours)


def tiff_of(values: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def png_of(values: NDArray[Any], bits: int, colour_type: int, *chunks: bytes) -> bytes:
    height, width = values.shape[:2]
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    else:
        samples = np.unpackbits(values.astype(np.uint8)[..., np.newaxis], axis=-1)[..., 8 - bits :]
        rows = [np.packbits(row).tobytes() for row in samples]
    return png(width, height, bits, colour_type, b"".join(b"\0" + row for row in rows), *chunks)


def bmp_of(pixels: NDArray[np.uint8], alpha: int) -> bytes:
    """32 bits, with a mask for alpha."""
    bgra = np.dstack([pixels[::-1, :, ::-1], np.full(pixels.shape[:2], alpha, np.uint8)])
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    fields = struct.pack("<IiiHHIIiiII", 124, WIDTH, HEIGHT, 1, 32, 3, bgra.size, 0, 0, 0, 0) + masks
    start = 14 + 124
    head = b"BM" + struct.pack("<IHHI", start + bgra.size, 0, 0, start)
    return head + fields.ljust(124, b"\0") + bgra.tobytes()


def jpeg_rows() -> Iterator[Row]:
    yield Row("JPEG", "colour", saved("JPEG", SMOOTH, quality=95, subsampling=0), SMOOTH, LOSSY)
    yield Row("JPEG", "grey", saved("JPEG", GREY, quality=95), grey(GREY), LOSSY)
    buffer = io.BytesIO()
    Image.new("CMYK", (WIDTH, HEIGHT), (0, 128, 255, 51)).save(buffer, "JPEG", quality=100)
    flat = np.broadcast_to([204, 102, 0], SMOOTH.shape)
    yield Row("JPEG", "CMYK, profile ignored", buffer.getvalue(), flat, LOSSY)


def png_rows() -> Iterator[Row]:
    values: NDArray[Any]
    for bits in (1, 2, 4, 8):
        values = GREY >> (8 - bits)
        expected = grey(np.rint(values / (2**bits - 1) * 255))
        yield Row("PNG", f"grey, {bits} bit", png_of(values, bits, 0), expected)
        key = png_chunk(b"tRNS", struct.pack(">H", values[20, 20]))
        expected = np.where(grey(values == values[20, 20]), 255, expected)
        yield Row(
            "PNG", f"grey, {bits} bit, with a transparent value", png_of(values, bits, 0, key), expected
        )
    palette = png_chunk(b"PLTE", bytes(range(256)) * 3)
    colours = np.arange(768).reshape(256, 3) % 256
    yield Row("PNG", "palette", png_of(GREY, 8, 3, palette), colours[GREY])
    clear = png_chunk(b"tRNS", b"\xff" * 30 + b"\0")
    expected = np.where(grey(GREY == 30), 255, colours[GREY])
    yield Row("PNG", "palette, with a transparent colour", png_of(GREY, 8, 3, palette, clear), expected)
    for bits, values in ((8, SMOOTH), (16, DEEP)):
        alpha = ALPHA.astype(values.dtype) * ((2**bits - 1) // 255)
        yield Row("PNG", f"RGB, {bits} bit", png_of(values, bits, 2), SMOOTH)
        key = png_chunk(b"tRNS", struct.pack(">3H", *values[0, 0]))
        expected = np.where((values == values[0, 0]).all(axis=2, keepdims=True), 255, SMOOTH)
        name = f"RGB, {bits} bit, with a transparent colour"
        yield Row("PNG", name, png_of(values, bits, 2, key), expected)
        name = f"RGB and alpha, {bits} bit"
        yield Row("PNG", name, png_of(np.dstack([values, alpha]), bits, 6), over_white(SMOOTH))
        two = np.dstack([values[..., 0], alpha])
        yield Row("PNG", f"grey and alpha, {bits} bit", png_of(two, bits, 4), over_white(grey(GREY)))
    yield Row("PNG", "grey, 16 bit", png_of(DEEP[..., 0], 16, 0), grey(GREY))
    yield Row("PNG", "12 bit, stored in 16", png_of(RAW12, 16, 2), SMOOTH, ROUNDED, "scaled from 12 bits")
    ten = SMOOTH.astype(np.uint16) << 2
    twelve = png_chunk(b"sBIT", bytes([12] * 3))
    note = "scaled from 12 bits"
    dark = np.rint(ten / 4095 * 255)
    yield Row("PNG", "dark, 16 bit, sBIT 12", png_of(ten, 16, 2, twelve), dark, EXACT, note)
    full = png_chunk(b"sBIT", bytes([16] * 3))
    dark = np.rint(ten / 65535 * 255)
    yield Row("PNG", "dark, 16 bit, sBIT 16", png_of(ten, 16, 2, full), dark)
    unused = np.dstack([SMOOTH, np.zeros_like(GREY)])
    yield Row("PNG", "RGB and alpha of 0 throughout: opaque", png_of(unused, 8, 6), SMOOTH)
    metadata = png_chunk(b"iCCP", b"x" * 2_000_000) + png_chunk(b"pHYs", b"")
    yield Row("PNG", "large or damaged metadata", png_of(SMOOTH, 8, 2, metadata), SMOOTH)


def tiff_rows() -> Iterator[Row]:
    yield Row(
        "TIFF", "grey, 1 bit", tiff_of(BLACK_AND_WHITE > 0, photometric="minisblack"), grey(BLACK_AND_WHITE)
    )
    yield Row("TIFF", "grey, 8 bit", tiff_of(GREY), grey(GREY))
    yield Row("TIFF", "grey, 8 bit, 0 is white", tiff_of(255 - GREY, photometric="miniswhite"), grey(GREY))
    yield Row("TIFF", "grey, 16 bit", tiff_of(DEEP[..., 0]), grey(GREY))
    yield Row("TIFF", "grey, 0 to 1, 32-bit floating-point", tiff_of((GREY / 255).astype("f4")), grey(GREY))
    for bits, values in ((8, SMOOTH), (16, DEEP)):
        yield Row("TIFF", f"RGB, {bits} bit", tiff_of(values, photometric="rgb"), SMOOTH)
        four = np.dstack([values, ALPHA.astype(values.dtype) * ((2**bits - 1) // 255)])
        for kind, name in (("unassalpha", "alpha"), ("assocalpha", "premultiplied alpha")):
            if kind == "assocalpha":
                four = np.where(CLEAR, 0, four)
            data = tiff_of(four, photometric="rgb", extrasamples=[kind])
            yield Row("TIFF", f"RGB and {name}, {bits} bit", data, over_white(SMOOTH))
    planar = np.moveaxis(SMOOTH, 2, 0)
    data = tiff_of(planar, photometric="rgb", planarconfig="separate", compression="lzw", tile=(16, 16))
    yield Row("TIFF", "RGB, planar, tiles, LZW", data, SMOOTH)
    yield Row(
        "TIFF", "RGB, Deflate with predictor", tiff_of(SMOOTH, compression="zlib", predictor=True), SMOOTH
    )
    yield Row("TIFF", "12 bit, stored in 16", tiff_of(RAW12), SMOOTH, ROUNDED, "scaled from 12 bits")
    ten = SMOOTH.astype(np.uint16) << 2
    for largest in (4095, 65535):
        note = "scaled from 12 bits" if largest == 4095 else ""
        data = tiff_of(ten, photometric="rgb", extratags=[(281, "H", 1, largest, True)])
        yield Row(
            "TIFF", f"dark, 16 bit, MaxSampleValue {largest}", data, np.rint(ten / largest * 255), EXACT, note
        )
    colours = np.arange(768).reshape(3, 256) % 251
    for scale, name in ((1, "8-bit"), (257, "16-bit")):
        data = tiff(GREY, {262: [3], 320: list((colours * scale).ravel())})
        yield Row("TIFF", f"palette with {name} colours", data, colours.T[GREY])
    guessed = "colours guessed, because a TIFF tag is missing or wrong"
    yield Row("TIFF", "three samples, no colour model", tiff(SMOOTH, {}), SMOOTH, EXACT, guessed)
    yield Row("TIFF", "one sample, no colour model", tiff(GREY, {}), grey(GREY), EXACT, guessed)
    yield Row("TIFF", "three samples called grey", tiff(SMOOTH, {262: [1]}), SMOOTH, EXACT, guessed)
    yield Row("TIFF", "predictor without compression: ignored", tiff(SMOOTH, {262: [2], 317: [2]}), SMOOTH)
    refused = "is a TIFF with "
    yield Row("TIFF", "two samples, no colour model", tiff(RGBA[..., 2:], {}), f"{refused}no colour model")
    yield Row(
        "TIFF", "five samples called grey", tiff(np.dstack([RGBA, GREY]), {262: [1]}), f"{refused}5 samples"
    )
    yield Row("TIFF", "32-bit integers", tiff_of(GREY.astype("u4")), f"{refused}32-bit values")
    yield Row("TIFF", "CIELAB", tiff_of(SMOOTH, photometric="cielab"), f"{refused}the colour model CIELAB")
    data = tiff_of(GREY.astype("f4"))
    yield Row("TIFF", "floating-point values above 1", data, "has floating-point values outside of 0 to 1")


def other_rows() -> Iterator[Row]:
    yield Row("WebP", "lossy", saved("WEBP", SMOOTH, quality=95), SMOOTH, LOSSY)
    yield Row("WebP", "lossless", saved("WEBP", SMOOTH, lossless=True), SMOOTH)
    yield Row("WebP", "lossless, with alpha", saved("WEBP", RGBA, lossless=True), over_white(SMOOTH))
    yield Row("GIF", "palette", saved("GIF", BLACK_AND_WHITE), grey(BLACK_AND_WHITE))
    clear = saved("GIF", BLACK_AND_WHITE, transparency=0)
    yield Row("GIF", "palette, with a transparent colour", clear, np.full_like(SMOOTH, 255))
    yield Row("BMP", "8 bit", saved("BMP", GREY), grey(GREY))
    yield Row("BMP", "24 bit", saved("BMP", SMOOTH), SMOOTH)
    half = np.rint(SMOOTH * (128 / 255) + 255 * (127 / 255))
    yield Row("BMP", "32 bit, with alpha", bmp_of(SMOOTH, 128), half, ROUNDED)
    yield Row("BMP", "32 bit, alpha of 0 throughout: opaque", bmp_of(SMOOTH, 0), SMOOTH)


def phone_rows() -> Iterator[Row]:
    transparent = over_white(SMOOTH)
    yield Row("HEIC", "8 bit", ENCODERS["heic"](SMOOTH), SMOOTH, LOSSY)
    yield Row("HEIC", "10 bit", deep_heic(SMOOTH), SMOOTH, LOSSY)
    yield Row("HEIC", "8 bit, with alpha", ENCODERS["heic"](RGBA), transparent, LOSSY)
    yield Row("AVIF", "8 bit", ENCODERS["avif"](SMOOTH), SMOOTH, LOSSY)
    yield Row("AVIF", "10 bit", deep_avif(SMOOTH), SMOOTH, LOSSY)
    yield Row("AVIF", "8 bit, with alpha", ENCODERS["avif"](RGBA), transparent, LOSSY)
    yield Row("JPEG XL", "lossy", ENCODERS["jxl"](SMOOTH), SMOOTH, LOSSY)
    yield Row("JPEG XL", "8 bit, with alpha", ENCODERS["jxl"](RGBA), transparent, LOSSY)
    for bits in (8, 12, 16):
        values = DEEP >> (16 - bits) if bits > 8 else SMOOTH
        data = bytes(imagecodecs.jpegxl_encode(values, lossless=True, bitspersample=bits))
        yield Row("JPEG XL", f"lossless, {bits} bit", data, SMOOTH)
        data = bytes(imagecodecs.jpeg2k_encode(values, level=0, bitspersample=bits, reversible=True))
        agreement = EXACT if bits == 8 else ROUNDED
        yield Row("JPEG 2000", f"lossless, {bits} bit", data, SMOOTH, agreement)
    data, note = bytes(imagecodecs.jpegxl_encode(RAW12, lossless=True)), "scaled from 12 bits"
    yield Row("JPEG XL", "12 bit, stored in 16", data, SMOOTH, ROUNDED, note)
    data = bytes(imagecodecs.jpeg2k_encode(RAW12, level=0, reversible=True))
    yield Row("JPEG 2000", "12 bit, stored in 16", data, SMOOTH, ROUNDED, note)
    yield Row("JPEG 2000", "8 bit, with alpha", saved("JPEG2000", RGBA), transparent)


def jpeg_12() -> bytes:
    return bytes(imagecodecs.jpeg8_encode(SMOOTH.astype(np.uint16) << 4, 90, bitspersample=12))


def refused_rows() -> Iterator[Row]:
    advice = ", which is not read; save it as JPEG, PNG or TIFF"
    canon = b"II*\0\x10\0\0\0CR\2\0"
    yield Row(
        "others",
        "raw files of cameras (CR2, CR3, NEF, ARW, DNG, ...)",
        canon,
        f"is a raw file of a camera{advice}",
    )
    yield Row("others", "Photoshop (PSD)", b"8BPS\0\1", f"is a Photoshop file{advice}")
    yield Row("others", "OpenEXR", b"\x76\x2f\x31\x01", f"is an OpenEXR file{advice}")
    yield Row("others", "DICOM", bytes(128) + b"DICM", f"is a DICOM file{advice}")
    yield Row("others", "FITS", b"SIMPLE  =                    T", f"is a FITS file{advice}")
    yield Row("others", "JPEG of 12 bits", jpeg_12(), "is a JPEG of 12 bits, which is not read")
    yield Row(
        "others", "JPEG-LS", bytes(imagecodecs.jpegls_encode(SMOOTH)), "is a JPEG-LS, which is not read"
    )
    likewise = "EPS, ICO, ICNS, MNG, BPG, FLIF, JPEG XS, SGI, DDS, QOI, PCX, PPM, TGA, ..."
    yield Row("others", f"JNG (likewise {likewise})", b"\x8bJNG\r\n\x1a\n", f"is a JNG file{advice}")
    yield Row("others", "any other content", b"text", "is not an image in a supported format")


def all_rows() -> list[Row]:
    makers: tuple[Callable[[], Iterator[Row]], ...] = (jpeg_rows, png_rows, tiff_rows, other_rows, phone_rows)
    rows = [row for make in (*makers, refused_rows) for row in make()]
    return sorted(rows, key=lambda row: ORDER.index(row.format))


def describe(row: Row, folder: Path) -> str:
    """Read the file, check that the product does what the row expects, and return the line of the table."""
    path = folder / "photo"
    path.write_bytes(row.data)
    if isinstance(row.expected, str):
        try:
            decode_image(path)
        except ImageError as error:
            reason = str(error).removeprefix(f"{path} ")
            assert reason.startswith(row.expected), (row.contents, reason)
            return f"| {row.format} | {row.contents} | refused: {reason.partition(';')[0]} | |"
        raise AssertionError(f"{row.format}, {row.contents} is not refused")
    decoded = decode_image(path)
    assert decoded.pixels.shape == row.expected.shape, (row.format, row.contents)
    differences = np.abs(decoded.pixels - row.expected.astype(float))
    agrees = {EXACT: differences.max() == 0, ROUNDED: differences.max() <= 1, LOSSY: differences.mean() < 4}
    assert agrees[row.agreement], (row.format, row.contents, differences.max(), differences.mean())
    assert decoded.notes == ((row.note,) if row.note else ()), (row.format, row.contents)
    return f"| {row.format} | {row.contents} | {row.agreement} | {row.note} |"


def turned_files() -> Iterator[tuple[str, bytes]]:
    """One file of each format that can say that its picture has to be turned by 90 degrees."""
    exif = exif_of(6)
    jpeg = saved("JPEG", SMOOTH, exif=exif, quality=95, subsampling=0)
    yield "JPEG", jpeg
    yield "PNG", saved("PNG", SMOOTH, exif=exif)
    yield "TIFF", saved("TIFF", SMOOTH, tiffinfo={274: 6})
    yield "WebP", saved("WEBP", SMOOTH, exif=exif, lossless=True)
    pillow_heif.register_heif_opener()
    yield "HEIC", saved("HEIF", SMOOTH, exif=exif, quality=95, chroma=444)
    yield "AVIF", saved("AVIF", SMOOTH, exif=exif, quality=95, subsampling="4:4:4")
    yield "JPEG XL", bytes(imagecodecs.jpegxl_encode_jpeg(jpeg, usecontainer=True))


def describe_turns(folder: Path) -> Iterator[str]:
    """The lines of the table of orientations."""
    path = folder / "photo"
    grids = {"as stored": SMOOTH, "turned": np.rot90(SMOOTH, -1)}
    for name, data in turned_files():
        path.write_bytes(data)
        found = []
        for apply_exif in (False, True):
            pixels = decode_image(path, apply_exif=apply_exif).pixels
            (grid,) = (
                grid
                for grid, expected in grids.items()
                if pixels.shape == expected.shape and np.abs(pixels.astype(float) - expected).mean() < 4
            )
            found.append(grid)
        yield f"| {name} | {found[0]} | {found[1]} |"


def write_document(folder: Path) -> str:
    """The document; files are made in ``folder``."""
    lines = [describe(row, folder) for row in all_rows()]
    turns = list(describe_turns(folder))
    for number, kind in enumerate(KINDS):
        check_kind(kind, folder / f"masks{number}")
    parts = [HEAD.rstrip(), *lines, TURNS.rstrip(), *turns, MASKS.rstrip(), *table_rows(), ""]
    return "\n".join(parts)


def test_the_document_says_how_each_format_is_read(tmp_path: Path) -> None:
    expected = write_document(tmp_path)
    assert DOCUMENT.read_text(encoding="utf-8") == expected, "run: python tests/test_formats.py"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        DOCUMENT.write_text(write_document(Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
