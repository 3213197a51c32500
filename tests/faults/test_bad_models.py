"""Weights that are damaged, of something else, or harmful; and networks whose output is not finite."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from helpers import names_below, results_in
from PIL import Image
from safetensors.torch import save_file

from carvana_batch.network import BUNDLED_WEIGHTS
from carvana_batch.network.checkpoints import load_model, save_model

BUNDLED = BUNDLED_WEIGHTS["segunet-s"]
OVERFLOWS_HALF = 2.0**14
OVERFLOWS_SINGLE = 2.0**127
"""Powers of two, so that float32 is scaled without rounding."""


@pytest.fixture(scope="module")
def here(tmp_path_factory, drawn):
    """A folder with ``images``: a grey one that comes first, and three cars."""
    here = tmp_path_factory.mktemp("models") / "here"
    (here / "images").mkdir(parents=True)
    Image.fromarray(np.full((64, 96, 3), 180, np.uint8)).save(here / "images" / "a grey one.png")
    for number in range(3):
        shutil.copy2(drawn / "images" / f"car{number}.jpg", here / "images")
    return here


def save_changed(path, model, change):
    """The bundled weights after ``change(weights)``, with a checksum that is right."""
    weights = {key: value.clone() for key, value in model.network.state_dict().items()}
    change(weights)
    save_model(path, model.name, weights, model.mean, model.deviation, {}, scale=model.scale)


def predict(zygote, here, *options):
    shutil.rmtree(here / "out", ignore_errors=True)
    return zygote.run(here, "predict", "images", "out", "--workers", "0", *options)


def assert_refused(zygote, here, name, *words, shown=None, code=1):
    """One line that names the file and what is wrong, an exit code, and nothing made."""
    before = names_below(here)
    finished = predict(zygote, here, "--model", name)
    assert finished.code == code, finished
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    assert finished.stderr.removesuffix("\n").isprintable()
    assert finished.stderr.startswith("Error: ")
    for word in (shown or name, *words):
        assert word in finished.stderr, finished
    assert names_below(here) == before


# ---- files that are no weights


@pytest.mark.slow
def test_damaged_weights_are_refused(zygote, here, count_faults):
    whole = BUNDLED.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    faults = [(whole[:length], "not a whole safetensors file") for length in (0, 1, 8, 100, start)]
    faults += [(whole[: len(whole) * tenth // 10], "not a whole safetensors file") for tenth in range(1, 10)]
    faults.append((whole[:-1], "not a whole safetensors file"))
    faults.append((whole + b"\0", "not a whole safetensors file"))
    for place, word in (
        *((start + share * (len(whole) - 1 - start) // 4, "checksum") for share in range(5)),
        (whole.index(b'"segunet-s"') + 1, "checksum"),
        (whole.index(b'"mean":"[0') + 9, "checksum"),
        (whole.index(b"carvana-batch weights 1"), "its header says"),
        (whole.index(b'"format"') + 1, "its header says"),
        (whole.index(b'"digest"') + 1, "checksum"),
        (whole.index(b"__metadata__") + 4, "not a whole safetensors file"),
        (0, "not a whole safetensors file"),
        (7, "not a whole safetensors file"),
    ):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        faults.append((bytes(flipped), word))
    for content, word in faults:
        (here / "weights.safetensors").write_bytes(content)
        assert_refused(zygote, here, "weights.safetensors", word)
    (here / "weights.safetensors").unlink()
    count_faults("bad weights are refused before anything is made", len(faults))


def test_weights_that_do_not_fit_are_refused(zygote, here, model, count_faults):
    def put(key, value):
        return lambda weights: weights.update({key: value})

    def put_one(value):
        return lambda weights: weights["decoder.0.0.0.weight"].view(-1)[5].fill_(value)

    faults = (
        (put("classifier.weight", torch.zeros(4, 17, 1, 1)), "(4, 17, 1, 1), not (4, 16, 1, 1)"),
        (put("classifier.weight", torch.zeros(64)), "has the shape (64,)"),
        (put("\x1b[31mextra\n", torch.zeros(1)), r"0 missing, 1 unknown, such as \x1b[31mextra\n"),
        (lambda weights: weights.pop("classifier.bias"), "1 missing, 0 unknown, such as classifier.bias"),
        (lambda weights: weights.clear(), "missing, 0 unknown"),
        (put("classifier.bias", torch.zeros(4, dtype=torch.complex64)), "classifier.bias is no plain tensor"),
        (put_one(float("nan")), "decoder.0.0.0.weight holds values that are not finite"),
        (put_one(float("inf")), "decoder.0.0.0.weight holds values that are not finite"),
        (put_one(-float("inf")), "decoder.0.0.0.weight holds values that are not finite"),
        (put("classifier.bias", torch.full((4,), 1e300, dtype=torch.float64)), "not finite"),
    )
    for change, word in faults:
        save_changed(here / "weights.safetensors", model, change)
        assert_refused(zygote, here, "weights.safetensors", word)
    others = (
        ({"a": torch.zeros(3)}, "its tensors fit none of the networks segunet-s, segunet-m, segunet, unet"),
        ({}, "its tensors fit none of the networks"),
        ([1, "a"], "not a state dict of tensors"),
        ({**model.network.state_dict(), "classifier.bias": torch.zeros(4).to_sparse()}, "no plain tensor"),
        ({**model.network.state_dict(), "classifier.bias": torch.zeros(4, device="meta")}, "no plain tensor"),
    )
    for content, word in others:
        torch.save(content, here / "weights.pth")
        assert_refused(zygote, here, "weights.pth", word)
    save_file({"a": torch.zeros(3)}, here / "weights.safetensors")
    assert_refused(zygote, here, "weights.safetensors", "fit none of the networks")
    save_model(here / "weights.safetensors", "nonet", {}, model.mean, model.deviation, {})
    assert_refused(zygote, here, "weights.safetensors", "made for the network 'nonet'")
    for path in here.glob("weights.*"):
        path.unlink()
    count_faults("bad weights are refused before anything is made", len(faults) + len(others) + 2)


class Canary:
    """Leaves a folder behind wherever it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors", ""])
