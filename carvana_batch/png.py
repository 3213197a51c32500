"""PNG files straight from packed rows, which are the scanlines of a 1-bit grey PNG."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from carvana_batch.records import PackedMask

COMPRESSION_LEVEL = 1


def encode_mask(mask: PackedMask, bits: int = 1) -> bytes:
    """A grey PNG of a mask: 1 bit a pixel (0, 1), or 8 bits (0, 255).

    Format: W3C, "Portable Network Graphics Specification", https://www.w3.org/TR/png-3/. Pillow gives the
    same picture, but takes eight times as long to unpack, pack and compress it.
    """
    rows = mask.rows if bits == 1 else mask.to_bool().astype(np.uint8) * 255
    scanlines = np.zeros((rows.shape[0], rows.shape[1] + 1), np.uint8)
    scanlines[:, 1:] = rows
    header = struct.pack(">IIBBBBB", mask.width, mask.height, bits, 0, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(scanlines.tobytes(), COMPRESSION_LEVEL)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
