"""Tests that need a CUDA device; they are skipped without one."""

import contextlib
import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import store, write_pairs
from PIL import Image

from carvana_batch.demo import draw_photo
from carvana_batch.inference.planning import make_predictor
from carvana_batch.inference.precision import PRECISIONS
from carvana_batch.inference.predictor import AnyPredictor
from carvana_batch.inference.transfer import Download, upload
from carvana_batch.network import NETWORKS
from carvana_batch.network.checkpoints import load_model
from carvana_batch.network.segunet import SegUNet
from carvana_batch.options import Options
from carvana_batch.orientation import ORIENTATIONS
from carvana_batch.training.device_samples import DeviceSamples
from carvana_batch.training.job import train
from carvana_batch.training.pairs import find_pairs
from carvana_batch.training.processes import Processes
from carvana_batch.training.settings import PRESETS, TrainingSettings
from carvana_batch.values import ImageRef, Photo, Prediction

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # torch says this once when the mode is switched on; what waits is an error, not a warning.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


def drawn_photos(count: int, size: tuple[int, int]) -> list[Photo]:
    photos = (draw_photo(seed, 1 + 3 * seed % 16, size)[0] for seed in range(count))
    return [Photo(ImageRef(str(seed), Path(f"{seed}.jpg")), photo) for seed, photo in enumerate(photos)]


def predict(photos: list[Photo], predictor: AnyPredictor) -> list[Prediction]:
    results = [result for result in predictor.predict(photos) if isinstance(result, Prediction)]
    assert [result.photo.ref for result in results] == [photo.ref for photo in photos]
    return results


