"""Running out of memory on the device during whole runs: what is in the out folder afterwards."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import results_in
from PIL import Image
from short_memory import GPU_TEXT, ShortMemory
from torch import nn

from carvana_batch.decode.photo import read_image
from carvana_batch.inputs.find import find_images
from carvana_batch.inputs.masks import find_masks
from carvana_batch.masks.read import read_mask
from carvana_batch.network.model import Model
from carvana_batch.network.segunet import SegUNet
from carvana_batch.options import Options
from carvana_batch.run import Listener, run
from carvana_batch.stopping import StopFlag

OVERLAP = 44
"""Large enough for the network, whose logits depend on pixels up to 18 away: 7/16 of this are 19."""


class LimitedNetwork(SegUNet):
    """A network with random weights that runs out of memory at one call, or above a size of its input.

    Args:
        at: number of the call at which memory runs out, counted from 1; 0 for none.
        most_images: most images of a batch.
        most_pixels: most pixels of an image.

    Attributes:
        calls: shapes of the images of all calls, including those of copies of the network.
        faults: shapes of the images for which memory ran out.
    """

    def __init__(self, at=0, most_images=10**9, most_pixels=10**9):
        torch.manual_seed(0)
        super().__init__((4, 8), center=8, decoder_convolutions=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self.at, self.most_images, self.most_pixels = at, most_images, most_pixels
        self.calls, self.faults = [], []

    def __deepcopy__(self, _memo):
        copied = LimitedNetwork(self.at, self.most_images, self.most_pixels)
        copied.calls, copied.faults = self.calls, self.faults
        return copied

    def padded_logits(self, images):
        if not torch.is_inference_mode_enabled():  # measuring the memory that the network needs
            return super().padded_logits(images)
        self.calls.append(images.shape)
        count, _, height, width = images.shape
        if len(self.calls) == self.at or count > self.most_images or height * width > self.most_pixels:
            self.faults.append(images.shape)
            raise torch.OutOfMemoryError(GPU_TEXT)
        return super().padded_logits(images)


def predict(photos, out, network, stop_after=None, **options):
    """Run ``predict``, stopped by a signal after ``stop_after`` photos unless None, and return its report."""
    model = Model("test", network.eval(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "digest")
    arguments: dict[str, Any] = {"precision": "fp32", "workers": 0, "overlap": OVERLAP, "batch": 4}
    arguments |= {"memory": 10**9, **options}
    stop = StopFlag()

    def check(progress):
        if progress.done == stop_after:
            stop.signal = 15

    listener = Listener(on_progress=check)
    return run(find_images(photos).refs, out, model, Options(clean=False, **arguments), listener, stop)


@pytest.fixture(scope="module")
def photos(drawn, tmp_path_factory):
    """A folder with twelve small photos."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(12):
        shutil.copy2(drawn / "images" / f"car{number % 4}.jpg", folder / f"{number:02}.jpg")
    return folder


@pytest.fixture(scope="module")
def probabilities(photos):
    """The probability map of each photo, from one pass over the whole photo; by key."""
    network = LimitedNetwork().eval()
    maps = {}
    for ref in find_images(photos).refs:
        pixels = read_image(ref.path)
        images = torch.from_numpy((pixels / 255 - 0.5) / 0.25).permute(2, 0, 1)[None].float()
        with torch.inference_mode():
            maps[ref.key] = torch.sigmoid(network(images))[0, 0].numpy()
    return maps


def assert_masks(out, probabilities):
    """Check the masks, except pixels with a probability close to the threshold."""
    masks = find_masks(out)
    assert masks.keys() == probabilities.keys()
    for key, probability in probabilities.items():
        clear = np.abs(probability - 0.5) > 1e-3
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(read_mask(masks[key]).to_bool()[clear], probability[clear] > 0.5)


def test_out_of_memory_at_any_call_of_the_network(photos, probabilities, tmp_path, count_faults):
    undisturbed = LimitedNetwork()
    assert predict(photos, tmp_path / "out", undisturbed, tile=(64, 64)).warnings == []
    assert_masks(tmp_path / "out", probabilities)
    calls = len(undisturbed.calls)
    assert calls >= 9
    for at in range(1, calls + 1):
        out = tmp_path / str(at)
        report = predict(photos, out, LimitedNetwork(at), tile=(64, 64))
        assert (report.exit_code, report.done) == (0, 12)
        assert report.warnings == ["out of memory: going on with batches of 2"]
        assert json.loads((out / "run.json").read_text())["warnings"] == report.warnings
        assert_masks(out, probabilities)
    count_faults("out of memory at one call of the network costs no photo of a run", calls)


