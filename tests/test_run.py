import csv
import errno
import gc
import gzip
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers import names_in, results_in, write_mask, write_photo
from PIL import Image

from carvana_batch.decode import loader
from carvana_batch.decode.photo import read_image
from carvana_batch.errors import FolderInUseError, OutOfSpaceError, UsageError
from carvana_batch.inference.planning import make_predictor
from carvana_batch.inputs.find import find_images
from carvana_batch.inputs.masks import find_masks
from carvana_batch.masks.read import read_mask
from carvana_batch.notes import Note
from carvana_batch.options import Options
from carvana_batch.output import extras
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.lock import is_locked
from carvana_batch.output.report import rank_correlation, write_table
from carvana_batch.output.verifying import verify
from carvana_batch.output.writer import MaskWriter
from carvana_batch.output.writer_threads import MOST_UNWRITTEN
from carvana_batch.run import Listener, run
from carvana_batch.scoring.compare import compare_masks
from carvana_batch.stopping import StopFlag
from carvana_batch.submission.write import write_submission
from carvana_batch.values import ImageRef

NO_IMAGE = (
    "is not an image in a supported format (JPEG, PNG, TIFF, WebP, HEIC, AVIF, JPEG XL, JPEG 2000, GIF, BMP)"
)


@pytest.fixture
def predict(model):
    """``predict(photos, out, ...)`` masks a folder with the bundled network in float32."""

    def predict_folder(photos, out, listener=None, stop=None, refs=None, **options):
        refs = find_images(photos).refs if refs is None else refs
        arguments: dict[str, Any] = {"precision": "fp32", "workers": 0, **options}
        return run(refs, out, model, Options(**arguments), listener, stop)

    return predict_folder


@pytest.fixture
def photos(tmp_path, drawn):
    """The folder ``in`` with nine small photos, some of them in subfolders."""
    folder = tmp_path / "in"
    for number in range(9):
        target = folder / "abc"[number % 3] / f"{number}.jpg" if number % 2 else folder / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(drawn / "images" / f"car{number % 4}.jpg", target)
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def report_rows(out):
    with (out / "report.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def rows_of(path):
    """The text of a CSV file, which may be compressed."""
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "surrogateescape")


def test_memory_is_shared_with_workers_during_a_run_only(predict, photos, out):
    frozen_objects = []
    predict(photos, out, Listener(on_progress=lambda _: frozen_objects.append(gc.get_freeze_count())))
    assert min(frozen_objects) > 0
    assert gc.get_freeze_count() == 0


def test_masks_mirror_the_tree_and_the_sizes_of_photos(predict, photos, out):
    write_photo(photos / "other" / "size.png", seed=5, size=(37, 23))
    report = predict(photos, out)
    assert (report.exit_code, report.found, report.done, report.already_done) == (0, 10, 10, 0)
    refs = find_images(photos).refs
    masks = find_masks(out)
    assert list(masks) == [ref.key for ref in refs]
    for ref in refs:
        height, width = read_image(ref.path).shape[:2]
        mask = read_mask(masks[ref.key])
        assert (mask.height, mask.width) == (height, width)
    assert 0.02 < np.mean([read_mask(path).to_bool().mean() for path in masks.values()]) < 0.9


def test_bytes_do_not_depend_on_the_number_of_workers(predict, photos, tmp_path):
    (photos / "a" / "bad.jpg").write_text("text")
    results = []
    for workers in (0, 1, 2):
        out = tmp_path / f"out{workers}"
        options = {"extras": ("overlay", "prob"), "rle_file": out / "rows.csv"}
        assert predict(photos, out, workers=workers, **options).exit_code == 3
        results.append(results_in(out))
    assert results[0] == results[1] == results[2]
    assert len(results[0]) == 9 * 3 + 2


def test_a_mask_does_not_depend_on_the_other_photos(predict, photos, tmp_path):
    predict(photos, tmp_path / "all")
    few = find_images(photos).refs[4:6]
    predict(photos, tmp_path / "few", refs=few)
    for ref in few:
        names = [tmp_path / out / f"{ref.key}.png" for out in ("all", "few")]
        assert names[0].read_bytes() == names[1].read_bytes()


@pytest.fixture
def odd_photos(tmp_path):
    """Unusual but valid photos in the folder ``odd``; returns key -> size (width, height)."""
    folder = tmp_path / "odd"
    write_photo(folder / "plain.jpg")
    photo = Image.open(folder / "plain.jpg")
    grey = (np.asarray(photo.convert("L"), np.uint16) * 257).astype(np.uint16)
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("RGBA").save(folder / "rgba.png")
    Image.fromarray(grey).save(folder / "grey16.png")
    tifffile.imwrite(folder / "grey16-tiff.tif", grey)
    photo.resize((37, 23)).save(folder / "tiny.png")
    photo.resize((1, 1)).save(folder / "pixel.png")
    for name in ("日本 ä.jpg", "[red]x[bold].jpg", "=1+1.jpg", "a\nb.jpg", os.fsdecode(b"\xff\xfe.jpg")):
        shutil.copy2(folder / "plain.jpg", folder / name)
    sizes = {"tiny": (37, 23), "pixel": (1, 1)}
    return {ref.key: sizes.get(ref.key, (96, 64)) for ref in find_images(folder).refs}


