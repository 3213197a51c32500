"""``predict_folder``, ``score`` and ``submit`` with archives and buckets, as the commands take them."""

import gzip
import json
import tempfile
import zipfile

import pytest
from helpers import write_photo
from s3_server import found_by_clients

import carvana_batch
from carvana_batch.errors import ImageError, UsageError

KEYS = ("a", "b/c")


@pytest.fixture(scope="module")
def masker():
    return carvana_batch.Masker("segunet-s", device="cpu", precision="fp32", workers=0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places") / "in"
    for number, key in enumerate(KEYS):
        write_photo(folder / f"{key}.jpg", seed=number)
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return folder


@pytest.fixture(scope="module")
def masks(masker, photos):
    """The masks of the photos in the folder, as bytes."""
    out = photos.parent / "out"
    assert masker.predict_folder(photos, out, progress=False).exit_code == 3
    return masks_in(out)


@pytest.fixture
def server(monkeypatch, tmp_path):
    pytest.importorskip("obstore", reason="needs the extra cloud")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with found_by_clients(monkeypatch) as server:
        yield server
    assert not list((tmp_path / "tmp").iterdir())


def masks_in(folder):
    return {key: (folder / f"{key}.png").read_bytes() for key in KEYS}


def test_photos_of_an_archive(masker, photos, masks, tmp_path, capsys):
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in photos.rglob("*.jpg"):
            file.write(path, path.relative_to(photos).as_posix())
    report = masker.predict_folder(archive, tmp_path / "out")
    assert masks_in(tmp_path / "out") == masks
    (failure,) = report.failures
    assert failure.source == f"{archive}/torn.jpg"
    assert tempfile.gettempdir() + "/carvana" not in "".join(capsys.readouterr())
    assert masker.predict_folder(archive, tmp_path / "out", progress=False).already_done == len(KEYS)
    with pytest.raises(UsageError, match=r"only predict_folder\(\) reads archives and buckets"):
        masker.mask_folder(archive)


def test_photos_and_masks_in_buckets(masker, photos, masks, server, tmp_path, capsys):
    for path in photos.rglob("*.jpg"):
        server.put(f"in/{path.relative_to(photos).as_posix()}", path.read_bytes(), age=100)
    report = masker.predict_folder("s3://photos/in", "s3://photos/out")
    assert report.exit_code == 3
    assert {key: server.objects[f"out/{key}.png"].content for key in KEYS} == masks
    assert [failure.source for failure in report.failures] == ["s3://photos/in/torn.jpg"]
    assert str(tmp_path) not in "".join(capsys.readouterr())

    local = tmp_path / "here"
    masker.predict_folder(photos, local, progress=False)
    scores = carvana_batch.score("s3://photos/out", local)
    assert [row.dice for row in scores] == [1.0, 1.0]
    with pytest.warns(carvana_batch.CarvanaBatchWarning, match=r"s3://photos/out"):  # of the failed photo
        summary = carvana_batch.submit("s3://photos/out", tmp_path / "bucket.csv.gz", size="any")
    with pytest.warns(carvana_batch.CarvanaBatchWarning):
        carvana_batch.submit(local, tmp_path / "local.csv.gz", size="any")
    assert summary.rows == len(KEYS)
    assert gzip.decompress((tmp_path / "bucket.csv.gz").read_bytes()) == gzip.decompress(
        (tmp_path / "local.csv.gz").read_bytes()
    )


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"overwrite": True}, "overwrite=True does not go with images or out in a bucket"),
        ({"gt": "gt"}, "gt does not go with images or out in a bucket"),
        ({"shard": (1, 2)}, "shard does not go with an out in a bucket"),
    ],
)
def test_what_does_not_go_with_buckets_is_told_in_words_for_python(masker, keywords, message):
    with pytest.raises(UsageError) as caught:
        masker.predict_folder("in", "s3://photos/out", **keywords)
    assert str(caught.value).startswith(message)
    with pytest.raises(UsageError, match=r"only predict_folder\(\) reads archives and buckets"):
        masker.mask_folder("s3://photos/in")
    with pytest.raises(ImageError, match=r"s3://photos/in/a\.jpg: URLs are not fetched"):
        masker.predict("s3://photos/in/a.jpg")
    with pytest.raises(carvana_batch.CarvanaBatchError, match=r"no model 's3://photos/w\.pt'"):
        carvana_batch.Masker("s3://photos/w.pt")


def test_the_file_of_a_mask_and_standard_streams_are_refused(masker, photos, tmp_path):
    with pytest.raises(UsageError, match=r"out has to be a folder, and .*car\.png is the name of a file"):
        masker.predict_folder(photos / "a.jpg", tmp_path / "car.png")
    for images, out in (("-", tmp_path), (photos, "-")):
        with pytest.raises(UsageError, match="- is no folder here"):
            masker.predict_folder(images, out)
    assert not list(tmp_path.iterdir())


def test_run_json_has_the_arguments_that_were_given_and_where_the_photos_are(photos, tmp_path):
    """Those of the command have what was given there, and no defaults."""
    masker = carvana_batch.Masker("segunet-s", device="cpu", threshold=0.5, workers=0)
    masker.predict_folder(photos, tmp_path / "out", save=["overlay"], limit=1, progress=False)
    written = json.loads((tmp_path / "out" / "run.json").read_text())
    assert written["options"] == {
        "model": "segunet-s",
        "device": "cpu",
        "threshold": "0.5",
        "workers": "0",
        "limit": "1",
        "save": ["overlay"],
    }
    assert written["images"] == str(photos)


def test_variables_of_the_environment_change_nothing(photos, tmp_path, monkeypatch, capsys):
    """They are set for the command line; a program would not expect them to change its masks."""
    for prefix in ("CARVANA_BATCH", "CARVANA_BATCH_PREDICT"):
        for name, value in (("THRESHOLD", "0.9"), ("DEVICE", "nowhere"), ("MODEL", "unet"), ("LIMIT", "1")):
            monkeypatch.setenv(f"{prefix}_{name}", value)
        monkeypatch.setenv(f"{prefix}_CONFIG", "none.toml")
    masker = carvana_batch.Masker(precision="fp32", workers=0)
    report = masker.predict_folder(photos, tmp_path / "out")
    assert report.done == len(KEYS)
    written = json.loads((tmp_path / "out" / "run.json").read_text())
    assert written["settings"]["threshold"] == 0.5
    assert written["settings"]["model"].startswith("auto ")
    assert "environment" not in "".join(capsys.readouterr())
