"""Small networks whose masks are known, photos for them, and a short way to make a predictor."""

import contextlib
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from short_memory import GPU_TEXT
from torch import Tensor, nn

import carvana_batch.inference.predictor
from carvana_batch.inference.predictor import AnyPredictor, Predictor
from carvana_batch.inference.recovery import Limits
from carvana_batch.inference.runner import MaskOptions
from carvana_batch.inference.tiles import Tiling
from carvana_batch.network.blocks import AnySizeNetwork
from carvana_batch.network.model import Model
from carvana_batch.network.segunet import SegUNet
from carvana_batch.values import ImageRef, Photo, Prediction

CPU = torch.device("cpu")
WHOLE = Tiling(None, 10**9, 0)
"""Photos are not cut."""

GAIN = 4.0
"""Logit of a pixel whose red is 255; its negative is that of red 0. No red value gives exactly 0."""

CPU_TEXT = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    " allocate 1125899906842624 bytes. Error code 12 (Cannot allocate memory)"
)
OUT_OF_MEMORY = {
    "gpu": torch.OutOfMemoryError(GPU_TEXT),
    "cpu": RuntimeError(CPU_TEXT),
    "python": MemoryError(),
}
"""An error of each kind that is raised when memory runs out."""

NOT_FINITE = {
    "inf": lambda logits: logits * float("inf"),
    "minus inf": lambda logits: logits.abs() * -float("inf"),
    "nan": lambda logits: logits * float("nan"),
    "both": lambda logits: torch.where(logits.cumsum(3) > 200, float("inf"), -float("inf")).to(logits.dtype),
}
"""Functions that make logits infinite or NaN."""


class Redness(AnySizeNetwork):
    """The logit of a pixel is proportional to its own normalised red and depends on no other pixel."""

    def __init__(self, stride: int = 4) -> None:
        super().__init__(stride)
        self.gain = nn.Parameter(torch.tensor(GAIN))

    def padded_logits(self, images: Tensor) -> Tensor:
        return self.gain * images[:, :1]


class LimitedRedness(Redness):
    """Runs out of memory above a number of images, or of pixels per image, in all or some dtypes."""

    def __init__(self, most_images=10**9, most_pixels=10**9, error=OUT_OF_MEMORY["gpu"], dtypes=None) -> None:
        super().__init__()
        self.most_images, self.most_pixels, self.error, self.dtypes = most_images, most_pixels, error, dtypes

    def padded_logits(self, images: Tensor) -> Tensor:
        too_large = len(images) > self.most_images or images.shape[2] * images.shape[3] > self.most_pixels
        if too_large and (self.dtypes is None or images.dtype in self.dtypes):
            raise self.error
        return super().padded_logits(images)


class WrongInBfloat16(Redness):
    """In bfloat16, ``spoil`` changes the logits of pixels whose normalised red exceeds ``level``."""

    def __init__(self, spoil, level: float = -2.0) -> None:
        super().__init__()
        self.spoil, self.level = spoil, level

    def padded_logits(self, images: Tensor) -> Tensor:
        logits = super().padded_logits(images)
        if images.dtype == torch.bfloat16:
            logits = torch.where(images[:, :1] > self.level, self.spoil(logits), logits)
        return logits


def make_small_network() -> SegUNet:
    """A network with random weights and batch norm statistics, whose logits depend on neighbouring pixels.

    A logit depends on pixels up to 18 away in each direction.
    """
    torch.manual_seed(0)
    network = SegUNet((4, 8), center=8, decoder_convolutions=1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


def make_model(network: AnySizeNetwork, mean=(0.5, 0.5, 0.5), deviation=(0.5, 0.5, 0.5), size=None) -> Model:
    return Model("test", network.eval(), mean, deviation, "digest", size=size)


def make_predictor(
    model: Model | AnySizeNetwork,
    tiling: Tiling = WHOLE,
    dtype: torch.dtype = torch.float32,
    *,
    batch: int = 1,
    kind: type[Predictor] = Predictor,
    on_change=lambda _: None,
    **options,
) -> Predictor:
    """A predictor of class ``kind`` on the CPU; ``options`` are those of MaskOptions."""
    if not isinstance(model, Model):
        model = make_model(model)
    return kind(model, CPU, Limits(batch, tiling, dtype), MaskOptions(**options), on_change=on_change)


def random_photo(height: int, width: int, seed: int = 0) -> Photo:
    pixels = np.random.default_rng((seed, height, width)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    name = f"{height}x{width}_{seed}"
    return Photo(ImageRef(name, Path(f"{name}.jpg")), pixels)


def photo_of_reds(reds: list[int], seed: int) -> Photo:
    """20 x 24 pixels whose values, red ones included, are drawn from ``reds``."""
    pixels = np.random.default_rng(seed).choice(np.array(reds, np.uint8), (20, 24, 3))
    return Photo(ImageRef(f"red {seed}", Path(f"{seed}.jpg")), pixels)


def red_mask(photo: Photo) -> np.ndarray:
    """The mask that Redness gives."""
    return photo.pixels[:, :, 0] >= 128


def red_probability(photo: Photo) -> np.ndarray:
    """The probability map that Redness gives."""
    logits = GAIN * (photo.pixels[:, :, 0] / 255 - 0.5) / 0.5
    return 1 / (1 + np.exp(-logits))


def predict_one(predictor: AnyPredictor, photo: Photo) -> Prediction:
    (result,) = predictor.predict([photo])
    assert isinstance(result, Prediction)
    return result


def assert_red_masks(results, photos) -> None:
    """Check that each photo came back once, with the mask that Redness gives."""
    results = list(results)
    assert sorted(result.photo.ref.key for result in results) == sorted(photo.ref.key for photo in photos)
    for result in results:
        np.testing.assert_array_equal(result.mask.to_bool(), red_mask(result.photo))


def probabilities_of_whole_photo(network: AnySizeNetwork, photo: Photo) -> np.ndarray:
    """(H, W) float32 probabilities from one pass over the whole photo."""
    images = torch.from_numpy((photo.pixels / 255 - 0.5) / 0.5).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        return torch.sigmoid(network(images))[0, 0].numpy()


def assert_masks_match(results, probabilities: dict[str, np.ndarray]) -> None:
    """Check that each photo came back once, with the mask of its probability map.

    Pixels with a probability close to the threshold are not compared.
    """
    assert sorted(result.photo.ref.key for result in results) == sorted(probabilities)
    for result in results:
        probability = probabilities[result.photo.ref.key]
        clear = np.abs(probability - 0.5) > 1e-3
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(result.mask.to_bool()[clear], probability[clear] > 0.5)


@pytest.fixture(params=[False, True], ids=["waits", "ahead"])
def works_ahead(request, monkeypatch):
    """Run the test on a device that is done when a call returns, and on one that works asynchronously."""
    monkeypatch.setattr(carvana_batch.inference.predictor, "works_ahead", lambda device: request.param)
    return request.param


@contextlib.contextmanager
def time_limit(seconds: int):
    """Fail the test if the with block takes longer."""

    def fail(_number, _frame):
        raise AssertionError(f"not done after {seconds} seconds")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
