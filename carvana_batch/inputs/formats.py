"""Tell by suffixes and first bytes which files are photos, and which image formats are not read."""

from __future__ import annotations

HEAD_BYTES = 132
"""How many of the first bytes of a file tell its format."""


def _suffixes(text: str) -> frozenset[str]:
    return frozenset(text.split())


IMAGE_SUFFIXES = _suffixes(
    ".apng .avif .bmp .gif .heic .heif .hif .j2c .j2k .jfif .jp2 .jpe .jpeg .jpf .jpg .jpx .jxl .mpo .png"
    " .tif .tiff .webp"
)
"""Suffixes of the formats that are read, in lower case; upper case is accepted as well."""

RAW_SUFFIXES = _suffixes(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw"
    " .rw2 .rwl .sr2 .srf .srw .x3f"
)
"""Suffixes of raw files of cameras."""

OTHER_IMAGE_SUFFIXES = _suffixes(
    ".bpg .cur .dcm .dds .dicom .eps .exr .fits .flif .fts .icns .ico .jng .jxr .jxs .mng .pam .pbm .pcx .pgm"
    " .pnm .ppm .psb .psd .qoi .sgi .tga .wdp .xcf"
)
"""Suffixes of further image formats that are not read."""

NOT_IMAGES = _suffixes(
    ".aae .avi .bak .bin .cfg .csv .db .doc .docx .gz .htm .html .ini .ipynb .jpg_original .json .jsonl .lnk"
    " .log .lrv .m4v .md .mkv .mov .mp3 .mp4 .npy .npz .orig .part .pdf .pkl .pt .py .rar .safetensors .sh"
    " .sqlite .svg .tar .thm .tmp .toml .tsv .txt .wav .xls .xlsx .xml .xmp .yaml .yml .zip"
)
"""Suffixes of files that lie beside photos and need not be opened to know that they are not meant."""

SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEGXL"),
    (b"\xff\x0a", "JPEGXL"),
)
"""First bytes of the formats that are read, by Pillow's names where it has them."""

RAW = "a raw file of a camera"

UNREADABLE_SIGNATURES = (
    (b"FUJIFILMCCD-RAW", RAW),
    (b"IIRO", RAW),
    (b"IIRS", RAW),
    (b"MMOR", RAW),
    (b"IIU\0", RAW),
    (b"FOVb", RAW),
    (b"\0MRM", RAW),
    (b"8BPS", "a Photoshop file"),
    (b"gimp xcf", "a GIMP file"),
    (b"\x76\x2f\x31\x01", "an OpenEXR file"),
    (b"#?RADIANCE", "a Radiance HDR file"),
    (b"II\xbc\x01", "a JPEG XR file"),
    (b"qoif", "a QOI file"),
    (b"DDS ", "a DDS file"),
    (b"SIMPLE  =", "a FITS file"),
    (b"icns", "an ICNS file"),
    (b"\x8aMNG\r\n\x1a\n", "an MNG file"),
    (b"\x8bJNG\r\n\x1a\n", "a JNG file"),
    (b"BPG\xfb", "a BPG file"),
    (b"FLIF", "a FLIF file"),
    (b"\xff\x10\xff\x50", "a JPEG XS file"),
    (b"\0\0\0\x0cJXS \r\n\x87\n", "a JPEG XS file"),
    (b"%!PS-Adobe-", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file"),
)
"""First bytes of image formats that are not read, and what to call such a file."""

DICOM, DICOM_START = b"DICM", 128
"""The mark of a DICOM file, and where it is."""

BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)

HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


def format_of(head: bytes) -> str | None:
    """Return the format of a file that is read, by Pillow's name of it, or None.

    Args:
        head: the first ``HEAD_BYTES`` of the file, or all of a shorter one.
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        size = min(int.from_bytes(head[:4]), len(head))
        brands = {head[start : start + 4] for start in (8, *range(16, size, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        return "HEIF" if brands & HEIF_BRANDS else None
    return next((name for signature, name in SIGNATURES if head.startswith(signature)), None)


def unreadable_image(head: bytes, suffix: str) -> str | None:
    """Return what to call an image that is not read, such as "a raw file of a camera", or None.

    Most raw files of cameras are TIFFs in which a reader of TIFF finds no more than a preview.

    Args:
        head: the first ``HEAD_BYTES`` of the file, or all of a shorter one.
        suffix: of the file, with the dot.
    """
    image_format, suffix = format_of(head), suffix.lower()
    if head[4:12] == b"ftypcrx " or (image_format == "TIFF" and head[8:10] == b"CR"):
        return RAW  # of Canon
    if suffix in RAW_SUFFIXES and image_format in {None, "TIFF"}:
        return RAW
    if image_format is not None:
        return None
    for signature, name in UNREADABLE_SIGNATURES:
        if head.startswith(signature):
            return name
    if head.startswith(DICOM, DICOM_START):
        return "a DICOM file"
    if suffix not in OTHER_IMAGE_SUFFIXES:
        return None
    return f"{'an' if suffix[1] in 'eimsx' else 'a'} {suffix[1:].upper()} file"


def is_image(head: bytes) -> bool:
    """Return whether a file of unknown suffix is an image, read or not, by its first ``HEAD_BYTES``.

    Formats that begin with two letters only are told by more: text may begin with them too.
    """
    if head.startswith(b"BM"):
        return head[14:18] in {bytes([size, 0, 0, 0]) for size in BMP_HEADER_SIZES}
    if head.startswith(b"\xff\x0a"):
        return False
    return format_of(head) is not None or unreadable_image(head, "") is not None
