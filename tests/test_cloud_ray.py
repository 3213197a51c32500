"""Workers of Ray that fetch photos from a bucket, and put masks into it, by themselves."""

import json
import os
import sys
import tempfile

import pytest
from click.testing import CliRunner
from helpers import results_in, write_photo
from s3_server import found_by_clients

pytest.importorskip("obstore", reason="needs the extra cloud")
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}  # read when Ray is imported
ray = pytest.importorskip("ray", reason="needs the extra ray", exc_type=ModuleNotFoundError)

from carvana_batch.commands import group  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

OPTIONS = ["--model", "segunet-s", "--device", "cpu", "--workers", "0"]

PHOTOS = 12


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos") / "in"
    for number in range(PHOTOS):
        write_photo(folder / "ab"[number % 2] / f"{number:02}.jpg", seed=number)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def server(photos):
    """With the photos; and a machine of Ray, whose processes find the server."""
    with pytest.MonkeyPatch.context() as patch, found_by_clients(patch) as server:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        scratch = tempfile.mkdtemp()
        patch.setenv("TMPDIR", scratch)
        patch.setattr(tempfile, "tempdir", None)
        for path in photos.rglob("*.jpg"):
            server.put(f"in/{path.relative_to(photos).as_posix()}", path.read_bytes(), age=100)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield server
        ray.shutdown()
        assert not [name for name in os.listdir(scratch) if "bucket" in name]  # noqa: PTH208


def predict(*arguments):
    finished = CliRunner().invoke(group, ["predict", *map(str, arguments), *OPTIONS])
    assert finished.exit_code == 3, (finished.output, finished.exception)
    return finished


@pytest.fixture(scope="module")
def local(photos):
    out = photos.parent / "local"
    predict(photos, out)
    return results_in(out)


def rows_of(text):
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    changing = ("source_time", "generation", "committed")
    return {row["key"]: {k: row[k] for k in row if k not in changing} for row in rows if "key" in row}


def test_workers_fetch_and_put_by_themselves(server, local):
    in_one = predict("s3://photos/in", "s3://photos/one")
    before = len(server.requests)
    finished = predict("s3://photos/in", "s3://photos/many", "--engine", "ray", "--actors", "2")
    made = {
        name: content
        for name, content in server.below("many").items()
        if not name.startswith(".") and name != "run.json"
    }
    assert made == local
    assert "failed: s3://photos/in/broken.jpg (decode)" in finished.output
    assert finished.output.count("broken.jpg") == in_one.output.count("broken.jpg")
    journals = [
        "\n".join(content.decode() for content in server.below(f"{out}/.carvana-batch/journal").values())
        for out in ("one", "many")
    ]
    assert rows_of(journals[0]) == rows_of(journals[1])
    fetched = [each.key for each in server.requests[before:] if each.key.endswith(".jpg")]
    assert sorted(fetched) == sorted(set(fetched))  # each photo once
    again = predict("s3://photos/in", "s3://photos/many")  # in this process, it goes on
    assert f"0 masked, {PHOTOS} done before, 1 failed" in again.output


@pytest.mark.parametrize(("source", "out"), [("url", "folder"), ("folder", "url")])
def test_one_of_them_may_be_a_shared_folder(server, photos, local, tmp_path, source, out):
    source = photos if source == "folder" else "s3://photos/in"
    target = tmp_path / "out" if out == "folder" else "s3://photos/mixed"
    predict(source, target, "--engine", "ray", "--actors", "2")
    if out == "folder":
        made = results_in(tmp_path / "out")
    else:
        made = {name: server.below("mixed")[name] for name in local}
    assert made == local
