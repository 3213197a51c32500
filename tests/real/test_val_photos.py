"""predict, submit and score on real photos; skipped if CARVANA_DATA has none."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageEnhance, ImageFilter

from carvana_batch.commands import group

DATA = Path(os.environ.get("CARVANA_DATA", ""))
pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (DATA / "val" / "images").is_dir(), reason="CARVANA_DATA names no folder with real photos"
    ),
]

EVERY = 40
"""Takes six photos of different cars from 240 photos with 8 per car."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Folders with links to a few val photos and to their true masks."""
    folder = tmp_path_factory.mktemp("real")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for image in sorted((DATA / "val" / "images").glob("*.jpg"))[::EVERY]:
        (folder / "images" / image.name).symlink_to(image.resolve())
        mask = (DATA / "val" / "masks" / f"{image.stem}_mask.gif").resolve()
        (folder / "masks" / mask.name).symlink_to(mask)
    return folder


def run(*arguments):
    result = CliRunner().invoke(group, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def mean_dice(out, photos, scores):
    return json.loads(run("score", out, "--gt", photos / "masks", "-o", scores, "--json"))["summary"]["dice"]


def test_real_photos_reach_high_dice_with_and_without_tiles(photos, tmp_path):
    images, masks = photos / "images", photos / "masks"
    report = json.loads(run("predict", images, tmp_path / "out", "--follow-links", "--json", "--gt", masks))
    whole = mean_dice(tmp_path / "out", photos, tmp_path / "scores.csv")
    assert whole > 0.99
    assert report["dice"]["mean"] == pytest.approx(whole, abs=1e-9)
    tiles = ("--tile", "1024", "--overlap", "256")
    run("predict", images, tmp_path / "tiles", "--follow-links", *tiles)
    assert mean_dice(tmp_path / "tiles", photos, tmp_path / "scores.csv") > whole - 0.0005


CHANGES = {
    "noisy": lambda photo: Image.fromarray(
        (np.asarray(photo) + np.random.default_rng(0).normal(0, 25, (photo.height, photo.width, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    ),
    "dark": lambda photo: ImageEnhance.Brightness(photo).enhance(0.3),
    "blurred": lambda photo: photo.filter(ImageFilter.GaussianBlur(4)),
}


@pytest.fixture(scope="module")
def changed(photos, tmp_path_factory):
    """Folders with changed val photos, each change of two photos, and their true masks."""
    folder = tmp_path_factory.mktemp("changed")
    for name in ("images", "masks", "turned"):
        (folder / name).mkdir()
    for path in sorted((photos / "images").iterdir())[:2]:
        true = (photos / "masks" / f"{path.stem}_mask.gif").resolve()
        with Image.open(path) as photo:
            for kind, change in CHANGES.items():
                change(photo).save(folder / "images" / f"{path.stem}_{kind}.png")
                (folder / "masks" / f"{path.stem}_{kind}.gif").symlink_to(true)
            photo.transpose(Image.Transpose.ROTATE_90).save(folder / "turned" / f"{path.stem}.png")
    return folder


def test_noisy_dark_and_blurred_photos_are_masked_by_the_second_network(changed, tmp_path):
    report = json.loads(
        run("predict", changed / "images", tmp_path / "out", "--json", "--gt", changed / "masks")
    )
    assert report["notes"] == {"masked by the second network": 6}
    assert report["dice"]["p05"] > 0.97
    assert report["doubtful"] == 0
    alone = json.loads(
        run(
            *("predict", changed / "images", tmp_path / "alone", "--model", "segunet-s", "--json"),
            *("--gt", changed / "masks"),
        )
    )
    assert alone["dice"]["mean"] < 0.9


def test_photos_on_their_side_are_doubtful(changed, tmp_path):
    report = json.loads(run("predict", changed / "turned", tmp_path / "out", "--json"))
    assert report["doubtful"] == 2


def test_studio_photos_are_neither_doubtful_nor_masked_by_the_second_network(photos, tmp_path):
    for name, options in (("auto", ()), ("alone", ("--model", "segunet-s"))):
        report = run("predict", photos / "images", tmp_path / name, "--follow-links", "--json", *options)
        assert (json.loads(report)["notes"], json.loads(report)["doubtful"]) == ({}, 0)
    for path in sorted((tmp_path / "auto").glob("*.png")):
        assert path.read_bytes() == (tmp_path / "alone" / path.name).read_bytes()
