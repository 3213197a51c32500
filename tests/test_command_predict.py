import csv
import gzip
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import names_in, results_in, store, with_orientation, write_photo
from PIL import Image, ImageOps
from scipy.ndimage import binary_erosion

from carvana_batch.commands import group, predict, reporting
from carvana_batch.errors import FolderInUseError, ModelError, UsageError
from carvana_batch.inputs.masks import find_masks
from carvana_batch.masks import rle
from carvana_batch.masks.read import read_mask
from carvana_batch.network import BUNDLED_WEIGHTS
from carvana_batch.network.checkpoints import load_model
from carvana_batch.orientation import ORIENTATIONS
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import Entry
from carvana_batch.output.report import RunReport
from carvana_batch.output.writer import MaskWriter
from carvana_batch.run import Progress
from carvana_batch.values import ImageRef

FAST = ("--precision", "fp32", "--workers", "0")


@pytest.fixture
def here(tmp_path, drawn, monkeypatch):
    """The current folder, with four small photos in ``in`` and their true masks in ``truth``."""
    shutil.copytree(drawn / "images", tmp_path / "in")
    shutil.copytree(drawn / "masks", tmp_path / "truth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(model):
    """``run("in", "out")`` is ``carvana-batch predict in out`` with the bundled network in float32."""
    assert model  # loaded once, on one thread

    def invoke(*arguments, **options):
        return CliRunner().invoke(group, ["predict", *FAST, *map(str, arguments)], **options)

    return invoke


def usage_error(result):
    """The message of a run that ended with a usage error and printed nothing."""
    assert isinstance(result.exception, UsageError), result.output
    assert result.output == ""
    return str(result.exception)


@pytest.fixture
def without_model(monkeypatch):
    """Fail the test if a model is loaded, because arguments must be checked first."""

    def fail(name):
        raise AssertionError(f"the model {name} was loaded")

    monkeypatch.setattr("carvana_batch.network.checkpoints.load_model", fail)


def test_empty_masks_are_counted_and_named(run, here):
    result = run("in", "out", "--threshold", "1")
    expected = "Masks without any car: 4 photos (car0.jpg, car1.jpg, car2.jpg, car3.jpg)"
    assert expected in result.stdout.splitlines()
    assert json.loads((here / "out" / "run.json").read_text())["empty"] == ["car0", "car1", "car2", "car3"]
    assert "without any car" not in run("in", "other").stdout


def test_masking_what_a_review_rejected(run, here):
    (here / "in" / "sub").mkdir()
    (here / "in" / "car3.jpg").rename(here / "in" / "sub" / "=car3.jpg")
    (here / "decisions.csv").write_text(
        "image,decision,note\ncar0,accept,\ncar1,reject,roof\nsub/=car3,reject,\n"
    )
    result = run("in", "again", "--files-from", "decisions.csv", "--dry-run")
    assert "passed over: 2 × photos whose mask was not rejected" in result.stdout
    result = run("in", "again", "--files-from", "decisions.csv", "--quiet")
    assert result.exit_code == 0, result.output
    assert list(find_masks(here / "again")) == ["car1", "sub/=car3"]
    run("in", "out", "--quiet")
    for key in ("car1", "sub/=car3"):
        assert (here / "again" / f"{key}.png").read_bytes() == (here / "out" / f"{key}.png").read_bytes()


def test_decisions_that_do_not_fit(run, here):
    (here / "decisions.csv").write_text("image,decision,note\ncar0,accept,\n")
    (here / "others.csv").write_text("image,decision,note\nbus,reject,\n")
    for arguments, message in (
        (("--files-from", "decisions.csv", "out"), "predict IN OUT --files-from FILE"),
        (("in", "out", "--files-from", "decisions.csv"), "rejects no mask"),
        (("in", "out", "--files-from", "others.csv"), "1 image of it is not in in (bus)"),
    ):
        assert message in usage_error(run(*arguments))


def test_the_report_tells_where_the_photos_are(run, here):
    run("in", "out", "--quiet")
    report = json.loads((here / "out" / "run.json").read_text())
    assert (report["images"], report["directory"]) == (str(here / "in"), str(here))
    (here / "list").write_text("in/car0.jpg")
    run("--files-from", "list", "listed", "--quiet")
    report = json.loads((here / "listed" / "run.json").read_text())
    assert (report["images"], report["directory"]) == (None, str(here))


def test_the_page_at_the_end_of_a_run(run, here):
    result = run("in", "out", "--html", "look.html")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "Page: look.html"
    page = (here / "look.html").read_text()
    CliRunner().invoke(group, ["review", "-o", "same.html"])
    assert (here / "same.html").read_text() == page
    (here / "look.html").unlink()
    result = run("in", "out", "--html", "look.html", "--json")
    assert json.loads(result.stdout)["already_done"] == 4
    assert result.stderr.splitlines()[-1] == "Page: look.html"
    assert (here / "look.html").read_text() == page


@pytest.mark.usefixtures("here", "without_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("in", "out", "--html", "look.png"), "ends in .html"),
        (("in", "out", "--html", "none/look.html"), "no folder none"),
        (("in/car0.jpg", "car0.png", "--html", "look.html"), "--html needs a folder as OUT"),
    ],
)
def test_pages_that_cannot_be_written(run, arguments, message):
    assert message in usage_error(run(*arguments))


@pytest.mark.usefixtures("here", "without_model")
@pytest.mark.parametrize("arguments", [("--save", "recolour"), ("--colour", "red")])
def test_recolour_and_its_colour_belong_together(run, arguments):
    assert "--save recolour and --colour belong together" in usage_error(run("in", "out", *arguments))
    result = run("in", "out", "--save", "recolour", "--colour", "reddish")
    assert result.exit_code == 2
    assert "'reddish' is neither #rrggbb nor the name of a colour" in result.output


