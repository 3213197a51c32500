"""What is read from files that anyone may have written: whatever is in them, only documented errors come out.

The cases are the same each time. Most are made from files that are right, changed in a place or two.
"""

import csv
import gzip
import io
import json
import math
import os
import pickle
import re
import struct
import warnings
import zipfile
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import write_photo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carvana_batch.errors import ImageError, ModelError, UsageError
from carvana_batch.masks import rle
from carvana_batch.masks.png import encode_mask
from carvana_batch.network import NETWORKS
from carvana_batch.network.checkpoints import load_model, save_model
from carvana_batch.network.model import FORMAT
from carvana_batch.network.segunet import SegUNet
from carvana_batch.notes import Note
from carvana_batch.options import EXTRA_FILES, Choice
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import Entry, ExtraFile, read_entries
from carvana_batch.output.report import COLUMNS, RunReport, write_table
from carvana_batch.output.rle_spool import RunLengthSpool
from carvana_batch.output.status import read_run_state
from carvana_batch.scoring.sources import MaskRows, open_masks
from carvana_batch.submission.table import read_rows
from carvana_batch.submission.write import read_sample
from carvana_batch.values import ImageRef, PackedMask


def fuzz(check, number, **cases):
    """Call ``check`` with ``number`` cases at most; how many there were."""
    count = 0

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(**cases)
    def each(**case):
        nonlocal count
        count += 1
        check(**case)

    each()
    return count


@st.composite
def damaged(draw, wholes):
    """One of the byte strings, changed in one to three places."""
    content = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(len(content) - 1, 0)))
        end = min(start + draw(st.sampled_from([1, 2, 8, 64])), len(content))
        match draw(st.sampled_from(["flip", "overwrite", "cut", "insert", "remove", "repeat"])):
            case "flip" if content:
                content[start] ^= 1 << draw(st.integers(0, 7))
            case "overwrite":
                content[start:end] = draw(st.binary(min_size=end - start, max_size=end - start))
            case "cut":
                del content[start:]
            case "insert":
                content[start:start] = draw(st.binary(min_size=1, max_size=12))
            case "remove":
                del content[start:end]
            case "repeat":
                content[start:start] = content[start:end]
    return bytes(content)


# ---- run-length rows


def decode_slowly(text, height, width):
    """The pixels of a run-length row, by the rules of the format, or None if it breaks one."""
    words = text.split()
    if len(words) % 2 or not all(re.fullmatch("[0-9]{1,18}", word) for word in words):
        return None
    pixels = np.zeros(height * width, bool)
    last = 0
    for start, length in zip(map(int, words[::2]), map(int, words[1::2]), strict=True):
        if start <= last or length < 1 or start + length - 1 > height * width:
            return None
        last = start + length - 1
        pixels[start - 1 : last] = True
    return pixels.reshape(height, width)


NUMBERS = [
    "0",
    "-1",
    "+1",
    "1.0",
    "1e3",
    "0x1",
    "1_0",
    "nan",
    "٣",
    "１",
    "²",
    "00",
    "007",
    "x",
    "\0",
    "\udcff",
]
NUMBERS += [str(number) for number in (10**18 - 1, 10**18, 2**63 - 1, 2**63, 2**64)]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\x0b", "\x1c", "\x85", "\xa0", "\u3000", ",", "\u200b", ""]


@st.composite
def rows_and_sizes(draw):
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    mask = np.random.default_rng(draw(st.integers(0, 99))).random((height, width)) < draw(st.floats(0, 1))
    words = rle.encode(mask).split()
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(words)))
        number = draw(st.sampled_from(NUMBERS) | st.integers(0, height * width + 1).map(str))
        match draw(st.sampled_from(["put", "insert", "remove", "swap", "repeat"])):
            case "put":
                words[place : place + 1] = [number]
            case "insert":
                words.insert(place, number)
            case "remove":
                del words[place : place + draw(st.integers(1, 2))]
            case "swap":
                words[place : place + 2] = words[place : place + 2][::-1]
            case "repeat":
                words[place:place] = words[place : place + 2]
    space = draw(st.sampled_from(SPACES)) if draw(st.integers(0, 3)) == 0 else " "
    return space.join(words), height, width


def check_row(text, height, width):
    expected = decode_slowly(text, height, width)
    if expected is None:
        for decode in (rle.decode, rle.decode_packed):
            with pytest.raises(rle.RunLengthError, match=r"^Pair \d+ ") as caught:
                decode(text, height, width)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 200
    else:
        np.testing.assert_array_equal(rle.decode(text, height, width), expected)
        np.testing.assert_array_equal(rle.decode_packed(text, height, width).to_bool(), expected)


