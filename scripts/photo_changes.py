"""Changes of photos that benchmarks measure masks on; each changes the true mask along with the photo."""

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Picture = Image.Image
Change = Callable[[Picture, Picture], tuple[Picture, Picture]]
"""Changes a photo and its true mask (L, 0 or 255)."""

WIDTHS = (320, 480, 640, 800, 960, 1280, 1600, 1918, 2400, 3000, 4032)
COOL, WARM = (0.8, 1.0, 1.15), (1.2, 1.0, 0.6)
"""Factors of red, green and blue."""


def changes() -> dict[str, Change]:
    """Return all changes by their labels."""
    return {
        **{f"width {width}": resized(width) for width in WIDTHS},
        "none": lambda photo, mask: (photo, mask),
        **{f"noise, sigma {sigma}": noisy(sigma) for sigma in (10, 25)},
        **{f"blur, radius {radius}": blurred(radius) for radius in (2, 4)},
        **{f"{factor} as bright": scaled((factor,) * 3) for factor in (0.3, 0.5, 1.4)},
        "half the contrast": lambda photo, mask: (ImageEnhance.Contrast(photo).enhance(0.5), mask),
        **{f"JPEG quality {quality}": compressed(quality) for quality in (20, 8)},
        "cool light": scaled(COOL),
        **{f"turned by {degrees}°": turned(degrees) for degrees in (10, 30)},
        "car at 0.4 of its size": farther(0.4),
    }


def resized(width: int) -> Change:
    def change(photo: Picture, mask: Picture) -> tuple[Picture, Picture]:
        size = width, round(photo.height * width / photo.width)
        if width <= photo.width:
            return photo.resize(size, Image.Resampling.BOX), mask.resize(size, Image.Resampling.BOX)
        return photo.resize(size, Image.Resampling.LANCZOS), mask.resize(size, Image.Resampling.BICUBIC)

    return change


def noisy(sigma: float) -> Change:
    def change(photo: Picture, mask: Picture) -> tuple[Picture, Picture]:
        values = np.asarray(photo, np.float32)
        noise = np.random.default_rng(0).standard_normal(values.shape, np.float32)
        return to_picture(values + sigma * noise), mask

    return change


def blurred(radius: float) -> Change:
    return lambda photo, mask: (photo.filter(ImageFilter.GaussianBlur(radius)), mask)


def scaled(factors: Sequence[float]) -> Change:
    return lambda photo, mask: (to_picture(np.asarray(photo) * np.array(factors)), mask)


def to_picture(values: np.ndarray) -> Picture:
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def compressed(quality: int) -> Change:
    def change(photo: Picture, mask: Picture) -> tuple[Picture, Picture]:
        content = io.BytesIO()
        photo.save(content, "JPEG", quality=quality)
        return Image.open(content).convert("RGB"), mask

    return change


def turned(degrees: float) -> Change:
    def turn(picture: Picture) -> Picture:
        pixels, border = np.asarray(picture), max(picture.size) // 2
        large = np.pad(pixels, ((border, border), (border, border), (0, 0))[: pixels.ndim], mode="edge")
        turned = Image.fromarray(large).rotate(degrees, Image.Resampling.BICUBIC)
        return turned.crop((border, border, border + picture.width, border + picture.height))

    return lambda photo, mask: (turn(photo), turn(mask))


