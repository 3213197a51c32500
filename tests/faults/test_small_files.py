"""Small files that would take gigabytes of memory once they are unpacked."""

import gzip
import io
import resource
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from carvana_batch.errors import ModelError, UsageError
from carvana_batch.network.checkpoints import load_model
from carvana_batch.submission import limits, table, unpack

HEADER = b"img,rle_mask\n"
MEGABYTE = 10**6

MEASURE = """
import sys
from pathlib import Path
from carvana_batch.errors import CarvanaBatchError
from carvana_batch.main_memory import peak_memory
from {module} import {function}
before = peak_memory()
try:
    {function}(*map(Path, sys.argv[1:]))
    told = ""
except CarvanaBatchError as error:
    told = str(error)
print(peak_memory() - before)
print(told)
"""


def limit_memory():
    """Rather an error in the test than a machine without memory."""
    resource.setrlimit(resource.RLIMIT_AS, (12 * 10**9, 12 * 10**9))


def measure(module, function, *arguments):
    """The bytes by which the peak of main memory rises in a call, and the message of its error."""
    code = MEASURE.format(module=module, function=function)
    finished = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=limit_memory,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    peak, _, told = finished.stdout.partition("\n")
    return int(peak), told.removesuffix("\n")


def packed(path, *parts):
    """Write (bytes, how often) pairs, compressed."""
    with gzip.open(path, "wb", compresslevel=6) as file:
        file.write(HEADER)
        for content, times in parts:
            for _ in range(times):
                file.write(content)
    return path


ROWS = {
    "one quoted field without an end": [(b'a.jpg,"', 1), (b"1 2 " * 2**14 + b"\n", 4_000)],
    "quoted fields without an end of the row": [(b'"' + (b"1 2 " * 64 + b"\n") * 256 + b'",', 4_000)],
    "a row of many fields": [(b"a," * 2**15, 1), (b"a," * 2**16, 2_000)],
    "a row of many fields, within its length": [(b"ab," * 2**16, 150)],
    "a long line": [(b"a.jpg,", 1), (b"1 2 " * 2**14, 4_000)],
    "long rows": [
        (b"%d.jpg,%d " % (number, number) + b"11 12 " * 5 * 10**6 + b"\n", 1) for number in range(3)
    ],
    "long names": [(b"%d/" % number + (b"x" * 250 + b"/") * 14 + b"a.jpg,\n", 1) for number in range(25_000)],
    "rows of the same id": [(b"a,\n" * 2**16, 40)],
    "rows without an id": [(b",\n" * 2**16, 40)],
}