def test_any_row_gives_its_mask_or_the_documented_error(count_faults):
    number = fuzz(lambda case: check_row(*case), 800, case=rows_and_sizes())
    number += fuzz(
        check_row, 200, text=st.text(max_size=40), height=st.integers(0, 5), width=st.integers(0, 5)
    )
    count_faults("any run-length row gives its mask or the documented error", number)


# ---- tables of rows

HEADER = b"img,rle_mask\n"
CELLS = ["", "a.jpg", "b_mask.png", "1 2", "9 9", '"', '""', '"a', "\n", "\r", "\r\n", ",", "\0", "\ufeff"]
CELLS += ["../a.jpg", "/a.jpg", "x" * 5000, "日本.jpg", "=1", "1 2 3", "img", "\ud800", "\x1b[31m"]
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def zipped(content, method):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("rows.csv", content)
    return buffer.getvalue()


@st.composite
def tables(draw):
    """A CSV of cells that may be anything, not always put in quotes where they should be."""
    lines = draw(st.lists(st.lists(st.sampled_from(CELLS), min_size=1, max_size=3), max_size=6))
    if draw(st.booleans()):
        text = "".join(",".join(line) + "\n" for line in lines)
    else:
        buffer = io.StringIO(newline="")
        csv.writer(buffer).writerows(lines)
        text = buffer.getvalue()
    start = HEADER if draw(st.integers(0, 4)) else b""
    return start + text.encode("utf-8", "surrogatepass")


def check_tables(folder, name, content):
    """All that reads run-length rows gives rows, or the error that names the file in one line."""
    path = folder / name
    path.write_bytes(content)
    for read in (read_rows, read_sample):
        try:
            read(path)
        except UsageError as error:
            assert name in str(error)
            assert all(line.isprintable() for line in str(error).split("\n"))
    try:
        masks = open_masks(path, advice="")
    except UsageError:
        return
    assert isinstance(masks, MaskRows)
    for image in masks.ids:
        try:
            mask = masks.read(image, (4, 3))
        except ImageError as error:
            assert str(error).isprintable()
        else:
            np.testing.assert_array_equal(mask.to_bool(), decode_slowly(masks.rows[image], 3, 4))


@pytest.mark.slow
def test_any_table_of_rows_gives_rows_or_the_documented_error(tmp_path, count_faults):
    table = HEADER + b"".join(b"car%d_01.jpg,%d 2 9 3\n" % (number, number) for number in range(1, 8))
    number = fuzz(lambda content: check_tables(tmp_path, "a.csv", content), 300, content=tables())
    number += fuzz(
        lambda content: check_tables(tmp_path, "a.csv", content),
        200,
        content=damaged([table]) | st.binary(max_size=60).map(lambda rest: HEADER + rest),
    )
    packed = damaged([gzip.compress(table, mtime=0)])
    number += fuzz(lambda content: check_tables(tmp_path, "a.csv.gz", content), 200, content=packed)
    archives = damaged([zipped(table, method) for method in METHODS])
    number += fuzz(lambda content: check_tables(tmp_path, "a.zip", content), 400, content=archives)
    count_faults("any table of run-length rows gives rows or the documented error", number)


# ---- the journal

GOOD = Entry("good", "in/good.jpg", 5, 7, 4, 3, 0.25, 0.5, 0.75, 9, 11, committed=2**62)
GOOD = replace(GOOD, extras=(ExtraFile("overlay", 13, 17),))
FAILED = Entry("failed", "in/failed.jpg", 5, 7, stage="decode", reason="is cut short", committed=2**62)
ABSURD: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    3,
    2**63,
    -(2**63),
    10**400,
    0.5,
    -0.5,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
]
ABSURD += [
    "",
    "x",
    "1",
    "\n",
    "\r",
    "\0",
    "\x1b[31m",
    "\ud800",
    "\udcff",
    "=1+1",
    "<b>",
    "x" * 300,
    "日" * 100,
]
ABSURD += ["..", "../x", "a/../../x", "/etc/x", "a//x", "a/", "./x", ".", "report.csv", ".carvana-batch/x"]
ABSURD += [[], [1], {}, {"a": [1]}, [[[]]]]
JUNK = [
    b"",
    b"{",
    b"}" * 9,
    b"null",
    b"[]",
    b"1" * 5000,
    b"[" * 20_000,
    b'{"a":' * 10_000,
    b"\xff\xfe",
    b"\0" * 50,
]
ABSURD_LINES = [
    *JUNK,
    *(
        json.dumps(asdict(GOOD) | {"key": "key", name: value}).encode()
        for name in asdict(GOOD)
        for value in ABSURD
    ),
]
TYPES = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float | None": lambda value: value is None or (isinstance(value, float) and math.isfinite(value)),
    "bool": lambda value: isinstance(value, bool),
    "int | None": lambda value: value is None or (isinstance(value, int) and not isinstance(value, bool)),
    "tuple[ExtraFile, ...]": lambda value: all(
        extra.kind in EXTRA_FILES and extra.size >= 0 and extra.checksum >= 0 for extra in value
    ),
    "tuple[Note, ...]": lambda value: isinstance(value, tuple) and all(isinstance(n, Note) for n in value),
}