def test_recoloured_photos_are_counted(run, here):
    result = run("in", "out", "--save", "recolour", "--colour", "#b00020")
    assert result.exit_code == 0, result.output
    assert len(list((here / "out" / "_recolour").iterdir())) == 4
    counts = json.loads((here / "out" / "run.json").read_text())["notes"]
    without_colour = counts.get("not recoloured, because the car has no colour", 0)
    line = "Not recoloured, because the car is black, grey, silver or white"
    assert (line in result.stdout) == (without_colour > 0)


def test_cars_on_another_ground(run, here):
    Image.new("RGB", (30, 10), (0, 90, 0)).save(here / "ground.png")
    for out, ground in (("file", "ground.png"), ("colour", "#005a00")):
        result = run("in", out, "--background", ground)
        assert result.exit_code == 0, result.output
        mask = read_mask(here / out / "car0.png").to_bool()
        with Image.open(here / out / "_background" / "car0.jpg") as picture:
            pixels = np.asarray(picture).astype(int)
        assert pixels.shape == (64, 96, 3)
        outside = binary_erosion(~mask, iterations=9)
        assert outside.any()
        assert np.abs(pixels[outside] - (0, 90, 0)).max() <= 6
        settings = json.loads((here / out / ".carvana-batch" / "settings.json").read_text())["settings"]
        assert settings["save"] == ["background"]
        assert settings["background"].startswith("ground.png " if out == "file" else "#005a00")
    Image.new("RGB", (30, 10), (0, 91, 0)).save(here / "ground.png")
    for out, ground in (("file", "ground.png"), ("colour", "#005a01")):
        result = run("in", out, "--background", ground)
        assert isinstance(result.exception, UsageError)
        assert "other settings (background: " in str(result.exception)


def test_grounds_that_cannot_be_used(run, here):
    (here / "text.png").write_text("text")
    result = run("in", "out", "--background", "nothing.png")
    assert result.exit_code == 2
    assert "there is no file 'nothing.png', and no colour of this name" in result.output
    result = run("in", "out", "--background", "text.png")
    assert isinstance(result.exception, UsageError)
    assert "--background: text.png is not an image" in str(result.exception)
    assert not list(here.glob("out/*.png"))


def test_masking_a_folder(run, here):
    result = run("in", "out")
    assert result.exit_code == 0, result.output
    assert list(find_masks(here / "out")) == ["car0", "car1", "car2", "car3"]
    lines = result.stdout.splitlines()
    assert lines[0] == "4 photos, model auto"
    assert re.fullmatch(r"\d+ CPU threads?, fp32 \(as asked\), network may use up to .* GB", lines[1])
    assert lines[2] == "4 masked, 0 failed -> out"
    assert lines.pop(3) == "Masked by the second network, for photos unlike those of a studio: 4 photos"
    assert lines.pop(3).startswith(
        "4 of 4 photos look unlike those that the model was trained on; see out/rep"
    )
    assert re.fullmatch(
        r"\d+\.\d\d photos/s; time: waiting for photos \d+%, network \d+%, waiting for writers \d+%", lines[3]
    )
    assert re.fullmatch(r"bottleneck: .*; peak memory \d+\.\d\d GB", lines[4])
    assert (len(lines), result.stderr) == (5, "")
    assert json.loads((here / "out" / "run.json").read_text())["done"] == 4


def test_a_second_run_has_nothing_to_do(run, here):
    assert here
    run("in", "out")
    result = run("in", "out")
    assert result.stdout.splitlines() == [
        "4 photos, model auto",
        "0 masked, 4 done before, 0 failed -> out",
        "Masked by the second network, for photos unlike those of a studio: 4 photos",
        "4 of 4 photos look unlike those that the model was trained on; see out/report.csv",
    ]


def test_other_photos_of_the_same_names_do_not_replace_masks(run, here):
    assert run("in", "out").exit_code == 0
    before = results_in(here / "out")
    (here / "more").mkdir()
    write_photo(here / "more" / "car1.jpg", seed=9)
    for options in ((), ("--dry-run",)):
        result = run("more", "out", *options)
        assert isinstance(result.exception, UsageError)
        assert str(result.exception).startswith("out/car1.png is the mask of in/car1.jpg, and would be")
    assert results_in(here / "out") == before


def test_photos_with_further_pages_are_counted_at_the_end(run, here):
    photos = [Image.open(path) for path in sorted((here / "in").iterdir())]
    for name in ("roll.tif", "roll.gif"):
        photos[0].save(here / "in" / f"{name[-3:]}{name}", save_all=True, append_images=photos[1:])
    result = run("in", "out")
    assert result.stdout.splitlines()[2:4] == [
        "6 masked, 0 failed -> out",
        "Only the first page or frame was masked: 2 photos",
    ]


def test_one_photo_into_a_folder(run, here):
    result = run("in/car1.jpg", "out")
    assert result.exit_code == 0, result.output
    assert list(find_masks(here / "out")) == ["car1"]


def test_one_photo_into_a_file(run, here):
    run("in", "out")
    expected = (here / "out" / "car1.png").read_bytes()
    for again in ((), ("--overwrite",)):
        result = run("in/car1.jpg", "new.PNG", *again)
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[2] == "1 masked, 0 failed -> new.PNG"
        assert (here / "new.PNG").read_bytes() == expected
    assert sorted(path.name for path in here.iterdir()) == ["in", "new.PNG", "out", "truth"]
    (here / "link.png").symlink_to("new.PNG")
    run("in/car0.jpg", "link.png", "--overwrite")
    assert (here / "link.png").is_symlink()
    assert (here / "new.PNG").read_bytes() == (here / "out" / "car0.png").read_bytes()


def test_one_bad_photo_into_a_file(run, here):
    (here / "bad.jpg").write_text("text")
    result = run("bad.jpg", "bad.png")
    assert result.exit_code == 3
    assert result.stderr.startswith("failed: bad.jpg (decode): is not an image")
    assert not (here / "bad.png").exists()


