import copy
import os
import platform
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import psutil
import pytest
import torch
from short_memory import ShortMemory
from torch import nn

from carvana_batch import main_memory
from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.inference import precision
from carvana_batch.inference import predictor as predictor_module
from carvana_batch.inference.devices import pick_device
from carvana_batch.inference.memory import (
    CPU_SHARE,
    GPU_BUDGET,
    OutOfMemoryGuard,
    free_memory,
    is_out_of_memory,
    memory_budget,
    release_unused_memory,
)
from carvana_batch.inference.planning import default_workers, describe_choice, make_predictor
from carvana_batch.inference.precision import choose_precision
from carvana_batch.inference.tiles import Tiling
from carvana_batch.network.checkpoints import Model
from carvana_batch.network.segunet import SegUNet
from carvana_batch.options import Options

CPU = torch.device("cpu")
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def model() -> Model:
    network = SegUNet((16, 32), center=32, decoder_convolutions=1).eval()
    return Model("test", network, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "digest")


def plan(model, chosen=None, **options):
    options = {"device": "cpu", "precision": "fp32", "memory": 500 * MEGABYTE, "overlap": 64} | options
    return make_predictor(model, Options(**options), chosen or {})[0]


# Devices


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7", "mps", "mps:0"])
def test_devices_that_are_not_there_are_refused(name):
    with pytest.raises(UsageError, match=f"--device {name}: .*--device cpu always works"):
        pick_device(name)


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    "name", ["", "gpu", "CPU", "0", "cuda:", "cuda:x", "cuda:-1", "meta", "xpu", "cpu,cuda"]
)
def test_unknown_devices_are_refused(name):
    with pytest.raises(UsageError, match=f"--device {name}: .*cuda:N"):
        pick_device(name)


@pytest.mark.usefixtures("without_gpu")
def test_the_best_device_is_picked(monkeypatch):
    assert pick_device("cpu") == CPU
    assert pick_device("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == pick_device("mps").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto").type == "cuda"
    assert pick_device("cpu") == CPU
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="2 CUDA devices"):
        pick_device("cuda:2")