@st.composite
def journals(draw):
    """The lines of a journal, some of them changed; those of ``GOOD`` are not, and come last."""
    lines = []
    for number in range(draw(st.integers(1, 5))):
        values = asdict(draw(st.sampled_from([GOOD, FAILED]))) | {"key": f"key{number % 3}"}
        for _ in range(draw(st.integers(0, 2))):
            name = draw(st.sampled_from(list(values)))
            match draw(st.sampled_from(["put", "put", "put", "remove", "rename"])):
                case "put":
                    values[name] = draw(st.sampled_from(ABSURD))
                case "remove":
                    del values[name]
                case "rename":
                    values[draw(st.sampled_from(["", "kEy", "self", "\0"]))] = values.pop(name)
        line = json.dumps(values).encode()
        if draw(st.integers(0, 3)) == 0:
            line = draw(damaged([line]) | st.sampled_from(JUNK) | st.binary(max_size=20))
        lines.append(line)
    return b"\n".join([*lines, json.dumps(asdict(GOOD)).encode(), b""])


def check_entry(entry, root):
    for field in fields(Entry):
        assert TYPES[str(field.type)](getattr(entry, field.name)), (field.name, entry)
    assert min(entry.source_bytes, entry.width, entry.height, entry.mask_bytes) >= 0
    mask = os.path.normpath(root / f"{entry.key}.png")
    assert mask.startswith(f"{root}{os.sep}")


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.slow
def test_any_journal_gives_sound_and_harmless_entries(tmp_path, count_faults):
    root = tmp_path / "above" / "out"
    (root / ".carvana-batch").mkdir(parents=True)
    outside = [tmp_path / "above" / "x.png", tmp_path / "x.png"]
    for path in outside:
        path.write_bytes(b"not of this program")

    def check(contents):
        for number, content in enumerate(contents, start=1):
            (root / ".carvana-batch" / f"journal-{number}-of-2.jsonl").write_bytes(content)
        entries = list(read_entries(root / ".carvana-batch").values())
        for entry in entries:
            check_entry(entry, root)
        assert GOOD in entries
        assert len({entry.key for entry in entries}) == len(entries)
        out = OutFolder(root, {}, (1, 1), overwrite=False)
        refs = [ImageRef(entry.key, tmp_path / "missing.jpg") for entry in entries]
        assert list(out.find_missing(refs)) == refs
        write_table(root / "report.csv", entries)
        with (root / "report.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            assert {len(row) for row in csv.reader(file, strict=True)} == {len(COLUMNS)}
        report = RunReport(1, 0, failures=[entry for entry in entries if entry.failed])
        report.expected_dice = [entry.expected_dice for entry in entries if entry.expected_dice is not None]
        report.write(root / "run.json")
        json.loads((root / "run.json").read_text(), parse_constant=refuse_constant)
        state = read_run_state(root)
        assert state.masked + state.failed + len(state.kept) == len(entries)
        with OutFolder(root, {}, (1, 2), overwrite=True) as afresh:
            afresh.find_missing(refs)
            afresh.start(Choice("cpu", "fp32", batch=1, most_pixels=4096))
            assert read_entries(root / ".carvana-batch") == {}
        assert all(path.exists() for path in outside)

    check([b"\n".join([*ABSURD_LINES, json.dumps(asdict(GOOD)).encode()])])
    number = len(ABSURD_LINES) + fuzz(check, 250, contents=st.lists(journals(), min_size=1, max_size=2))
    count_faults("any journal gives sound entries or none", number)


def test_the_last_line_of_a_journal_counts(tmp_path):
    first, second = (asdict(GOOD) | {"mask_bytes": size, "committed": 10 - size} for size in (1, 2))
    (tmp_path / "journal-1-of-1.jsonl").write_text(json.dumps(first) + "\n" + json.dumps(second))
    assert [entry.mask_bytes for entry in read_entries(tmp_path).values()] == [2]


def test_a_run_goes_on_after_a_journal_full_of_absurd_lines(zygote, tmp_path, count_faults):
    here = tmp_path / "here"
    for number in range(2):
        write_photo(here / "images" / f"car{number}.jpg", seed=number)
    predict = ("predict", "images", "out", "--precision", "fp32", "--workers", "0")
    assert zygote.run(here, *predict).code == 0
    before = {path.name: path.read_bytes() for path in (here / "out").glob("*.png")}
    journal = here / "out" / ".carvana-batch" / "journal-1-of-1.jsonl"
    with journal.open("ab") as file:
        file.write(b"\n" + b"\n".join(ABSURD_LINES))
    again = zygote.run(here, *predict, "--json")
    assert again.code == 0, again
    told = json.loads(again.stdout)
    assert (told["already_done"], told["done"], told["found"]) == (2, 0, 2)
    submitted = zygote.run(here, "submit", "--size", "any")
    assert submitted.code == 0, submitted
    afresh = zygote.run(here, *predict, "--overwrite")
    assert afresh.code == 0, afresh
    assert {path.name: path.read_bytes() for path in (here / "out").glob("*.png")} == before
    count_faults("any journal gives sound entries or none", len(ABSURD_LINES))


# ---- the run-length rows that are put aside


def test_any_file_of_rows_put_aside_gives_rows_that_are_rows(tmp_path, count_faults):
    mask = tmp_path / "mask.png"
    mask.write_bytes(encode_mask(PackedMask.from_bool(np.array([[True, False, True]]))))
    entries = [Entry(key, f"in/{key}.jpg", 5, 7) for key in ("a", "ä", "\udcff")]
    whole = b"\n".join(json.dumps([entry.key, [5, 7], "2 1"]).encode() for entry in entries)
    lines = st.tuples(*[st.sampled_from([*ABSURD, "a", [5, 7], "2 1"])] * 3).map(
        lambda line: json.dumps(line).encode()
    )
    contents = damaged([whole]) | st.lists(lines | st.sampled_from(JUNK), max_size=5).map(b"\n".join)
    path = tmp_path / "rows.jsonl"

    def check(content):
        path.write_bytes(content)
        with RunLengthSpool(path) as spool:
            spool.append(entries[0], "3 1")
            rows = list(spool.rows(entries, lambda key: mask))
        assert [entry for entry, _ in rows] == entries
        assert rows[0][1] == "3 1"
        assert all(re.fullmatch("[0-9 ]*", runs) for _, runs in rows)

    count_faults("any file of spooled rows gives rows", fuzz(check, 300, content=contents))


# ---- weights


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Weights of the only network in the registry, of a few kilobytes: as a dict, and as a file of ours."""
    for name in list(NETWORKS):
        monkeypatch.delitem(NETWORKS, name)
    monkeypatch.setitem(NETWORKS, "tiny", lambda: SegUNet((4,), center=4, decoder_convolutions=1))
    torch.manual_seed(0)
    weights = NETWORKS["tiny"]().state_dict()
    path = tmp_path / "tiny.safetensors"
    save_model(path, "tiny", weights, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), {"licence": "CC0"}, (480, 320), 960)
    return weights, path.read_bytes()


def load_or_refuse(path):
    """The model, or None where it is refused in one line that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = load_model(path)
    except ModelError as error:
        assert str(error).isprintable()
        assert str(path) in str(error)
        return None
    for value in model.network.state_dict().values():
        assert torch.isfinite(value).all()
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}
    assert all(map(math.isfinite, (*model.mean, *model.deviation)))
    return model