@pytest.mark.usefixtures("without_model")
def test_unusable_mask_files_are_rejected(run, here):
    write_photo(here / "a.png")
    (here / "link.png").symlink_to("a.png")
    for arguments, message in (
        (("a.png", "a.png"), "IN and OUT are the same file a.png"),
        (("a.png", "link.png"), "IN and OUT are the same file link.png"),
        (("a.png", "."), "./a.png would overwrite a photo|^a.png would overwrite a photo"),
        (("in/car1.jpg", "a.png"), "a.png is there already"),
        (("a.png", "none/b.png"), "Cannot write none/b.png: there is no folder none"),
        (
            ("a.png", "b.png", "--save", "overlay"),
            "--save and --background need a folder as OUT, not the file b.png",
        ),
    ):
        assert re.search(message, usage_error(run(*arguments)))
    assert sorted(path.name for path in here.iterdir()) == ["a.png", "in", "link.png", "truth"]


def test_a_list_of_files(run, here):
    (here / "list").write_text("in/car2.jpg\n\nin/car0.jpg\nin/car2.jpg\n")
    result = run("--files-from", "list", "out")
    assert result.exit_code == 0, result.output
    assert list(find_masks(here / "out")) == ["in/car0", "in/car2"]
    assert result.stdout.startswith("passed over: 1 × repeated lines\n2 photos")


def test_a_list_on_standard_input_with_any_name(run, here):
    names = [b"in/\xff\n[red] =1.jpg", b"=1.jpg"]
    for name in names:
        shutil.copy(here / "in" / "car0.jpg", os.fsdecode(name))
    (here / "bad =.jpg").write_text("text")
    result = run("--files-from", "-", "out", input=b"\0".join([*names, b"bad =.jpg"]))
    assert result.exit_code == 3, result.output
    assert list(find_masks(here / "out")) == ["=1", os.fsdecode(b"in/\xff\n[red] =1")]
    assert result.stderr.startswith("failed: bad =.jpg (decode): is not an image")
    with (here / "out" / "report.csv").open(newline="", errors="surrogateescape") as file:
        rows = [row["image"] for row in csv.DictReader(file)]
    assert sorted(rows) == sorted(["bad =", "'=1", os.fsdecode(b"in/\xff\\x0a[red] =1")])


@pytest.mark.usefixtures("here", "without_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give IN and OUT"),
        (("in",), "Give IN and OUT"),
        (("--files-from", "list"), "Give IN and OUT"),
        (("in", "out", "--files-from", "list"), "Give IN and OUT"),
        (("none", "out"), "There is no file or folder none"),
        (("in", "in"), "IN and OUT are both in"),
        (("in", "in/../in"), "IN and OUT are both in"),
        (("--files-from", "none", "out"), "no file or folder none"),
        (("in", "out", "--rle", "rows.txt"), "a submission is named"),
        (("in", "truth", "--gt", "truth"), "OUT and --gt are both truth"),
        (("in", "out", "--overwrite", "--shard", "1/2"), "--overwrite rewrites the journals"),
        (("in", "truth/car0_mask.gif"), "Cannot write into truth/car0_mask.gif: .* is not a folder"),
    ],
)
def test_wrong_arguments_are_rejected(run, arguments, message):
    assert re.search(message, usage_error(run(*arguments)))


@pytest.mark.usefixtures("without_model")
def test_photos_with_conflicting_masks_are_rejected(run, here):
    shutil.copytree(here / "in", here / "in" / "_prob")
    assert "its mask would lie in _prob, where submit and score do not look" in usage_error(run("in", "out"))
    shutil.rmtree(here / "in" / "_prob")
    write_photo(here / "in" / "car0.png")
    message = usage_error(run("in", "out"))
    assert "in/car0.jpg and in/car0.png would write the same mask" in message
    assert not (here / "out").exists()


@pytest.mark.usefixtures("without_model")
def test_an_out_folder_without_write_permission_is_rejected(run, here, monkeypatch):
    assert here
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)  # the tests may run as root
    assert "is not open to writing" in usage_error(run("in", "out"))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--threshold", "nan"),
        ("--threshold", "1.1"),
        ("--threshold", "-0.1"),
        ("--threshold", "half"),
        ("--size", "full"),
        ("--size", "1918"),
        ("--tile", "0"),
        ("--tile", "5x"),
        ("--tile", "ax5"),
        ("--memory", "0"),
        ("--memory", "6XB"),
        ("--memory", "0.1B"),
        ("--memory", "-1GB"),
        ("--shard", "0/2"),
        ("--shard", "3/2"),
        ("--shard", "2"),
        ("--save", "sound"),
        ("--mask-bits", "2"),
        ("--limit", "0"),
        ("--workers", "-1"),
        ("--batch", "0"),
        ("--overlap", "-1"),
        ("--tta", "turn"),
        ("--pixel-limit", "0"),
    ],
)
def test_invalid_option_values_are_rejected(run, arguments):
    result = run("in", "out", *arguments)
    assert result.exit_code == 2
    assert f"Invalid value for '{arguments[0]}'" in result.stderr


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("memory", "6GB", 6 * 10**9),
        ("memory", "1.5 gib", 3 * 2**29),
        ("memory", "500m", 500 * 10**6),
        ("memory", "123456789", 123_456_789),
        ("memory", "7000000b", 7_000_000),
        ("size", "auto", None),
        ("size", "native", "native"),
        ("size", "1918x1280", (1918, 1280)),
        ("tile", "auto", None),
        ("tile", "512", (512, 512)),
        ("tile", "640X480", (640, 480)),
        ("shard", "2/8", (2, 8)),
        ("threshold", "0", 0.0),
        ("threshold", "1", 1.0),
    ],
)
def test_option_values_are_converted(option, text, value):
    (parameter,) = (parameter for parameter in predict.command.params if parameter.name == option)
    assert parameter.type.convert(text, parameter, None) == value


