from pathlib import Path

import pytest

from carvana_batch.output.paths import OutPaths, holder_of

PATHS = OutPaths(Path("out"), (2, 3))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (PATHS.report, "out/report.csv"),
        (PATHS.run, "out/run.json"),
        (PATHS.state, "out/.carvana-batch"),
        (PATHS.settings, "out/.carvana-batch/settings.json"),
        (PATHS.journal, "out/.carvana-batch/journal-2-of-3.jsonl"),
        (PATHS.spool, "out/.carvana-batch/rle-2-of-3.jsonl"),
        (PATHS.lock, "out/.carvana-batch/lock-2-of-3"),
        (PATHS.shared_lock, "out/.carvana-batch/shared.lock"),
        (holder_of(PATHS.lock), "out/.carvana-batch/holder-2-of-3.json"),
        (PATHS.mask("a"), "out/a.png"),
        (PATHS.mask("a/b.c"), "out/a/b.c.png"),
        (PATHS.extra("prob", "a/b"), "out/_prob/a/b.tif"),
        (PATHS.extra("overlay", "a/b"), "out/_overlay/a/b.jpg"),
        (PATHS.extra("panel", "a/b"), "out/_panel/a/b.jpg"),
        (PATHS.extra("cutout", "a/b"), "out/_cutout/a/b.png"),
    ],
    ids=str,
)
def test_path_of_each_file(path, expected):
    assert path == Path(expected)


def test_one_shard_is_the_default():
    paths = OutPaths(Path("out"))
    assert paths.journal == Path("out/.carvana-batch/journal-1-of-1.jsonl")
    assert paths.spool == Path("out/.carvana-batch/rle-1-of-1.jsonl")
    assert paths.lock == Path("out/.carvana-batch/lock-1-of-1")


def test_all_files_of_a_photo():
    assert sorted(PATHS.of_photo("a/b").values()) == [
        Path("out/_background/a/b.jpg"),
        Path("out/_cutout/a/b.png"),
        Path("out/_overlay/a/b.jpg"),
        Path("out/_panel/a/b.jpg"),
        Path("out/_prob/a/b.tif"),
        Path("out/_recolour/a/b.jpg"),
        Path("out/a/b.png"),
    ]


def test_locks_of_other_shards(tmp_path):
    paths = OutPaths(tmp_path, (2, 3))
    assert paths.other_locks() == []
    paths.state.mkdir()
    for name in ("lock-2-of-3", "lock-3-of-3", "lock-1-of-1", "holder-1-of-3.json", "shared.lock"):
        (paths.state / name).touch()
    assert paths.other_locks() == [paths.state / "lock-1-of-1", paths.state / "lock-3-of-3"]