def with_header(header, body):
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


@st.composite
def headers(draw, whole):
    """A safetensors file whose header is JSON, but says something else in one to three places."""
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    texts = [
        "",
        "F32",
        "F16",
        "BF16",
        "F64",
        "I64",
        "C64",
        "BOOL",
        "U8",
        "F8_E4M3",
        "F4",
        "F6_E2M3",
        "I2",
        "tiny",
    ]
    texts += ["[0.5, 0.5, 0.5]", "[480, 320]", "[1e999, 1, 1]", "\x1b[31m", "carvana-batch weights 2"]
    values = st.sampled_from([*ABSURD, *texts, [0, 0], [4, 4], [2**63, 2], [0, 2**64], [1] * 99, [-1, 1]])
    for _ in range(draw(st.integers(1, 3))):
        place = header[draw(st.sampled_from(sorted(header)))]
        if not isinstance(place, dict) or not place:
            continue
        name = draw(st.sampled_from(sorted(place)))
        match draw(st.sampled_from(["put", "remove", "rename", "move"])):
            case "put":
                place[name] = draw(values)
            case "remove":
                del place[name]
            case "rename":
                place[draw(st.sampled_from(["", "Dtype", "network", "\x1b[31m", "\ud800"]))] = place.pop(name)
            case "move":
                key = draw(st.sampled_from(sorted(header)))
                header[draw(st.sampled_from(["", "__metadata__", "new", "\x1b[31m"]))] = header.pop(key)
    return with_header(header, whole[8 + length :])


