"""``predict`` with photos, masks or both in a bucket."""

import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import results_in, wait_for, write_mask, write_photo
from s3_server import SECRET, found_by_clients

pytest.importorskip("obstore", reason="needs the extra cloud")

from carvana_batch.cloud.bucket_out import BucketOut
from carvana_batch.cloud.urls import BucketUrl
from carvana_batch.commands import group

OPTIONS = ["--model", "segunet-s", "--device", "cpu", "--workers", "0"]

PHOTOS = 8


@pytest.fixture
def server(monkeypatch, tmp_path):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with found_by_clients(monkeypatch) as server:
        yield server
    assert not [path for path in (tmp_path / "tmp").iterdir() if "bucket" in path.name]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos") / "in"
    for number in range(PHOTOS):
        write_photo(folder / "ab"[number % 2] / f"{number:02}.jpg", seed=number)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def local(photos):
    """What a run in local folders makes of the photos."""
    out = photos.parent / "local"
    assert predict(photos, out).exit_code == 3
    return out


@pytest.fixture
def uploaded(server, photos):
    """The server, with the photos in ``s3://photos/in``."""
    for path in photos.rglob("*.jpg"):
        server.put(f"in/{path.relative_to(photos).as_posix()}", path.read_bytes(), age=100)
    return server


def predict(*arguments):
    """Run the command in this process; known errors give their exit code and message."""
    finished = CliRunner().invoke(group, ["predict", *map(str, arguments), *OPTIONS])
    if finished.exception is not None and not isinstance(finished.exception, SystemExit):
        assert hasattr(finished.exception, "exit_code"), finished.exception
        finished.exit_code = finished.exception.exit_code
        finished.output_bytes = f"{finished.output}{finished.exception}".encode()
    return finished


def rows_of(text):
    """The lines of a journal by key, without what differs from run to run."""
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    changing = ("source", "source_time", "generation", "committed")
    rows = [row for row in rows if "key" in row and not row.get("pending")]
    return {row["key"]: {name: row[name] for name in row if name not in changing} for row in rows}


def journal_of(server, out):
    segments = server.below(f"{out}/.carvana-batch/journal")
    return "\n".join(content.decode() for _, content in sorted(segments.items()))


def masks_of(server, out):
    """The files in a bucket that must not depend on how its run went, as ``results_in`` gives them."""
    return {
        name: content
        for name, content in server.below(out).items()
        if not name.startswith(".") and name != "run.json"
    }


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(
    ("source", "out"), [("url", "folder"), ("folder", "url"), ("url", "url")], ids="{0[0]}-{0[1]}".format
)
def test_the_masks_are_those_of_local_folders(uploaded, photos, local, tmp_path, source, out, workers):
    source = photos if source == "folder" else "s3://photos/in"
    target = tmp_path / "out" if out == "folder" else "s3://photos/job/out"
    finished = predict(source, target, "--workers", workers)
    assert finished.exit_code == 3, finished.output
    assert f"{source}/broken.jpg (decode)" in finished.output
    assert str(tempfile.gettempdir()) not in finished.output
    if out == "folder":
        made = results_in(tmp_path / "out")
        journal = (tmp_path / "out" / ".carvana-batch" / "journal-1-of-1.jsonl").read_text()
        run = json.loads((tmp_path / "out" / "run.json").read_text())
    else:
        made, journal = masks_of(uploaded, "job/out"), journal_of(uploaded, "job/out")
        run = json.loads(uploaded.objects["job/out/run.json"].content)
    assert made == results_in(local)
    own = (local / ".carvana-batch" / "journal-1-of-1.jsonl").read_text()
    assert rows_of(journal) == rows_of(own)
    sources = {json.loads(line)["source"] for line in journal.splitlines() if '"width"' in line}
    assert sources == {f"{source}/{'ab'[number % 2]}/{number:02}.jpg" for number in range(PHOTOS)}
    assert run["images"] == str(source)


def test_done_photos_are_neither_fetched_nor_masked_again(uploaded):
    predict("s3://photos/in", "s3://photos/out")
    before = {key: stored.time for key, stored in uploaded.objects.items() if key.endswith(".png")}
    uploaded.requests.clear()
    finished = predict("s3://photos/in", "s3://photos/out")
    assert f"0 masked, {PHOTOS} done before, 1 failed" in finished.output
    fetched = [each.key for each in uploaded.requests if each.method == "GET" and each.key.endswith(".jpg")]
    assert fetched == ["in/broken.jpg"]
    assert {key: stored.time for key, stored in uploaded.objects.items() if key.endswith(".png")} == before