@pytest.mark.usefixtures("here")
def test_options_reach_the_run(monkeypatch):
    calls = []

    def record(refs, root, model, options, listener, stop, engine, remote, archive):
        del listener, stop, engine, remote, archive
        calls.append((len(refs), root, model, options))
        raise ModelError("recorded")

    monkeypatch.setattr("carvana_batch.run.run", record)
    monkeypatch.setattr(
        "carvana_batch.network.checkpoints.load_model", lambda name, _settings: SimpleNamespace(name=name)
    )
    arguments = (
        "--model m --device cpu --precision bf16 --memory 1GB --size 96x64 --tile 64x32 --overlap 8 --batch 3"
        " --tta flip --threshold 0.25 --mask-bits 8 --save prob --save overlay --save prob --rle r.csv"
        " --gt truth --exif apply --damaged accept --pixel-limit 99 --workers 5 --limit 3 --shard 1/2"
    )
    result = CliRunner().invoke(group, ["predict", "in", "out", *arguments.split()])
    assert str(result.exception) == "recorded", result.output
    ((count, root, model, options),) = calls
    assert (count, str(root), model.name) == (3, "out", "m")
    assert (options.device, options.precision, options.memory) == ("cpu", "bf16", 10**9)
    assert options.size == (96, 64)
    assert (options.tile, options.overlap, options.batch, options.flip) == ((64, 32), 8, 3, True)
    assert (options.threshold, options.mask_bits, options.extras) == (0.25, 8, ("overlay", "prob"))
    assert (str(options.rle_file), str(options.truth)) == ("r.csv", "truth")
    assert (options.apply_exif, options.pixel_limit, options.workers) == (True, 99, 5)
    assert options.accept_damage
    assert (options.shard, options.overwrite) == ((1, 2), False)


def test_follow_links(run, here):
    (here / "elsewhere").mkdir()
    shutil.move(here / "in" / "car0.jpg", here / "elsewhere")
    (here / "in" / "more").symlink_to(here / "elsewhere")
    assert "passed over: 1 × links to folders (use --follow-links)" in run("in", "out").stdout
    assert list(find_masks(here / "out")) == ["car1", "car2", "car3"]
    assert run("in", "out", "--follow-links").exit_code == 0
    assert list(find_masks(here / "out")) == ["car1", "car2", "car3", "more/car0"]


def test_an_out_folder_among_the_photos_is_not_searched(run, here):
    for _ in range(2):
        result = run("in", "in/out")
        assert result.exit_code == 0, result.output
    assert "passed over: 1 × the out folder" in result.stdout
    assert len(find_masks(here / "in" / "out")) == 4


def test_limit_and_shard(run, here):
    assert run("in", "out", "--limit", "3", "--shard", "2/2").exit_code == 0
    assert list(find_masks(here / "out")) == ["car1"]
    assert run("in", "out", "--limit", "3").exit_code == 0
    assert list(find_masks(here / "out")) == ["car0", "car1", "car2"]
    result = run("in", "out", "--limit", "1")
    assert "out also holds masks of 2 other photos" in result.stdout


@pytest.mark.usefixtures("without_model")
def test_a_dry_run_writes_nothing(run, here):
    (here / "in" / ".hidden.jpg").touch()
    before = names_in(here)
    result = run("in", "out", "--dry-run", "--limit", "3")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "passed over: 1 × hidden files and folders",
        "3 photos, 0 of them done already, 3 to do",
        "  in/car0.jpg -> out/car0.png",
        "  in/car1.jpg -> out/car1.png",
        "  in/car2.jpg -> out/car2.png",
        "Dry run: nothing was written; the model was not looked at.",
    ]
    assert run("in/car1.jpg", "new.png", "--dry-run").stdout.splitlines()[1:2] == ["  in/car1.jpg -> new.png"]
    assert json.loads(run("in", "out", "--dry-run", "--json").stdout) == {
        "found": 4,
        "already_done": 0,
        "to_do": 4,
    }
    assert run("in", "out", "--dry-run", "--quiet").output == ""
    assert "same mask" in usage_error(
        run("--files-from", "-", "out", "--dry-run", input="in/a.jpg\nin/a.png")
    )
    assert names_in(here) == before


def test_a_dry_run_after_a_run(run, here):
    for number in range(7):
        shutil.copy2(here / "in" / "car0.jpg", here / "in" / f"more{number}.jpg")
    run("in", "out", "--limit", "2")
    before = {name: (here / name).stat().st_mtime_ns for name in names_in(here)}
    lines = run("in", "out", "--dry-run").stdout.splitlines()
    assert lines[0] == "11 photos, 2 of them done already, 9 to do"
    assert lines[5:] == [
        "  in/more2.jpg -> out/more2.png",
        "  ... and 4 more",
        "Dry run: nothing was written; the model was not looked at.",
    ]
    lines = run("in", "out", "--dry-run", "--overwrite").stdout.splitlines()
    assert lines[0] == "11 photos, 0 of them done already, 11 to do"
    assert {name: (here / name).stat().st_mtime_ns for name in names_in(here)} == before


def test_quiet_prints_failures_only(run, here):
    assert run("in", "out", "--quiet").output == ""
    (here / "in" / "bad.jpg").write_text("text")
    result = run("in", "out", "--quiet")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.splitlines() == [
        "failed: in/bad.jpg (decode): is not an image in a supported format (JPEG, PNG, TIFF, WebP, HEIC,"
        " AVIF, JPEG XL, JPEG 2000, GIF, BMP)"
    ]


def test_json_prints_the_report(run, here):
    (here / "in" / "bad.jpg").write_text("text")
    result = run("in", "out", "--json", "--gt", "truth")
    assert result.exit_code == 3
    assert result.stdout.count("\n") == 1
    report = json.loads(result.stdout)
    assert (report["exit_code"], report["done"], report["failed"]) == (3, 4, 1)
    assert report["failures"][0]["image"] == "in/bad.jpg"
    assert "is not an image" in report["failures"][0]["reason"]
    assert report["dice"].keys() == {"mean", "p05", "p50", "p95"}
    assert report == json.loads((here / "out" / "run.json").read_text())
    assert "4 masked, 1 failed -> out" in result.stderr
    result = run("in", "out", "--json", "--quiet", "--gt", "truth")
    resumed = json.loads(result.stdout)
    assert resumed["already_done"] == 4
    assert resumed["failures"] == report["failures"]
    assert result.stderr.count("\n") == 1