def say_that_memory_is_free(monkeypatch, available, folder, **files):
    """A machine with so many bytes, and a container whose limits are in these files of ``folder``."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    monkeypatch.setattr(main_memory, "CONTROL_GROUP", folder)
    for name, content in files.items():
        (folder / f"memory.{name}").write_text(content)


def test_free_memory_is_that_of_the_machine(monkeypatch, tmp_path):
    say_that_memory_is_free(monkeypatch, 10_000, tmp_path)
    assert free_memory(CPU) == 10_000
    say_that_memory_is_free(monkeypatch, 10_000, tmp_path, max="max\n", current="9000\n")
    assert free_memory(CPU) == 10_000


def test_free_memory_is_within_the_limit_of_a_container(monkeypatch, tmp_path):
    say_that_memory_is_free(monkeypatch, 10_000, tmp_path, max="8000\n", current="3000\n")
    assert free_memory(CPU) == 5000
    # The photos that were read stay in memory as long as nobody needs it, and count as used.
    say_that_memory_is_free(monkeypatch, 10_000, tmp_path, stat="anon 900\ninactive_file 2000\nslab 7\n")
    assert free_memory(CPU) == 7000
    say_that_memory_is_free(monkeypatch, 6000, tmp_path)
    assert free_memory(CPU) == 6000
    say_that_memory_is_free(monkeypatch, 6000, tmp_path, current="9000\n", stat="inactive_file 0\n")
    assert free_memory(CPU) == 0


def test_memory_budget(monkeypatch, tmp_path):
    say_that_memory_is_free(monkeypatch, 10_000, tmp_path)
    assert memory_budget(CPU, None) == 10_000 * CPU_SHARE
    assert memory_budget(CPU, 123) == 123
    gpu = torch.device("cuda")
    for free, budget in ((GPU_BUDGET * 10, GPU_BUDGET), (GPU_BUDGET // 2, GPU_BUDGET // 2)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, GPU_BUDGET * 20))
        assert memory_budget(gpu, None) == budget
        assert memory_budget(gpu, GPU_BUDGET * 2) == GPU_BUDGET * 2


def raised_by(function) -> BaseException:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        function()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        raised_by(lambda: torch.empty(2**50, dtype=torch.uint8)),
        raised_by(lambda: bytearray(2**60)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
        NotImplementedError("GET was unable to find an engine to execute this computation"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"),
        RuntimeError("Invalid buffer size: 12.50 GB"),
        RuntimeError("could not create a primitive"),
        RuntimeError("std::bad_alloc"),
        RuntimeError(
            "[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."
        ),
    ],
    ids=lambda error: str(error)[:30],
)
def test_errors_that_say_that_memory_ran_out(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        raised_by(lambda: nn.Conv2d(3, 4, 1)(torch.zeros(1, 2, 4, 4))),
        raised_by(lambda: torch.zeros(2).reshape(3)),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError(""),
        ValueError("CUDA error: out of memory"),
        OSError(12, "Cannot allocate memory"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: repr(error)[:30],
)
def test_other_errors_do_not(error):
    assert not is_out_of_memory(error)


def test_the_guard_holds_back_a_lack_of_memory_only():
    with OutOfMemoryGuard() as guard:
        pass
    assert guard.error is None
    with OutOfMemoryGuard() as guard:
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore about it.")
    assert guard.error == "CUDA out of memory."
    with OutOfMemoryGuard() as guard:
        raise MemoryError
    assert guard.error == "MemoryError"
    with pytest.raises(ValueError, match="another"), OutOfMemoryGuard():
        raise ValueError("another")


def test_unused_memory_of_gpus_is_released(monkeypatch):
    released = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append("cuda"))
    add_host = partial(released.append, "host")
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", add_host, raising=False)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: released.append("mps"))
    for name in ("cpu", "cuda:1", "mps"):
        release_unused_memory(torch.device(name))
    assert released == ["cuda", "host", "mps"]


NEEDS_GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")


def run_script(script):
    """The numbers that a Python program prints."""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return [int(word) for word in result.stdout.split()]


@NEEDS_GLIBC
def test_freed_memory_is_kept_for_the_same_shapes_only():
    usual, kept, used, freed = run_script("""
import resource, psutil, torch
from carvana_batch.inference.memory import FreedMemory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

resident = psutil.Process().memory_info
memory = FreedMemory(torch.device("cpu"))
memory.prepare_for((1, 2))
print(faults())
memory.prepare_for((1, 2))
faults()
print(faults(), resident().rss)
memory.prepare_for((2, 1))
print(resident().rss)
""")
    assert kept < usual / 100
    assert used - freed > 0.9 * 2**26


@NEEDS_GLIBC
def test_nothing_is_kept_once_memory_was_short():
    kept, freed, later = run_script("""
import psutil, torch
from carvana_batch.inference.memory import FreedMemory

resident = psutil.Process().memory_info
memory = FreedMemory(torch.device("cpu"))
for _ in range(2):
    memory.prepare_for((1, 2))
    torch.zeros(2**24)
print(resident().rss)
memory.stop()
print(resident().rss)
for _ in range(3):
    memory.prepare_for((1, 2))
    torch.zeros(2**24)
print(resident().rss)
""")
    assert kept - freed > 0.9 * 2**26
    assert later < freed + 0.5 * 2**26


SMALL_PREDICTOR = """
import resource, numpy as np, psutil, torch
from pathlib import Path
from carvana_batch.network.checkpoints import Model
from carvana_batch.network.segunet import SegUNet
from carvana_batch.inference.predictor import Predictor
from carvana_batch.inference.tiles import Tiling
from carvana_batch.values import ImageRef, Photo

def photo(side):
    return Photo(ImageRef("a", Path("a")), np.zeros((side, side, 3), np.uint8))

