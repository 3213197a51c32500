import contextlib
import ctypes
import errno
import faulthandler
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings

import numpy as np
import psutil
import pytest
import simplejpeg
import torch
from helpers import wait_for
from PIL import Image
from torch.utils.data import dataloader

from carvana_batch.decode import loader, worker_pool
from carvana_batch.decode.image_file import without_metadata_warnings
from carvana_batch.decode.loader import DecodeOptions, PhotoLoader
from carvana_batch.decode.photo import DecodedImage, decode_image, read_image
from carvana_batch.decode.shared_memory import SLOTS, InPipe, SharedMemory
from carvana_batch.decode.workers import memory_shared_with_workers
from carvana_batch.errors import CarvanaBatchError, ImageError
from carvana_batch.notes import Note
from carvana_batch.values import Failure, ImageRef, Photo

OPTIONS = DecodeOptions(pixel_limit=10_000, apply_exif=False)


def make_loader(refs, options, workers, *, poll_seconds=0.1, memory=None):
    return PhotoLoader(refs, options, workers, poll_seconds=poll_seconds, memory=memory)


def write_photo(path, value, size=(5, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path, "PNG")
    return ImageRef(path.stem, path)


@pytest.fixture
def photos(tmp_path):
    """Twelve files, of which 3 and 7 are not photos; the red value of each photo is its number."""
    refs = [write_photo(tmp_path / f"{number:02}.png", number) for number in range(12)]
    refs[3].path.write_text("text")
    refs[7].path.unlink()
    return refs


def describe(result):
    """Return (key, red value of the first pixel), or (key, reason) for a failure."""
    if isinstance(result, Failure):
        assert result.stage == "decode"
        return result.id, result.reason
    return result.ref.key, int(result.pixels[0, 0, 0])


@pytest.fixture(autouse=True)
def fast_polling(monkeypatch):
    """Let torch notice every 0.1 s, rather than every 5 s, that a worker has exited."""
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


@pytest.fixture(autouse=True)
def time_limit():
    """Kill the tests if one of them hangs."""
    signal.alarm(100)
    yield
    signal.alarm(0)


def write_noise(path, width, height, orientation=1):
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise).save(path, exif=exif)
    return ImageRef(path.stem, path)


class RecordingMemory(SharedMemory):
    """Writes to a file what becomes of each photo, for the test in the main process to read.

    Lines are ``room SIZE BYTES`` for each room that was requested, with the size of the room that was found,
    then ``decoded`` or ``copied`` into a slot, and ``sent BYTES`` if the memory of the slot was sent.
    """

    def __init__(self, path):
        super().__init__()
        self.path, self.room = path, None

    def record(self, *words):
        with self.path.open("a") as file:
            print(*words, file=file)

    def find_room(self, size):
        self.room = super().find_room(size)
        self.record("room", size, 0 if self.room is None else self.room.size)
        return self.room

    def put(self, pixels):
        decoded = self.room is not None and np.may_share_memory(self.room, pixels)
        in_slot = super().put(pixels)
        self.record("decoded" if decoded else "copied")
        if in_slot.memory is not None:
            self.record("sent", self._slots[in_slot.slot].numel())
        return in_slot

    def lines(self, first_word):
        """The lines that begin with a word."""
        return [line for line in self.path.read_text().splitlines() if line.split()[0] == first_word]


class FullMemory(SharedMemory):
    """Has no room for any photo."""

    def put(self, pixels):
        return InPipe(pixels, "no room")


@pytest.mark.parametrize("workers", [1, 2])
def test_all_formats_pass_through_shared_memory(tmp_path, workers):
    """JPEGs are decoded into it, damaged ones too; other photos are copied."""
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
        simplejpeg.decode_jpeg(damaged.read_bytes())
    memory = RecordingMemory(tmp_path / "memory")
    options = DecodeOptions(pixel_limit=10_000, apply_exif=True, accept_damage=True)
    photo_loader = make_loader(refs, options, workers, memory=memory)
    for ref, result in zip(refs, photo_loader, strict=True):
        image = decode_image(ref.path, apply_exif=True, accept_damage=True)
        np.testing.assert_array_equal(result.pixels, image.pixels)
        assert (result.notes, result.damage) == (image.notes, image.damage)
        assert (Note.DAMAGED in result.notes) == (ref is refs[14])
    assert photo_loader.warnings == []
    assert len(memory.lines("decoded")) >= 5