def test_a_changed_photo_is_masked_again_and_a_lost_mask_is_made_again(uploaded, photos):
    predict("s3://photos/in", "s3://photos/out")
    first = masks_of(uploaded, "out")
    uploaded.put("in/a/00.jpg", (photos / "b" / "01.jpg").read_bytes())
    del uploaded.objects["out/a/02.png"]
    finished = predict("s3://photos/in", "s3://photos/out")
    assert f"2 masked, {PHOTOS - 2} done before" in finished.output
    second = masks_of(uploaded, "out")
    assert second["a/00.png"] == first["b/01.png"]
    assert {name: second[name] for name in second if name[-4:] == ".png" and name != "a/00.png"} == {
        name: first[name] for name in first if name[-4:] == ".png" and name != "a/00.png"
    }


def test_a_photo_that_fails_now_loses_its_outdated_files(uploaded):
    predict("s3://photos/in", "s3://photos/out", "--save", "overlay")
    assert "out/_overlay/a/00.jpg" in uploaded.objects
    uploaded.put("in/a/00.jpg", b"no image any more")
    finished = predict("s3://photos/in", "s3://photos/out", "--save", "overlay")
    assert "2 failed" in finished.output
    assert not {"out/a/00.png", "out/_overlay/a/00.jpg"} & uploaded.objects.keys()
    assert "out/_overlay/a/02.jpg" in uploaded.objects


def test_a_photo_that_is_gone_is_a_failure_of_that_photo_only(uploaded):
    def remove(request):
        if "list-type" in request.query and request.key.startswith("in"):
            uploaded.objects.pop("in/a/04.jpg", None)

    uploaded.after = remove
    finished = predict("s3://photos/in", "s3://photos/out")
    assert f"{PHOTOS - 1} masked, 2 failed" in finished.output
    assert "failed: s3://photos/in/a/04.jpg (decode): does not exist" in finished.output, finished.output


def test_objects_of_others_stay(uploaded, tmp_path):
    write_mask(tmp_path / "mask.png", [[0, 1]])
    uploaded.put("out/a/00.png", (tmp_path / "mask.png").read_bytes())
    finished = predict("s3://photos/in", "s3://photos/out")
    assert finished.exit_code == 2
    assert "predict has not made" in finished.output and "s3://photos/out/a/00.png" in finished.output
    assert uploaded.objects["out/a/00.png"].content == (tmp_path / "mask.png").read_bytes()


def test_an_object_that_appears_during_the_run_stays(uploaded):
    def appear(request):
        if request.method == "GET" and request.key == "in/a/00.jpg":
            uploaded.put("out/a/00.png", b"of the user")

    uploaded.after = appear
    finished = predict("s3://photos/in", "s3://photos/out")
    assert finished.exit_code == 3
    assert "there already and was not made by predict" in finished.output, finished.output
    assert uploaded.objects["out/a/00.png"].content == b"of the user"


def test_an_object_of_the_user_beside_a_photo_that_fails_stays(uploaded, photos):
    """Also one that has taken the place of a mask of predict since the run began."""
    uploaded.put("out/_panel/broken.jpg", b"of the user")
    assert predict("s3://photos/in", "s3://photos/out").exit_code == 3
    assert "out/_panel/broken.jpg" in uploaded.objects
    uploaded.put("in/a/00.jpg", (photos / "b" / "01.jpg").read_bytes())

    def appear(request):
        if request.method == "GET" and request.key == "in/a/00.jpg":
            uploaded.put("out/a/00.png", b"of the user")

    uploaded.after = appear
    assert "there already and was not made by predict" in predict("s3://photos/in", "s3://photos/out").output
    assert uploaded.objects["out/a/00.png"].content == b"of the user"