def test_many_failures_are_not_all_printed(run, here):
    for number in range(13):
        (here / "in" / f"x{number:02}\x1b[31m\n.jpg").write_text("text")
    result = run("in", "out")
    assert result.exit_code == 3
    lines = result.stderr.splitlines()
    assert len(lines) == 11
    assert lines[9].startswith(r"failed: in/x09\x1b[31m\n.jpg (decode): is not an image")
    assert lines[10] == "failed: 3 more, all in out/report.csv"


def test_images_that_are_not_read_are_failures(run, here):
    for name in ("raw.nef", "drawing.psd", "nosuffix"):
        (here / "in" / name).write_bytes(b"8BPS\0\1")
    (here / "in" / "notes.txt").write_text("8BPS")
    result = run("in", "out")
    assert result.exit_code == 3
    with (here / "out" / "report.csv").open(newline="") as file:
        failed = {row["image"]: row["reason"] for row in csv.DictReader(file) if row["reason"]}
    assert sorted(failed) == ["drawing.psd", "nosuffix", "raw.nef"]
    assert failed["raw.nef"] == "is a raw file of a camera, which is not read; save it as JPEG, PNG or TIFF"
    assert failed["nosuffix"].startswith("is a Photoshop file")
    assert "passed over: 1 × files ending in .txt" in result.output


def test_dice_and_missing_true_masks_are_printed(run, here):
    result = run("in", "out", "--gt", "truth")
    assert re.search(
        r"^Dice: mean 0\.\d{4}, 5 % 0\.\d{4}, 50 % 0\.\d{4}, 95 % 0\.\d{4}$", result.stdout, re.M
    )
    for path in list((here / "truth").iterdir())[:3]:
        path.unlink()
    for number in range(9):
        shutil.copy2(here / "in" / "car0.jpg", here / "in" / f"more{number}.jpg")
    result = run("in", "out", "--gt", "truth")
    assert result.exit_code == 3
    lines = result.stderr.splitlines()
    assert len(lines) == 11
    assert re.fullmatch(r"not scored: (car|more)\d: no true mask of this name", lines[0])
    assert lines[10] == "not scored: 2 more"


def test_rle_file_is_that_of_submit(run, here):
    assert run("in", "out", "--rle", "rows.csv.gz").exit_code == 0
    result = CliRunner().invoke(group, ["submit", "--size", "any", "-o", "submitted.csv.gz"])
    assert result.exit_code == 0
    rows = [gzip.decompress((here / name).read_bytes()) for name in ("rows.csv.gz", "submitted.csv.gz")]
    assert rows[0] == rows[1]
    assert rows[0].count(b"\n") == 5


def test_a_run_is_not_continued_with_another_size(run, here):
    assert run("in", "out", "--size", "96x64", "--limit", "1").exit_code == 0
    result = run("in", "out")
    assert isinstance(result.exception, UsageError)
    assert "size: '96x64' before, 'auto' now" in str(result.exception)
    assert run("in", "out", "--size", "96x64").exit_code == 0
    with Image.open(here / "in" / "car3.jpg") as photo, Image.open(here / "out" / "car3.png") as mask:
        assert mask.size == photo.size


def test_extras_and_mask_bits(run, here):
    extras = ("--save", "overlay", "--save", "cutout")
    assert run("in", "out", *extras, "--mask-bits", "8").exit_code == 0
    assert len(list((here / "out" / "_overlay").iterdir())) == 4
    with Image.open(here / "out" / "car0.png") as mask, Image.open(here / "out/_cutout/car0.png") as cutout:
        assert np.array_equal(np.asarray(mask), np.asarray(cutout)[..., 3])


def read_pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def upright(path, orientation):
    """The pixels of a file stored with this orientation, turned by Pillow."""
    image = with_orientation(Image.fromarray(read_pixels(path)), orientation)
    return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("tile", [(), ("--tile", "256x256", "--overlap", "64")])
