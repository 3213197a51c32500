"""Arguments that may be URLs of folders in buckets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from carvana_batch.cloud.urls import SCHEMES, BucketUrl, is_url
from carvana_batch.errors import UsageError
from carvana_batch.output.remote import LOCAL, Remote

if TYPE_CHECKING:
    from carvana_batch.cloud.masks import Masks


class PathOrUrl(click.Path):
    """A path, or a URL such as ``s3://bucket/folder``."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, str) and is_url(value):
            return BucketUrl.parse(value)
        return super().convert(value, param, context)


Place = Path | BucketUrl
"""What stands for IN or OUT."""


@dataclass(frozen=True)
class LocalPlaces:
    """Where a run finds its photos and puts its masks, on this machine.

    Attributes:
        sources: what IN is, perhaps several photos; empty if photos are listed.
        out: OUT.
        remote: what to do about those that are elsewhere.
    """

    sources: list[Path]
    out: Path
    remote: Remote = LOCAL


def enter_buckets(
    context: click.Context, sources: list[Place], out: Place, say: Callable[[str], object]
) -> LocalPlaces:
    """Make local folders in the places of URLs until the command ends.

    Args:
        context: of ``predict``, whose other options are checked as well.
        sources: what IN is; empty if photos are listed.
        out: OUT.
        say: called with a line for the user, if there is something to wait for.

    Raises:
        CarvanaBatchError: an option does not go with a URL; or see :func:`enter_places`.
    """
    options = context.params
    if options["truth"] is not None and str(options["truth"]).partition(":")[0] in SCHEMES:
        raise UsageError(
            "--gt has to be a local folder here: `carvana-batch score` reads true masks by a URL."
        )
    local = [source for source in sources if isinstance(source, Path)]
    if len(local) == len(sources) and isinstance(out, Path):
        return LocalPlaces(local, out)
    if len(sources) > 1:
        raise UsageError("Several photos and a URL do not go together. Give one folder as IN.")
    _refuse(options, ("truth",), "--gt", "compare the masks with `carvana-batch score` once they are done")
    _refuse(options, ("page",), "--html", "copy photos and masks to this machine for `carvana-batch review`")
    if isinstance(out, BucketUrl):
        _refuse(options, ("overwrite",), "--overwrite", "choose another OUT")
        _refuse(options, ("verify",), "--verify", "the sizes of masks in a bucket are checked in any case")
        _refuse(options, ("rle_file",), "--rle", "use `carvana-batch submit` with this URL once all is done")
        if options["shard"] != (1, 1):
            raise UsageError("--shard does not go with an OUT in a bucket: --engine ray shares photos out.")
        if out.name.lower().endswith(".png"):
            raise UsageError(f"OUT {out} has to be a folder, also for a single photo.")
    elif out == Path("-"):
        raise UsageError("IN is a URL, and OUT is -. Name a folder for the masks.")
    from carvana_batch.cloud.places import enter_places

    source = sources[0] if sources else None
    places = context.with_resource(enter_places(source, out, hold=not options["dry_run"], say=say))
    return LocalPlaces([] if places.source is None else [places.source], places.out, places.remote)


def enter_mask_folder(context: click.Context, folder: Path | BucketUrl) -> Masks:
    """Make a local folder in the place of a URL of masks until the command ends.

    Raises:
        CarvanaBatchError: see :func:`enter_masks`.
    """
    from carvana_batch.cloud.masks import enter_masks

    return context.with_resource(enter_masks(folder))


def _refuse(options: dict[str, Any], names: tuple[str, ...], option: str, advice: str) -> None:
    if any(options[name] for name in names):
        raise UsageError(f"{option} does not go with IN or OUT in a bucket: {advice}.")