def test_an_object_that_appears_just_before_a_mask_is_replaced_stays(uploaded, photos):
    assert predict("s3://photos/in", "s3://photos/out").exit_code == 3
    uploaded.put("in/a/00.jpg", (photos / "b" / "01.jpg").read_bytes())
    looks = []

    def appear(request):
        if request.method == "GET" and request.key == "out/a/00.png":
            looks.append(request)
            if len(looks) == 2:  # the first one is before the run, the second one because it is there
                uploaded.put("out/a/00.png", b"of the user")

    uploaded.after = appear
    assert "there already and was not made by predict" in predict("s3://photos/in", "s3://photos/out").output
    assert uploaded.objects["out/a/00.png"].content == b"of the user"


def test_a_run_that_was_taken_over_replaces_no_mask(uploaded, photos):
    assert predict("s3://photos/in", "s3://photos/out").exit_code == 3
    uploaded.put("in/a/00.jpg", (photos / "b" / "01.jpg").read_bytes())
    before = uploaded.objects["out/a/00.png"]
    lock = "out/.carvana-batch/lock.json"

    def take_over(request):
        if request.method == "GET" and request.key == "in/a/00.jpg":
            holder = json.loads(uploaded.objects[lock].content)
            uploaded.put(lock, json.dumps(holder | {"run": "another"}).encode())

    uploaded.after = take_over
    finished = predict("s3://photos/in", "s3://photos/out")
    assert finished.exit_code != 3 and "was taken over by another run" in finished.output
    assert uploaded.objects["out/a/00.png"] == before


@pytest.mark.usefixtures("uploaded")
def test_times_that_only_listings_tell_in_full_are_no_changes(monkeypatch):
    """As with MinIO and Google Cloud Storage."""
    form = time.strftime
    monkeypatch.setattr(time, "strftime", lambda text, *at: form(text, *at).replace(".000Z", ".123Z"))
    predict("s3://photos/in", "s3://photos/out")
    assert f"{PHOTOS} done before" in predict("s3://photos/in", "s3://photos/out").output


def test_masks_of_another_folder_are_not_replaced(uploaded):
    predict("s3://photos/in", "s3://photos/out")
    for key in [key for key in uploaded.objects if key.startswith("in/")]:
        uploaded.put(key.replace("in/", "in2/"), uploaded.objects[key].content)
    finished = predict("s3://photos/in2", "s3://photos/out")
    assert finished.exit_code == 2 and "is the mask of s3://photos/in/" in finished.output


@pytest.mark.usefixtures("uploaded")
def test_masks_of_a_bucket_are_not_replaced_by_those_of_a_local_folder(photos, tmp_path):
    predict("s3://photos/in", tmp_path / "out")
    first = results_in(tmp_path / "out")
    finished = predict(photos, tmp_path / "out")
    assert finished.exit_code == 2 and "is the mask of s3://photos/in/" in finished.output
    assert results_in(tmp_path / "out") == first
    assert predict(photos, tmp_path / "out", "--overwrite").exit_code == 3


@pytest.mark.usefixtures("uploaded")
def test_other_settings_are_refused():
    predict("s3://photos/in", "s3://photos/out")
    finished = predict("s3://photos/in", "s3://photos/out", "--threshold", "0.7")
    assert finished.exit_code == 2 and "s3://photos/out holds masks made with other" in finished.output


@pytest.mark.parametrize("option", [["--overwrite"], ["--verify"], ["--shard", "1/2"], ["--rle", "x.csv"]])
def test_what_does_not_go_with_a_bucket_is_refused(uploaded, option):
    finished = predict("s3://photos/in", "s3://photos/out", *option)
    assert finished.exit_code == 2 and f"{option[0]} does not go with" in finished.output
    assert uploaded.requests == []


def test_folders_within_each_other(uploaded):
    assert predict("s3://photos/in", "s3://photos/in").exit_code == 2
    assert predict("s3://photos/in", "s3://photos").exit_code == 2
    assert predict("s3://photos/in", "s3://photos/in/out").exit_code == 3
    finished = predict("s3://photos/in", "s3://photos/in/out")
    assert f"{PHOTOS} done before" in finished.output and "in/out/out/a/00.png" not in uploaded.objects


def test_archives_in_buckets_are_refused(uploaded):
    for name in ("photos.zip", "photos.7z"):
        finished = predict(f"s3://photos/{name}", "s3://photos/out")
        assert finished.exit_code == 2 and "archive" in finished.output
    assert uploaded.requests == []