@contextlib.contextmanager
def waiting_refused():
    """A with block in which operations that wait for the device fail."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def limited_memory(most_bytes):
    """A with block in which this process gets no more memory of the device."""

    def release():
        gc.collect()
        torch.cuda.empty_cache()

    release()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, most_bytes / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        release()


@pytest.mark.parametrize("tile", [None, (256, 256)], ids=["whole", "tiles"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_gpu_masks_are_those_of_the_cpu(precision, tile):
    photos = drawn_photos(7, (480, 320))
    model = load_model("segunet-s")
    on_cpu, _ = make_predictor(model, Options("cpu", "fp32", tile=tile, overlap=64))
    on_gpu, _ = make_predictor(model, Options("cuda", precision, batch=2, tile=tile, overlap=64))
    assert on_gpu.limits.dtype == PRECISIONS[precision]
    # By default, torch computes float32 convolutions in TF32, which is no more precise than fp16. Outlines on
    # the device may differ by more in bf16, which has three bits less.
    most = 4e-3 if precision == "bf16" else 1e-3
    for result, expected in zip(predict(photos, on_gpu), predict(photos, on_cpu), strict=True):
        assert np.mean(result.mask.to_bool() != expected.mask.to_bool()) <= most
        assert result.expected_dice == pytest.approx(expected.expected_dice, abs=most)


@pytest.mark.parametrize("tile", [None, (256, 256)], ids=["whole", "tiles"])
def test_only_reading_masks_waits_for_the_device(tile):
    predictor, _ = make_predictor(
        load_model("segunet-s"), Options("cuda", "fp16", batch=1, tile=tile, overlap=64)
    )
    photos = drawn_photos(6, (480, 320))
    predict(photos[:1], predictor)  # comparing the first batch with float32 waits
    with waiting_refused():
        predict(photos, predictor)


def test_copies_do_not_wait_for_the_device():
    array = np.arange(2**20)
    device = torch.device("cuda")
    before = upload(array, device)
    # Reserving memory may wait for the device, so the blocks that are needed below are in torch's cache then.
    uploaded, download = upload(array, device), Download(before)
    download.read()
    del uploaded, download
    torch.cuda.synchronize()
    torch.cuda._sleep(2 * 10**9)  # cycles: about a second
    slept = torch.cuda.current_stream().record_event()
    uploaded, download = upload(array, device), Download(before)
    assert not slept.query()
    np.testing.assert_array_equal(download.read()[0].numpy(), array)
    assert slept.query()
    np.testing.assert_array_equal(uploaded.cpu().numpy(), array)


def test_six_gigabytes_suffice_for_full_size_photos():
    with limited_memory(6e9):
        predictor, _ = make_predictor(load_model("segunet-s"), Options("cuda", "fp16"))
        predict(drawn_photos(1, (1918, 1280)) * 12, predictor)
        assert predictor.warnings == []
        del predictor


def test_memory_that_runs_out_costs_no_photo():
    photos = drawn_photos(1, (1918, 1280)) * 9
    predictor, _ = make_predictor(load_model("segunet-s"), Options("cuda", "fp16", batch=1))
    expected = predict(photos[:1], predictor)[0].mask.to_bool()
    del predictor
    with limited_memory(1.2e9):
        # It is promised more than it gets.
        predictor, _ = make_predictor(
            load_model("segunet-s"), Options("cuda", "fp16", batch=8, memory=10**10)
        )
        for result in predict(photos, predictor):
            assert np.mean(result.mask.to_bool() != expected) <= 1e-4
        assert predictor.warnings != []
        assert predictor.limits.batch < 8
        del predictor


def test_a_second_network_checks_masks_on_the_gpu():
    photos = drawn_photos(5, (480, 320))
    on_cpu, _ = make_predictor(load_model("auto"), Options("cpu", "fp32"))
    on_gpu, _ = make_predictor(load_model("auto"), Options("cuda", "fp16"))
    alike = 0
    for result, expected in zip(predict(photos, on_gpu), predict(photos, on_cpu), strict=True):
        if result.photo.notes == expected.photo.notes:  # the same network has masked the photo
            alike += 1
            assert np.mean(result.mask.to_bool() != expected.mask.to_bool()) <= 2e-3
            assert result.doubt == pytest.approx(expected.doubt, abs=5e-3)
    assert alike >= 4


@pytest.mark.parametrize("cache", ["main", "device"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_gpu_learns(tmp_path, monkeypatch, cache, precision):
    monkeypatch.setitem(NETWORKS, "tiny", lambda: SegUNet((4, 8), 8, 1))
    settings = TrainingSettings(
        model="tiny",
        epochs=40,
        batch=2,
        warm_up=2,
        lr=0.01,
        precision=precision,
        cache=cache,
        validate_every=10,
    )
    outcome = train(write_pairs(tmp_path / "data"), tmp_path / "run", settings, device=torch.device("cuda"))
    assert outcome.best.dice > 0.7


def test_making_samples_on_a_gpu_does_not_wait(tmp_path):
    settings = TrainingSettings(batch=4, cache="device", crop=(64, 48), augmentation=PRESETS["photos"])
    samples = DeviceSamples(find_pairs(write_pairs(tmp_path / "data")), settings, torch.device("cuda"))
    samples.load(1)
    passes = samples.passes_of_steps(range(20), Processes())
    next(passes)
    with waiting_refused():
        made = list(passes)
    assert len(made) == 19
    assert made[0][0].images.is_cuda


def test_gpu_turns_photos_of_any_orientation():
    (upright,) = drawn_photos(1, (480, 320))
    photos = [
        Photo(ImageRef(str(orientation), "a.jpg"), np.array(store(picture, orientation)), orientation)
        for picture in [Image.fromarray(upright.pixels)]
        for orientation in ORIENTATIONS
    ]
    predictor, _ = make_predictor(load_model("segunet-s"), Options("cuda", "fp32", batch=1))
    expected, *results = predict([upright, *photos], predictor)
    mask = Image.fromarray(expected.mask.to_bool())
    for result in results:
        stored = np.asarray(store(mask, result.photo.orientation))
        np.testing.assert_array_equal(result.mask.to_bool(), stored)
