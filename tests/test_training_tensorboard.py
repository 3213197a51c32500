"""Event files of a run, read back with TensorBoard's own reader."""

import errno
import io
import sys

import numpy as np
import pytest
from PIL import Image

from carvana_batch.errors import OutOfSpaceError, UsageError
from carvana_batch.files import WriteError
from carvana_batch.training.tensorboard import TensorBoardLog, import_writer

VAL = {"dice": 0.97, "iou": 0.94, "pixel_accuracy": 0.99, "precision": 0.96, "recall": 0.98, "dice_05": 0.9}


@pytest.fixture
def read():
    """Read a folder of event files."""
    reason = "needs the extra train"
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)

    def read_folder(folder):
        events = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
        events.Reload()
        return events

    return read_folder


def scalars(events):
    names = events.Tags()["scalars"]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def points(*pairs):
    """Round as TensorBoard does, which stores numbers in single precision."""
    return [(step, float(np.float32(value))) for step, value in pairs]


def step_line(step, loss):
    return {"step": step, "epoch": step / 120, "loss": loss, "learning_rate": 1e-3, "samples_per_second": 5.1}


def test_every_number_in_the_log_becomes_a_curve(tmp_path, read):
    with TensorBoardLog(tmp_path / "not" / "yet") as log:
        log.add_line(step_line(50, 0.31))
        log.add_line(step_line(100, 0.21))
        log.add_line({"step": 120, "epoch": 1.0, "val": VAL})
    assert scalars(read(tmp_path / "not" / "yet")) == {
        "train/loss": points((50, 0.31), (100, 0.21)),
        "train/learning_rate": points((50, 1e-3), (100, 1e-3)),
        "train/samples_per_second": points((50, 5.1), (100, 5.1)),
        **{f"val/{name}": points((120, value)) for name, value in VAL.items()},
    }


def test_values_that_are_not_numbers_are_ignored(tmp_path, read):
    with TensorBoardLog(tmp_path) as log:
        log.add_line(
            {"step": 1, "loss": None, "best": True, "note": "x", "skipped": 2, "val": {"dice": None}}
        )
        log.add_line({"loss": 0.5})
    assert scalars(read(tmp_path)) == {"train/skipped": [(1, 2.0)]}


def test_a_picture_is_stored_without_loss(tmp_path, read):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    with TensorBoardLog(tmp_path) as log:
        log.add_picture("val/worst", Image.fromarray(pixels), 120)
        log.add_picture("grey", Image.new("L", (5, 4), 77), 7)
    events = read(tmp_path)
    (worst,), (grey,) = events.Images("val/worst"), events.Images("grey")
    assert (worst.step, worst.width, worst.height) == (120, 14, 9)
    shown = Image.open(io.BytesIO(worst.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(shown.convert("RGB")), pixels)
    assert np.unique(np.asarray(Image.open(io.BytesIO(grey.encoded_image_string)))).tolist() == [77]


def test_a_resumed_run_writes_no_point_twice(tmp_path, read):
    with TensorBoardLog(tmp_path) as log:
        for step in (50, 100, 150, 200):
            log.add_line(step_line(step, step / 1000))
    with TensorBoardLog(tmp_path, purge_step=101) as log:
        for step in (150, 200, 250):
            log.add_line(step_line(step, step / 500))
    expected = points((50, 0.05), (100, 0.1), (150, 0.3), (200, 0.4), (250, 0.5))
    assert scalars(read(tmp_path))["train/loss"] == expected


def test_a_new_run_hides_all_earlier_points(tmp_path, read):
    for grey in (10, 200):
        with TensorBoardLog(tmp_path) as log:
            log.add_picture("samples", Image.new("L", (2, 2), grey), 0)
            log.add_line(step_line(50, grey))
    events = read(tmp_path)
    assert scalars(events)["train/loss"] == points((50, 200))
    (picture,) = events.Images("samples")
    assert Image.open(io.BytesIO(picture.encoded_image_string)).getpixel((0, 0)) == (200, 200, 200)


def test_points_before_an_error_are_kept(tmp_path, read):
    with pytest.raises(RuntimeError, match="of the training"), TensorBoardLog(tmp_path) as log:
        log.add_line(step_line(50, 0.5))
        raise RuntimeError("of the training")
    assert scalars(read(tmp_path))["train/loss"] == points((50, 0.5))


@pytest.mark.usefixtures("read")
def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file/log"):
        TensorBoardLog(tmp_path / "file" / "log")


@pytest.mark.usefixtures("read")
def test_a_full_disk_raises_its_own_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with TensorBoardLog(tmp_path) as log:
        for name in ("add_scalar", "add_image"):
            monkeypatch.setattr(log.writer, name, refuse)
        with pytest.raises(OutOfSpaceError, match=tmp_path.name):
            log.add_line(step_line(50, 0.5))
        with pytest.raises(OutOfSpaceError, match=tmp_path.name):
            log.add_picture("a", Image.new("RGB", (2, 2)), 1)


@pytest.fixture
def forget_tensorboard(monkeypatch):
    """Make Python import tensorboard, and the modules that import it, again."""
    for name in list(sys.modules):
        if name.split(".")[0] == "tensorboard" or name.startswith("torch.utils.tensorboard"):
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("forget_tensorboard")
def test_a_missing_tensorboard_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    message = r"--tensorboard needs the package tensorboard: pip install 'carvana-batch\[train\]'"
    with pytest.raises(UsageError, match=message):
        TensorBoardLog(tmp_path / "log")
    with pytest.raises(UsageError, match=message):
        import_writer()
    assert not (tmp_path / "log").exists()


@pytest.mark.usefixtures("forget_tensorboard")
@pytest.mark.parametrize(
    "warning", ["'old', DeprecationWarning", "'pkg_resources is deprecated as an API', UserWarning"]
)
def test_warnings_of_the_import_are_hidden(tmp_path, monkeypatch, warning):
    (tmp_path / "tensorboard").mkdir()
    program = f"import warnings; warnings.warn({warning}); raise ImportError('reached')"
    (tmp_path / "tensorboard" / "__init__.py").write_text(program)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(UsageError) as caught:
        import_writer()
    assert str(caught.value.__cause__) == "reached"
