"""The run-length rows published by the competition, byte for byte; skipped if CARVANA_DATA has none."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import names_below
from PIL import Image

from carvana_batch.commands import group
from carvana_batch.masks import rle
from carvana_batch.masks.read import read_mask
from carvana_batch.submission.table import read_rows

VAL = Path(os.environ.get("CARVANA_DATA", "")) / "val"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (VAL / "masks.csv").is_file(), reason="CARVANA_DATA names no folder with published rows"
    ),
]


def run(*arguments):
    result = CliRunner().invoke(group, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_published_rows_match_their_masks():
    with (VAL / "masks.csv").open(newline="") as file:
        rows = {row["img"]: row["rle_mask"] for row in csv.DictReader(file)}
    masks = sorted((VAL / "masks").glob("*_mask.gif"))
    assert {path.name.replace("_mask.gif", ".jpg") for path in masks} == rows.keys()
    assert read_rows(VAL / "masks.csv") == {name.removesuffix(".jpg"): runs for name, runs in rows.items()}
    for path in masks:
        with Image.open(path) as image:
            mask = np.asarray(image) == 1
        published = rows[path.name.replace("_mask.gif", ".jpg")]
        packed = read_mask(path)
        assert rle.encode(mask) == rle.encode_packed(packed) == published, path
        np.testing.assert_array_equal(rle.decode(published, *mask.shape), mask)
        np.testing.assert_array_equal(rle.decode_packed(published, *mask.shape).rows, packed.rows)


def test_published_rows_survive_a_round_trip(tmp_path):
    """submit, decode, submit; also with a sample in another order."""
    published = (VAL / "masks.csv").read_bytes().replace(b"\r\n", b"\n")
    run("submit", VAL / "masks", "-o", tmp_path / "one.csv.gz", "--sample", VAL / "masks.csv")
    assert (
        run("decode", tmp_path / "one.csv.gz", tmp_path / "out")
        == f"240 decoded, 0 failed -> {tmp_path}/out\n"
    )
    run("submit", tmp_path / "out", "-o", tmp_path / "two.csv")
    assert (tmp_path / "two.csv").read_bytes() == published
    header, *lines = published.splitlines(keepends=True)
    (tmp_path / "reversed.csv").write_bytes(b"".join([header, *reversed(lines)]))
    run("submit", tmp_path / "out", "-o", tmp_path / "three.csv", "--sample", tmp_path / "reversed.csv")
    assert (tmp_path / "three.csv").read_bytes() == (tmp_path / "reversed.csv").read_bytes()


def test_decoded_masks_equal_the_true_masks(tmp_path):
    run("decode", VAL / "masks.csv", tmp_path / "out", "--mask-bits", "8")
    assert len(names_below(tmp_path / "out")) == len(names_below(VAL / "masks"))
    for path in sorted((VAL / "masks").glob("*_mask.gif"))[::20]:
        with Image.open(path) as true, Image.open(tmp_path / "out" / f"{path.stem[:-5]}.png") as decoded:
            np.testing.assert_array_equal(np.asarray(decoded), (np.asarray(true) == 1) * np.uint8(255))