def farther(factor: float) -> Change:
    def reduce(picture: Picture, around: str) -> Picture:
        width, height = (round(side * factor) for side in picture.size)
        result = Image.new(picture.mode, picture.size, around)
        small = picture.resize((width, height), Image.Resampling.BOX)
        result.paste(small, ((picture.width - width) // 2, (picture.height - height) // 2))
        return result

    return lambda photo, mask: (reduce(photo, "white"), reduce(mask, "black"))


def harder_changes() -> dict[str, Change]:
    """More of what the augmentation of training does than a mask can be expected to stand."""
    return {
        "noise, sigma 90": noisy(90),
        "blur, radius 12": blurred(12),
        "0.05 as bright": scaled((0.05,) * 3),
        "0.2 of the contrast": lambda photo, mask: (ImageEnhance.Contrast(photo).enhance(0.2), mask),
        "JPEG quality 2": compressed(2),
        "turned by 60°": turned(60),
        "car at 0.15 of its size": farther(0.15),
    }


def other_changes() -> dict[str, Change]:
    """Kinds of changes that are in no augmentation."""
    return {
        "salt and pepper": values_changed(_salt_and_pepper),
        "moved by 41 pixels": values_changed(_moved),
        "coloured blotches": values_changed(_blotches),
        "dark corners": values_changed(_dark_corners),
        "mosaic": _mosaic,
        "gamma 3": values_changed(lambda values, _: 255 * (values / 255) ** 3),
        "four levels": lambda photo, mask: (ImageOps.posterize(photo, 2), mask),
        "haze": values_changed(lambda values, _: 0.3 * values + 170),
        "negative": lambda photo, mask: (ImageOps.invert(photo), mask),
        "on its side": transposed(Image.Transpose.ROTATE_90),
        "upside down": transposed(Image.Transpose.ROTATE_180),
        "behind a post": _hidden,
        "cut off": _cut_off,
        "warm light": scaled(WARM),
    }


def transposed(method: Image.Transpose) -> Change:
    return lambda photo, mask: (photo.transpose(method), mask.transpose(method))


def values_changed(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Change:
    """A change of the (H, W, 3) float32 values of a photo alone; the random numbers depend on the photo."""

    def apply(photo: Picture, mask: Picture) -> tuple[Picture, Picture]:
        return to_picture(change(np.asarray(photo, np.float32), _random(photo))), mask

    return apply


def _random(photo: Picture) -> np.random.Generator:
    return np.random.default_rng(np.asarray(photo)[::97, ::97].sum())


def _salt_and_pepper(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    chance = random.random(values.shape[:2])[..., None]
    return np.where(chance < 0.03, 0, np.where(chance > 0.97, 255, values))


def _moved(values: np.ndarray, _random: np.random.Generator) -> np.ndarray:
    sums = np.cumsum(np.pad(values, ((0, 0), (41, 0), (0, 0)), "edge"), axis=1, dtype=np.float64)
    return np.asarray((sums[:, 41:] - sums[:, :-41]) / 41)


def _blotches(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    height, width = values.shape[:2]
    blotches = 40 * random.standard_normal((height // 8 + 1, width // 8 + 1, 3))
    return values + blotches.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def _dark_corners(values: np.ndarray, _random: np.random.Generator) -> np.ndarray:
    rows, columns = np.ogrid[-1 : 1 : values.shape[0] * 1j, -1 : 1 : values.shape[1] * 1j]
    light = np.clip(1.1 - 0.7 * (rows**2 + columns**2), 0.05, 1)
    return np.asarray(values * light[..., None])


def _mosaic(photo: Picture, mask: Picture) -> tuple[Picture, Picture]:
    small = photo.resize((photo.width // 12, photo.height // 12), Image.Resampling.BOX)
    return small.resize(photo.size, Image.Resampling.NEAREST), mask


def _hidden(photo: Picture, mask: Picture) -> tuple[Picture, Picture]:
    random = _random(photo)
    left = int(random.integers(photo.width // 3, photo.width // 2))
    box = (left, photo.height // 4, left + photo.width // 5, photo.height)
    photo, mask = photo.copy(), mask.copy()
    photo.paste(tuple(random.integers(0, 255, 3).tolist()), box)
    mask.paste(0, box)
    return photo, mask


def _cut_off(photo: Picture, mask: Picture) -> tuple[Picture, Picture]:
    width, height = photo.size
    box = (int(width * 0.35), int(height * 0.3), int(width * 0.95), int(height * 0.7))
    return photo.crop(box), mask.crop(box)