@pytest.mark.parametrize("workers", [1, 2])
def test_slots_are_opened_once_and_decoded_into(tmp_path, workers):
    refs = [write_noise(tmp_path / f"{number:02}.jpg", 30, 20) for number in range(12)]
    memory = RecordingMemory(tmp_path / "memory")
    for result in make_loader(refs, OPTIONS, workers, memory=memory):
        np.testing.assert_array_equal(result.pixels, read_image(result.ref.path))
    slots = SLOTS * workers
    assert memory.lines("sent") == ["sent 1800"] * slots
    assert (len(memory.lines("copied")), len(memory.lines("decoded"))) == (slots, 12 - slots)


def test_a_slot_only_grows_for_a_photo_that_was_decoded(tmp_path):
    """Not for the 120 MB of a header that claims 40 megapixels, which are not there."""
    refs = [write_noise(tmp_path / f"{number}.jpg", 30, 20) for number in range(5)]
    content = bytearray(refs[4].path.read_bytes())
    size_offset = content.index(b"\xff\xc0") + 5
    content[size_offset : size_offset + 4] = (5000).to_bytes(2) + (8000).to_bytes(2)
    refs[4].path.write_bytes(content)
    memory = RecordingMemory(tmp_path / "memory")
    options = DecodeOptions(pixel_limit=50_000_000, apply_exif=False)
    results = list(make_loader(refs, options, 1, memory=memory))
    assert [result.pixels.size for result in results[:4]] == [1800] * 4
    assert results[4].reason.startswith("is damaged: its picture data are corrupt or incomplete")
    assert results[4].reason.endswith("; --damaged accept masks what can be decoded")
    assert memory.lines("sent") == ["sent 1800"] * SLOTS


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_photos_and_failures_come_in_order(photos, workers):
    results = list(make_loader(photos, OPTIONS, workers))
    described = [describe(result) for result in results]
    assert [key for key, _ in described] == [ref.key for ref in photos]
    assert [value for _, value in described if isinstance(value, int)] == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert described[3][1].startswith("is not an image in a supported format")
    assert described[7][1] == "does not exist"
    assert all(result.pixels.shape == (3, 5, 3) for result in results if isinstance(result, Photo))
    assert all(result.pixels.dtype == np.uint8 for result in results if isinstance(result, Photo))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_photos_do_not_change_while_others_are_decoded(tmp_path, workers):
    random = np.random.default_rng(workers)
    sizes = random.integers(1, 60, (40, 2)).tolist()
    refs = [write_photo(tmp_path / f"{index:02}.png", index, size) for index, size in enumerate(sizes)]
    kept = []
    for photo in make_loader(refs, OPTIONS, workers):
        kept.append(photo)
        time.sleep(random.choice([0, 0.02]))  # time for the workers to get ahead
    for index, (photo, (width, height)) in enumerate(zip(kept, sizes, strict=True)):
        expected = np.zeros((height, width, 3), np.uint8)
        expected[..., 0] = index
        np.testing.assert_array_equal(photo.pixels, expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_options_reach_the_decoder(tmp_path, workers):
    turned = Image.new("RGB", (4, 2))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    refs = [ImageRef("turned", tmp_path / "turned.jpg"), write_photo(tmp_path / "large.png", 0, (101, 100))]
    first, second = make_loader(refs, DecodeOptions(10_000, apply_exif=True), workers)
    assert first.pixels.shape == (4, 2, 3)
    assert "more than the limit of 10,000" in second.reason
    first, second = make_loader(refs, DecodeOptions(10_100, apply_exif=False), workers)
    assert first.pixels.shape == (2, 4, 3)
    assert second.pixels.shape == (100, 101, 3)


@pytest.fixture
def change_while_read(monkeypatch):
    """``change_while_read(*changes)``: each is called once, with the path of the photo, while it is read."""

    def install(*changes):
        left = list(changes)
        decode_image = loader.decode_image

        def read_and_change(path, **options):
            try:
                return decode_image(path, **options)
            finally:
                if left:
                    left.pop(0)(path)

        monkeypatch.setattr(loader, "decode_image", read_and_change)

    return install


def rewrite(value, size=(5, 3)):
    """Another photo in place of this one."""
    return lambda path: write_photo(path, value, size)


def replace_with_same_size_and_time(path):
    status, content = path.stat(), path.read_bytes()
    path.rename(path.with_suffix(".old"))
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def touch(path):
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


CHANGES = [rewrite(9), touch, replace_with_same_size_and_time, os.unlink, lambda path: os.truncate(path, 9)]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("change", CHANGES)
def test_a_photo_that_changes_is_read_again(tmp_path, change_while_read, change, workers, count_faults):
    refs = [write_photo(tmp_path / f"{name}.png", number) for number, name in enumerate("abc", start=1)]
    change_while_read(lambda path: None, change)
    results = list(make_loader(refs, OPTIONS, workers))
    assert [describe(results[0]), describe(results[2])] == [("a", 1), ("c", 3)]
    if not refs[1].path.exists():
        assert describe(results[1])[1].startswith("does not exist")
    elif refs[1].path.stat().st_size == 9:
        assert describe(results[1])[1].startswith("is ")
    else:
        assert describe(results[1]) == ("b", 9 if change is CHANGES[0] else 2)
        status = refs[1].path.stat()
        assert (results[1].file_bytes, results[1].file_time) == (status.st_size, status.st_mtime_ns)
    count_faults("a photo that changes while it is read is read again, or fails", 1)


def test_a_photo_that_becomes_complete_is_masked(tmp_path, change_while_read, count_faults):
    ref = write_photo(tmp_path / "a.png", 7)
    whole = ref.path.read_bytes()
    ref.path.write_bytes(whole[: len(whole) // 2])
    change_while_read(lambda path: path.write_bytes(whole[:-5]), lambda path: path.write_bytes(whole))
    assert [describe(result) for result in make_loader([ref], OPTIONS, 0)] == [("a", 7)]
    count_faults("a photo that changes while it is read is read again, or fails", 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_keeps_changing_is_a_failure(tmp_path, change_while_read, workers, count_faults):
    refs = [write_photo(tmp_path / f"{name}.png", 1) for name in "ab"]
    change_while_read(*[rewrite(2, (5, size)) for size in (4, 5, 6)])
    first, second = (describe(result) for result in make_loader(refs, OPTIONS, workers))
    assert first == ("a", "changed while it was read; run the same command again once it is complete")
    assert second == ("b", 1)
    count_faults("a photo that changes while it is read is read again, or fails", 3)


def test_a_photo_too_large_for_memory_is_a_failure(tmp_path, monkeypatch):
    def fail(path, **_options):
        if path.stem == "b":
            raise MemoryError
        return DecodedImage(np.zeros((2, 2, 3), np.uint8))

    monkeypatch.setattr(loader, "decode_image", fail)
    refs = [write_photo(tmp_path / f"{name}.png", 0) for name in "abc"]
    described = [describe(result) for result in make_loader(refs, OPTIONS, 0)]
    assert described[1][1] == "does not fit into the memory that is free"
    assert [described[0][1], described[2][1]] == [0, 0]


def test_seconds_are_summed_over_workers(photos, monkeypatch):
    def slow(_path, **_options):
        threading.Event().wait(0.02)
        return DecodedImage(np.zeros((2, 2, 3), np.uint8))

    monkeypatch.setattr(loader, "decode_image", slow)
    for workers in (0, 2):
        photo_loader = make_loader(photos, OPTIONS, workers)
        assert len(list(photo_loader)) == 12
        assert photo_loader.seconds >= 12 * 0.02


@pytest.mark.parametrize("workers", [1, 2])
def test_a_photo_that_kills_its_worker_is_the_only_one_lost(photos, monkeypatch, workers):
    decode_image = loader.decode_image
    main = os.getpid()

    def read_or_kill(path, **options):
        if path.stem in ("02", "09", "11"):
            assert os.getpid() != main
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_image(path, **options)

    monkeypatch.setattr(loader, "decode_image", read_or_kill)
    described = [describe(result) for result in make_loader(photos, OPTIONS, workers)]
    assert [key for key, _ in described] == [ref.key for ref in photos]
    reasons = {key: value for key, value in described if not isinstance(value, int)}
    assert list(reasons) == ["02", "03", "07", "09", "11"]
    assert all(reasons[key].startswith("the process that decoded it died") for key in ("02", "09", "11"))


def test_a_worker_killed_once_loses_no_photo(photos, monkeypatch, tmp_path):
    decode_image = loader.decode_image
    killed = tmp_path / "killed"

    def die_once(path, **options):
        if path.stem == "05" and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_image(path, **options)

    monkeypatch.setattr(loader, "decode_image", die_once)
    described = [describe(result) for result in make_loader(photos, OPTIONS, 2)]
    assert killed.exists()
    assert [value for _, value in described if isinstance(value, int)] == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]


def crash():
    with contextlib.suppress(RuntimeError):
        faulthandler.disable()  # which would print a stack trace
    ctypes.string_at(0)


def hang():
    while True:
        time.sleep(1000)


def hang_holding_the_gil():
    ctypes.PyDLL(None).sleep(1000)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


FAULTS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crashes": crash,
    "exits": lambda: os._exit(0),
    "hangs": hang,
    "hangs holding the GIL": hang_holding_the_gil,
    "stopped": stop,
}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_lost_worker_loses_no_other_photo(photos, monkeypatch, fault, workers, count_faults):
    decode_image = loader.decode_image

    def read_or_die(path, **options):
        if path.stem in ("01", "02", "10"):
            FAULTS[fault]()
        return decode_image(path, **options)

    monkeypatch.setattr(loader, "decode_image", read_or_die)
    options = DecodeOptions(pixel_limit=10_000, apply_exif=False, timeout=0.4)
    described = [describe(result) for result in make_loader(photos, options, workers)]
    assert [key for key, _ in described] == [ref.key for ref in photos]
    reasons = {key: value for key, value in described if not isinstance(value, int)}
    assert list(reasons) == ["01", "02", "03", "07", "10"]
    died = fault in ("killed", "crashes", "exits")
    expected = "the process that decoded it died" if died else "was not decoded within 0.4 seconds"
    assert all(reasons[key].startswith(expected) for key in ("01", "02", "10"))
    assert multiprocessing.active_children() == []
    count_faults("a process that decodes dies or hangs over a photo", 3)


def test_a_photo_that_hangs_in_this_process_loses_no_other(photos, monkeypatch, count_faults):
    """Also while it holds the lock that each photo needs whose header is read."""
    decode_image, ended = loader.decode_image, threading.Event()

    def read_or_hang(path, **options):
        if path.stem in ("01", "02", "10"):
            with without_metadata_warnings():
                ended.wait(60)
        return decode_image(path, **options)

    monkeypatch.setattr(loader, "decode_image", read_or_hang)
    options = DecodeOptions(pixel_limit=10_000, apply_exif=False, timeout=0.4)
    described = [describe(result) for result in make_loader(photos, options, 0)]
    ended.set()
    assert [key for key, _ in described] == [ref.key for ref in photos]
    reasons = {key: value for key, value in described if not isinstance(value, int)}
    assert list(reasons) == ["01", "02", "03", "07", "10"]
    assert all(reasons[key].startswith("was not decoded within 0.4 seconds") for key in ("01", "02", "10"))
    count_faults("a process that decodes dies or hangs over a photo", 3)


def test_errors_in_this_process_are_raised(photos, monkeypatch):
    def fail(_path, **_options):
        raise RuntimeError("broken")

    monkeypatch.setattr(loader, "decode_image", fail)
    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="broken"):
        list(make_loader(photos, OPTIONS, 0))
    wait_for(lambda: threading.active_count() == threads)


def test_workers_killed_while_sending_lose_no_photo(tmp_path, count_faults):
    """If /dev/shm is full, a worker is blocked writing to the pipe while the network is busy."""
    refs = [write_photo(tmp_path / f"{number}.png", number, (1000, 1000)) for number in range(6)]
    options = DecodeOptions(pixel_limit=2_000_000, apply_exif=False)
    photo_loader = make_loader(refs, options, 2, memory=FullMemory())
    described = []
    for number, result in enumerate(photo_loader):
        described.append(describe(result))
        if number == 0:
            time.sleep(1)
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
    assert described == [(str(number), number) for number in range(6)]
    count_faults("a process that decodes dies or hangs over a photo", 2)


def test_the_reason_distinguishes_a_crash_from_a_hang(photos, monkeypatch):
    monkeypatch.setattr(
        loader, "decode_image", lambda _path, **_options: os.kill(os.getpid(), signal.SIGKILL)
    )
    options = DecodeOptions(pixel_limit=10_000, apply_exif=False, timeout=0.6)
    (failure,) = make_loader(photos[:1], options, 1, poll_seconds=0.5)
    assert failure.reason.startswith("the process that decoded it died")


def test_a_worker_that_hangs_once_loses_no_photo(photos, monkeypatch, tmp_path, count_faults):
    decode_image = loader.decode_image

    def hang_once(path, **options):
        if path.stem == "05" and not (tmp_path / "hung").exists():
            (tmp_path / "hung").touch()
            hang()
        return decode_image(path, **options)

    monkeypatch.setattr(loader, "decode_image", hang_once)
    options = DecodeOptions(pixel_limit=10_000, apply_exif=False, timeout=0.4)
    described = [describe(result) for result in make_loader(photos, options, 2)]
    assert [value for _, value in described if isinstance(value, int)] == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    count_faults("a process that decodes dies or hangs over a photo", 1)


def test_a_slow_network_is_not_mistaken_for_hung_workers(photos):
    options = DecodeOptions(pixel_limit=10_000, apply_exif=False, timeout=0.2)
    results = 0
    for _ in make_loader(photos, options, 1):
        time.sleep(0.3)
        results += 1
    assert results == 12


def test_a_bug_is_not_mistaken_for_a_dead_worker(photos, monkeypatch):
    def fail(_path, **_options):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(loader, "decode_image", fail)
    for workers in (0, 1):
        with pytest.raises(RuntimeError, match="a mistake"):
            list(make_loader(photos, OPTIONS, workers))
        assert multiprocessing.active_children() == []


def test_more_workers_than_cores_do_not_warn(photos):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photo_loader = make_loader(photos[:1], OPTIONS, (os.cpu_count() or 1) + 1)
        assert len(list(photo_loader)) == 1


def test_workers_ignore_signals_meant_for_the_main_process(photos, monkeypatch):
    """Ctrl-C on a terminal and SIGTERM from a batch system may reach all processes at once."""
    decode_image = loader.decode_image

    def signal_itself(path, **options):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return decode_image(path, **options)

    monkeypatch.setattr(loader, "decode_image", signal_itself)
    results = list(make_loader(photos, OPTIONS, 2))
    assert sum(isinstance(result, Photo) for result in results) == 10
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_closing_the_iterator_early_ends_the_workers(photos):
    results = iter(make_loader(photos, OPTIONS, 2))
    next(results)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    results.close()
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="workers share nothing here")
def test_garbage_collection_keeps_memory_shared(photos, monkeypatch):
    def private_memory():
        return sum(psutil.Process(worker.pid).memory_full_info().uss for worker in workers)

    def collect_and_read(path, **options):
        if path.stem >= "06":
            gc.collect()
        return decode_image(path, **options)

    monkeypatch.setattr(loader, "decode_image", collect_and_read)
    held = [[number] for number in range(200_000)]  # 16 MB that garbage collection would write to
    with memory_shared_with_workers(), contextlib.closing(iter(make_loader(photos, OPTIONS, 1))) as results:
        next(results)
        workers = multiprocessing.active_children()
        before = private_memory()
        gc.collect()
        assert [describe(next(results))[0] for _ in range(10)][-1] == "10"
        assert private_memory() - before < 2**20
    assert len(held) == 200_000


