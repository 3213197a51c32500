"""A folder in a bucket looks like a local one."""

import pytest
from s3_server import found_by_clients

pytest.importorskip("obstore", reason="needs the extra cloud")

from carvana_batch.cloud.mirror import Mirror
from carvana_batch.cloud.urls import BucketUrl, StoreError
from carvana_batch.errors import UsageError
from carvana_batch.inputs.find import find_images

PNG_HEAD = bytes.fromhex("89504e470d0a1a0a0000000d49484452")


@pytest.fixture
def server(monkeypatch):
    with found_by_clients(monkeypatch) as server:
        yield server


@pytest.fixture
def mirror(server, tmp_path):  # noqa: ARG001 (the client asks it what it needs)
    return Mirror(BucketUrl.parse("s3://photos/in"), tmp_path / "in")


def room_of(folder):
    """Bytes that the files of a folder take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def test_each_object_has_a_file_of_its_size_and_time_that_takes_no_room(server, mirror):
    server.page = 7
    for number in range(50):
        server.put(f"in/{number % 3}/{number}.jpg", bytes(100_000 + number), age=1000 + number)
    assert mirror.list() == 50
    for number in range(50):
        status = (mirror.folder / f"{number % 3}/{number}.jpg").stat()
        stored = server.objects[f"in/{number % 3}/{number}.jpg"]
        assert status.st_size == 100_000 + number
        assert status.st_mtime_ns == int(stored.time) * 10**9
    assert room_of(mirror.folder) == 0
    assert len([request for request in server.requests if request.method == "GET"]) == 8


def test_a_fetched_object_has_its_content_until_it_is_emptied(server, mirror):
    server.put("in/a/ä 1.jpg", b"x" * 50_000, age=100)
    mirror.list()
    path = mirror.folder / "a" / "ä 1.jpg"
    before = path.stat()
    mirror.fetch(path)
    assert path.read_bytes() == b"x" * 50_000
    mirror.empty(path)
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert room_of(mirror.folder) == 0


def test_an_object_that_has_changed_gets_its_new_size_and_time(server, mirror):
    server.put("in/a.jpg", b"old", age=100)
    mirror.list()
    server.put("in/a.jpg", b"longer", age=50)
    mirror.fetch(mirror.folder / "a.jpg")
    mirror.empty(mirror.folder / "a.jpg")
    status = (mirror.folder / "a.jpg").stat()
    assert (status.st_size, status.st_mtime_ns) == (6, int(server.objects["in/a.jpg"].time) * 10**9)


def test_an_object_that_is_gone_has_no_file(server, mirror):
    server.put("in/a.jpg", b"x")
    mirror.list()
    del server.objects["in/a.jpg"]
    mirror.fetch(mirror.folder / "a.jpg")
    assert not (mirror.folder / "a.jpg").exists()


def test_the_same_photos_are_found_as_in_a_local_folder(server, mirror, tmp_path):
    contents = {
        "a.jpg": b"x",
        "b/c.TIF": b"x",
        "b/no-suffix": PNG_HEAD + bytes(500),
        "b/text": b"nothing but words" * 100,
        "b/photo.unknown": PNG_HEAD + bytes(500),
        ".hidden/d.jpg": b"x",
        "notes.txt": b"x",
        "raw.nef": b"x",
    }
    for name, content in contents.items():
        path = tmp_path / "local" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        server.put(f"in/{name}", content)
    mirror.list()
    local, mirrored = find_images(tmp_path / "local"), find_images(mirror.folder)
    assert [ref.key for ref in mirrored.refs] == [ref.key for ref in local.refs]
    assert len(mirrored.refs) == 5
    assert mirrored.ignored == local.ignored


def test_markers_of_folders_are_no_files(server, mirror):
    server.put("in/b", b"")
    server.put("in/b/", b"")
    server.put("in/b/c.jpg", b"x")
    mirror.list()
    assert (mirror.folder / "b" / "c.jpg").is_file()


def test_an_object_that_is_also_a_folder_is_refused(server, mirror):
    server.put("in/b", b"content")
    server.put("in/b/c.jpg", b"x")
    with pytest.raises(UsageError, match=r"s3://photos/in/b"):
        mirror.list()


def test_a_name_that_no_file_can_have_is_refused(server, mirror):
    server.put(f"in/{'x' * 300}.jpg", b"x")
    with pytest.raises(UsageError, match="cannot be the name of a file"):
        mirror.list()


@pytest.mark.parametrize("key", ["in/../b.jpg", "in//c.jpg", "in/a\nb.jpg"])
def test_a_name_that_the_client_does_not_take_is_refused(server, mirror, key):
    server.put(key, b"jpeg")
    with pytest.raises(StoreError, match="whose name cannot be that of a file"):
        mirror.list()
    assert not [path for path in mirror.folder.parent.rglob("*") if path.is_file()]


def test_the_out_folder_is_left_out(server, mirror):
    server.put("in/a.jpg", b"x")
    server.put("in/out/a.png", b"x")
    server.put("in/outside.jpg", b"x")
    mirror.list(exclude=BucketUrl.parse("s3://photos/in/out"))
    assert sorted(path.name for path in mirror.folder.iterdir()) == ["a.jpg", "outside.jpg"]


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        ("s3://photos/in", 403, "permission denied"),
        ("s3://nowhere/in", None, "there is no bucket nowhere"),
        ("s3://photos/in", 400, "the store failed"),
    ],
)
def test_errors_say_what_is_wrong(server, tmp_path, url, status, said):
    server.fault = lambda request: status
    with pytest.raises(StoreError, match=said) as caught:
        Mirror(BucketUrl.parse(url), tmp_path / "in").list()
    assert "\n" not in str(caught.value)