def test_all_stores_take_the_name_of_the_metadata(uploaded):
    """Azure takes identifiers only, and proxies drop names with underscores."""
    predict("s3://photos/in/a/00.jpg", "s3://photos/one")
    (name,) = uploaded.objects["one/00.png"].metadata
    assert name.isidentifier() and "_" not in name


def test_large_objects_are_not_fetched(uploaded):
    uploaded.put("in/huge.jpg", bytes(2**27))
    finished = predict("s3://photos/in", "s3://photos/out", "--pixel-limit", 8000)
    assert finished.exit_code == 3
    assert "s3://photos/in/huge.jpg (decode): is too large: 134,217,728 bytes" in finished.output
    assert f"{PHOTOS} masked, 2 failed" in finished.output


def test_a_single_photo(uploaded, local, tmp_path):
    assert predict("s3://photos/in/a/00.jpg", tmp_path / "mask.png").exit_code == 0
    assert (tmp_path / "mask.png").read_bytes() == (local / "a" / "00.png").read_bytes()
    assert predict("s3://photos/in/a/00.jpg", "s3://photos/one").exit_code == 0
    assert uploaded.objects["one/00.png"].content == (local / "a" / "00.png").read_bytes()


def test_nothing_holds_a_credential(uploaded):
    finished = predict("s3://photos/in", "s3://photos/out", "--json")
    uploaded.fault = lambda request: 403
    denied = predict("s3://photos/in", "s3://photos/out")
    assert denied.exit_code == 1 and "permission denied" in denied.output
    texts = [finished.output, denied.output, *map(repr, uploaded.below("out").values())]
    assert not [text for text in texts if SECRET in text]


def test_a_server_that_goes_away_ends_the_run_which_can_go_on(uploaded, local, monkeypatch):
    monkeypatch.setattr("carvana_batch.cloud.urls.RETRY_SECONDS", 0.2)
    put = []

    def fail(request):
        put.extend([request] if request.method == "PUT" and request.key.endswith(".png") else [])
        return 503 if len(put) > 3 else None

    uploaded.fault = fail
    finished = predict("s3://photos/in", "s3://photos/out")
    assert finished.exit_code == 1
    assert "the store failed" in finished.output and "run the same command again" in finished.output
    uploaded.fault = lambda request: None
    release(uploaded, "out")
    assert predict("s3://photos/in", "s3://photos/out").exit_code == 3
    assert masks_of(uploaded, "out") == results_in(local)


def release(server, out):
    """Let the lock that a killed run has left be as old as if its time had passed."""
    key = f"{out}/.carvana-batch/lock.json"
    server.objects[key] = server.objects[key]._replace(time=time.time() - 3600)


def start(zygote, server, folder, *arguments):
    environment = server.environment | {"TMPDIR": os.environ["TMPDIR"]}
    return zygote.start(folder, "predict", *arguments, *OPTIONS, setup={"environment": environment})


@pytest.mark.slow
def test_after_a_kill_what_is_in_the_journal_is_not_made_again(uploaded, local, tmp_path, zygote):
    """The photos below b are late, so that those below a are in the journal when the run is killed."""
    (tmp_path / "here").mkdir()
    late = threading.Event()
    uploaded.after = lambda request: late.wait(60) if request.key.startswith("in/b") else None
    process = start(zygote, uploaded, tmp_path / "here", "s3://photos/in", "s3://photos/out")
    wait_for(lambda: "out/.carvana-batch/journal/0000000002.jsonl" in uploaded.objects)
    process.send_to_all(signal.SIGKILL)
    process.wait()
    late.set()
    recorded = rows_of(journal_of(uploaded, "out"))
    assert len(recorded) >= 2 and all(key.startswith("a/") for key in recorded)
    go_on_after_kill(uploaded, local, recorded)


@pytest.mark.long
@pytest.mark.parametrize("masks", range(1, PHOTOS))
def test_after_a_kill_at_any_moment_nothing_is_lost(uploaded, local, tmp_path, zygote, masks):
    (tmp_path / "here").mkdir()
    uploaded.delay = 0.05
    process = start(zygote, uploaded, tmp_path / "here", "s3://photos/in", "s3://photos/out")
    wait_for(lambda: len([key for key in uploaded.objects if key.endswith(".png")]) >= masks)
    process.send_to_all(signal.SIGKILL)
    process.wait()
    uploaded.delay = 0
    go_on_after_kill(uploaded, local, rows_of(journal_of(uploaded, "out")))