def test_objects_are_unfrozen_unless_they_were_frozen_before():
    assert gc.get_freeze_count() == 0
    with contextlib.suppress(KeyError), memory_shared_with_workers():
        assert gc.get_freeze_count() > 0
        with memory_shared_with_workers():
            pass
        assert gc.get_freeze_count() > 0
        raise KeyError
    assert gc.get_freeze_count() == 0
    gc.freeze()  # as servers do before they fork
    try:
        with memory_shared_with_workers():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_photos_load_outside_the_main_thread(photos):
    described = []

    def load():
        described.extend(describe(result)[0] for result in make_loader(photos, OPTIONS, 1))

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert described == [ref.key for ref in photos]


def run_python(code, *arguments):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_workers_interrupted_at_start_print_nothing(photos):
    """Without blocked signals, each would inherit the signal handlers and print a stack trace."""
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
        print(signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL)  # torch's could raise at any line
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


def test_photos_arrive_when_shared_memory_is_full(photos, monkeypatch):
    """/dev/shm is small in containers; here torch fails to allocate memory for every photo."""

    def refuse(_storage):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space left on device"
        )

    expected = [describe(result) for result in make_loader(photos, OPTIONS, 0)]
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", refuse)
    in_flight = []

    class RecordingLoader(torch.utils.data.DataLoader):
        def __init__(self, *arguments, **options):
            in_flight.append(options["prefetch_factor"])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(worker_pool, "DataLoader", RecordingLoader)
    photo_loader = make_loader(photos, OPTIONS, 2)
    assert [describe(result) for result in photo_loader] == expected
    assert in_flight == [2, 1]
    (warning,) = photo_loader.warnings  # only once
    assert warning.startswith("shared memory (/dev/shm) is full")


