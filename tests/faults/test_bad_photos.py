"""Photos that are damaged, not images, too large for memory, or have harmful names."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import struct
import subprocess
import unicodedata
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import Terminal, Zygote, names_in, results_in, wait_for
from PIL import EpsImagePlugin, Image

PREDICT = ("predict", "images", "out", "--precision", "fp32")
BOMB_BYTES = 300_000_000


@pytest.fixture(scope="module")
def ghost(tmp_path_factory):
    """A folder for PATH with a fake Ghostscript that creates the file ``started``."""
    folder = tmp_path_factory.mktemp("ghost")
    program = folder / "gs"
    program.write_text(f"#!/bin/sh\ntouch {folder}/started\n")
    program.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def zygote(ghost):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(ghost), prepend=os.pathsep)
        started = Zygote(Path(__file__).parents[1] / "zygote.py")
    with started:
        yield started


# ---- bad files: path -> content


def saved(image_format, mode="RGB", size=(96, 64), **options):
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


def cut_jpegs():
    """Truncated JPEGs, some by only a few bytes, and one whose end a system crash left as zeros."""
    found = {}
    for kind in ("baseline", "progressive"):
        whole = saved("JPEG", quality=95, progressive=kind == "progressive")
        assert whole.endswith(b"\xff\xd9")  # nothing follows the image
        for percent in range(5, 100, 5):
            found[f"{kind} {percent:02}.jpg"] = whole[: len(whole) * percent // 100]
        for missing in (4, 16):
            found[f"{kind} without {missing}.jpg"] = whole[:-missing]
        found[f"{kind} zeros.jpg"] = whole[: len(whole) // 2].ljust(len(whole), b"\0")
    return found


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, rows, *extra):
    """A grey PNG with 8 bits a pixel; ``rows`` are compressed scanlines."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = header + b"".join(extra) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_of_size(width, height):
    """A small JPEG whose header claims another size."""
    content = bytearray(saved("JPEG", mode="L"))
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def tiff(width, height, compression, strip):
    """A grey TIFF of one strip."""
    start = 8 + 2 + 9 * 12 + 4
    values: tuple[tuple[int, int], ...]
    values = ((256, width), (257, height), (258, 8), (259, compression), (262, 1), (273, start), (277, 1))
    values += ((278, height), (279, len(strip)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values)
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + strip


def zeros():
    """Compressed data that expands to ``BOMB_BYTES`` zeros."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(10**6)) for _ in range(BOMB_BYTES // 10**6)) + packer.flush()


def bombs():
    return {
        "strip.tif": tiff(96, 64, 8, zeros()),
        "picture in a strip.tif": tiff(96, 64, 7, jpeg_of_size(30_000, 30_000)),
        "small header.tif": tiff(96, 64, 34712, saved("JPEG2000", size=(4000, 4000))),
    }


def harmless_bombs():
    """PNGs with data that would expand to much, but do not have to be decompressed, or only in part."""
    packed, rows = zeros(), zlib.compress(bytes(64 * 97))
    return {
        "too much.png": png(96, 64, packed),  # more than the header claims
        "text.png": png(96, 64, rows, chunk(b"zTXt", b"Comment\0\0" + packed)),
        "international text.png": png(96, 64, rows, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed)),
        "profile.png": png(96, 64, rows, chunk(b"iCCP", b"icc\0\0" + packed)),
    }


def fits():
    cards: tuple[str, ...] = (
        "SIMPLE  =                    T",
        "BITPIX  =                    8",
        "NAXIS   =                    2",
    )
    cards += ("NAXIS1  =                   96", "NAXIS2  =                   64", "END")
    return "".join(card.ljust(80) for card in cards).encode().ljust(2880) + bytes(2880 * 3)


def other_formats():
    """Files that Pillow can open, by its name of the format."""
    formats = {name: saved(name) for name in ("EPS", "ICO", "PCX", "PPM", "SGI", "TGA", "DDS")}
    formats |= {name: saved(name, mode="1") for name in ("XBM", "MSP")}
    photoshop = struct.pack(">4sH6xHIIHHIIIH", b"8BPS", 1, 1, 64, 96, 8, 1, 0, 0, 0, 0)
    return formats | {"FITS": fits(), "PSD": photoshop + bytes(64 * 96)}


UNREADABLE = {
    "pdf.jpg": b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
    "svg.jpg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "program.jpg": b"%!PS\n(/tmp/pwned) (w) file closefile\n%%EOF\n",
    "text.jpg": b"no photo\n",
}


def write(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, drawn):
    """A folder whose ``images`` are eight good photos among many bad files.

    Also a pattern for the reason of each bad file, by path.
    """
    here = tmp_path_factory.mktemp("mixed") / "here"
    images = here / "images"
    groups = {
        "cut": (cut_jpegs(), "cut short"),
        "huge": (
            {"a.jpg": jpeg_of_size(60_000, 60_000), "b.png": png(60_000, 60_000, zlib.compress(b"\0"))},
            "has 60000 x 60000 pixels, more than the limit",
        ),
        "bombs": (bombs(), "damaged|compression JPEG2000"),
        "other": (
            {f"{name}.jpg": content for name, content in other_formats().items()} | UNREADABLE,
            "not an image in a supported format|which is not read",
        ),
        "empty": ({"a.jpg": b"", "b.png": b"", "c.tif": b""}, "is empty"),
    }
    bad = {}
    for name, (files, reason) in groups.items():
        write(images / name, files)
        bad |= {f"images/{name}/{file}": reason for file in files}
    (images / "links").mkdir()
    for name, target, reason in (
        ("dangling.jpg", "nothing.jpg", "is a link to a file that does not exist"),
        ("loop.jpg", "loop.jpg", "symbolic link"),
        ("long.jpg", "/" + "x" * 300, "too long"),
        ("folder.jpg", "/dev/null/x", "cannot be read|does not exist"),
    ):
        (images / "links" / name).symlink_to(target)
        bad[f"images/links/{name}"] = reason
    for name in ("a.jpg", "b.jpg", "folder.jpg/c.jpg"):
        (images / name).parent.mkdir(exist_ok=True)
        shutil.copy2(drawn / "images" / "car0.jpg", images / name)
    (images / "links" / "inside.jpg").symlink_to("../a.jpg")
    write(images / "packed", harmless_bombs())

    (here / "elsewhere").mkdir()
    shutil.copy2(drawn / "images" / "car1.jpg", here / "elsewhere" / "secret.jpg")
    (images / "links" / "outside.jpg").symlink_to("../../elsewhere/secret.jpg")
    (images / "links" / "outside").symlink_to("../../elsewhere")
    os.mkfifo(images / "links" / "pipe.jpg")
    return here, bad


HARMLESS_BOMBS = ("too much.png", "text.png", "international text.png", "profile.png")
GOOD = {"a", "b", "folder.jpg/c", "links/inside", *(f"packed/{name[:-4]}" for name in HARMLESS_BOMBS)}
OUTSIDE = {"links/outside", "links/outside/secret"}


@pytest.fixture(scope="module")
def good_masks(mixed, zygote):
    """The out folder of a run over only the good photos."""
    here = mixed[0].with_name("good_masks")
    for name in GOOD:
        source = mixed[0] / "images" / f"{name}.jpg"
        source = source if source.exists() else source.with_suffix(".png")
        (here / "images" / source.relative_to(mixed[0] / "images")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, here / "images" / source.relative_to(mixed[0] / "images"))
    finished = zygote.run(here, *PREDICT, "--workers", "0")
    assert finished.code == 0, finished
    return here / "out"


def masks_in(out):
    """The files in an out folder except its tables: path -> bytes."""
    return {name: content for name, content in results_in(out).items() if not name.endswith(".csv")}


def read_csv(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file, strict=True))


def assert_all_reported(finished, out, bad):
    """Check that the reports list all bad photos with their reasons, and the screen the first ten."""
    assert finished.code == 3, finished
    assert "Traceback" not in finished.stdout + finished.stderr
    failures = json.loads((out / "run.json").read_text(encoding="ascii"))["failures"]
    assert {failure["image"] for failure in failures} == bad.keys()
    for failure in failures:
        assert re.search(bad[failure["image"]], failure["reason"]), failure
    header, *rows = read_csv(out / "report.csv")
    reasons = [row[header.index("reason")] for row in rows if row[1] == "failed"]
    assert sorted(reasons) == sorted(failure["reason"] for failure in failures)
    lines = [line for line in finished.stderr.splitlines() if line.startswith("failed: ")]
    assert len(lines) == min(len(bad), 10) + (len(bad) > 10)
    if len(bad) > 10:
        assert lines[-1] == f"failed: {len(bad) - 10} more, all in out/report.csv"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_good_photos_are_masked_and_bad_ones_reported(
    zygote, mixed, good_masks, ghost, workers, count_faults
):
    here, bad = mixed
    shutil.rmtree(here / "out", ignore_errors=True)
    finished = zygote.run(here, *PREDICT, "--workers", workers)
    assert_all_reported(finished, here / "out", bad)
    assert masks_in(here / "out") == masks_in(good_masks)
    assert not [name for name in names_in(here / "out") if name.endswith(".tmp")]
    assert re.search(r"1 × links leading out of the folder \(use --follow-links\)", finished.stdout)
    assert re.search(r"1 × links to folders \(use --follow-links\)", finished.stdout)
    assert re.search(r"1 × pipes, sockets and devices", finished.stdout)
    assert not (ghost / "started").exists()

    again = zygote.run(here, *PREDICT, "--workers", workers, "--json")
    assert again.code == 3
    summary = json.loads(again.stdout)
    assert (summary["already_done"], summary["done"], summary["failed"]) == (len(GOOD), 0, len(bad))
    assert masks_in(here / "out") == masks_in(good_masks)
    count_faults("a bad photo costs one line in the report, all others are masked", 2 * len(bad) + 3)


def test_links_out_of_the_folder_are_followed_on_request(zygote, mixed, good_masks, count_faults):
    here, bad = mixed
    shutil.rmtree(here / "out", ignore_errors=True)
    finished = zygote.run(here, *PREDICT, "--workers", "0", "--follow-links")
    assert_all_reported(finished, here / "out", bad)
    masked = masks_in(here / "out")
    assert masked.keys() == masks_in(good_masks).keys() | {f"{name}.png" for name in OUTSIDE}
    assert "links leading out" not in finished.stdout
    count_faults("a bad photo costs one line in the report, all others are masked", len(bad) + 1)


def test_memory_does_not_depend_on_what_a_file_claims(zygote, mixed, tmp_path, count_faults):
    def measure(*folders):
        here = tmp_path / "-".join(folders or ["none"])
        (here / "images").mkdir(parents=True)
        shutil.copy2(mixed[0] / "images" / "a.jpg", here / "images")
        for folder in folders:
            shutil.copytree(mixed[0] / "images" / folder, here / "images" / folder)
        code = zygote.run(here, *PREDICT, "--workers", "0").code
        return code, json.loads((here / "out" / "run.json").read_text())["peak_memory_bytes"]

    code, usual = measure()
    assert (code, usual > BOMB_BYTES / 4) == (0, True)  # this is the memory of the whole process
    for folder, expected in (("bombs", 3), ("huge", 3), ("packed", 0)):
        code, peak = measure(folder)
        assert code == expected
        assert peak - usual < BOMB_BYTES / 5, folder
    count_faults("memory does not depend on the size a header claims", 9)


def test_other_formats_are_refused_despite_decoders(tmp_path, monkeypatch):
    for name, content in other_formats().items():
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == name
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with (
        Image.open(io.BytesIO(other_formats()["EPS"])) as image,
        contextlib.suppress(OSError, subprocess.SubprocessError),  # the fake produces no image
    ):
        image.load()
    assert (tmp_path / "started").exists()


# ---- names


LONGEST = "x" * (255 - len("_01.jpg"))
NAMES = [
    "line\nbreak",
    "\nfirst",
    "carriage\rreturn",
    "\t=tab",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "[red]name[/red]",
    "[bold",
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "</script x",
    "<!--",
    "\"'><svg onload=alert(1)>",
    "${style} $predicted",
    "=cmd()|'x'!A1",
    "+1",
    "-rf",
    "@SUM(A1)",
    'quote", and comma',
    "right\u202eleft",
    "separators\u2028\u2029\x85",
    "日本語",
    "{0} %s",
    "back\\slash\\n",
    "a;=cmd()",
    "next\x85line",
    "isolate\u2066d",
    LONGEST,
]
NOT_UTF8 = os.fsdecode(b"not\xfftext")
FORMULAS = ("=", "+", "-", "@")
BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def escape_unprintable(text):
    """Replace unprintable characters of ``text`` by Python escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def escape_controls(text):
    """Replace control and bidi characters and line ends, by their Unicode properties."""
    harmful = {letter for letter in text if unicodedata.category(letter) in {"Cc", "Zl", "Zp"}}
    harmful |= {letter for letter in text if unicodedata.bidirectional(letter) in BIDI_CONTROLS}
    for letter in harmful:
        text = text.replace(letter, (r"\x%02x" if letter < "\u0100" else r"\u%04x") % ord(letter))
    return text


def cell_of(text):
    """What a table for people shows for a name."""
    escaped = escape_controls(text)
    return re.sub(";(?=[=+@-])", ";'", f"'{escaped}" if escaped.startswith(FORMULAS) else escaped)


def row_name_of(text):
    """What a table of run-length rows shows for a name."""
    return re.sub("(^|;)([=+@-])", lambda sign: f"{sign[1]}\\x{ord(sign[2]):02x}", escape_controls(text))


def assert_printable(printed):
    """Check that the lines contain nothing that a terminal would interpret."""
    assert all(line.isprintable() for line in printed.split("\n")), printed


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """All names that this file system accepts."""
    try:
        (tmp_path_factory.mktemp("names") / NOT_UTF8).touch()
    except OSError:
        return NAMES
    return [*NAMES, NOT_UTF8]


def test_this_file_system_accepts_names_that_are_not_utf8(names):
    if NOT_UTF8 not in names:
        pytest.skip("names that are not UTF-8 are refused by this file system, so they are not tested")


def write_inputs(here, names, drawn):
    """Write two ``images`` of each name, their ``truth``, and a ``partial`` truth.

    In ``partial``, a third of the masks is missing, a third has another size, and some have no photo.
    """
    truth = (drawn / "masks" / "car0_mask.gif").read_bytes()
    for number, name in enumerate(names):
        files = {}
        for view in ("01", "02"):
            files[f"images/{name}_{view}.jpg"] = (drawn / "images" / "car0.jpg").read_bytes()
            files[f"truth/{name}_{view}.gif"] = truth
            if number % 3:
                files[f"partial/{name}_{view}.gif"] = (
                    truth if number % 3 == 1 else saved("GIF", "1", size=(2, 2))
                )
        files[f"partial/{name}_03.gif"] = truth
        for path, content in files.items():
            (here / path).parent.mkdir(parents=True, exist_ok=True)
            (here / path).write_bytes(content)


@pytest.fixture(scope="module")
def masked_names(tmp_path_factory, drawn, zygote, names):
    """A folder in which two good photos of each name were masked."""
    here = tmp_path_factory.mktemp("masked_names") / "here"
    write_inputs(here, names, drawn)
    finished = zygote.run(here, *PREDICT, "--workers", "0")
    assert finished.code == 0, finished
    assert_printable(finished.stdout)
    return here


def keys_for(names):
    return {f"{name}_{view}" for name in names for view in ("01", "02")}


def test_photos_of_any_name_are_masked_and_reported(masked_names, names, count_faults):
    keys = keys_for(names)
    assert masks_in(masked_names / "out").keys() == {f"{key}.png" for key in keys}
    header, *rows = read_csv(masked_names / "out" / "report.csv")
    assert {row[0] for row in rows} == {cell_of(key) for key in keys}
    assert [len(row) for row in rows] == [len(header)] * len(keys)
    count_faults("a hostile file name does no harm", len(keys))


@pytest.mark.parametrize("on_terminal", [False, True])
def test_bad_photos_of_any_name_are_reported(zygote, names, tmp_path, on_terminal, count_faults):
    for first in range(0, len(names), 10):  # the number of failures that the screen lists
        here = tmp_path / str(first)
        images = "in\n\x1b[31m[red]"
        paths = [f"{images}/{name}.jpg" for name in names[first : first + 10]]
        for path in paths:
            (here / path).parent.mkdir(parents=True, exist_ok=True)
            (here / path).touch()
        predict = ("predict", images, "out", "--precision", "fp32", "--workers", "0")
        if on_terminal:
            with Terminal(columns=1000) as terminal:  # so that no line is broken
                process = zygote.start(here, *predict, tty=terminal.name)
                wait_for(lambda: (terminal.printed, process.poll())[1], lambda code: code is not None)  # noqa: B023
                printed = terminal.printed.replace("\r\n", "\n")
            assert process.code == 3
            assert "━" in printed
            printed = re.sub(r"\x1b\[(\?25[lh]|[0-9;]*[mKA])|\r", "", printed)  # escapes of the progress bar
            assert_printable(printed)
            lines = printed.split("\n")
        else:
            finished = zygote.run(here, *predict)
            assert finished.code == 3, finished
            assert_printable(finished.stdout + finished.stderr)
            lines = finished.stderr.split("\n")
        failed = {f"failed: {escape_unprintable(path)} (decode): is empty (0 bytes)" for path in paths}
        assert {line for line in lines if line.startswith("failed")} == failed
        failures = json.loads((here / "out" / "run.json").read_text(encoding="ascii"))["failures"]
        assert {failure["image"] for failure in failures} == set(paths)
        assert masks_in(here / "out") == {}
    count_faults("a hostile file name does no harm", len(names))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x" * 255, "the name is too long for a file"),
        ("report.csv/a.jpg", "where the report of this name belongs"),
        ("run.json/deeper/a.jpg", "where the report of this name belongs"),
    ],
)
def test_impossible_mask_names_are_refused_early(zygote, drawn, tmp_path, name, reason, count_faults):
    here = tmp_path / "here"
    (here / name).parent.mkdir(parents=True)
    shutil.copy2(drawn / "images" / "car0.jpg", here / name)
    (here / "list").write_text(name)
    finished = zygote.run(here, "predict", "--files-from", "list", "out")
    assert (finished.code, finished.stdout) == (2, "")
    assert re.fullmatch(f"Error: {name} cannot be masked: .*{reason}.*\n", finished.stderr)
    assert not (here / "out").exists()
    count_faults("a hostile file name does no harm", 1)


