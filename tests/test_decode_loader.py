import contextlib
import ctypes
import faulthandler
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import dataloader

from carvana_batch.decode import loader, shared_memory
from carvana_batch.decode import photo as images
from carvana_batch.decode import workers as workers_module
from carvana_batch.decode.loader import DecodeOptions, PhotoLoader
from carvana_batch.decode.photo import read_image
from carvana_batch.decode.workers import memory_shared_with_workers
from carvana_batch.values import Failure, ImageRef, Photo

OPTIONS = DecodeOptions(pixel_limit=10_000, apply_exif=False)


def write_photo(path, value, size=(5, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path, "PNG")
    return ImageRef(path.stem, path)


@pytest.fixture
def photos(tmp_path):
    """Twelve photos, whose first pixel's red is their number; 3 and 7 are no photos."""
    refs = [write_photo(tmp_path / f"{number:02}.png", number) for number in range(12)]
    refs[3].path.write_text("text")
    refs[7].path.unlink()
    return refs


def describe(result):
    """(key, red of the first pixel), or (key, reason) of a failure."""
    if isinstance(result, Failure):
        assert result.stage == "decode"
        return result.id, result.reason
    return result.ref.key, int(result.pixels[0, 0, 0])


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Look every 0.1 s whether a worker has died; torch itself looks every 5 s."""
    monkeypatch.setattr(workers_module, "WORKER_POLL_SECONDS", 0.1)
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


@pytest.fixture(autouse=True)
def time_limit():
    """No test of this module may hang: it would be killed."""
    signal.alarm(100)
    yield
    signal.alarm(0)


def write_noise(path, width, height, orientation=1):
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise).save(path, exif=exif)
    return ImageRef(path.stem, path)


@pytest.fixture
def put(monkeypatch, tmp_path):
    """A file to which workers add a letter for each photo: d if it was decoded into its slot, c if copied."""
    log = tmp_path / "put"
    original = shared_memory.SharedMemory.put

    def noted(self, pixels):
        direct = np.may_share_memory(self._slots[self._turn].numpy(), pixels)
        with log.open("a") as file:
            file.write("d" if direct else "c")
        return original(self, pixels)

    monkeypatch.setattr(shared_memory.SharedMemory, "put", noted)
    return log


@pytest.mark.parametrize("workers", [1, 2])
def test_all_kinds_of_photos_pass_through_shared_memory(tmp_path, workers, put):
    """JPEGs are decoded into it; others are copied, also what Pillow makes of one simplejpeg gives up."""
    pytest.importorskip("simplejpeg")
    refs = []
    for number, side in enumerate(
        [9, 40, 11, 30, 35, 10, 33, 34, 8, 35, 31, 9, 20, 36, 29, 12, 35, 35, 35, 4]
    ):
        kind = {3: ("png", 1), 7: ("jpg", 3), 11: ("jpg", 6)}.get(number, ("jpg", 1))
        refs.append(write_noise(tmp_path / f"{number}.{kind[0]}", side, 70 - side, kind[1]))
    damaged = refs[14].path
    content = bytearray(damaged.read_bytes())
    content[-40:-2] = b"\xff\xd0" * 19
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match="JPEG"):
        images.simplejpeg.decode_jpeg(damaged.read_bytes())
    photo_loader = PhotoLoader(refs, DecodeOptions(pixel_limit=10_000, apply_exif=True), workers)
    for ref, result in zip(refs, photo_loader, strict=True):
        np.testing.assert_array_equal(result.pixels, read_image(ref.path, apply_exif=True))
    assert photo_loader.warnings == []
    assert put.read_text().count("d") >= 5


@pytest.mark.parametrize("workers", [1, 2])
def test_slots_are_opened_once_and_decoded_into(tmp_path, workers, put, monkeypatch):
    pytest.importorskip("simplejpeg")
    opened = []

    def watched(slots, pixels, original=shared_memory.OpenedSlots.view):
        opened.append(pixels.memory is not None)
        return original(slots, pixels)

    monkeypatch.setattr(shared_memory.OpenedSlots, "view", watched)
    refs = [write_noise(tmp_path / f"{number:02}.jpg", 30, 20) for number in range(12)]
    for result in PhotoLoader(refs, OPTIONS, workers):
        np.testing.assert_array_equal(result.pixels, read_image(result.ref.path))
    slots = shared_memory.SLOTS * workers
    assert (len(opened), sum(opened)) == (12, slots)
    assert sorted(put.read_text()) == ["c"] * slots + ["d"] * (12 - slots)


def test_a_header_that_lies_takes_no_shared_memory(tmp_path, monkeypatch):
    """Of 40 megapixels, which such a photo promises, 120 MB would stay taken."""
    pytest.importorskip("simplejpeg")
    find_room = shared_memory.SharedMemory.find_room

    def noted(self, size):
        room = find_room(self, size)
        (tmp_path / "asked").write_text(f"{size} {max(slot.numel() for slot in self._slots)} {room is None}")
        return room

    monkeypatch.setattr(shared_memory.SharedMemory, "find_room", noted)
    refs = [write_noise(tmp_path / f"{number}.jpg", 30, 20) for number in range(5)]
    content = bytearray(refs[4].path.read_bytes())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = (5000).to_bytes(2) + (8000).to_bytes(2)
    refs[4].path.write_bytes(content)
    options = DecodeOptions(pixel_limit=50_000_000, apply_exif=False)
    sizes = [getattr(result, "pixels", np.empty(0)).size for result in PhotoLoader(refs, options, 1)]
    assert sizes[:4] == [1800] * 4
    assert (tmp_path / "asked").read_text() == "120000000 1800 True"


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_photos_and_failures_come_in_order(photos, workers):
    results = list(PhotoLoader(photos, OPTIONS, workers))
    told = [describe(result) for result in results]
    assert [key for key, _ in told] == [ref.key for ref in photos]
    assert [value for _, value in told if isinstance(value, int)] == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert told[3][1].startswith("is not an image in a supported format")
    assert told[7][1] == "does not exist"
    assert all(result.pixels.shape == (3, 5, 3) for result in results if isinstance(result, Photo))
    assert all(result.pixels.dtype == np.uint8 for result in results if isinstance(result, Photo))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_photos_stay_as_they_are_while_others_are_decoded(tmp_path, workers):
    random = np.random.default_rng(workers)
    sizes = random.integers(1, 60, (40, 2)).tolist()
    refs = [write_photo(tmp_path / f"{place:02}.png", place, size) for place, size in enumerate(sizes)]
    kept = []
    for photo in PhotoLoader(refs, OPTIONS, workers):
        kept.append(photo)
        time.sleep(random.choice([0, 0.02]))  # time for the workers to get ahead
    for place, (photo, (width, height)) in enumerate(zip(kept, sizes, strict=True)):
        expected = np.zeros((height, width, 3), np.uint8)
        expected[..., 0] = place
        np.testing.assert_array_equal(photo.pixels, expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_options_reach_the_decoder(tmp_path, workers):
    turned = Image.new("RGB", (4, 2))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    refs = [ImageRef("turned", tmp_path / "turned.jpg"), write_photo(tmp_path / "large.png", 0, (101, 100))]
    first, second = PhotoLoader(refs, DecodeOptions(10_000, apply_exif=True), workers)
    assert first.pixels.shape == (4, 2, 3)
    assert "more than the limit of 10,000" in second.reason
    first, second = PhotoLoader(refs, DecodeOptions(10_100, apply_exif=False), workers)
    assert first.pixels.shape == (2, 4, 3)
    assert second.pixels.shape == (100, 101, 3)


def test_a_photo_knows_the_state_of_its_file_before_it_was_read(tmp_path, monkeypatch):
    ref = write_photo(tmp_path / "a.png", 1)
    before = ref.path.stat()
    read_image = loader.read_image

    def read_and_change(path, **options):
        pixels = read_image(path, **options)
        write_photo(path, 2, (50, 30))
        return pixels

    monkeypatch.setattr(loader, "read_image", read_and_change)
    (photo,) = PhotoLoader([ref], OPTIONS, 0)
    assert describe(photo) == ("a", 1)
    assert (photo.file_bytes, photo.file_time) == (before.st_size, before.st_mtime_ns)
    assert ref.path.stat().st_size != before.st_size


def test_a_photo_that_does_not_fit_into_memory_is_a_failure(tmp_path, monkeypatch):
    def fail(path, **_options):
        if path.stem == "b":
            raise MemoryError
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(loader, "read_image", fail)
    refs = [write_photo(tmp_path / f"{name}.png", 0) for name in "abc"]
    told = [describe(result) for result in PhotoLoader(refs, OPTIONS, 0)]
    assert told[1][1] == "does not fit into the memory that is free"
    assert [told[0][1], told[2][1]] == [0, 0]


def test_the_seconds_of_all_workers_are_added_up(photos, monkeypatch):
    def slow(_path, **_options):
        threading.Event().wait(0.02)
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(loader, "read_image", slow)
    for workers in (0, 2):
        photo_loader = PhotoLoader(photos, OPTIONS, workers)
        assert len(list(photo_loader)) == 12
        assert photo_loader.seconds >= 12 * 0.02


@pytest.mark.parametrize("workers", [1, 2])
def test_a_photo_that_kills_its_worker_costs_itself_alone(photos, monkeypatch, workers):
    read_image = loader.read_image
    main = os.getpid()

    def die(path, **options):
        if path.stem in ("02", "09", "11"):
            assert os.getpid() != main
            os.kill(os.getpid(), signal.SIGKILL)
        return read_image(path, **options)

    monkeypatch.setattr(loader, "read_image", die)
    told = [describe(result) for result in PhotoLoader(photos, OPTIONS, workers)]
    assert [key for key, _ in told] == [ref.key for ref in photos]
    reasons = {key: value for key, value in told if not isinstance(value, int)}
    assert list(reasons) == ["02", "03", "07", "09", "11"]
    assert all(reasons[key].startswith("the process that decoded it died") for key in ("02", "09", "11"))


def test_a_worker_that_is_killed_costs_no_photo(photos, monkeypatch, tmp_path):
    read_image = loader.read_image
    killed = tmp_path / "killed"

    def die_once(path, **options):
        if path.stem == "05" and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read_image(path, **options)

    monkeypatch.setattr(loader, "read_image", die_once)
    told = [describe(result) for result in PhotoLoader(photos, OPTIONS, 2)]
    assert killed.exists()
    assert [value for _, value in told if isinstance(value, int)] == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]


def crash():
    with contextlib.suppress(RuntimeError):
        faulthandler.disable()  # which would print where
    ctypes.string_at(0)


def hang():
    while True:
        time.sleep(1000)


def hang_and_keep_the_interpreter_from_running():
    ctypes.PyDLL(None).sleep(1000)


def be_stopped():
    os.kill(os.getpid(), signal.SIGSTOP)


DEATHS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crashes": crash,
    "exits": lambda: os._exit(0),
    "hangs": hang,
    "hangs deaf": hang_and_keep_the_interpreter_from_running,
    "stopped": be_stopped,
}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("how", DEATHS)
def test_a_lost_worker_costs_no_other_photo(photos, monkeypatch, how, workers, count_faults):
    read_image = loader.read_image

    def suffer(path, **options):
        if path.stem in ("01", "02", "10"):
            DEATHS[how]()
        return read_image(path, **options)

    monkeypatch.setattr(loader, "read_image", suffer)
    options = DecodeOptions(pixel_limit=10_000, apply_exif=False, timeout=0.4)
    told = [describe(result) for result in PhotoLoader(photos, options, workers)]
    assert [key for key, _ in told] == [ref.key for ref in photos]
    reasons = {key: value for key, value in told if not isinstance(value, int)}
    assert list(reasons) == ["01", "02", "03", "07", "10"]
    in_time = how in ("killed", "crashes", "exits")
    expected = "the process that decoded it died" if in_time else "was not decoded within 0.4 seconds"
    assert all(reasons[key].startswith(expected) for key in ("01", "02", "10"))
    assert multiprocessing.active_children() == []
    count_faults("a process that decodes dies or hangs over a photo", 3)


def test_workers_killed_while_sending_cost_no_photo(tmp_path, monkeypatch, count_faults):
    """Without room in /dev/shm: one stands in the midst of writing as long as the network is busy."""
    refs = [write_photo(tmp_path / f"{number}.png", number, (1000, 1000)) for number in range(6)]
    monkeypatch.setattr(shared_memory.SharedMemory, "put", lambda self, pixels: pixels)
    photo_loader = PhotoLoader(refs, DecodeOptions(pixel_limit=2_000_000, apply_exif=False), 2)
    told = []
    for number, result in enumerate(photo_loader):
        told.append(describe(result))
        if number == 0:
            time.sleep(1)
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
    assert told == [(str(number), number) for number in range(6)]
    count_faults("a process that decodes dies or hangs over a photo", 2)


def test_the_reason_tells_death_from_a_hang(photos, monkeypatch):
    monkeypatch.setattr(loader, "read_image", lambda _path, **_options: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr(workers_module, "WORKER_POLL_SECONDS", 0.5)
    options = DecodeOptions(pixel_limit=10_000, apply_exif=False, timeout=0.6)
    (failure,) = PhotoLoader(photos[:1], options, 1)
    assert failure.reason.startswith("the process that decoded it died")


def test_a_worker_that_hangs_once_costs_no_photo(photos, monkeypatch, tmp_path, count_faults):
    read_image = loader.read_image

    def hang_once(path, **options):
        if path.stem == "05" and not (tmp_path / "hung").exists():
            (tmp_path / "hung").touch()
            hang()
        return read_image(path, **options)

    monkeypatch.setattr(loader, "read_image", hang_once)
    options = DecodeOptions(pixel_limit=10_000, apply_exif=False, timeout=0.4)
    told = [describe(result) for result in PhotoLoader(photos, options, 2)]
    assert [value for _, value in told if isinstance(value, int)] == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    count_faults("a process that decodes dies or hangs over a photo", 1)


def test_a_slow_network_is_not_taken_for_hanging_workers(photos):
    options = DecodeOptions(pixel_limit=10_000, apply_exif=False, timeout=0.2)
    results = 0
    for _ in PhotoLoader(photos, options, 1):
        time.sleep(0.3)
        results += 1
    assert results == 12


def test_an_error_in_the_program_is_not_taken_for_a_dead_worker(photos, monkeypatch):
    def fail(_path, **_options):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(loader, "read_image", fail)
    for workers in (0, 1):
        with pytest.raises(RuntimeError, match="a mistake"):
            list(PhotoLoader(photos, OPTIONS, workers))
        assert multiprocessing.active_children() == []


def test_more_workers_than_cores_are_no_reason_to_warn(photos):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photo_loader = PhotoLoader(photos[:1], OPTIONS, (os.cpu_count() or 1) + 1)
        assert len(list(photo_loader)) == 1


def test_workers_leave_signals_to_the_main_process(photos, monkeypatch):
    """They may go to all processes at once: Ctrl-C on a terminal, SIGTERM of a batch system."""
    read_image = loader.read_image

    def signal_itself(path, **options):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return read_image(path, **options)

    monkeypatch.setattr(loader, "read_image", signal_itself)
    results = list(PhotoLoader(photos, OPTIONS, 2))
    assert sum(isinstance(result, Photo) for result in results) == 10
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_stopping_in_the_midst_ends_the_workers(photos):
    results = iter(PhotoLoader(photos, OPTIONS, 2))
    next(results)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    results.close()
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="workers share nothing here")
def test_garbage_collection_keeps_memory_shared(photos, monkeypatch):
    def private():
        return sum(psutil.Process(worker.pid).memory_full_info().uss for worker in workers)

    def collect_and_read(path, **options):
        if path.stem >= "06":
            gc.collect()
        return read_image(path, **options)

    monkeypatch.setattr(loader, "read_image", collect_and_read)
    held = [[number] for number in range(200_000)]  # 16 MB, and each of them is written to
    with memory_shared_with_workers(), contextlib.closing(iter(PhotoLoader(photos, OPTIONS, 1))) as results:
        next(results)
        workers = multiprocessing.active_children()
        before = private()
        gc.collect()
        assert [describe(next(results))[0] for _ in range(10)][-1] == "10"
        assert private() - before < 2**20
    assert len(held) == 200_000


def test_garbage_collection_is_normal_afterwards():
    assert gc.get_freeze_count() == 0
    with contextlib.suppress(KeyError), memory_shared_with_workers():
        assert gc.get_freeze_count() > 0
        with memory_shared_with_workers():
            pass
        assert gc.get_freeze_count() > 0
        raise KeyError
    assert gc.get_freeze_count() == 0
    gc.freeze()  # as a server does before it forks
    try:
        with memory_shared_with_workers():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_it_works_outside_of_the_main_thread(photos):
    told = []

    def load():
        told.extend(describe(result)[0] for result in PhotoLoader(photos, OPTIONS, 1))

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert told == [ref.key for ref in photos]


def run_python(code, *arguments):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_interrupted_while_they_start_workers_print_nothing(photos):
    """Forked from a process with handlers of its own, each would print a stack trace."""
    code = """
        import os, signal, sys
        from multiprocessing.process import BaseProcess
        from pathlib import Path
        from carvana_batch.decode.loader import DecodeOptions, PhotoLoader
        from carvana_batch.decode.workers import memory_shared_with_workers
        from carvana_batch.values import ImageRef

        run = BaseProcess._bootstrap

        def interrupted(self, *arguments, **options):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            return run(self, *arguments, **options)

        BaseProcess._bootstrap = interrupted
        refs = [ImageRef(name, Path(name)) for name in sys.argv[1:]]
        print(len(list(PhotoLoader(refs, DecodeOptions(1000, False), 2))))
        print(signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL)  # where torch's would raise at any line
    """
    result = run_python(code, *(ref.path for ref in photos))
    assert (result.returncode, result.stdout, result.stderr) == (0, "12\nTrue\n", "")


def test_an_unclosed_loader_does_not_block_the_exit(photos):
    code = """
        import sys
        from pathlib import Path
        from carvana_batch.decode.loader import DecodeOptions, PhotoLoader
        from carvana_batch.decode.workers import memory_shared_with_workers
        from carvana_batch.values import ImageRef

        refs = [ImageRef(name, Path(name)) for name in sys.argv[1:]]
        results = iter(PhotoLoader(refs, DecodeOptions(1000, False), 2))
        print(next(results).pixels.shape)
        held_by_itself = [results]
        held_by_itself.append(held_by_itself)
        sys.modules["multiprocessing"].held = held_by_itself
    """
    result = run_python(code, *(ref.path for ref in photos))
    assert (result.returncode, result.stdout, result.stderr) == (0, "(3, 5, 3)\n", "")


def test_without_room_in_shared_memory_photos_come_all_the_same(photos, monkeypatch):
    """/dev/shm is small in containers: torch then fails while it sends a photo, here every one."""

    def refuse(_storage):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space left on device"
        )

    expected = [describe(result) for result in PhotoLoader(photos, OPTIONS, 0)]
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", refuse)
    in_flight = []

    class Noted(torch.utils.data.DataLoader):
        def __init__(self, *arguments, **options):
            in_flight.append(options["prefetch_factor"])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(loader, "DataLoader", Noted)
    photo_loader = PhotoLoader(photos, OPTIONS, 2)
    assert [describe(result) for result in photo_loader] == expected
    assert in_flight == [2, 1]
    (warning,) = photo_loader.warnings  # said once
    assert warning.startswith("shared memory (/dev/shm) is full")


def test_with_room_in_shared_memory_there_is_nothing_to_warn_of(photos):
    for workers in (0, 2):
        photo_loader = PhotoLoader(photos, OPTIONS, workers)
        assert len(list(photo_loader)) == 12
        assert photo_loader.warnings == []