model = Model("tiny", SegUNet((16, 32), 32, 1).eval(), (0.5,) * 3, (0.5,) * 3, "")
predictor = Predictor(model, torch.device("cpu"), torch.float32, Tiling(None, 10**9, 256))
list(predictor.predict([photo(64)] * 3))
"""


@NEEDS_GLIBC
def test_photos_of_one_size_share_memory():
    alike, different = run_script(
        SMALL_PREDICTOR
        + """
def faults(sides):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    list(predictor.predict(photo(side) for side in sides))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults([300] * 20), faults([300, 320] * 10))
"""
    )
    assert alike < different / 4


@NEEDS_GLIBC
@pytest.mark.slow
def test_photos_of_many_sizes_do_not_add_up():
    """Were all that is freed kept, the peak would be two to four times as high."""
    # Not ru_maxrss: it counts what the process of the tests held when it started this one.
    many_sizes = """
def peak():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) - before

resident = psutil.Process().memory_info
before = resident().rss // 1024
list(predictor.predict([photo(1000)] * 3))
print(peak())
held = []
for result in predictor.predict(photo(side) for side in range(400, 1000, 15)):
    held.append(bytes(3000))  # as a journal's entries would be
print(peak(), resident().rss // 1024 - before)
"""
    keep_all = """
from carvana_batch.inference.memory import FreedMemory
from carvana_batch.main_memory import keep_freed_memory

FreedMemory.prepare_for = lambda *_: keep_freed_memory(True)
"""
    largest, all_sizes, left = run_script(SMALL_PREDICTOR + many_sizes)
    _, all_sizes_if_all_is_kept, _ = run_script(keep_all + SMALL_PREDICTOR + many_sizes)
    assert all_sizes < 1.6 * largest  # 1.15 to 1.5, as freed pieces are met or not; 2.9 if all is kept
    assert all_sizes < 0.75 * all_sizes_if_all_is_kept
    assert left < 0.2 * all_sizes


@pytest.mark.parametrize("faster", [torch.float32, torch.bfloat16])
def test_the_faster_precision_of_a_cpu_is_measured(monkeypatch, faster):
    def prepare(_network, _device, dtype):
        return lambda images: time.sleep(0.001 if dtype == faster else 0.01)

    monkeypatch.setattr(precision, "prepare_network", prepare)
    dtype, why = choose_precision(nn.Identity(), CPU)
    assert dtype == faster
    assert why.startswith("fp32 (" if faster == torch.float32 else "bf16 (")
    assert choose_precision(nn.Identity(), torch.device("cuda"))[0] == torch.float16


@pytest.mark.parametrize(("cores", "on_cpu", "on_gpu"), [(1, 1, 1), (2, 1, 2), (16, 4, 8), (None, 1, 1)])
def test_default_workers(monkeypatch, cores, on_cpu, on_gpu):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert default_workers(CPU, 100) == on_cpu
    assert default_workers(torch.device("cuda"), 100) == on_gpu
    assert default_workers(torch.device("cuda"), 3) == 1


# Plans


def activation_bytes(network, height: int, width: int, dtype: torch.dtype) -> int:
    """The most that tensors hold at one time, of single operations and without computing anything."""
    shapes = copy.deepcopy(network).to(device="meta", dtype=dtype).eval()
    with torch.no_grad(), ShortMemory() as device:
        shapes(torch.empty((1, 3, height, width), device="meta", dtype=dtype))
    return device.peak


def bytes_taken(model: Model, predictor, height: int, width: int) -> int:
    """What a batch of tiles of a photo of this size takes: tensors inside the network, its weights, and the
    photo itself with its map where it is cut into tiles of a size that was not asked for."""
    network = predictor.model.network
    tiles = predictor.tiling.plan(height, width, network.stride, network.unit)
    activations = activation_bytes(network, tiles.tile_height, tiles.tile_width, predictor.dtype)
    weights = sum(parameter.numel() * 4 for parameter in model.network.parameters())
    maps = height * width * (3 + 4) if tiles.tile_count > 1 and predictor.tiling.tile is None else 0
    return predictor.batch * activations + weights + maps


@pytest.mark.parametrize("size", [(1280, 1918), (2000, 2500), (200, 25_000), (25_000, 200)])
@pytest.mark.parametrize(("precision", "batch"), [("fp32", None), ("bf16", None), ("fp32", 4)])
def test_tiles_shrink_with_the_memory_and_stay_within_it(model, size, precision, batch):
    tile_pixels, tile_counts = [], []
    for megabytes in (10_000, 2000, 600, 400, 200):
        predictor = plan(model, memory=megabytes * MEGABYTE, precision=precision, batch=batch)
        assert predictor.batch == (batch or 1)
        assert bytes_taken(model, predictor, *size) <= megabytes * MEGABYTE
        network = predictor.model.network
        tiles = predictor.tiling.plan(*size, network.stride, network.unit)
        tile_pixels.append(tiles.tile_height * tiles.tile_width)
        tile_counts.append(tiles.tile_count)
    assert tile_counts == sorted(tile_counts)
    assert tile_pixels == sorted(tile_pixels, reverse=True)
    assert tile_counts[0] == 1 or size != (1280, 1918)
    assert tile_counts[-1] > 4


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("megapixels", [5, 25, 50, 100, 200])
def test_the_maps_of_a_large_photo_are_part_of_the_memory(model, megapixels, precision, batch):
    width = round((megapixels * MEGABYTE * 1.5) ** 0.5)
    predictor = plan(model, memory=2000 * MEGABYTE, precision=precision, batch=batch)
    assert bytes_taken(model, predictor, width * 2 // 3, width) <= 2000 * MEGABYTE


def test_maps_larger_than_the_memory_leave_tiles_of_a_sensible_size(model):
    predictor = plan(model, memory=200 * MEGABYTE)
    tiles = predictor.tiling.plan(10_000, 10_000, 4, 1)  # the maps take 700 MB
    assert 400**2 < tiles.tile_height * tiles.tile_width <= 512**2
    assert bytes_taken(model, predictor, 10_000, 10_000) < 900 * MEGABYTE


def test_weights_that_do_not_fit_are_told_with_advice(model, monkeypatch):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(predictor_module, "prepare_network", run_out)
    with pytest.raises(CarvanaBatchError, match=r"weights of test; .*--device cpu \(CUDA out of memory"):
        plan(model)


def test_half_the_bytes_a_number_are_good_for_larger_tiles(model):
    in_half = plan(model, precision="bf16").tiling.most_pixels
    assert 1.3 * plan(model, precision="fp32").tiling.most_pixels < in_half


def test_options_reach_the_predictor(model):
    predictor = plan(model, threshold=0.3, flip=True, extras=("prob", "overlay"), tile=(128, 64), overlap=16)
    assert (predictor.threshold, predictor.flip, predictor.keep_probability) == (0.3, True, True)
    assert (predictor.tiling.tile, predictor.tiling.overlap) == ((128, 64), 16)
    assert (predictor.device, predictor.dtype) == (CPU, torch.float32)
    assert not plan(model, extras=("overlay",)).keep_probability


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_tiles_that_do_not_fit_the_memory_are_refused(model, batch):
    def fits(side: int) -> bool:
        try:
            predictor = plan(model, memory=300 * MEGABYTE, tile=(side, 512), batch=batch)
        except UsageError as error:
            assert f"--tile {side}x512" in str(error)
            assert "0.30 GB (--memory)" in str(error)
            return False
        assert bytes_taken(model, predictor, 5000, 5000) <= 300 * MEGABYTE
        return True

    answers = [fits(side) for side in range(256, 2400, 256)]
    assert answers[0]
    assert not answers[-1]
    assert answers == sorted(answers, reverse=True)
    # What is refused is not far from what cannot be.
    largest = 256 * sum(answers)
    activations = activation_bytes(model.network, 512, largest, torch.float32)
    assert (batch or 1) * activations > 100 * MEGABYTE


def test_tiles_count_as_large_as_the_network_sees_them(model):
    # 1 x 1 becomes 4 x 4, of which a thousand at a time are too much.
    with pytest.raises(UsageError, match="1000 such tiles"):
        plan(model, memory=5 * MEGABYTE, tile=(1, 1), batch=1000, overlap=0)


@pytest.mark.parametrize(("options", "words"), [({}, "one tile"), ({"batch": 50}, "50 tiles at a time")])
def test_memory_that_is_not_enough_for_the_smallest_tile_is_refused(model, options, words):
    with pytest.raises(UsageError, match=f"--memory: 0.002 GB .*{words}.* --overlap 64 "):
        plan(model, memory=2 * MEGABYTE, **options)
    plan(model, memory=2 * MEGABYTE, overlap=0)


def test_an_overlap_that_leaves_no_step_is_refused_before_the_first_photo(model):
    for tile in ((64, 128), (128, 64)):
        with pytest.raises(UsageError, match="--overlap 64 is too much for tiles of 64 pixels"):
            plan(model, tile=tile, overlap=64)
        plan(model, tile=tile, overlap=56)


def test_what_the_first_run_chose_is_used_again(model):
    # Nothing here would choose fp16 on a CPU, three at a time.
    chosen = {"device": "cpu", "precision": "fp16", "batch": 3, "tile": False, "most_pixels": 123_456}
    chosen["map_share"] = 0.0123
    for memory in (60 * MEGABYTE, 6000 * MEGABYTE):
        predictor = plan(model, chosen, precision="auto", memory=memory)
        assert predictor.dtype == torch.float16
        assert predictor.batch == 3
        assert predictor.tiling == Tiling(None, 123_456, 64, 0.0123)
        assert describe_choice(predictor) == chosen


def test_what_gave_way_during_a_run_is_what_is_described(model):
    predictor = plan(model, batch=4)
    assert describe_choice(predictor)["precision"] == "fp32"
    assert describe_choice(predictor)["batch"] == 4
    predictor.batch, predictor.dtype, predictor.tiling = 2, torch.float16, Tiling(None, 777, 64, 0.1)
    assert describe_choice(predictor) == {
        "device": "cpu",
        "precision": "fp16",
        "batch": 2,
        "tile": False,
        "most_pixels": 777,
        "map_share": 0.1,
    }


def test_tiles_that_gave_way_stay_given_up(model):
    chosen = {"device": "cpu", "precision": "fp32", "batch": 1, "tile": False, "most_pixels": 64**2}
    assert plan(model, chosen, tile=(128, 128)).tiling.tile is None
    assert plan(model, chosen | {"tile": True}, tile=(128, 128)).tiling.tile == (128, 128)


def test_an_automatic_device_is_that_of_the_first_run(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = {"device": "cpu", "precision": "fp32", "batch": 1, "tile": False, "most_pixels": 64**2}
    assert plan(model, chosen, device="auto").device.type == "cpu"


def test_a_job_goes_on_only_on_its_kind_of_device(model):
    with pytest.raises(UsageError, match=r"began on cuda.*--device cuda"):
        plan(model, {"device": "cuda", "precision": "fp16", "batch": 8, "most_pixels": 10**6})


@pytest.mark.parametrize(
    "wrong", [{"precision": "fp12"}, {"batch": "2"}, {"most_pixels": None}, {"other": 1}]
)
def test_damaged_settings_of_an_earlier_run_are_refused(model, wrong):
    with pytest.raises(UsageError, match=f"are damaged .{next(iter(wrong))}: .*--overwrite"):
        plan(model, describe_choice(plan(model, precision="fp32")) | wrong)


def test_settings_from_before_maps_were_counted_give_the_tiles_of_then(model):
    chosen = describe_choice(plan(model, precision="fp32"))
    del chosen["map_share"]
    assert plan(model, chosen).tiling.map_share == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_line_about_the_run_says_what_was_chosen(model, precision):
    options = Options(device="cpu", precision=precision, memory=1500 * MEGABYTE)
    _, line = make_predictor(model, options, {})
    assert f"{torch.get_num_threads()} CPU threads" in line
    assert f"{precision} (as asked)" in line
    assert "1.5 GB" in line
    assert "first run" in make_predictor(model, options, {"precision": precision})[1]