@pytest.fixture
def many(tmp_path):
    """Eight photos; the red value of each is its number."""
    return [write_photo(tmp_path / f"{number}.png", number) for number in range(8)]


def check_that_all_arrive(refs, workers, warning, *, left):
    """All photos arrive although something is missing, which is said once, and ``left`` workers decode."""
    photo_loader = make_loader(refs, OPTIONS, workers)
    assert [describe(result) for result in photo_loader] == [(ref.key, int(ref.key)) for ref in refs]
    (line,) = photo_loader.warnings
    assert warning in line
    assert photo_loader.workers == left
    assert multiprocessing.active_children() == []


NO_PROCESSES = "no more processes or threads may be started"


@pytest.mark.parametrize(("forks", "left"), [(0, 0), (1, 1), (2, 1)])
def test_processes_that_may_not_be_started(many, monkeypatch, forks, left):
    """Some of three processes start before the limit is reached."""
    fork = os.fork
    alive = multiprocessing.active_children

    def limited():
        if len(alive()) >= forks:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", limited)
    check_that_all_arrive(many, 3, NO_PROCESSES, left=left)


@pytest.mark.parametrize(
    ("number", "warning"),
    [
        (errno.EMFILE, "too many files are open; allow more of them (ulimit -n)"),
        (
            errno.EROFS,
            "shared memory (/dev/shm), in which processes wait for each other, cannot be used (Read",
        ),
        (errno.ENOENT, "cannot be used (No such file or directory); mount it, open to writing"),
    ],
)
def test_queues_that_cannot_be_made(many, monkeypatch, number, warning):
    def refuse(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
    check_that_all_arrive(many, 2, warning, left=0)


@pytest.mark.parametrize(
    ("fault", "warning"),
    [
        (lambda: os._exit(3), "a process that decodes died at its start"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "a process that decodes died at its start"),
        (lambda: time.sleep(1000), "a process that decodes does not answer"),
    ],
)
def test_workers_that_die_or_hang_at_their_start(many, monkeypatch, fault, warning):
    monkeypatch.setattr(worker_pool, "GREETING_TIMEOUT", 0.4)
    monkeypatch.setattr(worker_pool, "begin_worker", lambda *_: fault())
    check_that_all_arrive(many, 2, warning, left=0)


def test_a_bug_at_the_start_of_a_worker_is_shown(many, monkeypatch):
    def fail(*_arguments):
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(worker_pool, "begin_worker", fail)
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        list(make_loader(many, OPTIONS, 2))
    assert multiprocessing.active_children() == []


def test_one_worker_that_dies_at_its_start(many, monkeypatch):
    begin = worker_pool.begin_worker
    monkeypatch.setattr(worker_pool, "begin_worker", lambda folder, n: os._exit(3) if n else begin(folder, n))
    check_that_all_arrive(many, 2, "died at its start; memory may be short; photos were decoded by", left=1)


def test_threads_that_workers_may_not_start(many, monkeypatch):
    main = os.getpid()
    start = threading.Thread.start

    def refuse(thread):
        if os.getpid() != main:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    check_that_all_arrive(many, 2, NO_PROCESSES, left=0)


def test_sockets_that_workers_cannot_make(many, monkeypatch, tmp_path):
    """The paths are too long for a socket, and there is no other folder."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(worker_pool, "SHORT_FOLDERS", (str(folder),))
    warning = "processes cannot make sockets in a temporary folder (AF_UNIX path too long); photos go"
    check_that_all_arrive(many, 2, warning, left=2)


def test_memory_that_the_main_process_cannot_open(many, monkeypatch):
    """The first memory is opened, and a later one is not."""
    open_memory = torch.UntypedStorage._new_shared_fd_cpu  # type: ignore[attr-defined]
    opened = []

    def refuse(descriptor, size):
        if len(opened) == 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        opened.append(size)
        return open_memory(descriptor, size)

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared_fd_cpu", refuse)
    check_that_all_arrive(
        many, 2, "too many files are open; allow more of them (ulimit -n); photos go", left=2
    )
    assert opened == [1, 1, 45]


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_may_not_be_opened_are_no_fault_of_photos(many, monkeypatch, workers):
    def refuse(path, **_options):
        try:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        except OSError as error:
            raise ImageError(f"{path} cannot be read") from error

    monkeypatch.setattr(loader, "decode_image", refuse)
    with pytest.raises(CarvanaBatchError, match=r"^Photos cannot be decoded: too many files are open"):
        list(make_loader(many, OPTIONS, workers))


def test_first_photos_that_are_all_lost_stop_the_run(many, monkeypatch):
    monkeypatch.setattr(loader, "decode_image", lambda _path, **_options: os._exit(1))
    results = iter(make_loader(many, OPTIONS, 2))
    assert all(isinstance(next(results), Failure) for _ in range(4))
    with pytest.raises(CarvanaBatchError, match=r"^None of the first 5 photos was decoded") as caught:
        next(results)
    assert "the process that decoded it died" in str(caught.value)


def test_later_photos_that_are_lost_do_not_stop_the_run(many, monkeypatch):
    many[0].path.unlink()  # an answer, although it is a failure
    decode_image = loader.decode_image
    monkeypatch.setattr(
        loader,
        "decode_image",
        lambda path, **options: decode_image(path, **options) if path.stem == "0" else os._exit(1),
    )
    assert len(list(make_loader(many, OPTIONS, 1))) == 8


def test_no_warning_if_shared_memory_suffices(photos):
    for workers in (0, 2):
        photo_loader = make_loader(photos, OPTIONS, workers)
        assert len(list(photo_loader)) == 12
        assert photo_loader.warnings == []
