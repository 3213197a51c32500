"""How augmentation changes an image, its mask, and the mask of known pixels."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from carvana_batch.errors import UsageError
from carvana_batch.training.augmentation import augment
from carvana_batch.training.backgrounds import Backgrounds
from carvana_batch.training.settings import NO_AUGMENTATION, PRESETS, AugmentationLimits

SIZE = (96, 64)
ALL_KNOWN = Image.new("L", SIZE, 255)
GEOMETRIC = {"shift", "scale", "zoom_out", "rotation", "perspective", "flip"}
LIMITS = [item.name for item in fields(AugmentationLimits) if not item.name.endswith("_share")]
PHOTOS = PRESETS["photos"]


def shape_and_image() -> tuple[NDArray[np.uint8], Image.Image]:
    """A mask, and a colourful image."""
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[10:40, 20:70] = 255
    mask[5:10, 30:40] = 255
    return mask, Image.fromarray(np.random.default_rng(0).integers(20, 236, (*mask.shape, 3), np.uint8))


def only(name: str, limits: AugmentationLimits = PHOTOS) -> AugmentationLimits:
    """The limits with a single change switched on."""
    return replace(NO_AUGMENTATION, degrade_share=1.0, **{name: getattr(limits, name)})


def write_backgrounds(folder: Path) -> Backgrounds:
    folder.mkdir()
    for number, colour in enumerate([(255, 0, 0), (0, 0, 255)]):
        Image.new("RGB", (50 + 90 * number, 70), colour).save(folder / f"{number}.png")
    return Backgrounds(folder)


def test_image_and_mask_are_transformed_together() -> None:
    """A photo that equals its mask still does so after every affine transformation."""
    shape, _ = shape_and_image()
    mask, image = Image.fromarray(shape), Image.fromarray(np.repeat(shape[:, :, None], 3, axis=2))
    limits = AugmentationLimits(
        shift=0.1, scale=0.2, rotation=20, brightness=0, contrast=0, saturation=0, grey=0
    )
    moved = 0
    for seed in range(20):
        changed, changed_mask, _ = augment(image, mask, ALL_KNOWN, limits, np.random.default_rng(seed))
        np.testing.assert_array_equal(np.asarray(changed)[:, :, 1], np.asarray(changed_mask))
        moved += not np.array_equal(np.asarray(changed_mask), shape)
        assert abs(float(np.asarray(changed_mask).mean()) / shape.mean() - 1) < 0.65
    assert moved > 10


def test_image_and_mask_zoom_and_tilt_together() -> None:
    """A photo that equals its mask, with black edges, still does so after the strongest changes."""
    shape, _ = shape_and_image()
    mask, image = Image.fromarray(shape), Image.fromarray(np.repeat(shape[:, :, None], 3, axis=2))
    limits = replace(NO_AUGMENTATION, scale=1, zoom_out=7, rotation=180, perspective=0.3, shift=0.3)
    areas = []
    for seed in range(60):
        changed, changed_mask, known = augment(image, mask, ALL_KNOWN, limits, np.random.default_rng(seed))
        np.testing.assert_array_equal(np.asarray(changed)[:, :, 1], np.asarray(changed_mask))
        assert known.getextrema() == (255, 255)
        areas.append(float(np.asarray(changed_mask).mean()) / float(shape.mean()))
    assert max(areas) > 1.5
    assert min(areas) < 0.5


def test_limits_of_0_change_nothing() -> None:
    shape, image = shape_and_image()
    for seed in range(10):
        changed, mask, known = augment(
            image, Image.fromarray(shape), ALL_KNOWN, NO_AUGMENTATION, np.random.default_rng(seed)
        )
        np.testing.assert_array_equal(np.asarray(changed), np.asarray(image))
        np.testing.assert_array_equal(np.asarray(mask), shape)
        assert known.getextrema() == (255, 255)


@pytest.mark.parametrize("name", LIMITS)
def test_only_geometric_changes_affect_the_mask(name: str) -> None:
    shape, image = shape_and_image()
    images, masks = 0, 0
    for seed in range(30):
        changed, mask, _ = augment(
            image, Image.fromarray(shape), ALL_KNOWN, only(name), np.random.default_rng(seed)
        )
        assert (changed.mode, changed.size) == ("RGB", SIZE)
        images += not np.array_equal(np.asarray(changed), np.asarray(image))
        masks += not np.array_equal(np.asarray(mask), shape)
    assert images >= 1
    assert (masks > 0) == (name in GEOMETRIC)


def test_the_same_seed_makes_the_same_sample(tmp_path: Path) -> None:
    shape, image = shape_and_image()
    backgrounds = write_backgrounds(tmp_path / "backgrounds")
    made = [
        [
            np.asarray(picture).tobytes()
            for seed in range(20)
            for picture in augment(
                image, Image.fromarray(shape), ALL_KNOWN, PHOTOS, np.random.default_rng(seed), backgrounds
            )
        ]
        for _ in range(2)
    ]
    assert made[0] == made[1]
    assert len(set(made[0][::3])) == 20


def test_darkening_scales_all_pixels_alike() -> None:
    _, image = shape_and_image()
    before = np.asarray(image, np.float64)
    factors = []
    for seed in range(40):
        after = np.asarray(darkened(image, seed), np.float64)
        factor = after.sum() / before.sum()
        np.testing.assert_allclose(after, before * factor, atol=1.1)
        factors.append(factor)
    assert min(factors) < 0.5
    assert min(factors) > 0.24


def darkened(image: Image.Image, seed: int) -> Image.Image:
    mask = Image.new("L", SIZE)
    return augment(image, mask, ALL_KNOWN, only("darken"), np.random.default_rng(seed))[0]


def test_noise_has_at_most_the_given_deviation() -> None:
    image = Image.new("RGB", (200, 150), (128, 128, 128))
    empty, known = Image.new("L", image.size), Image.new("L", image.size, 255)
    deviations = []
    for seed in range(60):
        noisy, _, _ = augment(image, empty, known, only("noise"), np.random.default_rng(seed))
        pixels = np.asarray(noisy, np.float64)
        assert abs(pixels.mean() - 128) < 2
        deviations.append(pixels.std())
    assert 20 < max(deviations) < 31


@pytest.mark.parametrize("name", ["blur", "motion"])
def test_blur_keeps_the_mean_and_spreads_a_point(name: str) -> None:
    pixels = np.zeros((61, 81, 3), np.uint8)
    pixels[30, 40] = 255
    image, empty = Image.fromarray(pixels), Image.new("L", (81, 61))
    widest = 0
    for seed in range(60):
        blurred, _, _ = augment(
            image, empty, Image.new("L", (81, 61), 255), only(name), np.random.default_rng(seed)
        )
        rows, columns = np.nonzero(np.asarray(blurred)[:, :, 0])
        if len(rows):
            widest = max(widest, int(abs(rows - 30).max()), int(abs(columns - 40).max()))
    assert 3 <= widest <= 8


def test_partly_unknown_pixels_become_unknown() -> None:
    """Compared with the unknown pixels as a mask of their own, in which rounding hides the smallest parts."""
    _, image = shape_and_image()
    unknown = np.zeros(SIZE[::-1], np.uint8)
    unknown[20:30, 40:60] = 255
    unknown[50, 10] = 255
    limits = replace(NO_AUGMENTATION, zoom_out=3, rotation=40, perspective=0.1)
    moved = 0
    for seed in range(30):
        _, traced, known = augment(
            image,
            Image.fromarray(unknown),
            Image.fromarray(255 - unknown),
            limits,
            np.random.default_rng(seed),
        )
        assert set(np.unique(np.asarray(known))) == {0, 255}
        assert not np.asarray(known)[np.asarray(traced) > 0].any()
        near = traced.filter(ImageFilter.MaxFilter(5))
        assert np.asarray(known)[np.asarray(near) == 0].all()
        moved += not np.array_equal(np.asarray(known), 255 - unknown)
    assert moved > 10


def test_a_car_is_put_over_other_backgrounds(tmp_path: Path) -> None:
    """Pixels far from the car are those of a background, and pixels well inside those of the car."""
    shape, _ = shape_and_image()
    image, mask = Image.new("RGB", SIZE, (0, 255, 0)), Image.fromarray(shape)
    limits = replace(NO_AUGMENTATION, background_share=1.0)
    seen = set()
    for seed in range(12):
        generator = np.random.default_rng(seed)
        changed, changed_mask, _ = augment(
            image, mask, ALL_KNOWN, limits, generator, write_backgrounds(tmp_path / str(seed))
        )
        pixels = np.asarray(changed)
        np.testing.assert_array_equal(np.asarray(changed_mask), shape)
        assert (pixels[20:30, 30:60] == (0, 255, 0)).all()
        (colour,) = {tuple(colour) for colour in pixels[50:].reshape(-1, 3).tolist()}
        seen.add(colour)
    assert seen == {(255, 0, 0), (0, 0, 255)}


def test_unknown_pixels_are_cut_out_with_the_car(tmp_path: Path) -> None:
    """They may be a part of it."""
    shape, _ = shape_and_image()
    known = np.full_like(shape, 255)
    known[45:60, 5:60] = 0
    changed, _, still_known = augment(
        Image.new("RGB", SIZE, (0, 255, 0)),
        Image.fromarray(shape),
        Image.fromarray(known),
        replace(NO_AUGMENTATION, background_share=1.0),
        np.random.default_rng(7),
        write_backgrounds(tmp_path / "backgrounds"),
    )
    pixels = np.asarray(changed)
    assert (pixels[50:55, 10:55] == (0, 255, 0)).all()
    assert (pixels[45:, 75:, 1] == 0).all()
    np.testing.assert_array_equal(np.asarray(still_known), known)


def test_cars_over_other_backgrounds_are_not_mirrored(tmp_path: Path) -> None:
    """A car near the edge, zoomed out, would otherwise appear twice."""
    shape = np.zeros(SIZE[::-1], np.uint8)
    shape[20:40, 8:40] = 255
    limits = replace(NO_AUGMENTATION, background_share=1.0, zoom_out=3)
    backgrounds = write_backgrounds(tmp_path / "backgrounds")
    for seed in range(20):
        _, mask, _ = augment(
            Image.new("RGB", SIZE),
            Image.fromarray(shape),
            ALL_KNOWN,
            limits,
            np.random.default_rng(seed),
            backgrounds,
        )
        assert ndimage.label(np.asarray(mask))[1] == 1


def test_damaged_backgrounds_are_all_named(tmp_path: Path) -> None:
    backgrounds = write_backgrounds(tmp_path / "backgrounds")
    backgrounds.check()
    for name in ("0.png", "1.png"):
        (tmp_path / "backgrounds" / name).write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"2 of 2 photos") as caught:
        backgrounds.check()
    assert all(name in str(caught.value) for name in ("0.png", "1.png"))


def test_a_folder_without_backgrounds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--backgrounds: No photos"):
        Backgrounds(tmp_path)