def test_bad_photos_are_reported_and_odd_ones_masked(predict, odd_photos, tmp_path, out):
    folder = tmp_path / "odd"
    whole = (folder / "plain.jpg").read_bytes()
    (folder / "bad").mkdir()
    (folder / "bad" / "=cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "bad" / "empty.jpg").write_bytes(b"")
    (folder / "bad" / "text.jpg").write_text("text")
    (folder / "bad" / "link.jpg").symlink_to("nowhere.jpg")
    report = predict(folder, out)
    assert (report.exit_code, report.done, len(report.failures)) == (3, len(odd_photos), 4)
    masks = find_masks(out)
    assert {key: read_mask(path).to_bool().shape[::-1] for key, path in masks.items()} == odd_photos
    assert (masks["cmyk"].stat().st_size, masks["rgba"].stat().st_size) > (0, 0)
    assert masks["rgba"].read_bytes() == masks["plain"].read_bytes()
    assert masks["grey16"].read_bytes() == masks["grey16-tiff"].read_bytes()
    assert {entry.key: entry.reason for entry in report.failures} == {
        "bad/=cut": "is cut short: the file ends before the picture does"
        "; --damaged accept masks what can be decoded",
        "bad/empty": "is empty (0 bytes)",
        "bad/link": "is a link to a file that does not exist",
        "bad/text": NO_IMAGE,
    }
    rows = report_rows(out)
    assert {key for key, row in rows.items() if row["status"] == "failed"} == {
        entry.key for entry in report.failures
    }
    assert rows["'=1+1"]["status"] == "done"
    assert rows.keys() == {{"=1+1": "'=1+1", "a\nb": r"a\x0ab"}.get(key, key) for key in odd_photos} | {
        entry.key for entry in report.failures
    }


def test_a_rerun_masks_only_what_failed_or_changed(predict, photos, out, monkeypatch):
    for name in ("bad1", "bad2"):
        (photos / f"{name}.jpg").write_text("text")
    assert predict(photos, out).exit_code == 3
    expected = results_in(out)
    decoded = []
    decode_image = loader.decode_image

    def record(path, **options):
        decoded.append(path.relative_to(photos).as_posix())
        return decode_image(path, **options)

    monkeypatch.setattr(loader, "decode_image", record)
    report = predict(photos, out)
    assert (report.exit_code, report.already_done, report.done) == (3, 9, 0)
    assert decoded == ["bad1.jpg", "bad2.jpg"]
    assert results_in(out) == expected

    decoded.clear()
    shutil.copy2(photos / "0.jpg", photos / "bad1.jpg")  # repaired
    shutil.copy(photos / "a" / "3.jpg", photos / "2.jpg")  # changed
    (out / "4.png").unlink()
    (out / "b" / "1.png").write_bytes(expected["b/1.png"][:-1])
    (photos / "8.jpg").write_text("broken since")
    report = predict(photos, out)
    assert (report.exit_code, report.already_done, report.done) == (3, 5, 4)
    assert decoded == ["2.jpg", "4.jpg", "8.jpg", "b/1.jpg", "bad1.jpg", "bad2.jpg"]
    results = results_in(out)
    changed = {name for name in results.keys() | expected.keys() if results.get(name) != expected.get(name)}
    assert changed == {"bad1.png", "2.png", "8.png", "report.csv"}
    assert results["bad1.png"] == expected["0.png"]
    assert results["2.png"] == expected["a/3.png"]
    assert "8.png" not in results


def test_a_photo_that_changes_while_it_is_read_is_read_again(predict, photos, out, monkeypatch):
    decode_image = loader.decode_image

    def read_and_change(path, **options):
        decoded = decode_image(path, **options)
        if path.name == "4.jpg" and path.read_bytes() != (photos / "2.jpg").read_bytes():
            shutil.copy(photos / "2.jpg", path)
        if path.name == "6.jpg":
            path.unlink()
        return decoded

    with monkeypatch.context() as patch:
        patch.setattr(loader, "decode_image", read_and_change)
        report = predict(photos, out)
    assert {entry.key: entry.reason for entry in report.failures} == {"6": "does not exist"}
    assert report.done == 8
    assert (out / "4.png").read_bytes() == (out / "2.png").read_bytes()
    assert predict(photos, out).already_done == 8


def test_notes_reach_report_journal_and_a_later_run(predict, photos, out):
    first, second = (Image.open(photos / name) for name in ("0.jpg", "2.jpg"))
    first.save(photos / "roll.tif", save_all=True, append_images=[second])
    for _ in range(2):  # the second run masks nothing, and counts what the journal says
        report = predict(photos, out)
        assert report.notes == {Note.FIRST_PAGE: 1}
        assert json.loads((out / "run.json").read_text())["notes"] == {"only the first page or frame": 1}
        rows = report_rows(out)
        assert rows["roll"]["notes"] == "only the first page or frame"
        assert {row["notes"] for key, row in rows.items() if key != "roll"} == {""}
    assert report.done == 0


def test_other_settings_are_rejected_without_overwrite(predict, photos, out):
    predict(photos, out)
    before = results_in(out)
    with pytest.raises(UsageError, match=r"threshold: 0\.5 before, 0\.25 now"):
        predict(photos, out, threshold=0.25)
    assert results_in(out) == before
    (out / "mine.png").write_bytes(b"mine")
    assert predict(photos, out, threshold=0.25, overwrite=True).done == 9
    assert (out / "mine.png").read_bytes() == b"mine"
    changed = [name for name, content in results_in(out).items() if before.get(name) != content]
    assert len(changed) == 9 + 2


def test_a_rejected_run_with_overwrite_removes_nothing(predict, photos, out):
    predict(photos, out)
    before = names_in(out), results_in(out)
    for options in ({"device": "cuda:99"}, {"tile": (32, 32), "overlap": 256}, {"truth": photos / "none"}):
        with pytest.raises(UsageError):
            predict(photos, out, overwrite=True, **options)
    assert (names_in(out), results_in(out)) == before


def test_the_automatic_choice_is_used_again(predict, photos, out, monkeypatch):
    choices = []

    def record(model, options, earlier, **arguments):
        choices.append(earlier and asdict(earlier))
        return make_predictor(model, options, earlier, **arguments)

    monkeypatch.setattr("carvana_batch.engines.local.make_predictor", record)
    report = predict(photos, out)
    (out / "4.png").unlink()
    assert predict(photos, out).chosen == report.chosen
    assert choices == [None, report.chosen]
    assert report.chosen["precision"] == "fp32"


def test_the_choice_of_a_shard_that_started_earlier_is_used(predict, photos, out, monkeypatch):
    batches = []

    def make_late(model, options, earlier, **arguments):
        batches.append(earlier and earlier.batch)
        if len(batches) == 1:  # meanwhile another shard starts, makes its choice and ends
            predict(photos, out, shard=(2, 2))
            settings = out / ".carvana-batch" / "settings.json"
            settings.write_text(settings.read_text().replace('"batch": 1', '"batch": 3'))
        return make_predictor(model, options, earlier, **arguments)

    monkeypatch.setattr("carvana_batch.engines.local.make_predictor", make_late)
    report = predict(photos, out, shard=(1, 2))
    assert report.chosen["batch"] == 3
    assert batches == [None, None, 3]


def test_shards_together_give_the_results_of_one_run(predict, photos, tmp_path):
    predict(photos, tmp_path / "whole")
    reports = [predict(photos, tmp_path / "parts", shard=(i, 4)) for i in (1, 2, 3, 4)]
    assert [report.found for report in reports] == [3, 2, 2, 2]
    assert results_in(tmp_path / "parts") == results_in(tmp_path / "whole")
    assert predict(photos, tmp_path / "parts").already_done == 9


def test_the_report_is_written_under_the_shared_lock(predict, photos, out, monkeypatch):
    """Otherwise a shard could replace a newer report by one from journals that it read earlier."""
    locked = []

    def write_locked(path, entries):
        locked.append(is_locked(out / ".carvana-batch" / "shared.lock", patience=0))
        write_table(path, entries)

    monkeypatch.setattr("carvana_batch.run.write_table", write_locked)
    predict(photos, out, shard=(1, 2))
    assert locked == [True]


def test_more_shards_than_photos(predict, photos, out):
    report = predict(photos, out, shard=(12, 12))
    assert (report.exit_code, report.found) == (0, 0)


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_rle_rows_are_those_of_submit(predict, photos, out, tmp_path, name):
    (photos / "bad.jpg").write_text("text")
    shutil.copy2(photos / "0.jpg", photos / "b" / "z_mask.jpg")
    shutil.copy2(photos / "0.jpg", photos / "b" / "z1.jpg")  # after z, but before z_mask
    predict(photos, out, rle_file=tmp_path / name)
    write_submission(out, tmp_path / f"submit-{name}", None)
    assert (tmp_path / name).read_bytes() == (tmp_path / f"submit-{name}").read_bytes()
    text = rows_of(tmp_path / name)
    assert text.count("\n") == 1 + 11
    assert "b/z.jpg" in text


def test_rle_rows_after_interruptions_and_runs_without_rle(predict, photos, out, tmp_path):
    rows, submitted = tmp_path / "rows.csv", tmp_path / "submitted.csv"

    def check(**options):
        predict(photos, out, rle_file=rows, **options)
        write_submission(out, submitted, None)
        assert rows_of(rows) == rows_of(submitted)

    stopped = predict(photos, out, **stop_after(3), rle_file=rows)
    assert stopped.exit_code == 130
    assert not rows.exists()
    stopped = predict(photos, out, **stop_after(2))
    assert 2 <= stopped.done < 6
    check()
    check()
    shutil.copy(photos / "2.jpg", photos / "4.jpg")
    predict(photos, out)
    check()
    shutil.copy(photos / "a" / "3.jpg", photos / "4.jpg")
    check()
    (out / ".carvana-batch" / "rle-1-of-1.jsonl").write_bytes(b"\n[")
    check()


def test_rle_rows_of_masks_that_were_overwritten_since(predict, photos, out, tmp_path):
    predict(photos, out, rle_file=tmp_path / "rows.csv")
    predict(photos, out, threshold=0.25, overwrite=True)
    predict(photos, out, threshold=0.25, rle_file=tmp_path / "rows.csv")
    write_submission(out, tmp_path / "submitted.csv", None)
    assert rows_of(tmp_path / "rows.csv") == rows_of(tmp_path / "submitted.csv")


def test_an_unusable_rle_file_is_rejected_before_any_work(predict, photos, out, tmp_path):
    for target, problem in (("rows.txt", "a submission is named"), ("none/rows.csv", "there is no folder")):
        with pytest.raises(UsageError, match=problem):
            predict(photos, out, rle_file=tmp_path / target)
    assert not list(out.rglob("*.png"))
    predict(photos, out, rle_file=out / "rows.csv")
    assert (out / "rows.csv").exists()


def stop_after(photos):
    """Arguments of ``predict`` that stop a run as soon as so many photos are done or have failed."""
    stop = StopFlag()

    def check(progress):
        if progress.done + progress.failed >= photos:
            stop.signal = signal.SIGINT

    return {"listener": Listener(on_progress=check), "stop": stop}


def test_a_stopped_run_finishes_started_photos_and_is_resumed(predict, photos, tmp_path):
    predict(photos, tmp_path / "undisturbed")
    out = tmp_path / "out"
    report = predict(photos, out, **stop_after(2))
    assert (report.exit_code, report.stopped_by) == (130, signal.SIGINT)
    assert 2 <= report.done < 6
    assert len(find_masks(out)) == report.done == len(report_rows(out))
    report = predict(photos, out)
    assert (report.exit_code, report.already_done + report.done) == (0, 9)
    assert results_in(out) == results_in(tmp_path / "undisturbed")


def test_a_signal_after_the_last_photo_changes_nothing(predict, photos, out):
    assert predict(photos, out, **stop_after(9)).exit_code == 0


def test_true_masks_without_any_car_are_refused(predict, drawn, tmp_path, out):
    for photo in (drawn / "images").iterdir():
        write_mask(tmp_path / "empty" / f"{photo.stem}.png", [[0, 0]])
    with pytest.raises(UsageError, match=r"None of the masks in --gt .*empty has a car"):
        predict(drawn / "images", out, truth=tmp_path / "empty")
    assert not out.exists()


def test_true_masks_that_are_all_unusable_are_refused_with_the_reasons(predict, drawn, tmp_path, out):
    (tmp_path / "bad").mkdir()
    for photo in (drawn / "images").iterdir():
        (tmp_path / "bad" / f"{photo.stem}.png").write_text("text")
    with pytest.raises(UsageError, match=r"None of the masks in --gt .*bad can be used\.") as caught:
        predict(drawn / "images", out, truth=tmp_path / "bad")
    assert "car0.png is not an image" in str(caught.value)
    assert not out.exists()


def test_inverted_true_masks_are_pointed_out(predict, drawn, tmp_path, out):
    predict(drawn / "images", out)
    for image, path in find_masks(out).items():
        write_mask(tmp_path / "inverted" / f"{image}.png", ~read_mask(path).to_bool())
    for folder in (out, tmp_path / "second"):  # in the first, all photos are done
        (warning,) = predict(drawn / "images", folder, truth=tmp_path / "inverted").warnings
        assert warning.startswith("nearly all pixels are wrong. The masks of one side seem to be inverted")
    assert predict(drawn / "images", out, truth=drawn / "masks").warnings == []


def test_true_masks_of_other_pixels_are_pointed_out(predict, drawn, tmp_path, out):
    """The value 90 is not the car, but a corner of the photo."""
    for path in find_masks(drawn / "masks").values():
        labels = np.where(read_mask(path).to_bool(), 7, 3).astype(np.uint8)
        labels[:4, :4] = 90
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(labels).save(tmp_path / "labels" / f"{path.stem}.png")
    report = predict(drawn / "images", out, truth=tmp_path / "labels", car_values=(90,))
    (warning,) = report.warnings
    assert warning.startswith("the mean Dice is 0.000, although the masks of both sides have cars.")
    assert "--car-value" in warning


def test_true_masks_of_a_label_map(predict, drawn, tmp_path, out):
    """The car has the value 7, and where 255 stands, nothing counts."""
    for path in find_masks(drawn / "masks").values():
        car = read_mask(path).to_bool()
        labels = np.where(car, 7, 3).astype(np.uint8)
        labels[:10] = 255
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(labels).save(tmp_path / "labels" / f"{path.stem}.png")
    options = {"truth": tmp_path / "labels", "car_values": (7,), "ignored_values": (255,)}
    report = predict(drawn / "images", out, **options)
    scores = compare_masks(out, tmp_path / "labels", car_values=(7,), ignored_values=(255,))
    assert report.dice_summary["mean"] == pytest.approx(scores.summary.dice)
    for row in scores.rows:
        mask = read_mask(out / f"{row.image}.png").to_bool()
        with Image.open(tmp_path / "labels" / f"{row.image}_mask.png") as image:
            car = np.asarray(image) == 7
        assert row.dice == 2 * (mask & car)[10:].sum() / (mask[10:].sum() + car.sum())


def test_dice_is_that_of_the_score_command(predict, drawn, tmp_path, out):
    photos, truth = tmp_path / "in", tmp_path / "truth"
    shutil.copytree(drawn / "images", photos)
    shutil.copytree(drawn / "masks", truth)
    shutil.copy2(photos / "car0.jpg", photos / "named_mask.jpg")
    shutil.copy2(truth / "car0_mask.gif", truth / "named.gif")
    report = predict(photos, out, truth=truth)
    assert report.exit_code == 0
    scores = compare_masks(out, truth)
    rows = report_rows(out)
    assert {row.image: f"{row.dice:.6f}" for row in scores.rows} == {
        key.removesuffix("_mask"): row["dice"] for key, row in rows.items()
    }
    assert report.dice_summary["mean"] == pytest.approx(scores.summary.dice)
    assert 0 < report.dice_summary["mean"] < 1
    pairs = [(float(row["expected_dice"]), float(row["dice"])) for row in rows.values()]
    assert report.correlation == pytest.approx(rank_correlation(*zip(*pairs, strict=True)))


@pytest.mark.parametrize(("photo", "mask"), [("\u00eb", "e\u0308"), ("e\u0308", "\u00eb")])
def test_true_masks_may_encode_accents_differently(predict, drawn, tmp_path, out, photo, mask):
    photos, truth = tmp_path / "in", tmp_path / "truth"
    for folder in (photos, truth):
        folder.mkdir()
    shutil.copy2(drawn / "images" / "car0.jpg", photos / f"{photo}.jpg")
    shutil.copy2(drawn / "masks" / "car0_mask.gif", truth / f"{mask}_mask.gif")
    report = predict(photos, out, truth=truth, rle_file=tmp_path / "rows.csv")
    assert (report.exit_code, len(report.dice)) == (0, 1)
    assert (out / f"{photo}.png").exists()
    assert f"\n{photo}.jpg," in (tmp_path / "rows.csv").read_text(encoding="utf-8")


def test_photos_without_a_true_mask_are_reported(predict, drawn, tmp_path, out):
    truth = tmp_path / "truth"
    shutil.copytree(drawn / "masks", truth)
    (truth / "car1_mask.gif").unlink()
    (truth / "car2_mask.gif").write_text("text")
    report = predict(drawn / "images", out, truth=truth)
    assert report.exit_code == 3
    assert {entry.key: entry.reason.rpartition("/")[2] for entry in report.without_truth} == {
        "car1": "no true mask of this name",
        "car2": f"car2_mask.gif {NO_IMAGE}",
    }
    assert len(report.dice) == 2
    assert {row["status"] for row in report_rows(out).values()} == {"done"}


def test_added_and_changed_true_masks_are_compared_again(predict, drawn, tmp_path, out):
    truth = tmp_path / "truth"
    shutil.copytree(drawn / "masks", truth)
    (truth / "car1_mask.gif").rename(tmp_path / "later.gif")
    first = predict(drawn / "images", out, truth=truth)
    assert [entry.key for entry in first.without_truth] == ["car1"]
    (tmp_path / "later.gif").rename(truth / "car1_mask.gif")
    shutil.copy(out / "car2.png", truth / "car2_mask.gif")
    second = predict(drawn / "images", out, truth=truth)
    assert (second.exit_code, second.done, second.without_truth) == (0, 0, [])
    rows = report_rows(out)
    assert rows["car2"]["dice"] == "1.000000"
    scores = compare_masks(out, truth)
    assert [f"{row.dice:.6f}" for row in scores.rows] == [rows[row.image]["dice"] for row in scores.rows]
    journal = (out / ".carvana-batch" / "journal-1-of-1.jsonl").read_bytes()
    predict(drawn / "images", out, truth=truth)
    assert (out / ".carvana-batch" / "journal-1-of-1.jsonl").read_bytes() == journal


def test_comparing_again_can_be_stopped(predict, drawn, out):
    predict(drawn / "images", out, truth=drawn / "masks")
    stop = StopFlag()
    stop.signal = signal.SIGTERM
    assert predict(drawn / "images", out, truth=drawn / "masks", stop=stop).exit_code == 143


@pytest.mark.parametrize("mask_bits", [1, 8])
def test_extras_agree_with_masks_and_are_not_taken_for_masks(predict, drawn, tmp_path, out, mask_bits):
    extras = ("cutout", "overlay", "panel", "prob")
    predict(drawn / "images", out, extras=extras, mask_bits=mask_bits, threshold=0.3)
    summary = write_submission(out, tmp_path / "rows.csv", None)
    assert summary.rows == 4
    assert compare_masks(out, drawn / "masks").complete
    for key, path in find_masks(out).items():
        mask = read_mask(path).to_bool()
        with Image.open(path) as image:
            assert image.mode == {1: "1", 8: "L"}[mask_bits]
        stored = tifffile.imread(out / "_prob" / f"{key}.tif")
        assert np.array_equal(stored / 65535 > 0.3, mask)
        assert stored.max() > 60000
        with Image.open(out / "_cutout" / f"{key}.png") as cutout:
            assert np.array_equal(np.asarray(cutout)[..., 3] > 0, mask)
        for kind, width in (("overlay", 96), ("panel", 192)):
            with Image.open(out / f"_{kind}" / f"{key}.jpg") as picture:
                assert picture.size == (width, 64)


def test_an_extra_that_cannot_be_made_is_a_failure(predict, photos, out, monkeypatch):
    monkeypatch.setattr(extras, "JPEG_LONGEST_SIDE", 100)
    write_photo(photos / "wide.png", size=(101, 64))
    report = predict(photos, out, extras=("cutout", "overlay"))
    assert (report.exit_code, report.done) == (3, 9)
    (failure,) = report.failures
    assert (failure.key, failure.stage) == ("wide", "write")
    assert "too large for --save overlay" in failure.reason
    assert not (out / "wide.png").exists()


@pytest.fixture
def without_network(monkeypatch):
    """Fail the test if a network is set up."""

    def fail(*_, **__):
        raise AssertionError("a network was set up")

    return lambda: monkeypatch.setattr("carvana_batch.engines.local.make_predictor", fail)


ADDED = ("cutout", "overlay", "panel")


@pytest.mark.parametrize("first", [(), ("overlay",), ("prob",)])
def test_extras_of_a_finished_run_need_no_network(predict, photos, tmp_path, out, without_network, first):
    predict(photos, out, extras=first)
    predict(photos, tmp_path / "expected", extras=tuple(sorted({*first, *ADDED})))
    masks = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in find_masks(out).values()}
    without_network()
    report = predict(photos, out, extras=ADDED)
    assert (report.exit_code, report.done, report.already_done, report.drawn) == (0, 0, 9, 9)
    assert results_in(out) == results_in(tmp_path / "expected")
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in masks} == masks
    assert verify(out).deviations == []
    report = predict(photos, out, extras=ADDED)
    assert (report.exit_code, report.already_done, report.drawn) == (0, 9, 0)


