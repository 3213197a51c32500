"""Networks of the user's own code: ``--network package.module:factory``."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from carvana_batch.errors import ModelError
from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.model import Model, weights_digest
from carvana_batch.network.sources.tensors import fill, refuse_misfit
from carvana_batch.network.wrapped import wrap_module
from carvana_batch.text import cut_short, shown


def is_code(network: str | None) -> bool:
    """Whether the name of a network is that of a factory, ``package.module:factory``."""
    return network is not None and ":" in network and not network.startswith("smp:")


def load(settings: ModelSettings) -> Model:
    """The model of the network that the factory gives, with the weights that it has.

    Raises:
        ModelError: the code fails or gives no module; see :func:`wrap_module` for the rest.
    """
    return _wrap(*_build(str(settings.network)), settings)


def from_weights(
    path: Path, weights: dict[str, Tensor], stripped: dict[str, Tensor], settings: ModelSettings
) -> Model:
    """The model of the network that the factory gives, with the weights of a file.

    Args:
        path: of the file.
        weights: by name, as they are in the file.
        stripped: the same without prefixes; they are taken if more of these names are in the network.
        settings: which name the factory.

    Raises:
        ModelError: see :func:`load`; or the weights are not those of the network, or not finite.
    """
    module, code = _build(str(settings.network))
    expected = module.state_dict()
    chosen = max((weights, stripped), key=lambda names: len(names.keys() & expected.keys()))
    refuse_misfit(path, str(settings.network), chosen, expected)
    return _wrap(fill(path, str(settings.network), module, chosen), code, settings)


def _build(network: str) -> tuple[nn.Module, Path | None]:
    """The module that a factory gives, and the file of its code."""
    name, _, attribute = network.partition(":")
    try:
        with _working_folder_first():
            package = importlib.import_module(name)
        factory = package
        for part in attribute.split("."):
            factory = getattr(factory, part)
        module = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    except (Exception, SystemExit) as error:  # code of others raises anything
        raise ModelError(
            f"--network {shown(network)}: its code fails ({type(error).__name__}:"
            f" {shown(cut_short(str(error), 300))}); it is looked for in this folder and where Python finds"
            " packages"
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"--network {shown(network)}: gives {type(module).__name__}, not a torch.nn.Module; name a"
            " function without arguments that returns one"
        )
    file = getattr(package, "__file__", None)
    return module, None if file is None else Path(file)


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """Let packages be found in the folder in which the command was given, as `python -m` does."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _wrap(module: nn.Module, code: Path | None, settings: ModelSettings) -> Model:
    name = str(settings.network)
    digest = weights_digest(module.state_dict(), {"network": name})
    kind = f"runs your own code, {name}"
    if code is not None and code.is_file():
        kind += f" in {shown(code)}"
        digest += hashlib.sha256(code.read_bytes()).hexdigest()
    return wrap_module(module, settings, name=name, kind=kind, digest=digest)
