"""A model that is loaded once and masks photos, folders, or whole jobs."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from signal import SIGINT
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from carvana_batch.api.arguments import given, parse, python_wording, reword, with_option_texts
from carvana_batch.api.masked_photo import MaskedPhoto
from carvana_batch.api.photos import PhotoLike, as_photo
from carvana_batch.commands.model_options import settings_of
from carvana_batch.commands.notebook_bar import in_notebook
from carvana_batch.commands.predict import command, prepare, write_page_of_run
from carvana_batch.commands.predict_input import STANDARD, is_local
from carvana_batch.commands.predict_options import make_options
from carvana_batch.commands.reporting import Reporter, print_report
from carvana_batch.commands.signals import STOPPING, interrupt, stop_on_signals
from carvana_batch.decode.loader import DecodeOptions, PhotoLoader
from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.garbage import search_for_garbage_paused
from carvana_batch.inference.planning import make_predictor
from carvana_batch.inputs.find import Found, find_images
from carvana_batch.masks.specks import clean as remove_specks
from carvana_batch.network.checkpoints import load_model
from carvana_batch.network.wrapped import wrap_module
from carvana_batch.options import (
    DEFAULT_DECODE_TIMEOUT,
    DEFAULT_PIXEL_LIMIT,
)
from carvana_batch.output.report import RunReport
from carvana_batch.run import Progress, run
from carvana_batch.stopping import StopFlag
from carvana_batch.text import shown
from carvana_batch.values import Failure, Photo, Prediction

FILES = {"IN": "images", "OUT": "out"}
"""What the arguments of ``predict`` that are no options are called here."""


class CarvanaBatchWarning(UserWarning):
    """What the user should know although the work goes on."""


@with_option_texts(command, **FILES)
class Masker:
    """A model that is loaded once and masks photos, folders, or whole jobs.

    Example::

        from carvana_batch import Masker

        masker = Masker()                      # or Masker("weights.safetensors", device="cuda")
        mask = masker.mask("car.jpg")          # or an image, array or tensor -> (H, W) bool
        car = masker.predict("car.jpg")        # also doubt, probability, overlay, cut-out
        for result in masker.mask_folder("photos", progress=True):
            ...                                # a MaskedPhoto or a Failure for each photo
        report = masker.predict_folder("photos", "out")  # the files of `carvana-batch predict`

    Args:
        model: bundled weights, a weights file, or the folder of a training run; ``auto`` has masks of the
            weights for photos of a studio checked, and if need be replaced, by those for photos of any kind.
            Or a module of your own, (N, 3, h, w) to (N, 1, h, w), which needs ``mean`` and ``deviation``.
        {options}

    Attributes:
        description: one line on device, precision and memory.

    Raises:
        CarvanaBatchError: the model or the device cannot be used, or an argument has a value that cannot be.
    """

    def __init__(
        self,
        model: str | Path | nn.Module = "auto",
        *,
        network: str | None = None,
        encoder: str | None = None,
        mean: Sequence[float] | str | None = None,
        deviation: Sequence[float] | str | None = None,
        output: Literal["logits", "probability"] | None = None,
        stride: int | None = None,
        device: str = "auto",
        precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto",
        memory: int | str | None = None,
        size: str | tuple[int, int] = "auto",
        tile: int | str | tuple[int, int] = "auto",
        overlap: int | None = None,
        batch: int | None = None,
        tta: Literal["none", "flip"] = "none",
        threshold: float | None = None,
        clean: Literal["auto", "none"] = "auto",
        exif: Literal["ignore", "apply"] = "ignore",
        damaged: Literal["refuse", "accept"] = "refuse",
        pixel_limit: int = DEFAULT_PIXEL_LIMIT,
        workers: int | None = None,
        decode_timeout: float = DEFAULT_DECODE_TIMEOUT,
    ) -> None:
        keywords = {
            "network": network,
            "encoder": encoder,
            "mean": mean,
            "deviation": deviation,
            "output": output,
            "stride": stride,
            "device": device,
            "precision": precision,
            "memory": memory,
            "size": size,
            "tile": tile,
            "overlap": overlap,
            "batch": batch,
            "tta": tta,
            "threshold": threshold,
            "clean": clean,
            "exif": exif,
            "damaged": damaged,
            "pixel_limit": pixel_limit,
            "workers": workers,
            "decode_timeout": decode_timeout,
        }
        self._keywords = given(Masker, keywords)
        if not isinstance(model, nn.Module):
            self._keywords |= given(Masker, {"model": str(model)})
        with python_wording(command, **FILES), search_for_garbage_paused():
            context = parse(command, {}, self._keywords)
            settings = settings_of(context.params)
            # Of what a run can make in addition, only the map is of use here; it has to be asked for.
            self._options = replace(make_options(context, settings), extras=("prob",))
            if isinstance(model, nn.Module):
                self._model = wrap_module(model, settings)
            else:
                self._model = load_model(model, settings)
            self._predictor, self.description = make_predictor(self._model, self._options)
        self._name = type(model).__name__ if isinstance(model, nn.Module) else str(model)
        self._warned = 0

    def __repr__(self) -> str:
        return f"<Masker {self._name!r}, {self.description}>"

    def mask(self, image: PhotoLike) -> NDArray[np.bool_]:
        """The (H, W) bool mask of one photo; see :meth:`predict`."""
        return self.predict(image).mask

    def predict(self, image: PhotoLike) -> MaskedPhoto:
        """Mask one photo.

        Args:
            image: a path, a Pillow image, a (H, W, 3) RGB or (H, W) grey uint8 array, or such a tensor, which
                may also be (3, H, W).

        Raises:
            TypeError: it is something else.
            ImageError: a file or an image that cannot be used.
            CarvanaBatchError: the output of the network is not finite, or the photo does not fit into memory.
        """
        with python_wording(command, **FILES):
            (result,) = self._predict([as_photo(image, self._options)])
            if isinstance(result, Failure):
                raise CarvanaBatchError(result.reason)
        return result

    def mask_folder(
        self,
        images: str | Path,
        *,
        follow_links: bool = False,
        limit: int | None = None,
        progress: bool = False,
    ) -> MaskedFolder:
        """Mask the photos of a folder, or a single one, and write nothing.

        Args:
            images: the folder, or the photo; :meth:`predict_folder` also reads archives and buckets.
            follow_links: follow links to folders and links that lead out of the folder.
            limit: mask only the first so many photos.
            progress: show how far it is.

        Returns:
            Something to iterate over, with a length. It gives a :class:`MaskedPhoto` for each photo, or a
            :class:`Failure` with the reason, in the order of their names if all have the same size.

        Raises:
            UsageError: the folder cannot be read or holds no photos, or is an archive or a URL.
        """
        keywords = {"follow_links": follow_links, "limit": limit}
        with python_wording(command, **FILES):
            (source,) = parse(command, {"images": images}, keywords).params["paths"]
            if not is_local(source):
                raise UsageError(f"{shown(source)}: only predict_folder() reads archives and buckets.")
            found = find_images(source, follow_links=follow_links)
        return MaskedFolder(self, found, limit, progress)

    @with_option_texts(command, **FILES)
    def predict_folder(
        self,
        images: str | Path,
        out: str | Path,
        *,
        follow_links: bool = False,
        limit: int | None = None,
        save: str | Sequence[str] = (),
        colour: str | tuple[int, int, int] | None = None,
        background: str | Path | tuple[int, int, int] | None = None,
        shadow: bool = False,
        mask_bits: Literal[1, 8] = 1,
        rle: str | Path | None = None,
        html: str | Path | None = None,
        gt: str | Path | None = None,
        car_value: int | str | Sequence[int | str] = (),
        ignore_value: int | str | Sequence[int | str] = (),
        shard: str | tuple[int, int] = "1/1",
        overwrite: bool = False,
        verify: bool = False,
        progress: bool = True,
    ) -> RunReport:
        """Mask the photos of a folder into the folder ``out``, exactly as ``carvana-batch predict`` does.

        Called again with the same arguments after an interruption, it does only what is missing. Ctrl-C (or
        stopping the cell) finishes the photos in flight and returns; a second one raises KeyboardInterrupt.

        Args:
            images: the folder, a single photo, an archive, or the URL of a folder in a bucket.
            out: the folder of the masks, or the URL of one.
            {options}
            progress: print what the command line prints, and show how far it is.

        Returns:
            The report of the run: its ``exit_code`` is that of the command, 0 if each photo has its mask;
            ``failures`` are the photos without one, and ``stopped_by`` is not None if it was interrupted.

        Raises:
            CarvanaBatchError: what makes the command fail, such as an ``out`` of other settings.
        """
        keywords = {
            "follow_links": follow_links,
            "limit": limit,
            "save": save,
            "colour": colour,
            "background": background,
            "shadow": shadow,
            "mask_bits": mask_bits,
            "rle": rle,
            "html": html,
            "gt": gt,
            "car_value": car_value,
            "ignore_value": ignore_value,
            "shard": shard,
            "overwrite": overwrite,
            "verify": verify,
        }
        positional = {"images": images, "out": out}
        with (
            python_wording(command, **FILES),
            parse(command, positional, self._keywords | given(Masker.predict_folder, keywords)) as context,
        ):
            source, given_out = context.params["paths"]
            if STANDARD in (source, given_out):
                raise UsageError("- is no folder here: give an image to predict(), which returns its mask.")
            options = make_options(context, settings_of(context.params))
            reporter = make_reporter(progress)
            request = prepare(context, [source], given_out, options, reporter)
            if request.is_mask_file:
                raise UsageError(f"OUT has to be a folder, and {shown(request.out)} is the name of a file.")
            with stop_on_interrupt(reporter) as stop, reporter:
                report = run(
                    request.refs,
                    request.out,
                    self._model,
                    request.options,
                    reporter.listener,
                    stop,
                    remote=request.remote,
                    archive=request.archive,
                )
            if progress:
                print_report(report, given_out, reporter)
            page = context.params["page"]
            if page is not None and report.stopped_by is None:
                write_page_of_run(page, request.out, reporter)
        return report

    def _predict(self, photos: Iterable[Photo | Failure]) -> Iterator[MaskedPhoto | Failure]:
        """What comes of photos, and warnings for the user."""
        for result in self._predictor.predict(photos):
            for line in self._predictor.warnings[self._warned :]:
                warnings.warn(reword(line, command), CarvanaBatchWarning, stacklevel=3)
            self._warned = len(self._predictor.warnings)
            if isinstance(result, Prediction):
                mask = remove_specks(result.mask) if self._options.clean else result.mask
                yield MaskedPhoto(replace(result, mask=mask))
            else:
                yield replace(result, reason=reword(result.reason, command))


class MaskedFolder:
    """The photos of a folder, which are masked while one iterates over it; see :meth:`Masker.mask_folder`."""

    def __init__(self, masker: Masker, found: Found, limit: int | None, progress: bool) -> None:
        self._masker, self._progress = masker, progress
        self.photos = [ref.path for ref in found.refs[:limit]]
        self._refs, self._ignored = found.refs[:limit], found.ignored_line

    def __len__(self) -> int:
        return len(self._refs)

    def __repr__(self) -> str:
        return f"<MaskedFolder of {len(self)} photos>"

    def __iter__(self) -> Iterator[MaskedPhoto | Failure]:
        options = self._masker._options
        decoding = DecodeOptions(
            options.pixel_limit, options.apply_exif, options.decode_timeout, options.accept_damage
        )
        loader = PhotoLoader(self._refs, decoding, options.workers or 0)
        state = Progress(total=len(self))
        with make_reporter(self._progress) as reporter:
            if self._ignored:
                reporter.say(f"passed over: {self._ignored}")
            listener = reporter.listener
            listener.on_start(self._masker.description, state)
            with python_wording(command, **FILES):
                for result in self._masker._predict(loader):
                    state.failed += isinstance(result, Failure)
                    state.done += isinstance(result, MaskedPhoto)
                    listener.on_progress(state)
                    yield result


def make_reporter(progress: bool) -> Reporter:
    """Shows how far work is: as a bar on a terminal and in a notebook, by a line now and then elsewhere."""
    return Reporter(
        quiet=not progress,
        to_stderr=not in_notebook(),  # which shows stderr like errors
        in_words=partial(reword, command=command, **FILES),
    )


def stop_on_interrupt(reporter: Reporter) -> AbstractContextManager[StopFlag]:
    """A with block with a flag that Ctrl-C sets; not in other threads, which get no signals."""
    if threading.current_thread() is not threading.main_thread():
        return nullcontext(StopFlag())
    return stop_on_signals(reporter, STOPPING, (SIGINT,), interrupt)