@pytest.mark.parametrize("limits", [{"most_images": 2}, {"most_images": 1}, {"most_pixels": 4000}])
def test_a_resumed_run_starts_with_the_reduced_limits(limits, photos, probabilities, tmp_path, count_faults):
    network = LimitedNetwork(**limits)
    first = predict(photos, tmp_path / "out", network, stop_after=1)
    assert (first.stopped_by, first.warnings != []) == (15, True)
    assert 0 < first.done < 12
    # The limits stay, although there is more memory now.
    unlimited = LimitedNetwork()
    report = predict(photos, tmp_path / "out", unlimited)
    assert (report.exit_code, report.warnings, report.chosen) == (0, [], first.chosen)
    assert max(shape[0] for shape in unlimited.calls) <= limits.get("most_images", 4)
    assert max(shape[2] * shape[3] for shape in unlimited.calls) <= limits.get("most_pixels", 96 * 64)
    assert_masks(tmp_path / "out", probabilities)
    whole = predict(photos, tmp_path / "whole", LimitedNetwork(**limits))
    assert (whole.warnings, whole.chosen) == (first.warnings, first.chosen)
    assert results_in(tmp_path / "out") == results_in(tmp_path / "whole")
    count_faults("a resumed run begins with its reduced limits", len(network.faults))


def test_a_photo_too_large_for_the_memory(photos, probabilities, tmp_path, count_faults):
    folder = shutil.copytree(photos, tmp_path / "in")
    oversized = np.random.default_rng(0).integers(0, 256, (600, 700, 3), np.uint8)
    Image.fromarray(oversized).save(folder / "03_oversized.png")
    with ShortMemory(most_bytes=2 * 10**6) as memory:  # its maps alone take 2.9 MB
        report = predict(folder, tmp_path / "out", LimitedNetwork(), batch=1)
    assert (report.exit_code, report.done, report.warnings) == (3, 12, [])
    (failure,) = report.failures
    assert (failure.key, failure.stage) == ("03_oversized", "predict")
    assert "700x600 pixels do not fit into the memory of cpu" in failure.reason
    assert_masks(tmp_path / "out", probabilities)
    count_faults("out of memory for the maps of a photo costs no other", memory.faults)
    # With more memory, the same command masks the missing photo.
    resumed = predict(folder, tmp_path / "out", LimitedNetwork(), batch=1)
    assert (resumed.exit_code, resumed.already_done, resumed.done) == (0, 12, 1)


MASKS_WITH_LITTLE_MEMORY = """
import json, resource, sys
from pathlib import Path

import numpy as np, torch
from torch import nn

import carvana_batch.inference.memory
from carvana_batch.network.model import Model
from carvana_batch.network.segunet import SegUNet
from carvana_batch.inference.predictor import Predictor
from carvana_batch.inference.recovery import Limits
from carvana_batch.inference.tiles import Tiling

carvana_batch.inference.memory.keep_freed_memory = lambda keep: None  # so that limits are exact
torch.set_num_threads(1)
torch.manual_seed(0)
network = SegUNet((16, 32), center=32, decoder_convolutions=1)
for module in network.modules():
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
model = Model("test", network.eval(), (0.5,) * 3, (0.25,) * 3, "digest")
pixels = np.random.default_rng(0).integers(0, 256, (1200, 1800, 3), np.uint8)
dtype = getattr(torch, sys.argv[1])
predictor = Predictor(model, torch.device("cpu"), Limits(1, Tiling(None, 10**9, 44), dtype))
predictor.mask(pixels[:64, :64])  # libraries allocate some memory once
expected = Predictor(model, torch.device("cpu"), Limits(1, Tiling(None, 10**9, 44), dtype)).mask(pixels)
for megabytes in (2000, 200, 100):
    predictor = Predictor(model, torch.device("cpu"), Limits(1, Tiling(None, 10**9, 44), dtype))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 10**6, resource.RLIM_INFINITY))
    different = float((predictor.mask(pixels) != expected).mean())
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps([megabytes, len(predictor.warnings), different]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits the address space as on Linux")
@pytest.mark.parametrize(("dtype", "most_different"), [("float32", 1e-5), ("bfloat16", 0.01)])
def test_a_process_with_too_little_memory(dtype, most_different, count_faults):
    # Freed memory is returned at once; compiled kernels, some MB per shape, are kept.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "100000", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MASKS_WITH_LITTLE_MEMORY, dtype]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert finished.returncode == 0, finished.stderr
    lines = [json.loads(line) for line in finished.stdout.splitlines()]
    assert lines[0][1] == 0
    assert all(warnings > 0 for _, warnings, _ in lines[1:]), lines
    assert all(different <= most_different for _, _, different in lines), lines
    count_faults("out of memory of the operating system costs no photo", sum(line[1] for line in lines))