RARE = {
    "rows of the same id",
    "quoted fields without an end of the row",
    "a row of many fields, within its length",
    "rows without an id",
    "long names",
}
"""Much like others, and only run with ``-m long``."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack", [pytest.param(name, marks=pytest.mark.long) if name in RARE else name for name in ROWS]
)
def test_small_files_of_rows_take_little_memory(tmp_path, attack, count_faults):
    path = packed(tmp_path / "rows.csv.gz", *ROWS[attack])
    assert path.stat().st_size < 2 * MEGABYTE
    for module, function, arguments in (
        ("carvana_batch.submission.unpack", "decode_submission", (path, tmp_path / "out")),
        ("carvana_batch.submission.table", "read_rows", (path,)),
        ("carvana_batch.submission.write", "read_sample", (path,)),
    ):
        peak, told = measure(module, function, *arguments)
        assert told == "" or "rows.csv.gz" in told
        assert peak < 700 * MEGABYTE, (function, peak)
    count_faults("a small file of rows takes little memory", 3)


def test_limits_of_rows_hold_exactly(tmp_path, monkeypatch, count_faults):
    monkeypatch.setattr(limits, "MAX_ROWS", 4)  # with the header
    monkeypatch.setattr(limits, "MAX_ROW_CHARACTERS", 30)
    monkeypatch.setattr(limits, "MAX_DELIMITERS", 5)
    monkeypatch.setattr(unpack, "MAX_FAILED_ROWS", 2)
    path = tmp_path / "rows.csv"

    def read(rows):
        path.write_bytes(HEADER + rows)
        return list(table.read_lines(path))

    assert len(read(b"a,\nb,\nc,\n")) == 4
    with pytest.raises(UsageError, match=r"rows\.csv, line 5: more than 4 rows"):
        read(b"a,\nb,\nc,\nd,\n")
    longest = b'"a\nb.jpg",1 2 5 1 7 2 9 1 111\n'
    assert len(longest) == 30
    assert read(longest * 2)[1][1] == ["a\nb.jpg", "1 2 5 1 7 2 9 1 111"]
    with pytest.raises(UsageError, match=r"rows\.csv, line 3: a row of more than 30 characters"):
        read(longest.replace(b"111", b"1111"))
    assert read(b"a,b,c,d,e,f\n" * 2)[2][1] == list("abcdef")
    with pytest.raises(UsageError, match=r"line 2: a row of more than 5 fields"):
        read(b"a,b,c,d,e,f,\n")
    path.write_bytes(HEADER + b"a,\na,\na,\n")
    assert len(unpack.decode_submission(path, tmp_path / "out", (5, 3)).failures) == 2
    path.write_bytes(HEADER + b"a,x\nb,x\nc,x\n")
    with pytest.raises(UsageError, match=r"More than 2 rows .* line 2: Pair 1 holds 'x'"):
        unpack.decode_submission(path, tmp_path / "out", (5, 3), overwrite=True)
    count_faults("a small file of rows takes little memory", 4)


def test_text_beyond_the_size_of_its_file_is_refused(tmp_path, monkeypatch, count_faults):
    monkeypatch.setattr(limits, "MIN_KEPT_BYTES", 0)
    runs = b"11 12 " * 900 + b"\n"
    path = packed(tmp_path / "rows.csv.gz", *[(b"%05d.jpg,%d " % (n, n) + runs, 1) for n in range(500)])
    assert 500 * len(runs) > 100 * path.stat().st_size
    with pytest.raises(UsageError, match=r"rows\.csv\.gz unpacks to more than 100 times its size"):
        table.read_rows(path)
    path = packed(tmp_path / "same.csv.gz", *[(b"%05d.jpg," % n + runs, 1) for n in range(500)])
    assert 500 * len(runs) > 100 * path.stat().st_size
    rows = table.read_rows(path)
    assert len(rows) == 500
    assert set(rows.values()) == {runs.decode().removesuffix("\n")}
    count_faults("a small file of rows takes little memory", 1)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_that_unpack_at_once_are_refused(tmp_path, method, count_faults):
    path = tmp_path / "rows.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("rows.csv", HEADER + b"a.jpg,\n")
    with pytest.raises(UsageError, match=r"rows\.zip is compressed by another method than deflate"):
        table.read_rows(path)
    count_faults("a small file of rows takes little memory", 1)


def archive_of(parts, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def saved(content):
    """The parts of an archive of torch.save."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def compressed_zeros():
    return archive_of(saved({"a": torch.zeros(2**28)}), zipfile.ZIP_DEFLATED)


def overlapping_entries():
    """Each storage lies in the file once, and is named by 300 entries of the directory."""
    content = archive_of(saved({"a": torch.zeros(10**6)}))
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06", start)
    directory, entries = content[start:end], 300
    count = entries * directory.count(b"PK\x01\x02")
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, entries * len(directory), start, 0)
    return content[:start] + directory * entries + tail


def with_pickle(code):
    parts = saved({"a": torch.zeros(3)})
    name = next(name for name in parts if name.endswith("data.pkl"))
    return archive_of(parts | {name: b"\x80\x02" + code + b"."})


def many_sets():
    return with_pickle(b"\x8f" * 2 * 10**6)


def repeated_copies():
    """A text of 1 MB, which is encoded, into another copy each time, a thousand times."""
    text = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\x00" + b"X\x05\x00\x00\x00ascii\x86q\x01"
    return with_pickle(text + b"c_codecs\nencode\nq\x02" + b"h\x02h\x01R" * 5_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack", [compressed_zeros, overlapping_entries, many_sets, repeated_copies], ids=lambda a: a.__name__
)
def test_small_files_of_tensors_take_little_memory(tmp_path, attack, count_faults):
    path = tmp_path / "weights.pt"
    path.write_bytes(attack())
    size = path.stat().st_size
    assert size < 6 * MEGABYTE
    peak, told = measure("carvana_batch.network.checkpoints", "load_model", path)
    assert "weights.pt: not loaded, because it has" in told
    assert peak < 3 * size + 400 * MEGABYTE
    count_faults("a small file of tensors takes little memory", 1)


def test_files_larger_than_any_network_are_not_read(tmp_path, count_faults):
    for name, size in (("sparse.safetensors", 10**10), ("sparse.pt", 10**11)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
        with pytest.raises(ModelError, match=rf"{name}: .*has {size:,} bytes, more than"):
            load_model(tmp_path / name)
    save_file({str(number): torch.zeros(0) for number in range(10_001)}, tmp_path / "many.safetensors")
    with pytest.raises(ModelError, match=r"many\.safetensors: has 10,001 tensors"):
        load_model(tmp_path / "many.safetensors")
    count_faults("a small file of tensors takes little memory", 3)


def test_the_limit_of_memory_ends_with_the_loading(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_AS)
    (tmp_path / "weights.pt").write_bytes(many_sets())
    with pytest.raises(ModelError):
        load_model(tmp_path / "weights.pt")
    assert resource.getrlimit(resource.RLIMIT_AS) == before