def test_no_code_in_a_file_of_weights_is_run(zygote, here, model, suffix, count_faults):
    canary, path = here.parent / f"canary{suffix}", here / f"weights{suffix}"
    content = {**model.network.state_dict(), "extra": Canary(canary)}
    word = "not a whole safetensors file" if suffix in {".safetensors", ""} else "not a plain checkpoint"
    torch.save(content, path)
    assert_refused(zygote, here, path.name, word)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert_refused(zygote, here, path.name, word)
    path.write_bytes(pickle.dumps({"state_dict": Canary(canary)}))
    assert_refused(zygote, here, path.name, word)
    assert not canary.exists()
    pickle.loads(path.read_bytes())  # noqa: S301 (so it would have shown)
    assert canary.exists()
    path.unlink()
    count_faults("no code in a file of weights is run", 3)


def test_what_is_no_file_of_weights_is_refused(zygote, here, count_faults):
    for suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ""):
        (here / f"empty{suffix}").touch()
        (here / f"text{suffix}").write_text("no weights\n" * 1000)
        assert_refused(zygote, here, f"empty{suffix}")
        assert_refused(zygote, here, f"text{suffix}")
    (here / "folder").mkdir()
    assert_refused(zygote, here, "folder", "it has no best.safetensors", code=2)
    (here / "folder" / "last.safetensors").touch()
    assert_refused(zygote, here, "folder", "its latest weights are folder/last.safetensors", code=2)
    (here / "folder" / "best.safetensors").mkdir()
    (here / "folder" / "last.safetensors").unlink()
    assert_refused(zygote, here, "folder", code=2)
    os.mkfifo(here / "pipe.pt")
    assert_refused(zygote, here, "pipe.pt", code=2)
    (here / "dangling.pt").symlink_to("nothing")
    assert_refused(zygote, here, "dangling.pt", code=2)
    assert_refused(zygote, here, "x" * 300, "too long", code=2)
    for name, shown in (
        ("line\nbreak\x1b[31m.pt", r"line\nbreak\x1b[31m.pt"),
        ("line\nbreak\x1b[31m.safetensors", r"line\nbreak\x1b[31m.safetensors"),
    ):
        (here / name).touch()
        assert_refused(zygote, here, name, shown=shown)
    for path in here.iterdir():
        if path.is_dir() and path.name != "images":
            shutil.rmtree(path)
        elif path.name != "images":
            path.unlink()
    count_faults("bad weights are refused before anything is made", 12 + 8)


# ---- output that is not finite


def masks_in(out):
    return {name: content for name, content in results_in(out).items() if name.endswith(".png")}


