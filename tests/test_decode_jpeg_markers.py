import io

import numpy as np
import pytest
from PIL import Image

from carvana_batch.decode.jpeg_markers import has_end, jpeg_size
from carvana_batch.decode.photo import read_image
from carvana_batch.errors import ImageError

NOISE = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
THUMBNAIL = b"\xff\xd8\xff\xda\0\2\xff\xd9"


def jpeg(mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        jpeg(),
        jpeg(quality=100, subsampling=0),
        jpeg(progressive=True),
        jpeg(restart_marker_blocks=1),
        jpeg(progressive=True, restart_marker_rows=1),
        jpeg("L"),
        jpeg("CMYK"),
        jpeg(exif=b"Exif\0\0" + THUMBNAIL),
        jpeg(comment=b"\xff\xd9" * 20),
        jpeg(icc_profile=bytes(range(256)) * 600),  # in more than one segment
        jpeg().replace(b"\xff\xdb", b"\xff\xff\xff\xdb"),  # any marker may be padded with \xff
        jpeg() + b"\0" * 100,
        jpeg() + jpeg(),
    ],
)
def test_complete_jpegs_have_an_end_and_a_size(tmp_path, content):
    assert has_end(content)
    assert jpeg_size(content) == (90, 70)
    (tmp_path / "a.jpg").write_bytes(content)
    assert read_image(tmp_path / "a.jpg").shape == (70, 90, 3)


@pytest.mark.parametrize("content", [jpeg(), jpeg(progressive=True), jpeg(exif=b"Exif\0\0" + THUMBNAIL)])
def test_truncated_jpegs_have_no_end(tmp_path, content):
    path = tmp_path / "a.jpg"
    for length in range(len(content)):
        assert not has_end(content[:length]), length
    for length in range(len(content) - 40, len(content) - 2):
        path.write_bytes(content[:length])
        with pytest.raises(ImageError, match="is cut short: the file ends before the picture does"):
            read_image(path)


def test_jpegs_without_a_size():
    for content in (
        b"",
        b"\xff",
        b"\xff\xc0",
        b"\xff\xd8\xff\xd9" + jpeg(),
        jpeg()[: jpeg().index(b"\xff\xc0") + 8],
    ):
        assert jpeg_size(content) is None