def test_an_unfinished_run_gets_the_extras_of_both(predict, photos, tmp_path, out):
    predict(photos, out, refs=find_images(photos).refs[:4], extras=("overlay",))
    report = predict(photos, out, extras=("panel",))
    assert (report.exit_code, report.done, report.already_done, report.drawn) == (0, 5, 4, 4)
    predict(photos, tmp_path / "expected", extras=("overlay", "panel"))
    assert results_in(out) == results_in(tmp_path / "expected")


def test_probability_maps_are_not_added_later(predict, photos, out):
    predict(photos, out)
    before = results_in(out)
    for kinds in (("prob",), ("overlay", "prob")):
        with pytest.raises(UsageError, match="--save prob needs the network"):
            predict(photos, out, extras=kinds)
    assert results_in(out) == before


def test_extras_that_cannot_be_added_leave_the_masks(predict, photos, out, monkeypatch, without_network):
    write_photo(photos / "wide.png", size=(101, 64))
    predict(photos, out)
    (out / "_panel" / "a").mkdir(parents=True)
    (out / "_panel" / "a" / "3.jpg").write_bytes(b"mine")
    masks = {path: path.read_bytes() for path in find_masks(out).values()}
    monkeypatch.setattr(extras, "JPEG_LONGEST_SIDE", 200)
    without_network()
    report = predict(photos, out, extras=("panel",))
    assert (report.exit_code, report.done, report.already_done, report.drawn) == (3, 0, 10, 8)
    reasons = {failure.id: failure.reason for failure in report.undrawn}
    assert reasons.keys() == {"a/3", "wide"}
    assert "too large for --save panel" in reasons["wide"]
    assert "was not made by predict, so it stays" in reasons["a/3"]
    assert report.failures == []
    assert {path: path.read_bytes() for path in masks} == masks
    assert (out / "_panel" / "a" / "3.jpg").read_bytes() == b"mine"
    assert {row["status"] for row in report_rows(out).values()} == {"done"}


