"""The network of an exported file as a model: what the file says goes together with the user's settings."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from carvana_batch.errors import ModelError
from carvana_batch.main_memory import free_main_memory, limit_new_memory
from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.exported.header import ExportHeader
from carvana_batch.network.exported.network import ExportedNetwork
from carvana_batch.network.measuring import trial_values_per_pixel
from carvana_batch.network.model import Model
from carvana_batch.network.wrapped import Output, WrappedNetwork, settings_digest, wrap_module
from carvana_batch.text import shown

OF_OTHERS = ("threshold", "overlap")
"""Settings that no file contradicts."""

LEAST_MEMORY = 2**30
"""Bytes that loading may take even if less is free: libraries reserve more than they use."""


def as_model(path: Path, exported: ExportedNetwork, settings: ModelSettings, kind: str) -> Model:
    """The model of an exported file.

    Args:
        path: of the file.
        exported: what was read from it.
        settings: what it does not say.
        kind: of the file, in words.

    Raises:
        MissingSettingsError: mean, deviation or the meaning of the output was not said.
        ModelError: the settings contradict the file; or see :func:`wrap_module`.
    """
    try:
        # A damaged graph can ask for any amount; the system would kill the process.
        with limit_new_memory(max(free_main_memory(), LEAST_MEMORY)):
            if exported.header is not None:
                return _of_our_own(path, exported, exported.header, settings, kind)
            return _of_others(path, exported, settings, kind)
    except MemoryError as error:
        raise ModelError(f"{shown(path)}: takes more memory than is free, even for small images") from error


def _of_others(path: Path, exported: ExportedNetwork, settings: ModelSettings, kind: str) -> Model:
    """The model of a file that another program has exported: it is tried and measured."""
    said = ModelSettings(
        output=exported.output,
        fixed_size=None if exported.size is None else (exported.size[1], exported.size[0]),
    )
    _refuse_contradiction(path, said, settings)
    if settings.network is not None or settings.encoder is not None:
        raise ModelError(f"{shown(path)}: is a whole network; leave out --network and --encoder")
    return wrap_module(
        exported.network,
        settings.over(said),
        name=shown(path.name),
        kind=kind,
        digest=exported.digest,
        opaque=True,
        origins=dict.fromkeys(said.given(), "the graph in the file"),
    )


def _of_our_own(
    path: Path, exported: ExportedNetwork, header: ExportHeader, settings: ModelSettings, kind: str
) -> Model:
    """The model of a file that this package has exported: nothing is left to ask or to measure."""
    mean, deviation = header.input_statistics
    said = ModelSettings(
        network=header.network,
        mean=header.mean,
        deviation=header.deviation,
        size=header.size,
        output="probability",
        classes=1,
        stride=header.stride,
        context=settings.context,
    )
    for item in fields(settings):
        if item.name not in OF_OTHERS and getattr(settings, item.name) is not None:
            _refuse_contradiction(path, said, settings, [item.name])
    network = WrappedNetwork(exported.network, header.stride, header.unit, Output(is_probability=True))
    network.only_float32 = True
    network.context = header.context
    network.values_per_pixel = trial_values_per_pixel(network)
    used = replace(said, mean=mean, deviation=deviation)
    return Model(
        header.network,
        network,
        mean,
        deviation,
        settings_digest(exported.digest, network, used),
        {"exported-from": header.digest, "normalisation": header.normalisation},
        header.size,
        header.scale,
        kind=f"{kind}, exported by carvana-batch",
        origins=dict.fromkeys(("network", "mean", "deviation", "size", "stride"), "the header of the file"),
    )


def _refuse_contradiction(
    path: Path, said: ModelSettings, settings: ModelSettings, names: list[str] | None = None
) -> None:
    for name in said.given() if names is None else names:
        if getattr(settings, name) not in (None, getattr(said, name)):
            raise ModelError(
                f"{shown(path)}: the file itself says its {name.replace('_', '-')}, and the setting"
                f" {name.replace('_', '-')} contradicts it; leave that out"
            )
