"""``predict_folder``, ``score`` and ``submit`` do what the commands do, and say what they would say."""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

import carvana_batch
from carvana_batch.api.masker import make_reporter
from carvana_batch.demo import draw_photo
from carvana_batch.errors import FolderInUseError, ImageError, UsageError
from carvana_batch.output.report import RunReport

SMALL = (192, 128)
NAMES = ("b.png", "a/c.png", "d.png")


@pytest.fixture(scope="module")
def masker():
    return carvana_batch.Masker("segunet-s", device="cpu", precision="fp32", workers=0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """photos/ and gt/ of three drawn photos, and a torn photo; to be read only."""
    root = tmp_path_factory.mktemp("data")
    for number, name in enumerate(NAMES):
        pixels, mask = draw_photo(number, 5, SMALL)[:2]
        for folder, array in (("photos", pixels), ("gt", mask.astype(np.uint8) * 255)):
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    (root / "photos" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return root


def run_command(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "carvana_batch", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def files_of(folder):
    """The content of the files that a user looks at."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".carvana-batch" not in path.parts and path.name != "run.json"
    }


def test_a_folder_has_the_bytes_of_the_command_line(masker, photos, tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on which the last bits of the maps depend
    try:
        report = masker.predict_folder(
            photos / "photos",
            tmp_path / "ours",
            save=("prob", "cutout", "recolour"),
            colour="darkred",
            gt=photos / "gt",
            rle=tmp_path / "ours.csv",
            mask_bits=8,
            progress=False,
        )
    finally:
        torch.set_num_threads(threads)
    words = "--model segunet-s --device cpu --precision fp32 --workers 0 --mask-bits 8"
    words += " --save prob --save cutout --save recolour --colour darkred"
    command = run_command(
        "predict", photos / "photos", tmp_path / "theirs", *words.split(),
        "--gt", photos / "gt", "--rle", tmp_path / "theirs.csv", "--json",
    )  # fmt: skip
    assert command.returncode == 3, command.stderr
    ours, theirs = files_of(tmp_path / "ours"), files_of(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert {"b.png", "a/c.png", "d.png", "_cutout/a/c.png", "_prob/b.tif", "report.csv"} <= ours.keys()
    assert (tmp_path / "ours.csv").read_bytes() == (tmp_path / "theirs.csv").read_bytes()
    printed = json.loads(command.stdout)
    described = report.describe()
    for name in ("exit_code", "found", "done", "failed", "failures", "dice", "notes", "settings", "images"):
        assert json.loads(json.dumps(described[name])) == printed[name], name
    assert isinstance(report, RunReport)
    assert (report.exit_code, report.done, len(report.failures)) == (3, 3, 1)


def test_masks_of_a_folder_are_those_of_single_photos(masker, photos, tmp_path):
    masker.predict_folder(photos / "photos", tmp_path / "out", limit=3, progress=False)
    for name in NAMES:
        with Image.open(tmp_path / "out" / name) as mask:
            np.testing.assert_array_equal(np.asarray(mask), masker.mask(photos / "photos" / name))


def test_a_run_is_continued_by_either_side(masker, photos, tmp_path):
    first = masker.predict_folder(photos / "photos", tmp_path / "out", limit=1, progress=False)
    assert (first.done, first.exit_code) == (1, 0)
    words = ["--model", "segunet-s", "--device", "cpu", "--precision", "fp32", "--workers", "0", "--json"]
    command = run_command("predict", photos / "photos", tmp_path / "out", "--limit", 2, *words)
    assert (json.loads(command.stdout)["already_done"], json.loads(command.stdout)["done"]) == (1, 1)
    last = masker.predict_folder(photos / "photos", tmp_path / "out", progress=False)
    assert (last.already_done, last.done, last.exit_code) == (2, 1, 3)
    again = masker.predict_folder(photos / "photos", tmp_path / "out", overwrite=True, progress=False)
    assert (again.already_done, again.done) == (0, 3)


def test_refusals_speak_of_arguments(masker, photos, tmp_path):
    masker.predict_folder(photos / "photos", tmp_path / "out", limit=1, progress=False)
    other = carvana_batch.Masker("segunet-s", device="cpu", precision="fp32", threshold=0.4)
    with pytest.raises(UsageError, match=r"threshold.*overwrite=True to start afresh, or another out\."):
        other.predict_folder(photos / "photos", tmp_path / "out", progress=False)
    with pytest.raises(UsageError, match='save="recolour" and colour belong together'):
        masker.predict_folder(photos / "photos", tmp_path / "new", save="recolour", progress=False)
    with pytest.raises(UsageError, match="car_value and ignore_value are for the masks of gt"):
        masker.predict_folder(photos / "photos", tmp_path / "new", car_value=7, progress=False)
    with pytest.raises(UsageError, match=r"shard=\(3, 2\) is not i/n"):
        masker.predict_folder(photos / "photos", tmp_path / "new", shard=(3, 2), progress=False)
    with pytest.raises(UsageError, match=r"save=\['overlay', 'x'\]: 'x' is not one of"):
        masker.predict_folder(photos / "photos", tmp_path / "new", save=["overlay", "x"], progress=False)
    with pytest.raises(UsageError, match="images and out are both"):
        masker.predict_folder(photos / "photos", photos / "photos", progress=False)
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_refused(masker, photos, tmp_path):
    """A run that is begun while another one is in the middle."""
    errors = []

    class Intruder(threading.Thread):
        def run(self):
            try:
                masker.predict_folder(photos / "photos", tmp_path / "out", progress=False)
            except FolderInUseError as error:
                errors.append(error)

    from carvana_batch.output.folder import OutFolder

    masker.predict_folder(photos / "photos", tmp_path / "out", limit=1, progress=False)
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    with OutFolder(tmp_path / "out", settings, (1, 1), False):
        intruder = Intruder()
        intruder.start()
        intruder.join()
    assert len(errors) == 1


def test_an_interrupted_run_returns_its_report_and_can_be_continued(masker, photos, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)

    def interrupt_at_first(progress):
        if progress.finished == 1:
            os.kill(os.getpid(), signal.SIGINT)

    reporter = make_reporter(False)
    monkeypatch.setattr(reporter, "_show", interrupt_at_first)
    monkeypatch.setattr("carvana_batch.api.masker.make_reporter", lambda progress: reporter)
    report = masker.predict_folder(photos / "photos", tmp_path / "out", progress=False)
    assert report.stopped_by == signal.SIGINT
    assert report.exit_code == 130
    assert 1 <= report.done < 3
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    rest = masker.predict_folder(photos / "photos", tmp_path / "out", progress=False)
    assert rest.already_done == report.done
    assert rest.done + rest.already_done == 3


def test_a_second_interrupt_ends_the_call_but_not_the_process(masker, photos, tmp_path, monkeypatch):
    def interrupt_twice(_progress):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    reporter = make_reporter(False)
    monkeypatch.setattr(reporter, "_show", interrupt_twice)
    monkeypatch.setattr("carvana_batch.api.masker.make_reporter", lambda progress: reporter)
    with pytest.raises(KeyboardInterrupt):
        masker.predict_folder(photos / "photos", tmp_path / "out", progress=False)
    monkeypatch.undo()
    assert masker.predict_folder(photos / "photos", tmp_path / "out", progress=False).exit_code == 3


def test_progress_prints_what_the_command_line_prints(masker, photos, tmp_path, capfd):
    masker.predict_folder(photos / "photos", tmp_path / "out", html=tmp_path / "page.html")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "failed: " in captured.err and "torn.jpg (decode)" in captured.err
    assert "3 masked, 1 failed" in captured.err
    assert f"Page: {tmp_path / 'page.html'}" in captured.err
    assert (tmp_path / "page.html").exists()


def dice_of(predicted, true):
    with Image.open(predicted) as first, Image.open(true) as second:
        a, b = np.asarray(first) > 0, np.asarray(second) > 0
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_scores_are_dice_computed_by_hand(masker, photos, tmp_path):
    masker.predict_folder(photos / "photos", tmp_path / "out", progress=False)
    scores = carvana_batch.score(tmp_path / "out", photos / "gt")
    assert [row.image for row in scores] == ["a/c", "b", "d"]
    assert len(scores) == 3
    for row in scores:
        expected = dice_of(tmp_path / "out" / f"{row.image}.png", photos / "gt" / f"{row.image}.png")
        assert row.dice == pytest.approx(expected, abs=1e-12)
    assert scores.summary.dice == pytest.approx(np.mean([row.dice for row in scores]))
    assert scores[0] == scores.rows[0]


def test_scores_become_a_table_of_pandas(photos):
    pytest.importorskip("pandas", reason="needs pandas")
    table = carvana_batch.score(photos / "gt", photos / "gt", images=photos / "photos").to_pandas()
    assert table.index.tolist() == ["a/c", "b", "d"]
    assert table["dice"].tolist() == [1, 1, 1]
    assert "similar_share" in table
    assert "similar_share" not in carvana_batch.score(photos / "gt", photos / "gt").to_pandas()


def test_without_pandas_the_error_says_what_to_install(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(carvana_batch.CarvanaBatchError, match="pip install pandas"):
        carvana_batch.score(photos / "gt", photos / "gt").to_pandas()


def test_masks_that_are_left_out_of_the_scores_are_a_warning(photos, tmp_path):
    (tmp_path / "pred").mkdir()
    for name, other in (("b.png", "b.png"), ("d.png", "d.png"), ("x.png", "b.png")):
        (tmp_path / "pred" / name).write_bytes((photos / "gt" / other).read_bytes())
    with pytest.warns(carvana_batch.CarvanaBatchWarning) as caught:
        scores = carvana_batch.score(tmp_path / "pred", photos / "gt")
    lines = [str(each.message) for each in caught]
    assert "true masks without a predicted one (missing): 1" in lines
    assert "predicted masks without a true one (extra): 1" in lines
    assert (scores.missing, scores.extra, len(scores)) == (("a/c",), ("x",), 2)
    assert caught[0].filename == __file__


def test_refusals_of_scores_speak_of_arguments(photos, tmp_path):
    with pytest.raises(UsageError, match=r"size is for two files of run-length rows.*Leave size out"):
        carvana_batch.score(photos / "gt", photos / "gt", size=(4, 5))
    with pytest.raises(UsageError, match='size="4" is not WIDTHxHEIGHT'):
        carvana_batch.score(photos / "gt", photos / "gt", size="4")
    with pytest.raises(UsageError, match="gt takes the true masks"):
        carvana_batch.score(photos / "gt", tmp_path / "nowhere")


def test_submit_writes_the_bytes_of_the_command_line(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = carvana_batch.submit(photos / "gt", size=SMALL)
    assert (summary.rows, summary.empty) == (3, 0)
    command = run_command("submit", photos / "gt", "-o", "theirs.csv.gz", "--size", "192x128")
    assert command.returncode == 0, command.stderr
    ours = gzip.decompress((tmp_path / "submission.csv.gz").read_bytes())
    assert ours == gzip.decompress((tmp_path / "theirs.csv.gz").read_bytes())
    assert ours.startswith(b"img,rle_mask\na/c.jpg,")


def test_submit_refuses_and_warns_as_the_command_line_does(masker, photos, tmp_path):
    with pytest.raises(ImageError, match='use size="WIDTHxHEIGHT" or size="any"'):
        carvana_batch.submit(photos / "gt", tmp_path / "new.csv")
    with pytest.raises(UsageError, match=r"^output \S*taken\.csv is there already"):
        (tmp_path / "taken.csv").write_text("something else\n")
        carvana_batch.submit(photos / "gt", tmp_path / "taken.csv", size="any")
    masker.predict_folder(photos / "photos", tmp_path / "out", progress=False)
    with pytest.warns(
        carvana_batch.CarvanaBatchWarning, match="photos that failed and have no mask in .*: 1"
    ):
        carvana_batch.submit(tmp_path / "out", tmp_path / "new.csv", size="any")
    (tmp_path / "empty").mkdir()
    Image.fromarray(np.zeros((4, 5), np.bool_)).save(tmp_path / "empty" / "a.png")
    with pytest.warns(carvana_batch.CarvanaBatchWarning, match=r"none of the masks in .* has a car"):
        carvana_batch.submit(tmp_path / "empty", tmp_path / "empty.csv", size="any")