def test_adding_extras_can_be_stopped_and_resumed(predict, photos, out, monkeypatch, without_network):
    monkeypatch.setattr("carvana_batch.output.writer_threads.MOST_UNWRITTEN", 0)
    predict(photos, out)
    stop = StopFlag()

    def stop_after_three(progress):
        if progress.done == 3:
            stop.signal = signal.SIGTERM

    without_network()
    listener = Listener(on_progress=stop_after_three)
    report = predict(photos, out, listener, stop, extras=("overlay",))
    assert report.exit_code == 143
    assert 3 <= report.drawn < 9
    first = report.drawn
    report = predict(photos, out, extras=("overlay",))
    assert (report.exit_code, report.drawn) == (0, 9 - first)


def test_recoloured_photos_can_be_added(predict, photos, tmp_path, out, without_network):
    predict(photos, out, extras=("overlay",))
    predict(photos, tmp_path / "expected", extras=("overlay", "recolour"), colour=(176, 0, 32))
    without_network()
    report = predict(photos, out, extras=("recolour",), colour=(176, 0, 32))
    assert (report.exit_code, report.drawn) == (0, 9)
    assert results_in(out) == results_in(tmp_path / "expected")
    notes = {row["notes"] for row in report_rows(out).values()}
    assert notes <= {"", "not recoloured, because the car has no colour"}
    # Later runs go on with the colour, and refuse another one.
    assert predict(photos, out, extras=("panel",)).drawn == 9
    assert (
        json.loads((out / ".carvana-batch" / "settings.json").read_text())["settings"]["colour"] == "#b00020"
    )
    before = results_in(out)
    with pytest.raises(UsageError, match="colour: '#b00020' before, '#0000ff' now"):
        predict(photos, out, extras=("recolour",), colour=(0, 0, 255))
    assert results_in(out) == before


