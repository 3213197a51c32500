import os

import pytest
from helpers import names_in

from carvana_batch.errors import UsageError
from carvana_batch.options import EXTRA_FILES, Choice
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import Entry, read_entries
from carvana_batch.output.overwriting import Overwriting
from carvana_batch.output.paths import OutPaths
from carvana_batch.output.rle_spool import RunLengthSpool
from carvana_batch.values import Failure, ImageRef

SETTINGS = {"threshold": 0.5}
CHOICE = Choice("cpu", "bf16", batch=1, most_pixels=4096)


@pytest.fixture
def refs(tmp_path):
    """Three photos: ``a``, ``b`` and ``sub/c``."""
    photos = []
    for key in ("a", "b", "sub/c"):
        path = tmp_path / "in" / f"{key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"photo")
        photos.append(ImageRef(key, path))
    return photos


@pytest.fixture
def out(tmp_path, refs):
    """A finished out folder with masks, extra files, rows and journal lines of all three photos."""
    root = tmp_path / "out"
    with OutFolder(root, SETTINGS, (1, 1), False) as folder:
        folder.start(CHOICE)
        with RunLengthSpool(folder.paths.spool) as spool:
            for ref in refs:
                commit_mask(folder, spool, ref)
    return root


def commit_mask(folder, spool, ref):
    for path in folder.paths.of_photo(ref.key).values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mask")
    source = ref.path.stat()
    entry = Entry(ref.key, str(ref.path), source.st_size, source.st_mtime_ns, mask_bytes=4)
    spool.append(entry, "1 1")
    folder.commit(entry)


def files_in(out):
    return {name for name in names_in(out) if (out / name).is_file() and not name.startswith(".")}


def files_of(*keys):
    kinds = [("", ".png"), *((folder + "/", suffix) for folder, suffix in EXTRA_FILES.values())]
    return {f"{folder}{key}{suffix}" for key in keys for folder, suffix in kinds}


def overwrite(out, refs, settings=SETTINGS):
    """Do what a run with ``--overwrite`` does before its first photo."""
    with OutFolder(out, settings, (1, 1), overwrite=True) as folder:
        assert list(folder.find_missing(refs)) == list(refs)
        line = folder.overwriting.describe()
        folder.start(CHOICE)
    return line


def test_masks_of_other_photos_are_kept(out, refs):
    entries = read_entries(out / ".carvana-batch")
    assert overwrite(out, refs[:1]) == f"Overwriting 1 of 3 masks in {out}"
    assert files_in(out) == files_of("b", "sub/c")
    assert read_entries(out / ".carvana-batch") == {key: entries[key] for key in ("b", "sub/c")}
    paths = OutPaths(out)
    rows = paths.spool.read_text().split("\n")
    assert sorted(row[:4] for row in rows if row) == ['["b"', '["su']
    with RunLengthSpool(paths.spool) as spool:
        assert [runs for _, runs in spool.rows([entries["b"], entries["sub/c"]], paths.mask)] == ["1 1"] * 2


def test_kept_lines_keep_their_time(out, refs):
    before = read_entries(out / ".carvana-batch")["b"].committed
    overwrite(out, refs[:1])
    assert read_entries(out / ".carvana-batch")["b"].committed == before


def test_everything_goes_if_no_other_mask_is_there(out, refs):
    assert overwrite(out, refs, {"threshold": 0.4}) == f"Overwriting 3 of 3 masks in {out}"
    assert files_in(out) == set()
    assert read_entries(out / ".carvana-batch") == {}
    assert not OutPaths(out).spool.exists()


def test_masks_that_someone_has_removed_are_not_kept(out, refs):
    for key in ("b", "sub/c"):
        OutPaths(out).mask(key).unlink()
    assert overwrite(out, refs[:1], {"threshold": 0.4}) == f"Overwriting 1 of 1 mask in {out}"
    assert files_in(out) == set()


def test_a_failed_photo_counts_as_no_mask(out, refs):
    with OutFolder(out, SETTINGS, (1, 1), False) as folder:
        OutPaths(out).mask("b").unlink()
        folder.find_missing(refs)
        folder.commit_failure(Failure.of(refs[1], "decode", "is empty"))
    assert overwrite(out, refs[:1]) == f"Overwriting 1 of 2 masks in {out}"
    assert {key: entry.failed for key, entry in read_entries(out / ".carvana-batch").items()} == {
        "b": True,
        "sub/c": False,
    }


def test_a_file_that_is_not_of_a_run_is_counted_when_replaced(out, refs, tmp_path):
    (out / "new.png").write_bytes(b"of another program")
    new = ImageRef("new", tmp_path / "new.jpg")
    names = f"1 of them not made by predict ({out / 'new.png'})"
    assert overwrite(out, [new, refs[0]]) == f"Overwriting 2 of 4 masks in {out}, {names}"
    assert (out / "new.png").read_bytes() == b"of another program"  # until there is a new mask


def test_nothing_is_said_if_no_mask_goes(out, tmp_path):
    assert overwrite(out, [ImageRef("new", tmp_path / "new.jpg")]) == ""
    assert files_in(out) == files_of("a", "b", "sub/c")


def test_kept_masks_must_have_the_same_settings(out, refs):
    before = {name: (out / name).read_bytes() for name in names_in(out) if (out / name).is_file()}
    message = (
        r"threshold: 0\.5 before, 0\.4 now\)\. --overwrite would keep 2 masks of other photos, which have to"
        r" be made alike\. Use the same settings, overwrite all masks by giving all of their photos, or"
    )
    with pytest.raises(UsageError, match=message):
        overwrite(out, refs[:1], {"threshold": 0.4})
    (OutPaths(out).settings).write_text("{")
    with pytest.raises(UsageError, match=r"is damaged .*--overwrite would keep 2 masks"):
        overwrite(out, refs[:1])
    after = {name: (out / name).read_bytes() for name in before}
    assert {name for name in before if before[name] != after[name]} - {
        ".carvana-batch/settings.json",
        ".carvana-batch/holder-1-of-1.json",
    } == set()


def test_the_first_choice_holds_for_replaced_masks(out, refs):
    with OutFolder(out, SETTINGS, (1, 1), overwrite=True) as folder:
        folder.find_missing(refs[:1])
        assert folder.choice == CHOICE
    with OutFolder(out, SETTINGS, (1, 1), overwrite=True) as folder:
        folder.find_missing(refs)
        assert folder.choice is None


def test_lines_of_all_shards_are_dropped(out, refs):
    with OutFolder(out, SETTINGS, (2, 2), False) as folder, RunLengthSpool(folder.paths.spool) as spool:
        commit_mask(folder, spool, refs[0])
    state = out / ".carvana-batch"
    assert len(list(state.glob("journal-*"))) == 2
    overwrite(out, refs[:1])
    assert sorted(read_entries(state)) == ["b", "sub/c"]
    assert not any('"a"' in path.read_text() for path in state.glob("*.jsonl"))


def test_names_that_are_not_valid_text_are_kept(out, refs, tmp_path):
    path = tmp_path / "in" / os.fsdecode(b"\xff.jpg")
    path.write_bytes(b"photo")
    with OutFolder(out, SETTINGS, (1, 1), False) as folder, RunLengthSpool(folder.paths.spool) as spool:
        commit_mask(folder, spool, ImageRef("\udcff", path))
    overwrite(out, refs)
    assert list(read_entries(out / ".carvana-batch")) == ["\udcff"]
    assert Overwriting(["\udcff"], OutPaths(out)).replaced == 1
