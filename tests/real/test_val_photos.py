"""predict, submit and score on real photos; skipped if CARVANA_DATA has none."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

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
