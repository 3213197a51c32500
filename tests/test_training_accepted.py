"""``train --also OUT``: the masks of a run that a review has accepted."""

import os
import shutil

import numpy as np
import pytest
from helpers import write_pairs, write_photo
from test_review import write_run

from carvana_batch.errors import UsageError
from carvana_batch.masks.read import read_mask
from carvana_batch.orientation import Layout
from carvana_batch.training.accepted import find_accepted, is_out_folder
from carvana_batch.training.job import check_run_folder
from carvana_batch.training.settings import TrainingSettings
from carvana_batch.training.split import find_split

HEADER = "image,decision,note\n"


@pytest.fixture
def out(tmp_path):
    """An out folder with the masks a/car0 (accepted), b/car1 (rejected), a/car2 (accepted) and b/car3."""
    folder = write_run(tmp_path, [0.1, 0.2, 0.3, 0.4, None])
    decide(folder, "a/car0,accept,\nb/car1,reject,\na/car2,accept,good\nb/car3,,later\n")
    return folder


def decide(out, rows):
    (out / "decisions.csv").write_text(HEADER + rows)
    late = (out / "a" / "car0.png").stat().st_mtime + 5
    os.utime(out / "decisions.csv", (late, late))


def test_accepted_masks_are_found(out):
    pairs = find_accepted(out)
    assert [pair.id for pair in pairs] == ["a/car0", "a/car2"]
    for pair in pairs:
        assert pair.image == out.parent / "in" / f"{pair.id}.png"
        mask = pair.read_mask(Layout(96, 64)).mask
        np.testing.assert_array_equal(mask.to_bool(), read_mask(out / f"{pair.id}.png").to_bool())


def test_they_are_only_trained_on(out, tmp_path):
    data = write_pairs(tmp_path / "data")
    split = find_split(data, TrainingSettings(also=(str(out),)))
    assert {pair.id for pair in split.train} >= {"a/car0", "a/car2"}
    assert not {pair.id for pair in split.val} & {"a/car0", "a/car2"}
    assert "b/car1" not in {pair.id for pair in split.train}
    assert (is_out_folder(out), is_out_folder(data)) == (True, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: (out / "decisions.csv").unlink(), "save the decisions as .*decisions.csv"),
        (lambda out: decide(out, "a/car0,reject,\n"), "accepts no mask"),
        (lambda out: decide(out, "bus,accept,\n"), "1 image of it is not in"),
        (lambda out: decide(out, "a/car4,accept,\n"), "a/car4: there is no mask"),
        (lambda out: (out / "a" / "car0.png").unlink(), "a/car0: there is no mask"),
        (lambda out: os.utime(out / "a" / "car0.png"), "a/car0: the mask is newer than the decisions"),
        (lambda out: shutil.rmtree(out.parent / "in" / "a"), "2 accepted masks .*was not found"),
        (
            lambda out: write_photo(out.parent / "in" / "a" / "car0.png", size=(50, 40)),
            "a/car0: its photo .* has changed",
        ),
    ],
)
def test_what_cannot_be_trained_on(out, change, message):
    if "newer" in message:
        past = (out / "decisions.csv").stat().st_mtime - 100
        os.utime(out / "decisions.csv", (past, past))
    change(out)
    with pytest.raises(UsageError, match=f"(?s){message}"):
        find_accepted(out)


def test_the_run_does_not_lie_among_the_masks(out, tmp_path):
    with pytest.raises(UsageError, match=r"RUN .* lies among the photos of"):
        check_run_folder(out / "run", tmp_path, TrainingSettings(also=(str(out),)))
