import numpy as np
import pytest
from PIL import Image

from carvana_batch.masks.png import encode_mask
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import Entry, ExtraFile, read_journals
from carvana_batch.output.ownership import Ownership, Stamp
from carvana_batch.output.paths import MASK, OutPaths
from carvana_batch.values import PackedMask


def mask_of(seed):
    """The PNG of a random mask."""
    rng = np.random.default_rng(seed)
    return encode_mask(PackedMask.from_bool(rng.random((21, 35)) > 0.5))


MADE, NEW = mask_of(1), mask_of(2)
STAMP = Stamp.of(MADE)
LINE = Entry("a", "in/a.jpg", 1, 1, mask_bytes=STAMP.size, mask_checksum=STAMP.checksum)
PENDING = Entry("a", "", 0, 0, mask_bytes=STAMP.size, mask_checksum=STAMP.checksum, pending=True)
FAILED = Entry("a", "in/a.jpg", 1, 1, stage="decode", reason="is empty")


@pytest.fixture
def own(tmp_path):
    """``own(*lines)`` is the ownership with these lines in the journal."""

    def make(*lines, **options):
        with OutFolder(tmp_path, {}, (1, 1), False) as out:
            for line in lines:
                out.commit(line)
        return Ownership(OutPaths(tmp_path), read_journals(tmp_path / ".carvana-batch"), **options)

    return make


def test_checksum_of_a_file_is_that_of_its_content(tmp_path):
    (tmp_path / "file").write_bytes(MADE)
    assert Stamp.read(tmp_path / "file") == STAMP
    assert Stamp.of(b"123456789") == (9, 0xCBF43926)  # the check value of CRC-32


@pytest.mark.parametrize("lines", [[LINE], [PENDING], [LINE, PENDING], [FAILED, PENDING]])
def test_a_mask_of_the_journal_is_of_a_run(tmp_path, own, lines):
    ownership = own(*lines)
    (tmp_path / "a.png").write_bytes(MADE)
    assert not ownership.is_foreign("a", MASK, NEW)
    ownership.remove_files("a")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("lines", [[], [FAILED], [LINE, FAILED], [PENDING, FAILED], [LINE.keep(*STAMP)]])
def test_any_other_mask_is_of_the_user(tmp_path, own, lines):
    ownership = own(*lines)
    (tmp_path / "a.png").write_bytes(MADE)
    assert ownership.is_foreign("a", MASK, NEW)
    ownership.remove_files("a")
    assert (tmp_path / "a.png").read_bytes() == MADE


def test_lines_of_earlier_versions_tell_the_size(tmp_path, own):
    ownership = own(Entry("a", "in/a.jpg", 1, 1, mask_bytes=len(MADE)))
    (tmp_path / "_overlay").mkdir()
    for name in ("a.png", "_overlay/a.jpg"):
        (tmp_path / name).write_bytes(MADE)
    assert not ownership.is_foreign("a", MASK, NEW)
    assert not ownership.is_foreign("a", "overlay", NEW)
    (tmp_path / "a.png").write_bytes(mask_of(3) + b"longer")
    assert ownership.is_foreign("a", MASK, NEW)


@pytest.mark.parametrize(
    "content",
    [b"", NEW, NEW[:-1], NEW[:9], bytes(len(NEW)), NEW[:20] + bytes(len(NEW) - 20), bytes(9000), MADE[:-1]],
    ids=["empty", "same", "cut", "begun", "zeros", "zeros at its end", "many zeros", "other, cut"],
)
def test_what_a_kill_or_power_cut_leaves_is_replaced(tmp_path, own, content):
    (tmp_path / "a.png").write_bytes(content)
    assert not own().is_foreign("a", MASK, NEW)


@pytest.mark.parametrize("position", [0, 3, 20, 50, -1])
def test_a_mask_damaged_at_the_same_size_is_replaced(tmp_path, own, position):
    damaged = bytearray(MADE)
    damaged[position] ^= 4
    (tmp_path / "a.png").write_bytes(damaged)
    assert not own(LINE).is_foreign("a", MASK, NEW)


def test_a_sound_mask_of_the_same_size_is_of_the_user(tmp_path, own):
    """Such as one in which a single pixel was changed."""
    other = next(mask for mask in map(mask_of, range(3, 10_000)) if len(mask) == len(MADE))
    (tmp_path / "a.png").write_bytes(other)
    assert own(LINE).is_foreign("a", MASK, NEW)


def test_extra_files_are_known_by_kind_and_size(tmp_path, own):
    ownership = own(
        Entry("a", "in/a.jpg", 1, 1, mask_bytes=5, mask_checksum=1, extras=(ExtraFile("overlay", 7, 1),))
    )
    for folder in ("_overlay", "_panel"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").write_bytes(b"7 bytes")
    assert not ownership.is_foreign("a", "overlay", b"new")
    assert ownership.is_foreign("a", "panel", b"new")
    (tmp_path / "_overlay" / "a.jpg").write_bytes(b"of the user")
    assert ownership.is_foreign("a", "overlay", b"new")


def test_all_are_replaced_if_asked_for_but_not_removed(tmp_path, own):
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    ownership = own(replace_all=True)
    assert not ownership.is_foreign("a", MASK, NEW)
    ownership.remove_files("a")
    assert (tmp_path / "a.png").exists()
