"""What `score` prints: the means, where the errors are, and the images to look at; or all of it as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from carvana_batch.commands.lines import say
from carvana_batch.scoring.scores import Average, Group, Scores, Summary, summarise
from carvana_batch.text import shown
from carvana_batch.values import Failure

WORST_SHOWN = 5
NAMES_SHOWN = 5
GROUPS_SHOWN = 20


def describe_empty_sides(scores: Scores, predicted: Path, truth: Path) -> list[str]:
    """A line for each side all of whose masks are empty, which is a mistake in reading or writing them."""
    values = "check their values, of which the higher is car"
    sides = [
        ("predicted", predicted, values, [row.area_predicted for row in scores.rows]),
        ("true", truth, f"{values} (or --car-value)", [row.area_true for row in scores.rows]),
    ]
    lines = []
    for side, path, advice, areas in sides:
        if areas and not any(areas):
            if not path.is_dir():
                advice = f"their rows in {shown(path)} are empty"
            lines.append(
                f"none of the {len(scores.rows):,} {side} masks that were compared has a car: {advice}."
            )
    return lines


def print_empty(scores: Scores) -> None:
    """Say how many pairs are empty on both sides, and the mean Dice without them."""
    kept = scores.not_empty
    count = len(scores.rows) - len(kept)
    without = summarise(kept)
    mean = f"; mean Dice without them: {without.dice:.6f}" if count and without else ""
    say(f"Empty on both sides, counted as 1: {count:,}{mean}")


def describe(scores: Scores, output: Path, page: Path | None = None) -> dict[str, object]:
    """Return the scores for JSON; ``summary`` is null if no image was scored."""
    summary = scores.summary
    return {
        "summary": None if summary is None else describe_means(summary, scores.averages),
        "empty_on_both_sides": len(scores.rows) - len(scores.not_empty),
        "views": [
            {"view": group.name, **describe_means(group.summary, group.averages)} for group in scores.views
        ],
        "cars": [
            {"car": group.name, **describe_means(group.summary, group.averages)} for group in scores.cars
        ],
        "worst": [
            {column: getattr(row, column) for column in scores.columns}
            for row in scores.find_worst(WORST_SHOWN)
        ],
        "missing": scores.missing,
        "extra": scores.extra,
        "unusable": [describe_failure(failure) for failure in scores.unusable],
        "unseen": [describe_failure(failure) for failure in scores.unseen],
        "notes": scores.notes,
        "turned": scores.turned,
        "unclear_orientation": scores.unclear,
        "scores": str(output),
        "page": None if page is None else str(page),
    }


def describe_failure(failure: Failure) -> dict[str, str]:
    return {"image": failure.id, "reason": failure.reason}


def describe_means(summary: Summary, averages: Mapping[str, Average]) -> dict[str, object]:
    """Return all means for JSON; ``defined_for`` is the number of images for which a metric is defined."""
    return {
        **dataclasses.asdict(summary),
        **{name: average.value for name, average in averages.items()},
        "defined_for": {name: average.images for name, average in averages.items()},
    }


def print_scores(scores: Scores, output: Path) -> None:
    if scores.summary:
        say(f"Masks scored: {scores.summary.images:,}")
        print_empty(scores)
        print_summary(scores.summary)
        print_outline(scores.averages, scores.summary.images)
        print_groups("view", scores.views, GROUPS_SHOWN)
        print_groups("car", scores.cars, WORST_SHOWN)
        say("\nLowest Dice")
        for row in scores.find_worst(WORST_SHOWN):
            say(f"  {row.dice:.6f}  {shown(row.image)}")
    else:
        say("No mask could be scored.")
    if scores.turned or scores.unclear:
        print_orientations(scores)
    print_names("True masks without a predicted one", scores.missing)
    print_names("Predicted masks without a true one", scores.extra)
    print_names("Masks that cannot be compared", list_reasons(scores.unusable))
    print_names("Photos that cannot be used", list_reasons(scores.unseen))
    say(f"\nEach image's scores: {shown(output)}")


def print_orientations(scores: Scores) -> None:
    say()
    if scores.turned:
        say(
            "Pairs of an upright mask and one as the photo is stored, turned alike by its EXIF orientation:"
            f" {scores.turned:,}"
        )
    if scores.unclear:
        say(
            f"Photos whose EXIF orientation keeps their size: {scores.unclear:,}; their masks were compared"
            " as they are, because it cannot be told whether one is upright and the other as stored"
        )


def list_reasons(failures: Sequence[Failure]) -> list[str]:
    return [f"{failure.id}: {failure.reason}" for failure in failures]


def print_summary(summary: Summary) -> None:
    print_lines(
        ("mean Dice", f"{summary.dice:.6f}", ""),
        ("mean IoU", f"{summary.iou:.6f}", ""),
        ("mean pixel accuracy", f"{summary.pixel_accuracy:.6f}", ""),
        ("mean precision", f"{summary.precision:.6f}", ""),
        ("mean recall", f"{summary.recall:.6f}", ""),
        ("Dice at 5 %", f"{summary.dice_05:.6f}", ""),
        ("Dice at 50 %", f"{summary.dice_50:.6f}", ""),
        ("Dice at 95 %", f"{summary.dice_95:.6f}", ""),
    )


def print_outline(averages: Mapping[str, Average], images: int) -> None:
    """Print the metrics of the outlines, with a note for metrics that are not defined for all images."""

    def note_coverage(average: Average) -> str:
        return "" if average.images == images else f"in {average.images:,} of {images:,} images"

    def line(label: str, name: str, template: str, note: str = "") -> tuple[str, str, str]:
        average = averages[name]
        value = "-" if average.value is None else template.format(average.value)
        return label, value, ", ".join(part for part in (note, note_coverage(average)) if part)

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%} of it"

    print_lines(
        line("distance between outlines", "boundary_mean", "{:.2f} px"),
        line("  95th percentile", "boundary_p95", "{:.2f} px"),
        line("Dice within 5 px of the outline", "band_dice", "{:.4f}"),
    )
    whole, lower = averages["outline_error"].pixels, averages["lower_error"].pixels
    lower_share = share(lower / whole if whole and lower else None)
    errors = [
        line("error along the true outline", "outline_error", "{:.2f} px"),
        line("  lower outline", "lower_error", "{:.2f} px", lower_share),
    ]
    if "similar_error" in averages:
        similar_share = share(averages["similar_share"].value)
        errors.append(line("  similar colours", "similar_error", "{:.2f} px", similar_share))
    thin = averages["thin_recall"]
    note = f"{thin.pixels:,} px" if thin.pixels else ""
    print_lines(*errors, line("recall of thin structures", "thin_recall", "{:.4f}", note))


def print_lines(*lines: tuple[str, str, str]) -> None:
    """Print a paragraph of lines, each a label, a value and a note."""
    say()
    for label, value, note in lines:
        say(f"{label:<34}{value:>8}" + (f"  ({note})" if note else ""))


def print_groups(kind: str, groups: Sequence[Group], limit: int) -> None:
    """Print one line per group, or only the ``limit`` with the lowest Dice; nothing for a single group."""
    if len(groups) < 2:
        return
    kept = groups
    if len(groups) > limit:
        kept = sorted(groups, key=lambda group: (group.summary.dice, group.name))[:limit]
        say(f"\nThe {limit} of {len(groups):,} {kind}s with the lowest Dice (--json has all)")
    else:
        say(f"\nBy {kind}")
    say("  images    Dice     5 %     IoU  precision  recall  distance  " + kind)
    for group in kept:
        summary, boundary_mean = group.summary, group.averages["boundary_mean"].value
        distance = "-" if boundary_mean is None else f"{boundary_mean:.2f} px"
        say(
            f"  {summary.images:>6,}  {summary.dice:.4f}  {summary.dice_05:.4f}  {summary.iou:.4f}"
            f"  {summary.precision:>9.4f}  {summary.recall:.4f}  {distance:>8}  {shown(group.name)}"
        )


def print_names(heading: str, names: Sequence[str]) -> None:
    """Print the number of names and the first few of them; nothing if there are none."""
    if not names:
        return
    say(f"\n{heading}: {len(names):,}")
    for name in names[:NAMES_SHOWN]:
        say(f"  {shown(name)}")
    if len(names) > NAMES_SHOWN:
        say(f"  ... and {len(names) - NAMES_SHOWN:,} more")
