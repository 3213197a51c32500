"""Tests that need a CUDA device; they are skipped without one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import store
from PIL import Image

from carvana_batch.demo import draw_photo
from carvana_batch.inference.planning import make_predictor
from carvana_batch.inference.predictor import AnyPredictor
from carvana_batch.inference.transfer import Download, upload
from carvana_batch.network.checkpoints import load_model
from carvana_batch.options import Options
from carvana_batch.orientation import ORIENTATIONS
from carvana_batch.values import ImageRef, Photo, Prediction

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def drawn_photos(count: int, size: tuple[int, int]) -> list[Photo]:
    photos = (draw_photo(seed, 1 + 3 * seed % 16, size)[0] for seed in range(count))
    return [Photo(ImageRef(str(seed), Path(f"{seed}.jpg")), photo) for seed, photo in enumerate(photos)]


def predict(photos: list[Photo], predictor: AnyPredictor) -> list[Prediction]:
    results = [result for result in predictor.predict(photos) if isinstance(result, Prediction)]
    assert [result.photo for result in results] == photos
    return results


@pytest.mark.parametrize("tile", [None, (256, 256)], ids=["whole", "tiles"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gpu_masks_are_those_of_the_cpu(precision, tile):
    photos = drawn_photos(7, (480, 320))
    model = load_model("segunet-s")
    on_cpu, _ = make_predictor(model, Options("cpu", "fp32", tile=tile, overlap=64))
    on_gpu, _ = make_predictor(model, Options("cuda", precision, batch=2, tile=tile, overlap=64))
    assert on_gpu.limits.dtype == {"fp32": torch.float32, "fp16": torch.float16}[precision]
    for result, expected in zip(predict(photos, on_gpu), predict(photos, on_cpu), strict=True):
        # By default, torch computes float32 convolutions in TF32, which is no more precise than fp16.
        assert np.mean(result.mask.to_bool() != expected.mask.to_bool()) <= 1e-3
        assert result.expected_dice == pytest.approx(expected.expected_dice, abs=1e-3)


@pytest.mark.parametrize("tile", [None, (256, 256)], ids=["whole", "tiles"])
def test_only_reading_masks_waits_for_the_device(tile):
    predictor, _ = make_predictor(
        load_model("segunet-s"), Options("cuda", "fp16", batch=1, tile=tile, overlap=64)
    )
    photos = drawn_photos(6, (480, 320))
    predict(photos[:1], predictor)  # comparing the first batch with float32 waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        predict(photos, predictor)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_copies_do_not_wait_for_the_device():
    array = np.arange(2**20)
    device = torch.device("cuda")
    before = upload(array, device)
    torch.cuda.synchronize()
    torch.cuda._sleep(2 * 10**9)  # cycles: about a second
    slept = torch.cuda.current_stream().record_event()
    uploaded, download = upload(array, device), Download(before)
    assert not slept.query()
    np.testing.assert_array_equal(download.read()[0].numpy(), array)
    assert slept.query()
    np.testing.assert_array_equal(uploaded.cpu().numpy(), array)


def test_six_gigabytes_suffice_for_full_size_photos():
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 6e9 / total))
    try:
        predictor, _ = make_predictor(load_model("segunet-s"), Options("cuda", "fp16"))
        predict(drawn_photos(1, (1918, 1280)) * 12, predictor)
        assert predictor.warnings == []
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


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
