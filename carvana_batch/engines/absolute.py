"""Paths from the root, for workers in other processes and on other machines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from carvana_batch.engines.contract import Job
from carvana_batch.text import shown


def absolute(path: str) -> str:
    """The path from the root, for processes in other folders and on other machines.

    Links are kept, because they may lead elsewhere on other machines; but not before "..", as the folder
    above the target of a link is not that of the link.
    """
    if f"{os.sep}.." in f"{os.sep}{path}":
        folder, name = os.path.split(path)
        return f"{os.path.realpath(folder)}{os.sep}{name}"
    return os.path.abspath(path)  # noqa: PTH100


def absolute_job(job: Job) -> tuple[Job, Mapping[str, str]]:
    """The job for other processes, and how the paths in it were given, by their absolute text."""
    root, truth = Path(absolute(str(job.root))), job.truth
    given = {f"{shown(root)}/": f"{shown(job.root)}/"} if root != job.root else {}
    if truth is not None and not truth.path.is_absolute():
        path = Path(absolute(str(truth.path)))
        given[f"{shown(path)}/"] = f"{shown(truth.path)}/"
        files = {image: Path(absolute(str(file))) for image, file in truth.files.items()}
        truth = replace(truth, path=path, files=files)
    return replace(job, root=root, truth=truth), given