@pytest.fixture(scope="module")
def expected(zygote, here):
    """The masks of the bundled weights in float32; the cars' are not empty, and not full."""
    finished = predict(zygote, here, "--model", "segunet-s", "--precision", "fp32")
    assert finished.code == 0, finished
    for number in range(3):
        share = np.asarray(Image.open(here / "out" / f"car{number}.png")).mean()
        assert 0.01 < share < 0.99
    return masks_in(here / "out")


def scale_last(factor):
    """All logits are multiplied."""

    def change(weights):
        for key in ("classifier.weight", "classifier.bias"):
            weights[key] *= factor

    return change


def scale_before_last(factor):
    """What goes into the last layer is multiplied, and what comes out of it stays the same."""

    def change(weights):
        for key in ("decoder.5.0.1.weight", "decoder.5.0.1.bias"):
            weights[key] *= factor
        weights["classifier.weight"] /= factor

    return change


def finite_in(path, here, dtype, name):
    """Whether the network's output for a photo is finite where all is computed in ``dtype``."""
    model = load_model(path)
    photo = torch.from_numpy(np.array(Image.open(here / "images" / name).convert("RGB")))
    pixels = (photo.permute(2, 0, 1)[None] / 255 - torch.tensor(model.mean)[:, None, None]) / torch.tensor(
        model.deviation
    )[:, None, None]
    with torch.inference_mode():
        return bool(torch.isfinite(model.network.to(dtype)(pixels.to(dtype))).all())


CARS = ("car0.jpg", "car1.jpg", "car2.jpg")


@pytest.mark.parametrize("scale", [scale_last, scale_before_last])
def test_overflow_of_half_precision_is_masked_in_float32(zygote, here, model, expected, scale, count_faults):
    path = here / "scaled.safetensors"
    save_changed(path, model, scale(OVERFLOWS_HALF))
    assert not any(finite_in(path, here, torch.float16, name) for name in CARS)
    assert all(finite_in(path, here, torch.float32, name) for name in CARS)

    finished = predict(zygote, here, "--model", path.name, "--precision", "fp16", "--json")
    assert finished.code == 0, finished
    told = json.loads(finished.stdout)
    # The grey one came first and did well: float32 is for the others alone.
    assert (told["chosen"]["precision"], told["warnings"], told["failed"]) == ("fp16", [], 0)
    assert {name: masks_in(here / "out")[name] for name in ("car0.png", "car1.png", "car2.png")} == {
        name: content for name, content in expected.items() if name.startswith("car")
    }
    path.unlink()
    count_faults("output that overflows half precision is made again in float32", 3)


def test_overflow_in_the_first_photo_changes_all_to_float32(
    zygote, here, model, expected, tmp_path, count_faults
):
    path = here / "scaled.safetensors"
    save_changed(path, model, scale_before_last(2.0**20))
    (tmp_path / "here").mkdir()
    shutil.copytree(here / "images", tmp_path / "here" / "images")
    (tmp_path / "here" / "images" / "a grey one.png").unlink()
    finished = predict(zygote, tmp_path / "here", "--model", path, "--precision", "fp16", "--json")
    assert finished.code == 0, finished
    told = json.loads(finished.stdout)
    assert told["chosen"]["precision"] == "fp32"
    assert told["warnings"] == ["torch.float16 differs from float32 by nan on the first batch: using float32"]
    assert masks_in(tmp_path / "here" / "out").items() <= expected.items()
    path.unlink()
    count_faults("output that overflows half precision is made again in float32", 3)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_overflow_of_float32_is_a_failure(zygote, here, model, precision, count_faults):
    path = here / "scaled.safetensors"
    save_changed(path, model, scale_last(OVERFLOWS_SINGLE))
    finished = predict(zygote, here, "--model", path.name, "--precision", precision)
    assert finished.code == 3, finished
    assert "Traceback" not in finished.stderr
    failures = json.loads((here / "out" / "run.json").read_text())["failures"]
    assert {failure["image"] for failure in failures} == {
        f"images/{name}" for name in ("a grey one.png", *CARS)
    }
    for failure in failures:
        assert failure["stage"] == "predict"
        assert "the network's output is not finite" in failure["reason"]
    assert results_in(here / "out").keys() == {"report.csv"}
    path.unlink()
    count_faults("output that is not finite in float32 makes no mask", 4)
