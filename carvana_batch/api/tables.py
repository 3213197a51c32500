"""Scores of masks, and the competition's CSV."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import carvana_batch.commands.score as score_command
import carvana_batch.commands.submit as submit_command
from carvana_batch.api.arguments import parse, python_wording, reword, with_option_texts
from carvana_batch.api.masker import CarvanaBatchWarning
from carvana_batch.commands.buckets import enter_mask_folder
from carvana_batch.commands.score_report import describe_empty_sides
from carvana_batch.output.status import read_run_state
from carvana_batch.scoring.scores import Scores
from carvana_batch.submission.table import SubmissionSummary
from carvana_batch.submission.write import write_submission


@with_option_texts(score_command.command, PRED="pred")
def score(
    pred: str | Path,
    gt: str | Path,
    *,
    images: str | Path | None = None,
    size: str | tuple[int, int] | None = None,
    car_value: int | str | Sequence[int | str] = (),
    ignore_value: int | str | Sequence[int | str] = (),
    workers: int | None = None,
) -> Scores:
    """Compare masks with the true ones, as ``carvana-batch score`` does; nothing is written.

    Args:
        pred: the folder that ``predict_folder`` wrote, or run-length rows. This and ``gt`` may also be the
            URL of a folder in a bucket.
        gt: the true masks: a folder, or run-length rows (.csv, .csv.gz, .zip).
        {options}

    Returns:
        A row for each pair of masks, a :class:`Score`, to iterate over; ``summary`` has the means, and
        ``to_pandas()`` makes a table. Masks that could not be paired or compared are in ``missing``,
        ``extra`` and ``unusable``, and count in no mean; there is a warning if there are any.

    Raises:
        UsageError: the masks cannot be read, or none has a counterpart.
    """
    command = score_command.command
    keywords = {
        "gt": gt,
        "images": images,
        "size": size,
        "car_value": car_value,
        "ignore_value": ignore_value,
        "workers": workers,
    }
    names = {"PRED": "pred"}
    with python_wording(command, **names), parse(command, {"pred": pred}, keywords) as context:
        values = context.params
        predicted, truth = (enter_mask_folder(context, values[side]) for side in ("predicted", "truth"))
        scores = score_command.compare(predicted, truth, values)
        lines = [note.removeprefix("Warning: ") for note in scores.notes]
        lines += describe_empty_sides(scores, predicted.folder, truth.folder)
    left_out = {
        "true masks without a predicted one (missing)": scores.missing,
        "predicted masks without a true one (extra)": scores.extra,
        "masks that cannot be compared (unusable)": scores.unusable,
        "photos that cannot be used (unseen)": scores.unseen,
    }
    lines += [f"{what}: {len(those):,}" for what, those in left_out.items() if those]
    _warn([reword(line, command, **names) for line in lines])
    return scores


@with_option_texts(submit_command.command, MASKS="masks")
def submit(
    masks: str | Path,
    output: str | Path = "submission.csv.gz",
    *,
    size: str | tuple[int, int] = "1918x1280",
    sample: str | Path | None = None,
    car_value: int | str | Sequence[int | str] = (),
    workers: int | None = None,
) -> SubmissionSummary:
    """Turn the masks of a folder into the competition's CSV, as ``carvana-batch submit`` does.

    Args:
        masks: the folder that ``predict_folder`` wrote, or the URL of one in a bucket.
        output: the file to write; its name ends in .csv, .csv.gz or .zip.
        {options}

    Returns:
        The number of rows, and the size and SHA-256 of the file. There is a warning if photos have no mask
        yet, or no mask has a car.

    Raises:
        CarvanaBatchError: a mask cannot be read or has another size, or the file cannot be written; then
            there is none.
    """
    command = submit_command.command
    keywords = {
        "output": output,
        "size": size,
        "sample": sample,
        "car_value": car_value,
        "workers": workers,
    }
    names = {"MASKS": "masks"}
    with python_wording(command, **names), parse(command, {"masks": masks}, keywords) as context:
        values = context.params
        folder = values["masks"]
        local = enter_mask_folder(context, folder)
        state = read_run_state(local.folder)
        summary = write_submission(
            local.folder,
            values["output"],
            values["size"],
            sample=values["sample"],
            car_values=values["car_values"],
            workers=values["workers"],
            advice="" if state is None else submit_command.DAMAGED_ADVICE,
            reading=local.reading,
        )
    lines = [local.in_words(summary.doubt)] if summary.doubt else []
    if state is not None:
        lines += submit_command.describe_unfinished(folder, state)
        lines += submit_command.describe_lost(folder, state, summary.rows) if sample is None else []
    if summary.empty == summary.rows:
        lines.append(f"none of the masks in {folder} has a car")
    _warn([reword(line, command, **names) for line in lines])
    return summary


def _warn(lines: Sequence[str]) -> None:
    for line in lines:
        warnings.warn(line, CarvanaBatchWarning, stacklevel=3)