def test_photos_that_changed_are_masked_again_with_their_extras(predict, photos, tmp_path, out):
    predict(photos, out)
    write_photo(photos / "0.jpg", seed=9)
    report = predict(photos, out, extras=("overlay",))
    assert (report.done, report.drawn) == (1, 8)
    predict(photos, tmp_path / "expected", extras=("overlay",))
    assert results_in(out) == results_in(tmp_path / "expected")


def test_extras_of_damaged_photos_that_were_accepted(predict, photos, tmp_path, out):
    torn = photos / "0.jpg"
    torn.write_bytes(torn.read_bytes()[:-600])
    predict(photos, out, accept_damage=True)
    report = predict(photos, out, extras=("overlay",))
    assert (report.exit_code, report.drawn) == (0, 9)
    predict(photos, tmp_path / "expected", extras=("overlay",), accept_damage=True)
    assert results_in(out) == results_in(tmp_path / "expected")


def failing_from(number, function, error):
    """A function that raises ``error`` from the ``number``-th call on, and the thread names of its calls.

    Earlier calls are passed on to ``function``.
    """
    lock, callers = threading.Lock(), []

    def call(*arguments, **options):
        with lock:
            callers.append(threading.current_thread().name)
            fails = len(callers) >= number
        if fails:
            raise error
        return function(*arguments, **options)

    return call, callers