def test_exif_orientations(run, here, tile):
    # A map that is enlarged after it was turned differs in the last bits.
    tile = (*tile, "--size", "native")
    (here / "phone").mkdir()
    write_photo(here / "upright.png", here / "upright.gif", seed=1, size=(300, 200))
    with Image.open(here / "upright.png") as photo, Image.open(here / "upright.gif") as true:
        for orientation in ORIENTATIONS:
            exif = with_orientation(photo, orientation).getexif()
            store(photo, orientation).save(here / "phone" / f"{orientation}.png", exif=exif)
            for folder, mask in (("stored", store(true, orientation)), ("upright", true)):
                (here / folder).mkdir(exist_ok=True)
                mask.convert("1").save(here / folder / f"{orientation}.png")
    save = [word for kind in ("prob", "overlay", "panel", "cutout") for word in ("--save", kind)]
    as_stored = run("phone", "as_stored", *tile, *save, "--gt", "stored", "--rle", "stored.csv")
    applied = run("phone", "applied", *tile, *save, "--gt", "upright", "--exif", "apply")
    assert (as_stored.exit_code, applied.exit_code) == (0, 0), as_stored.output + applied.output
    assert (
        "Turned upright for the network by their EXIF orientation: 7 photos (masks lie on the stored pixels;"
        " --exif apply turns them, too)"
    ) in as_stored.stdout.splitlines()
    assert (
        "Turned upright by their EXIF orientation, and so are their masks: 7 photos"
    ) in applied.stdout.splitlines()
    rows = dict(csv.reader((here / "stored.csv").read_text().splitlines()))
    dice = set()
    for orientation in ORIENTATIONS:
        for name in ("{}.png", "_prob/{}.tif", "_cutout/{}.png"):
            file = name.format(orientation)
            expected = read_pixels(here / "applied" / name.format(1))
            np.testing.assert_array_equal(read_pixels(here / "applied" / file), expected)
            np.testing.assert_array_equal(upright(here / "as_stored" / file, orientation), expected)
        expected, overlay = read_pixels(here / "applied/_overlay/1.jpg"), f"_overlay/{orientation}.jpg"
        np.testing.assert_array_equal(read_pixels(here / "applied" / overlay), expected)
        difference = upright(here / "as_stored" / overlay, orientation).astype(int) - expected
        assert np.abs(difference).mean() < 3  # a JPEG depends on how its blocks lie
        mask = read_mask(here / "as_stored" / f"{orientation}.png")
        panel = read_pixels(here / "as_stored" / "_panel" / f"{orientation}.jpg")
        assert panel.shape == (mask.height, 2 * mask.width, 3)
        assert rows[f"{orientation}.jpg"] == rle.encode_packed(mask)
        for folder in ("as_stored", "applied"):
            with (here / folder / "report.csv").open() as file:
                row = next(row for row in csv.DictReader(file) if row["image"] == str(orientation))
            dice.add(row["dice"])
            note = {"as_stored": "turned upright for the network", "applied": "turned upright with its mask"}
            unclear = "; true mask upright or as stored" if orientation < 5 else ""
            second = "masked by the second network"
            expected = second if orientation == 1 else f"{note[folder]}; {second}{unclear}"
            assert row["notes"] == expected
    assert len(dice) == 1


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_true_masks_of_either_grid_are_compared(run, here, exif):
    """Masks lie on one grid, and the true ones on the other."""
    for folder in ("phone", "true"):
        (here / folder).mkdir()
    write_photo(here / "upright.png", here / "upright.gif", seed=1)
    with Image.open(here / "upright.png") as photo, Image.open(here / "upright.gif") as true:
        for orientation in (1, 3, 5, 6, 7, 8):
            tagged = with_orientation(photo, orientation).getexif()
            store(photo, orientation).save(here / "phone" / f"{orientation}.png", exif=tagged)
            # The size does not tell how the mask of a photo that is upside down lies.
            is_upright = exif == ("apply" if orientation == 3 else "ignore")
            mask = true if is_upright else store(true, orientation)
            mask.convert("1").save(here / "true" / f"{orientation}.png")
    for again in range(2):  # the second run only compares again
        result = run("phone", "out", "--exif", exif, "--gt", "true")
        assert result.exit_code == 0, result.output
        for line in (
            "True masks turned by the EXIF orientation, to compare with the masks: 4 photos",
            "True masks compared as they are, because their size does not tell whether they are upright or as"
            " the photo is stored: 1 photo (--exif apply makes upright masks)",
        ):
            assert line in result.stdout.splitlines()
        with (here / "out" / "report.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len({row["dice"] for row in rows}) == 1, rows
        assert "" not in {row["dice"] for row in rows}
        if again == 0:
            first = rows
    assert rows == first
    for mask in (here / "true").iterdir():
        Image.new("1", (7, 7), 1).save(mask)
    result = run("phone", "out", "--exif", exif, "--gt", "true")
    assert result.exit_code == 3
    assert "True masks" not in result.stdout


def test_damaged_photos_are_refused_and_can_be_masked_later(run, here):
    sound = run("in", "out")
    assert sound.exit_code == 0
    masks = {name: content for name, content in results_in(here / "out").items() if name.endswith(".png")}
    whole = (here / "in" / "car0.jpg").read_bytes()
    middle = len(whole) // 2
    (here / "in" / "damaged.jpg").write_bytes(whole[:middle] + bytes(300) + whole[middle + 300 :])
    result = run("in", "out")
    assert result.exit_code == 3
    assert "damaged.jpg (decode): is damaged: its picture data are corrupt" in result.stderr
    assert "--damaged accept" in result.stderr
    assert "damaged.png" not in results_in(here / "out")

    result = run("in", "out", "--damaged", "accept")
    assert result.exit_code == 0
    assert "Masked although damaged (--damaged accept): 1 photo" in result.stdout
    assert results_in(here / "out").items() >= masks.items()
    assert read_mask(here / "out" / "damaged.png").width == 96
    with (here / "out" / "report.csv").open(newline="") as file:
        notes = {row["image"]: row["notes"] for row in csv.DictReader(file)}
    assert notes.pop("damaged").startswith("damaged: its picture data are corrupt or incomplete (")
    assert "damaged" not in "".join(notes.values())

    kept = run("in", "out")
    assert kept.exit_code == 0
    assert "Masked although damaged (--damaged accept): 1 photo" in kept.stdout


def test_other_images_in_the_out_folder_are_named_at_the_start(run, here):
    (here / "out").mkdir()
    (here / "out" / "holiday.jpg").write_bytes((here / "in" / "car0.jpg").read_bytes())
    for arguments in ((), ("--dry-run",), ("--limit", "1")):
        result = run("in", "out", *arguments)
        assert result.exit_code == 0
        assert "Warning: out holds 1 other image, such as holiday.jpg: submit and score" in result.stderr
        assert "Warning" not in result.stdout
    (here / "out" / "holiday.jpg").unlink()
    assert "Warning" not in run("in", "out", "--limit", "1").stderr


def test_other_settings_need_overwrite(run, here):
    run("in", "out")
    before = results_in(here / "out")
    result = run("in", "out", "--threshold", "0.25")
    assert isinstance(result.exception, UsageError)
    assert "threshold: 0.5 before, 0.25 now" in str(result.exception)
    assert results_in(here / "out") == before
    assert run("in", "out", "--threshold", "0.25", "--overwrite").exit_code == 0
    assert results_in(here / "out") != before


FAILING_STARTS = [
    ("in", "out", "--model", "none"),
    ("in", "out", "--model", "truth/car0_mask.gif"),
    ("in", "out", "--device", "cuda:99"),
    ("in", "out", "--tile", "32", "--overlap", "256"),
    ("in", "out", "--tile", "0x32"),
    ("in", "out", "--memory", "1KB"),
    ("in", "out", "--gt", "none"),
    ("in", "out", "--gt", "empty"),
    ("in", "out", "--rle", "none/rows.csv"),
    ("in", "out", "--rle", "rows.txt"),
    ("in", "out", "--rle", "truth/folder.csv"),
    ("in", "out", "--shard", "3/2"),
    ("in", "no/out"),
    ("empty", "out"),
    ("none", "out"),
    ("--files-from", "none", "out"),
    ("in/car2.jpg", "out", "--device", "cuda:99"),
    ("in/car0.jpg", "mask.png", "--device", "cuda:99"),
    ("in/car0.jpg", "mask.png", "--save", "overlay"),
]


@pytest.mark.parametrize("arguments", FAILING_STARTS, ids=" ".join)
@pytest.mark.parametrize("existing", ["nothing", "a file", "a finished run"])
def test_a_failed_start_leaves_the_out_folder_alone(run, here, arguments, existing):
    (here / "empty").mkdir()
    (here / "truth" / "folder.csv").mkdir()
    if existing == "a file":
        (here / "out").mkdir()
        (here / "out" / "mine.txt").write_text("mine")
    elif existing == "a finished run":
        assert run("in", "out", "--limit", "2").exit_code == 0
    before = names_in(here), results_in(here)
    result = run(*arguments)
    assert result.exit_code not in (0, 3), result.output
    assert (names_in(here), results_in(here)) == before


def test_ctrl_c_before_the_start_leaves_no_out_folder(run, here, monkeypatch):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("carvana_batch.engines.local.make_predictor", interrupt)
    before = names_in(here)
    assert run("in", "out").exit_code != 0
    assert names_in(here) == before


def test_a_failed_shard_does_not_count_as_begun(run, here):
    assert run("in", "out", "--shard", "1/2").exit_code == 0
    before = names_in(here)
    assert isinstance(run("in", "out", "--shard", "2/2", "--rle", "none/rows.csv").exception, UsageError)
    assert names_in(here) == before


def test_overwrite_replaces_only_the_masks_of_its_photos(run, here):
    assert run("in", "out", "--save", "overlay", "--rle", "rows.csv").exit_code == 0
    rows = (here / "rows.csv").read_bytes()
    before = results_in(here / "out")
    times = {name: (here / "out" / name).stat().st_mtime_ns for name in before}
    write_photo(here / "in" / "car0.jpg", seed=9)
    result = run("in", "out", "--limit", "1", "--save", "overlay", "--overwrite")
    assert result.exit_code == 0, result.output
    assert "Overwriting 1 of 4 masks in out" in result.stdout.splitlines()
    after = results_in(here / "out")
    changed = {name for name in before if before[name] != after[name]}
    assert (changed, after.keys()) == ({"car0.png", "_overlay/car0.jpg", "report.csv"}, before.keys())
    assert all((here / "out" / name).stat().st_mtime_ns == times[name] for name in before.keys() - changed)
    with (here / "out" / "report.csv").open(newline="") as file:
        assert sorted(row["image"] for row in csv.DictReader(file)) == ["car0", "car1", "car2", "car3"]
    report = json.loads((here / "out" / "run.json").read_text())
    assert (report["found"], report["done"], report["masks_of_other_photos"]) == (1, 1, 3)
    # Run-length rows are those of the masks that are there now, although that run wrote none.
    assert run("in", "out", "--save", "overlay", "--rle", "rows.csv").exit_code == 0
    assert run("in", "afresh", "--rle", "afresh.csv").exit_code == 0
    assert (here / "rows.csv").read_bytes() == (here / "afresh.csv").read_bytes() != rows


def test_overwrite_replaces_the_masks_of_listed_or_other_photos(run, here, monkeypatch):
    assert run("in", "out").exit_code == 0
    before = results_in(here / "out")
    write_photo(here / "more" / "car3.jpg", seed=9)
    (here / "more" / "list.txt").write_text("car3.jpg\n")
    monkeypatch.chdir(here / "more")
    for photos in (("--files-from", "list.txt"), (here / "more",), ("car3.jpg",)):
        result = run(*photos, "../out", "--overwrite")
        assert "Overwriting 1 of 4 masks in ../out" in result.stdout.splitlines(), result.output
        after = results_in(here / "out")
        assert before.keys() == after.keys()
        assert {name for name in before if before[name] != after[name]} == {"car3.png", "report.csv"}


def test_overwrite_says_first_how_many_masks_go(run, here, monkeypatch):
    assert run("in", "out").exit_code == 0
    there = []
    say = reporting.Reporter.say

    def look(reporter, line):
        if line.startswith("Overwriting"):
            there.append((line, len(find_masks(here / "out"))))
        say(reporter, line)

    monkeypatch.setattr(reporting.Reporter, "say", look)
    assert run("in", "out", "--overwrite").exit_code == 0
    assert there == [("Overwriting 4 of 4 masks in out", 4)]


def test_overwriting_some_masks_with_other_settings_is_refused(run, here):
    run("in", "out")
    before = results_in(here / "out")
    for options in ((), ("--dry-run",)):
        result = run("in", "out", "--limit", "1", "--threshold", "0.25", "--overwrite", *options)
        assert isinstance(result.exception, UsageError)
        assert "threshold: 0.5 before, 0.25 now). --overwrite would keep 3 masks" in str(result.exception)
    assert results_in(here / "out") == before
    result = run("in", "out", "--limit", "1", "--dry-run", "--overwrite")
    assert "Overwriting 1 of 4 masks in out" in result.stdout.splitlines()


def test_a_folder_in_use(run, here):
    with OutFolder(here / "out", {}, (1, 1), False):
        result = run("in", "out")
    assert isinstance(result.exception, FolderInUseError)
    assert f"process {os.getpid()} on" in str(result.exception)


def test_an_unknown_model_is_rejected(run, here):
    result = run("in", "out", "--model", "none")
    assert isinstance(result.exception, ModelError)
    assert not (here / "out").exists()


@pytest.mark.usefixtures("without_model")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--engine ray --shard 1/2", "--engine ray shares the photos out by itself. Leave out --shard."),
        (
            "--address auto",
            "--address, --actors and --gpus-per-actor go with --engine ray. Give that as well.",
        ),
        ("--actors 2", "--address, --actors and --gpus-per-actor go with --engine ray. Give that as well."),
        ("--gpus-per-actor 0.5", "--address, --actors and --gpus-per-actor go with --engine ray. Give that"),
    ],
)
def test_options_that_do_not_go_with_the_engine(run, here, options, message):
    assert usage_error(run("in", "out", *options.split())).startswith(message)
    assert not (here / "out").exists()