def is_ours(content):
    """Whether the header of a safetensors file says that it comes from this program."""
    length = struct.unpack("<Q", content[:8])[0]
    notes = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return notes.get("format") == FORMAT or "digest" in notes


def test_changed_weights_are_refused_or_equivalent(tiny, tmp_path, count_faults):
    """Notes, such as the licence, may change; what makes a mask may not, as the digest covers it."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes(tiny[1])
    right = load_model(path)
    refused = 0

    def check(content):
        nonlocal refused
        path.write_bytes(content)
        model = load_or_refuse(path)
        if model is None:
            refused += 1
        elif is_ours(content):
            for name in ("name", "mean", "deviation", "size", "scale", "digest"):
                assert getattr(model, name) == getattr(right, name)
            for key, value in right.network.state_dict().items():
                assert torch.equal(model.network.state_dict()[key], value)

    number = fuzz(check, 300, content=damaged([tiny[1]]))
    number += fuzz(check, 400, content=headers(tiny[1]))
    assert refused > number / 2
    count_faults("any file of weights gives a sound model or is refused", number)


def saved(content, **options):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, buffer, **options)
    return buffer.getvalue()


def odd_tensors(value):
    """``value`` in forms in which a file may hold it, each with what it comes to in float32, or None."""
    exact = [
        value.double(),
        torch.nn.Parameter(value.clone()),
        value.transpose(0, 1).contiguous().transpose(0, 1),
    ]
    rounded = [value.to(dtype) for dtype in (torch.float16, torch.bfloat16)]
    usable = [*exact, *rounded, value.new_zeros(1).expand(value.shape)]
    refused = [value.to(torch.complex64), torch.complex(value, value).conj(), value.to("meta")]
    refused += [value.to_sparse(), value * math.nan, value.double() * 1e300, value.new_zeros(1).expand(10**9)]
    refused += [value.reshape(-1), value[None], value.new_empty(0), 1, "a", None, [1], {"a": 1}, (value,)]
    return [(tensor, tensor.float()) for tensor in usable] + [(odd, None) for odd in refused]


@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_of_odd_tensors_are_sound_or_refused(tiny, tmp_path, zipped, count_faults):
    path, key = tmp_path / "weights.pt", "encoder.0.1.0.weight"
    cases = [({**tiny[0], key: odd}, expected) for odd, expected in odd_tensors(tiny[0][key])]
    for name in ("new", 1, None, (1, 2), b"new", "\x1b[31m\n", "\ud800", "state_dict"):
        cases.append(({**tiny[0], name: tiny[0][key]}, None))
    for content, expected in cases:
        for wrapped in (content, {"state_dict": content, "epoch": 3}, {"model": content}):
            path.write_bytes(saved(wrapped, _use_new_zipfile_serialization=zipped))
            model = load_or_refuse(path)
            if expected is None:
                assert model is None
            else:
                assert torch.equal(model.network.state_dict()[key], expected)
    count_faults("any file of weights gives a sound model or is refused", 3 * len(cases))


@pytest.mark.slow
def test_any_pickle_gives_a_sound_model_or_is_refused(tiny, tmp_path, count_faults):
    """The parts of the archive are changed before it is packed, so that its checksums are right."""
    path = tmp_path / "weights.pt"
    loaded = 0
    with zipfile.ZipFile(io.BytesIO(saved(tiny[0]))) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in parts if name.endswith("data.pkl"))

    @st.composite
    def archives(draw):
        name = draw(st.sampled_from([pickled, pickled, pickled, *parts]))
        changed = parts | {name: draw(damaged([parts[name]]))}
        if draw(st.integers(0, 9)) == 0:
            del changed[name]
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", draw(st.sampled_from(METHODS[:2]))) as archive:
            for part, content in changed.items():
                archive.writestr(part, content)
        return buffer.getvalue()

    def check(content):
        nonlocal loaded
        path.write_bytes(content)
        loaded += load_or_refuse(path) is not None

    number = fuzz(check, 300, content=archives())
    assert 0 < loaded < number / 2
    old = saved(tiny[0], _use_new_zipfile_serialization=False)
    number += fuzz(check, 200, content=damaged([old, pickle.dumps({"state_dict": [1, 2.0, "a", None]})]))
    count_faults("any file of weights gives a sound model or is refused", number)