def test_a_submission_has_no_formulas_and_gives_every_name_back(zygote, masked_names, names, count_faults):
    finished = zygote.run(masked_names, "submit", "--size", "any", "-o", "rows.csv")
    assert finished.code == 0, finished
    assert_printable(finished.stdout + finished.stderr)
    header, *rows = read_csv(masked_names / "rows.csv")
    assert header == ["img", "rle_mask"]
    assert {row[0] for row in rows} == {row_name_of(f"{key}.jpg") for key in keys_for(names)}
    assert {len(row) for row in rows} == {2}
    finished = zygote.run(masked_names, "decode", "rows.csv", "decoded", "--size", "96x64")
    assert finished.code == 0, finished
    assert_printable(finished.stdout + finished.stderr)
    assert masks_in(masked_names / "decoded") == masks_in(masked_names / "out")
    count_faults("a hostile file name does no harm", len(rows))


class Page(HTMLParser):
    """The elements of a page with the names of their attributes, and the JSON in the page by id."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.json, self._reading = [], {}, None
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        self.json = {name: json.loads(text) for name, text in self.json.items()}

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.elements.append((tag, *(name for name, _ in attributes)))
        self._reading = given.get("id") if given.get("type") == "application/json" else None

    def handle_endtag(self, tag):
        self._reading = None

    def handle_comment(self, data):
        self.elements.append(("a comment", data))

    def handle_data(self, data):
        if self._reading:
            self.json[self._reading] = self.json.get(self._reading, "") + data


@pytest.mark.parametrize(("truth", "code"), [("truth", 0), ("partial", 3)])
def test_scores_and_their_page_show_every_name_as_text(
    zygote, masked_names, names, drawn, tmp_path, truth, code, count_faults
):
    """Names add no elements or attributes.

    They are those of a page with harmless names of the same lengths and in the same order.
    """
    other = tmp_path / "other"
    ranks = {name: rank for rank, name in enumerate(sorted(names))}
    harmless = [f"{ranks[name]:02}".ljust(len(name), "a") for name in names]
    write_inputs(other, harmless, drawn)
    (other / "out").mkdir()
    for key in keys_for(harmless):
        shutil.copy2(masked_names / "out" / f"{names[0]}_01.png", other / "out" / f"{key}.png")
    pages = []
    for here in (masked_names, other):
        scored = zygote.run(
            here,
            "score",
            "--gt",
            truth,
            "--images",
            "images",
            "--html",
            f"{truth}.html",
            "-o",
            f"{truth}.csv",
        )
        assert scored.code == code, scored
        assert_printable(scored.stdout + scored.stderr)
        pages.append(Page(here / f"{truth}.html"))
    assert pages[0].elements == pages[1].elements
    assert len(pages[0].elements) > 200
    keys = {key for key in keys_for(names) if (masked_names / truth / f"{key}.gif").exists()}
    keys = {key for key in keys if truth == "truth" or names.index(key[:-3]) % 3 == 1}
    shown = {escape_unprintable(key) for key in keys}
    assert {row[0] for row in pages[0].json["data"]["rows"]} == shown
    pictures = {content["image"] for name, content in pages[0].json.items() if name.startswith("picture-")}
    assert (len(pictures), pictures <= shown) == (12, True)
    header, *rows = read_csv(masked_names / f"{truth}.csv")
    assert {row[0] for row in rows} == {cell_of(key) for key in keys}
    assert [len(row) for row in rows] == [len(header)] * len(keys)
    count_faults("a hostile file name does no harm", len(list((masked_names / truth).rglob("*.gif"))))
