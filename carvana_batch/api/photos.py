"""What can be masked: a path, a Pillow image, an array or a tensor becomes a photo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.decode.photo import DecodedImage, decode_image, from_pillow
from carvana_batch.errors import ImageError
from carvana_batch.options import Options
from carvana_batch.text import shown
from carvana_batch.values import ImageRef, Photo

WANTED = (
    "a path, a Pillow image, a (H, W, 3) RGB or (H, W) grey uint8 array, or such a torch tensor, which may"
    " also be (3, H, W)"
)

PhotoLike = str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | torch.Tensor
"""What :func:`as_photo` takes."""


def as_photo(image: PhotoLike, options: Options) -> Photo:
    """The photo of whatever holds one; see ``WANTED``.

    Files, and Pillow images that have an EXIF orientation, are treated as ``exif`` says. Arrays and tensors
    are upright.

    Raises:
        TypeError: it is something else; the message says what is wanted.
        ImageError: a file or a Pillow image that cannot be used.
    """
    if isinstance(image, str | os.PathLike):
        if "://" in os.fspath(image):
            raise ImageError(
                f"{shown(image)}: URLs are not fetched. Give a file, or an image made of its bytes."
            )
        path = Path(image)
        decoded = decode_image(
            path,
            pixel_limit=options.pixel_limit,
            apply_exif=options.apply_exif,
            accept_damage=options.accept_damage,
        )
        ref = ImageRef(path.stem, path)
    else:
        ref = ImageRef("image", "image")
        if isinstance(image, Image.Image):
            decoded = from_pillow(image, pixel_limit=options.pixel_limit, apply_exif=options.apply_exif)
        else:
            decoded = DecodedImage(as_pixels(image))
    return Photo(ref, decoded.pixels, decoded.orientation, notes=decoded.notes, damage=decoded.damage)


def as_pixels(array: Any) -> NDArray[np.uint8]:
    """The (H, W, 3) uint8 pixels of an array or a tensor, C-contiguous and writable.

    Raises:
        TypeError: it is something else; the message says what is wanted.
    """
    if isinstance(array, torch.Tensor):
        return _pixels_of_tensor(array)
    if not isinstance(array, np.ndarray):
        raise TypeError(f"wanted {WANTED}; got {type(array).__name__}")
    if array.dtype != np.uint8:
        raise TypeError(f"wanted values from 0 to 255 as uint8; got {array.dtype}{_advice(array.dtype.kind)}")
    if 0 in array.shape or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise TypeError(f"wanted (H, W, 3) or (H, W); got an array of shape {array.shape}")
    if array.ndim == 2:
        return np.repeat(array[..., np.newaxis], 3, axis=2)
    # torch takes neither the negative strides of a BGR image's [..., ::-1] nor Pillow's read-only memory.
    return np.require(array, requirements=["C_CONTIGUOUS", "WRITEABLE"])


def _pixels_of_tensor(tensor: torch.Tensor) -> NDArray[np.uint8]:
    shape = tuple(tensor.shape)
    if tensor.dtype != torch.uint8:
        kind = "f" if tensor.is_floating_point() else "i"
        raise TypeError(f"wanted values from 0 to 255 as torch.uint8; got {tensor.dtype}{_advice(kind)}")
    if len(shape) == 3 and shape[0] == shape[2] == 3:
        raise TypeError(f"a tensor of shape {shape} may be (3, H, W) or (H, W, 3); give an array (H, W, 3)")
    if len(shape) == 3 and shape[0] == 3:
        tensor = tensor.permute(1, 2, 0)
    elif not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
        raise TypeError(f"wanted (3, H, W), (H, W, 3) or (H, W); got a tensor of shape {shape}")
    return as_pixels(tensor.detach().cpu().numpy())


def _advice(kind: str) -> str:
    """What to do with values of a dtype of this kind."""
    return "; if they are from 0 to 1, multiply by 255, round, and convert to uint8" if kind == "f" else ""