@pytest.mark.parametrize("number", [1, 2, 5, 9, 10, 17, 18])
def test_a_full_disk_stops_the_run_which_can_be_resumed(predict, photos, tmp_path, monkeypatch, number):
    """The disk is full from the ``number``-th file of the writers on."""
    options = {"extras": ("overlay",), "rle_file": tmp_path / "rows.csv"}
    predict(photos, tmp_path / "undisturbed", **options)
    expected = rows_of(tmp_path / "rows.csv")
    (tmp_path / "rows.csv").unlink()
    out = tmp_path / "out"
    fail, _ = failing_from(number, os.replace, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def fail_for_results(source, target, **keywords):
        replace = fail if ".carvana-batch/" not in str(target) else os.rename
        return replace(source, target, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_for_results)
        with pytest.raises(OutOfSpaceError, match=r"No space left for .*\. Free some"):
            predict(photos, out, **options)
    assert not list(out.rglob("*.tmp"))
    assert results_in(out).items() <= results_in(tmp_path / "undisturbed").items()  # complete files only
    report = predict(photos, out, **options)
    assert report.exit_code == 0
    assert results_in(out) == results_in(tmp_path / "undisturbed")
    assert rows_of(tmp_path / "rows.csv") == expected


@pytest.mark.parametrize("number", [1, 4])
def test_an_error_in_a_writer_thread_stops_the_run_at_once(predict, photos, out, monkeypatch, number):
    fail, callers = failing_from(number, MaskWriter.write, RuntimeError("a mistake"))
    decode_image, photos_read = loader.decode_image, []

    def wait_for_writer(path, **options):
        """Read the photo after the one that is not written only once writing it has failed."""
        while len(photos_read) >= number > len(callers):
            threading.Event().wait(0.001)
        if len(photos_read) == number:
            threading.Event().wait(0.1)
        photos_read.append(path)
        return decode_image(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MaskWriter, "write", fail)
        patch.setattr(loader, "decode_image", wait_for_writer)
        with pytest.raises(RuntimeError, match="a mistake"):
            predict(photos, out)
    assert number <= len(photos_read) <= number + 1
    assert all(name.startswith("writer") for name in callers)
    assert predict(photos, out).exit_code == 0


def test_an_error_leaves_no_worker_and_no_thread_behind(predict, photos, out, monkeypatch):
    fail, _ = failing_from(1, MaskWriter.write, RuntimeError("a mistake"))
    monkeypatch.setattr(MaskWriter, "write", fail)
    with pytest.raises(RuntimeError, match="a mistake") as caught:
        predict(photos, out, workers=1)
    assert caught.tb is not None  # the traceback keeps everything in use from being collected
    assert multiprocessing.active_children() == []
    assert not any(thread.name.startswith("writer") for thread in threading.enumerate())


def test_the_network_waits_for_slow_writers(predict, drawn, out, monkeypatch):
    refs = [ImageRef(f"{number:02}", drawn / "images" / "car0.jpg") for number in range(30)]
    waiting = most_waiting = 0
    decode_image, write = loader.decode_image, MaskWriter.write

    def counting_read(*arguments, **options):
        nonlocal waiting, most_waiting
        waiting += 1
        most_waiting = max(most_waiting, waiting)
        return decode_image(*arguments, **options)

    def slow_write(*arguments):
        nonlocal waiting
        threading.Event().wait(0.05)
        waiting -= 1
        return write(*arguments)

    monkeypatch.setattr(loader, "decode_image", counting_read)
    monkeypatch.setattr(MaskWriter, "write", slow_write)
    assert predict(None, out, refs=refs).done == 30
    assert most_waiting <= MOST_UNWRITTEN + 4


def test_masks_of_photos_outside_the_job_are_counted(predict, photos, out):
    (photos / "bad.jpg").write_text("text")
    predict(photos, out)
    report = predict(photos, out, refs=find_images(photos).refs[:2])
    assert (report.found, report.already_done, report.foreign, report.exit_code) == (2, 2, 7, 0)
    assert len(report_rows(out)) == 10


def test_the_report_contains_bottleneck_and_throughput(predict, photos, out):
    report = predict(photos, out)
    assert report.stages.keys() == {"decode", "predict", "write"}
    assert sum(report.stages.values()) == pytest.approx(report.seconds, abs=0.02)
    assert report.bottleneck == max(report.stages, key=report.stages.get)
    assert report.photos_per_second == pytest.approx(9 / report.seconds)
    assert min(report.decode_seconds, report.write_seconds, report.peak_memory) > 0


def test_the_listener_is_called_for_every_photo(predict, photos, out):
    (photos / "bad.jpg").write_text("text")
    calls: list[tuple[str | int, int]] = []
    listener = Listener(
        on_start=lambda line, progress: calls.append((line.split(",")[0], progress.total)),
        on_progress=lambda progress: calls.append((progress.done, progress.failed)),
    )
    predict(photos, out, listener)
    assert calls[0] == ("1 CPU thread", 10)
    assert calls[-1] == (9, 1)
    assert len(calls) == 11


def test_a_second_run_does_not_release_the_first_ones_lock(predict, photos, out):
    with OutFolder(out, {}, (1, 1), False):
        with pytest.raises(FolderInUseError):
            predict(photos, out)
        with pytest.raises(FolderInUseError):
            predict(photos, out)
    assert predict(photos, out).done == 9


def test_a_damaged_mask_is_reported_and_stops_nothing(predict, drawn, out):
    predict(drawn / "images", out)
    mask = out / "car1.png"
    mask.write_bytes(bytes(len(mask.read_bytes())))  # the size in the journal
    report = predict(drawn / "images", out, truth=drawn / "masks")
    assert len(report.dice) == 3
    assert [entry.key for entry in report.without_truth] == ["car1"]
    assert "car1.png" in report.without_truth[0].reason


def test_peak_memory_does_not_include_the_parent_process():
    child = """
from carvana_batch.main_memory import peak_memory
before = peak_memory()
held = b"x" * 200_000_000
print(before, peak_memory())
"""
    parent = f"""
import subprocess, sys
held = b"x" * 1_500_000_000
subprocess.run([sys.executable, "-c", {child!r}], check=True)
"""
    command = [sys.executable, "-c", parent]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, after = (int(word) for word in printed.split())
    assert after < 1_000_000_000
    assert 150_000_000 < after - before < 250_000_000


@pytest.mark.parametrize("extras", [(), ("overlay",)])
def test_a_path_that_is_too_long_fails_one_photo(predict, photos, tmp_path, extras):
    """The system allows paths of 4,095 bytes: that of the photo has 3,980, that of its mask 150 more."""
    out = tmp_path / ("o" * 152)
    deep = photos
    while len(os.fsencode(deep)) < 3980 - 260:
        deep /= "d" * 200
    deep /= "e" * (3980 - len("//deep.jpg") - len(os.fsencode(deep)))
    deep.mkdir(parents=True)
    shutil.copy2(photos / "0.jpg", deep / "deep.jpg")
    with pytest.raises(OSError, match="too long"):
        (out / deep.relative_to(photos) / "deep.png").exists()
    for done, already_done in ((9, 0), (0, 9)):
        report = predict(photos, out, extras=extras)
        assert (report.done, report.already_done, report.exit_code) == (done, already_done, 3)
        (failure,) = report.failures
        assert (failure.key.endswith("/deep"), failure.stage) == (True, "write")
        assert "File name too long" in failure.reason
    assert len(report_rows(out)) == 10
    assert len(find_masks(out)) == 9
