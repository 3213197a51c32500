from dataclasses import replace

import pytest
from click.testing import CliRunner
from PIL import Image

from carvana_batch.commands import group
from carvana_batch.errors import UsageError
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import Entry, ExtraFile
from carvana_batch.output.ownership import Stamp
from carvana_batch.output.verifying import Deviation, verify


@pytest.fixture
def out(tmp_path):
    """An out folder with two masks; the line of ``old`` is of a version that knew no checksums."""
    root = tmp_path / "out"
    lines = []
    with OutFolder(root, {}, (1, 1), False) as folder:
        for key in ("new", "old"):
            Image.new("1", (9, 5)).save(root / f"{key}.png")
            size, checksum = Stamp.read(root / f"{key}.png")
            lines.append(Entry(key, f"in/{key}.jpg", 1, 1, mask_bytes=size, mask_checksum=checksum))
        (root / "_overlay").mkdir()
        (root / "_overlay" / "new.jpg").write_bytes(b"123456789")
        folder.commit(replace(lines[0], extras=(ExtraFile("overlay", 9, 0xCBF43926),)))
        folder.commit(replace(lines[1], mask_checksum=None))
        folder.commit(Entry("bad", "in/bad.jpg", 1, 1, stage="decode", reason="is empty"))
        folder.commit(Entry("mine", "in/mine.jpg", 1, 1).keep(7, 7))
    return root


def test_sound_files_have_no_deviations(out):
    found = verify(out)
    assert (found.masks, found.deviations, found.without_checksum, found.kept) == (2, [], 1, 1)


@pytest.mark.parametrize("key", ["new", "old"])
def test_files_that_are_gone_damaged_or_changed(out, key):
    path = out / f"{key}.png"
    content = path.read_bytes()
    path.write_bytes(content[:40] + bytes(4) + content[44:])
    (deviation,) = verify(out).deviations
    assert (deviation.path, "damaged" in deviation.reason) == (path, True)
    path.unlink()
    assert verify(out).deviations == [Deviation(path, "is gone")]
    Image.new("1", (90, 500)).save(path)
    (deviation,) = verify(out).deviations
    assert deviation.reason.startswith("was changed since")


def test_an_extra_file_is_verified_too(out):
    path = out / "_overlay" / "new.jpg"
    path.write_bytes(b"123456780")
    assert verify(out).deviations == [Deviation(path, "is damaged")]


def test_the_command_names_what_deviates(out):
    result = CliRunner().invoke(group, ["verify", str(out)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "2 masks compared, 1 of them without checksum, by size and decoding,"
        " 1 not made by predict and not compared, 0 files not as written\n"
    )
    (out / "new.png").unlink()
    result = CliRunner().invoke(group, ["verify", str(out)])
    assert (result.exit_code, result.stderr) == (3, f"{out / 'new.png'}: is gone\n")
    with OutFolder(out, {}, (1, 1), False):
        assert "a run of predict is at work" in CliRunner().invoke(group, ["verify", str(out)]).stderr


def test_only_out_folders_can_be_verified(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="No run of predict has worked in"):
            verify(folder)