@pytest.mark.usefixtures("without_model")
def test_without_ray_one_line_says_what_to_install(run, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "carvana_batch.engines.ray", raising=False)
    result = run("in", "out", "--engine", "ray")
    assert str(result.exception) == (
        "--engine ray needs Ray, of which ray is missing: pip install 'carvana-batch[ray]'"
    )
    assert not (here / "out").exists()


def test_a_stopped_run_prints_how_to_resume(run, here, monkeypatch):
    write = MaskWriter.write

    def write_and_signal(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return write(*arguments)

    arguments = ["predict", "in", "out", "--overwrite", "--model", "a b"]
    monkeypatch.setattr("sys.argv", ["/usr/bin/carvana-batch", *arguments])
    monkeypatch.setattr(MaskWriter, "write", write_and_signal)
    monkeypatch.setattr("carvana_batch.output.writer_threads.WRITER_THREADS", 1)
    monkeypatch.setattr("carvana_batch.output.writer_threads.MOST_UNWRITTEN", 0)
    monkeypatch.setattr("os._exit", lambda code: None)  # which the second signal calls
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    result = run("in", "out", "--overwrite")
    assert result.exit_code == 130
    lines = result.stdout.splitlines()
    assert "Stopping: finishing the photos in flight; once more leaves at once." in lines
    assert lines[-2:] == ["Stopped. To go on:", "  carvana-batch predict in out --model 'a b'"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    masked = len(find_masks(here / "out"))
    assert 0 < masked < 4
    assert f"{masked} masked, 0 failed, {4 - masked} left -> out" in lines


def test_progress_in_a_pipe_is_printed_as_plain_lines(run, here, monkeypatch):
    assert here
    monkeypatch.setattr(reporting, "SECONDS_BETWEEN_LINES", 0)
    result = run("in", "out", "--workers", "1")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", result.output)
    lines = result.stderr.splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"3 of 4 photos, \d+\.\d/s, 0:00:0\d left", lines[2])


def test_remaining_time_of_more_than_a_day(monkeypatch, capsys):
    from carvana_batch.commands import reporting

    now = [1000.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now[0])
    reporter = reporting.Reporter(quiet=False, to_stderr=False)
    reporter.listener.on_start("", Progress(total=100_064))
    now[0] += 100
    reporter.listener.on_progress(Progress(total=100_064, done=50, failed=14))
    assert capsys.readouterr().err == "64 of 100,064 photos, 0.6/s, 1 day, 19:24:10 left, 14 failed\n"
    quiet = reporting.Reporter(quiet=True, to_stderr=False)
    now[0] += 100
    quiet.listener.on_progress(Progress(total=100_064, done=50))
    assert capsys.readouterr().err == ""


def test_a_mask_file_must_be_a_png(drawn, tmp_path):
    photo = next((drawn / "images").glob("*.jpg"))
    result = CliRunner().invoke(group, ["predict", str(photo), str(tmp_path / "mask.jpg")])
    assert isinstance(result.exception, UsageError)
    assert "mask.png" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("here")
def test_a_dry_run_rejects_what_a_run_rejects(run):
    run("in", "out")
    result = run("in", "out", "--dry-run", "--threshold", "0.7")
    assert isinstance(result.exception, UsageError)
    assert "threshold: 0.5 before, 0.7 now" in str(result.exception)
    assert run("in", "out", "--dry-run", "--threshold", "0.7", "--overwrite").exit_code == 0


def test_memory_without_a_unit_is_rejected_with_advice(run, here):
    result = run("in", "out", "--memory", "6")
    assert (result.exit_code, "such as 6GB" in result.stderr) == (2, True)
    assert not (here / "out").exists()


def test_a_weights_file_is_named_with_digest_and_dice(run, here):
    weights = BUNDLED_WEIGHTS["segunet-s"]
    (here / "my weights.safetensors").symlink_to(weights)
    lines = run("in", "out", "--model", "my weights.safetensors").stdout.splitlines()
    model = load_model(weights)
    dice = json.loads(model.notes["val"])["dice"]
    where = f"from my weights.safetensors, sha256 {model.digest[:16]}, val Dice {dice:.4f}"
    assert lines[0] == f"4 photos, model segunet-s {where}"


def test_bundled_weights_are_named_as_they_were_given(run, here):
    lines = run("in", "out", "--model", "segunet-s-anywhere").stdout.splitlines()
    assert lines[0] == "4 photos, model segunet-s-anywhere"
    assert "doubtful" not in lines[2]  # one network alone has no doubt
    assert here


def test_a_run_without_doubtful_masks_says_so(capsys):
    stages = {"decode": 1.0, "predict": 1.0, "write": 1.0}

    def print_end(doubt):
        entries = [Entry(key, key, 1, 1, 4, 3, 0.25, 0.9, doubt=doubt[key]) for key in doubt]
        report = RunReport(found=len(doubt), already_done=0, done=len(doubt), seconds=1.0, stages=stages)
        refs = [ImageRef(key, Path(key)) for key in doubt]
        report.complete({entry.key: entry for entry in entries}, refs, refs, False)
        reporting.print_report(report, Path("out"), reporting.Reporter(quiet=False, to_stderr=False))
        return capsys.readouterr().out.splitlines()

    assert print_end({"a": 0.03, "b": 0.0})[0] == "2 masked, 0 failed -> out; none is doubtful"
    first, second, *_ = print_end({"a": 0.03, "b": 0.031})
    assert first == "2 masked, 0 failed -> out"
    assert second.startswith("1 of 2 photos looks unlike")
    assert print_end({"a": 0.03, "b": None})[0] == "2 masked, 0 failed -> out"
    assert print_end({}) == ["0 masked, 0 failed -> out"]