def go_on_after_kill(server, local, recorded):
    """The run that goes on leaves what is recorded, and what it makes is what an undisturbed run does."""
    times = {key: stored.time for key, stored in server.objects.items()}
    release(server, "out")
    assert predict("s3://photos/in", "s3://photos/out").exit_code == 3
    assert masks_of(server, "out") == results_in(local)
    for key, row in recorded.items():
        if "stage" not in row:
            assert server.objects[f"out/{key}.png"].time == times[f"out/{key}.png"]
    own = (local / ".carvana-batch" / "journal-1-of-1.jsonl").read_text()
    assert rows_of(journal_of(server, "out")) == rows_of(own)


@pytest.mark.slow
def test_after_a_signal_nothing_is_left_on_this_machine(uploaded, local, tmp_path, zygote):
    (tmp_path / "here").mkdir()
    uploaded.delay = 0.1
    process = start(zygote, uploaded, tmp_path / "here", "s3://photos/in", "s3://photos/out")
    wait_for(lambda: [key for key in uploaded.objects if key.startswith("out/a/")])
    process.send(signal.SIGINT)
    finished = process.wait()
    assert finished.code in (128 + signal.SIGINT, 3), finished
    assert not list(Path(os.environ["TMPDIR"]).glob("*bucket*"))
    assert json.loads(uploaded.objects["out/.carvana-batch/lock.json"].content)["held"] is False
    uploaded.delay = 0
    assert predict("s3://photos/in", "s3://photos/out").exit_code == 3
    assert masks_of(uploaded, "out") == results_in(local)


@pytest.mark.long
def test_a_server_that_comes_back_is_waited_for(uploaded, local):
    """Requests fail for three seconds; the client repeats them, and the run does not notice."""
    away = threading.Event()

    def fail(request):
        if request.method == "PUT" and request.key.endswith(".png") and not away.is_set():
            away.set()
            threading.Timer(3, lambda: setattr(uploaded, "fault", lambda request: None)).start()
        return 503 if away.is_set() else None

    uploaded.fault = fail
    finished = predict("s3://photos/in", "s3://photos/out")
    assert finished.exit_code == 3, finished.output
    assert masks_of(uploaded, "out") == results_in(local)


@pytest.mark.slow
def test_a_run_that_was_taken_over_stops(uploaded, local, tmp_path, zygote):
    """It is stopped, as a machine that hangs, until another run has taken its lock."""
    (tmp_path / "here").mkdir()
    uploaded.delay = 0.1
    zombie = start(zygote, uploaded, tmp_path / "here", "s3://photos/in", "s3://photos/out")
    wait_for(lambda: [key for key in uploaded.objects if key.startswith("out/a/")])
    zombie.stop_all()
    release(uploaded, "out")
    uploaded.delay = 0
    assert predict("s3://photos/in", "s3://photos/out").exit_code == 3
    before = dict(uploaded.objects)
    zombie.send_to_all(signal.SIGCONT)
    finished = zombie.wait()
    assert finished.code == 1 and "taken over by another run" in finished.stderr, finished
    assert masks_of(uploaded, "out") == results_in(local)
    assert {key: uploaded.objects[key].content for key in before} == {
        key: stored.content for key, stored in before.items()
    }


def test_a_second_run_is_refused_while_the_first_one_lives(uploaded, tmp_path):
    with BucketOut(BucketUrl.parse("s3://photos/out"), tmp_path / "held", beat=0.2):
        finished = predict("s3://photos/in", "s3://photos/out")
    assert finished.exit_code == 11 and "s3://photos/out is in use by process" in finished.output
    assert "out/a/00.png" not in uploaded.objects
    assert predict("s3://photos/in", "s3://photos/out").exit_code == 3


def test_a_dry_run_changes_nothing(uploaded):
    finished = predict("s3://photos/in", "s3://photos/out", "--dry-run")
    assert finished.exit_code == 0
    assert "s3://photos/in/a/00.jpg -> s3://photos/out/a/00.png" in finished.output
    assert {request.method for request in uploaded.requests} == {"GET"}
    predict("s3://photos/in", "s3://photos/out")
    finished = predict("s3://photos/in", "s3://photos/out", "--dry-run")
    assert f"{PHOTOS} of them done already, 1 to do" in finished.output
