"""``carvana-batch demo``."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track

from carvana_batch.commands import group
from carvana_batch.commands.command import Command
from carvana_batch.commands.lines import command_line, say
from carvana_batch.errors import UsageError
from carvana_batch.text import shown

MARKER = ".carvana-batch-demo"
"""A file that tells a demo's folder, whose photos may be deleted, from any other."""

OPENERS = {"darwin": "open", "win32": "start"}
"""The command that opens a file, by ``sys.platform``; elsewhere, xdg-open."""


@click.command(cls=Command)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default="demo")
@click.option("--photos", type=click.IntRange(min=1), default=12, show_default=True, help="Photos to draw.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Other seeds, other cars."
)
@click.pass_context
def command(context: click.Context, folder: Path, photos: int, seed: int) -> None:
    """Draw studio photos with their true masks, then predict, submit, score and review them.

    The photos are drawings, made on the spot at 1918x1280; how well they are masked says that the tool
    works, not how good the model is on real photos. Everything lies in FOLDER (default: demo) afterwards.
    """
    from carvana_batch.demo import iter_write_photos

    images, masks, out = folder / "images", folder / "masks", folder / "out"
    _clear(folder, images, masks, out)
    say(f"Drawing {photos} studio photos of made-up cars, with their true masks, into {shown(folder)}")
    drawn = iter_write_photos(folder, count=photos, seed=seed)
    quiet = not sys.stderr.isatty()
    with (folder / MARKER).open("a", buffering=1, encoding="ascii") as marker:
        for name in track(drawn, "Drawing", total=photos, console=Console(stderr=True), disable=quiet):
            marker.write(f"{name}\n")
    submission, scores = folder / "submission.csv.gz", folder / "scores.csv"
    pages = {
        folder / "review.html": "the masks, the doubtful first",
        folder / "score.html": "the masks against the true ones",
    }
    review_page, score_page = map(str, pages)
    steps: list[list[str]] = [
        ["predict", str(images), str(out), "--overwrite", "--save", "overlay"],
        ["submit", str(out), "-o", str(submission)],
        ["score", str(out), "--gt", str(masks), "-o", str(scores), "--html", score_page],
        ["review", str(out), "-o", review_page],
    ]
    for arguments in steps:
        say("\n" + command_line(["carvana-batch", *arguments], "$ "))
        code = group.main(arguments, prog_name="carvana-batch", standalone_mode=False)
        if code:
            context.exit(code)
    say("\nThese photos are drawings; for real ones: carvana-batch predict in/ out/")
    say("Look at:")
    for path, what in (
        (images, "the drawn photos"),
        (out, "their masks; report.csv has the doubtful first"),
        (out / "_overlay", "the masks laid over the photos"),
        (submission, "the run-length rows of the masks"),
        (scores, "each photo's Dice"),
    ):
        say(f"  {shown(path):<26} {what}")
    opener = OPENERS.get(sys.platform, "xdg-open")
    say(f"Open in a browser, with `{opener} FILE` or by a double click:")
    for path, what in pages.items():
        say(f"  {shown(path):<26} {what}")


def _clear(folder: Path, images: Path, masks: Path, out: Path) -> None:
    """Make the folder, and remove what an earlier demo drew and masked; nothing else."""
    from carvana_batch.files import check_out_folder, remove_file
    from carvana_batch.output.paths import OutPaths

    check_out_folder(folder)
    marker = folder / MARKER
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        raise UsageError(f"{shown(folder)} holds files that are not a demo's. Name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()  # it lists what is drawn from now on
    for name in marker.read_text(encoding="ascii").split():
        drawn = (images / f"{name}.jpg", masks / f"{name}_mask.gif")
        masked = OutPaths(out).of_photo(name).values()  # predict --overwrite would keep these masks
        for path in (*drawn, *masked):
            remove_file(path)
    marker.write_text("", encoding="ascii")
