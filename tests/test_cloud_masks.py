"""``submit`` and ``score`` read masks from a bucket, a bounded number at a time."""

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import write_mask
from s3_server import found_by_clients

pytest.importorskip("obstore", reason="needs the extra cloud")

from carvana_batch.cloud.masks import ReadAhead
from carvana_batch.commands import group

MASKS = 40


@pytest.fixture
def server(monkeypatch, tmp_path):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with found_by_clients(monkeypatch) as server:
        yield server
    assert not list((tmp_path / "tmp").glob("*bucket*"))


@pytest.fixture
def masks(server, tmp_path):
    """The folders ``out`` and ``truth``, local and in the bucket."""
    generator = np.random.default_rng(3)
    for number in range(MASKS):
        rows = np.zeros((16, 24), np.uint8)
        rows[2:9, 3 : 5 + number % 17] = 1
        write_mask(tmp_path / "truth" / f"{number:02}_mask.png", rows)
        rows[generator.integers(16), generator.integers(24)] ^= 1
        write_mask(tmp_path / "out" / f"{number:02}.png", rows)
    for side in ("out", "truth"):
        for path in (tmp_path / side).iterdir():
            server.put(f"{side}/{path.name}", path.read_bytes())
    return tmp_path


def call(*arguments):
    finished = CliRunner().invoke(group, [*map(str, arguments)])
    if finished.exception is not None and not isinstance(finished.exception, SystemExit):
        assert hasattr(finished.exception, "exit_code"), finished.exception
        finished.exit_code = finished.exception.exit_code
        finished.output_bytes = f"{finished.output}{finished.exception}".encode()
    return finished


def test_submit_writes_the_same_rows(masks):
    local = call("submit", masks / "out", "-o", masks / "local.csv", "--size", "any")
    remote = call("submit", "s3://photos/out", "-o", masks / "remote.csv", "--size", "any")
    assert (local.exit_code, remote.exit_code) == (0, 0), remote.output
    assert (masks / "remote.csv").read_bytes() == (masks / "local.csv").read_bytes()


@pytest.mark.parametrize("predicted", ["out", "s3://photos/out"])
@pytest.mark.parametrize("truth", ["truth", "s3://photos/truth"])
def test_score_gives_the_same_scores(masks, predicted, truth):
    sides = [each if "://" in each else masks / each for each in (predicted, truth)]
    local = call("score", masks / "out", "--gt", masks / "truth", "-o", masks / "local.csv")
    remote = call("score", sides[0], "--gt", sides[1], "-o", masks / "remote.csv")
    assert (local.exit_code, remote.exit_code) == (0, 0), remote.output
    assert (masks / "remote.csv").read_bytes() == (masks / "local.csv").read_bytes()


def test_a_damaged_mask_is_named_by_its_url(server, masks):
    server.put("out/07.png", b"no image")
    submitted = call("submit", "s3://photos/out", "-o", masks / "x.csv", "--size", "any")
    assert submitted.exit_code == 1 and "s3://photos/out/07.png" in submitted.output
    scored = call("score", "s3://photos/out", "--gt", "s3://photos/truth", "-o", masks / "x.csv")
    assert scored.exit_code == 3 and "s3://photos/out/07.png" in scored.output


def test_a_mask_that_is_gone_is_named(server, masks):
    def remove(request):
        if "list-type" in request.query:
            server.objects.pop("out/07.png", None)

    server.after = remove
    submitted = call("submit", "s3://photos/out", "-o", masks / "x.csv", "--size", "any")
    assert submitted.exit_code == 1 and "s3://photos/out/07.png" in submitted.output


def test_an_unfinished_run_is_warned_of(server, masks):
    """Its journal has a failed photo, and it has left no report."""
    server.put(
        "out/.carvana-batch/journal/0000000001.jsonl",
        b'{"segment": 1}\n'
        b'{"key": "00", "source": "x", "source_bytes": 1, "source_time": 1, "mask_bytes": 5}\n'
        b'{"key": "99", "source": "y", "source_bytes": 1, "source_time": 1, "stage": "decode"}\n',
    )
    submitted = call("submit", "s3://photos/out", "-o", masks / "x.csv", "--size", "any")
    assert "s3://photos/out is not finished" in submitted.output
    assert "photos that failed and have no mask in s3://photos/out: 1" in submitted.output


@pytest.mark.parametrize("command", [["submit", "s3://photos/none"], ["score", "s3://photos/none"]])
def test_an_empty_folder_is_refused(masks, command):
    more = ["--gt", masks / "truth"] if command[0] == "score" else []
    finished = call(*command, *more)
    assert finished.exit_code == 2 and "There are no objects in s3://photos/none" in finished.output


def test_few_files_are_there_at_a_time_and_each_is_while_it_is_read():
    held, most, lock = set(), [0], threading.Lock()
    paths = [Path(f"{number:03}") for number in range(300)]

    def fetch(path):
        with lock:
            held.add(path)
            most[0] = max(most[0], len(held))

    def empty(path):
        with lock:
            held.discard(path)

    def read(path):
        with ahead.reading(path):
            assert path in held

    with ReadAhead(paths, fetch, empty, ahead=8) as ahead, ThreadPoolExecutor(4) as threads:
        for path in paths[::37]:  # spread over the folder, as when values are decided
            read(path)
        for path in paths * 2:
            threads.submit(read, path)
        list(threads.map(read, paths))
    assert most[0] <= 8 + 4 + 16
