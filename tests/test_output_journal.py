from typing import Any

import pytest

from carvana_batch.output.journal import append, read_entries


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\0\0\0",
        b"null",
        b"[]",
        b'"a"',
        b"{}",
        b'{"key": "a"}',
        b'{"key": 1, "source": "", "source_bytes": 1, "source_time": 1}',
        b'{"key": "a", "source": "", "source_bytes": 1, "source_time": 1, "mask_bytes": null}',
        b'{"key": "a", "source": "", "source_bytes": 1, "source_time": 1, "new": 1}',
        b'{"key": "a", "source": "", "source_bytes": 1, "source_time": 1, "notes": null}',
        b'{"key": "a", "source": "", "source_bytes": 1, "source_time": 1, "notes": [[]]}',
        b'{"key": "a", "source": "", "source_bytes": 1, "source_time": 1, "notes": ["no such note"]}',
        b'{"key": "", "source": "", "source_bytes": 1, "source_time": 1}',
        b'{"key": "/etc/a", "source": "", "source_bytes": 1, "source_time": 1}',
        b'{"key": "a/../../b", "source": "", "source_bytes": 1, "source_time": 1}',
        b"\xff\xfe",
    ],
)
def test_lines_that_are_no_entry_are_ignored(tmp_path, line):
    (tmp_path / "journal-1-of-1.jsonl").write_bytes(
        line + b'\n{"key": "k", "source": "", "source_bytes": 1, "source_time": 1}\n' + line
    )
    assert list(read_entries(tmp_path)) == ["k"]


def test_partial_writes_are_continued():
    class PartialWriter:
        content = b""

        def write(self, data):
            self.content += bytes(data[:3])
            return min(3, len(data))

    file: Any = PartialWriter()
    append(file, b"0123456789")
    assert file.content == b"0123456789"
