"""TOML files that hold the settings of a command."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from carvana_batch.errors import UsageError
from carvana_batch.text import shown


def read_settings_file(path: Path, known: Collection[str]) -> dict[str, Any]:
    """Read a TOML file as option name, with underscores -> value. Values are not checked.

    Args:
        path: the file, that of ``--config``.
        known: the names that it may have, with underscores.

    Raises:
        UsageError: the file cannot be read, is not TOML, or has a key that is not known.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {shown(path)} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise UsageError(f"--config {shown(path)} is not TOML: {error}.") from error
    options = [name.replace("_", "-") for name in known]
    unknown = [name.replace("_", "-") for name in content if name.replace("-", "_") not in known]
    if unknown:
        names = ", ".join(map(shown, unknown))
        near = dict.fromkeys(
            match for name in unknown for match in difflib.get_close_matches(name, options, 1)
        )
        advice = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(options)}."
        raise UsageError(f"--config {shown(path)}: {names} is no setting; {advice}")
    return {name.replace("-", "_"): value for name, value in content.items()}
