from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from carvana_batch import demo as drawing
from carvana_batch.demo.camera import make_camera
from carvana_batch.demo.car import make_car
from carvana_batch.demo.studio import draw_studio

SMALL = (480, 320)


def dilated(mask: np.ndarray, pixels: int) -> np.ndarray:
    grown = Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(2 * pixels + 1))
    return np.asarray(grown) > 0


def first_seed(wanted: str) -> int:
    return next(seed for seed in range(100) if getattr(make_car(seed), wanted))


def test_photo_and_mask_have_the_asked_size_and_types():
    photo, mask = drawing.draw_photo(3, 5, (301, 200))
    assert photo.shape == (200, 301, 3)
    assert photo.dtype == np.uint8
    assert mask.shape == (200, 301)
    assert mask.dtype == np.bool_


def test_equal_arguments_give_equal_pixels():
    photo, mask = drawing.draw_photo(7, 2, SMALL)
    again, mask_again = drawing.draw_photo(7, 2, SMALL)
    np.testing.assert_array_equal(photo, again)
    np.testing.assert_array_equal(mask, mask_again)
    for seed, view in ((8, 2), (7, 3)):
        _, other = drawing.draw_photo(seed, view, SMALL)
        assert (mask != other).mean() > 0.01


@pytest.mark.parametrize("seed", [8, 12])
def test_two_views_of_a_seed_show_the_same_paint(seed):
    medians = [
        np.median(photo[mask], axis=0) for photo, mask in (drawing.draw_photo(seed, v, SMALL) for v in (4, 6))
    ]
    np.testing.assert_allclose(medians[0], medians[1], atol=25)


@pytest.mark.parametrize("seed", range(10))
def test_a_car_fills_a_plausible_share_of_a_bright_studio(seed):
    photo, mask = drawing.draw_photo(seed, seed + 1, SMALL)
    assert 0.08 < mask.mean() < 0.45
    assert 140 < photo[~mask].mean() < 225
    rows, columns = np.nonzero(mask)
    assert rows.min() > 0
    assert rows.max() < SMALL[1] - 1
    assert abs(columns.mean() / SMALL[0] - 0.5) < 0.12


@pytest.mark.parametrize(("seed", "view"), [(0, 1), (1, 4), (2, 6), (5, 9), (9, 13), (14, 16)])
def test_the_mask_is_where_the_car_changes_the_studio(seed, view):
    photo, mask = drawing.draw_photo(seed, view, SMALL)
    car, camera = make_car(seed), make_camera(seed, view, SMALL)
    studio = np.asarray(draw_studio(seed, car, camera, SMALL), np.int16)
    differs = np.abs(photo - studio).max(-1) > 24
    # Blur and partly covered pixels reach just over the mask's edge, the letters' edges are blurred too.
    assert not (differs & ~dilated(mask, 2)).any()
    assert (differs & mask).sum() > 0.6 * mask.sum()


def test_the_shadow_is_dark_and_not_in_the_mask():
    photo, mask = drawing.draw_photo(4, 5, SMALL)
    columns = np.flatnonzero(mask.any(0))
    middle = int(columns.mean())
    below = int(np.flatnonzero(mask[:, middle]).max()) + 3
    assert not mask[below:, middle].any()
    assert photo[below, middle].mean() < 0.7 * photo[-10, middle].mean()


def thin_pixels(mask: np.ndarray, pixels: int) -> np.ndarray:
    """What an opening with a square of ``pixels`` removes."""
    picture = Image.fromarray(mask).convert("L")
    opened = picture.filter(ImageFilter.MinFilter(pixels)).filter(ImageFilter.MaxFilter(pixels))
    return mask & (np.asarray(opened) == 0)


def test_an_antenna_is_a_thin_part_of_the_mask_above_the_roof():
    seed = first_seed("antenna")
    size = (1918 // 2, 1280 // 2)
    _, mask = drawing.draw_photo(seed, 5, size)
    top = int(np.flatnonzero(mask.any(1)).min())
    assert thin_pixels(mask, 7)[top : top + 20].sum() >= 15
    assert mask[top + 3].sum() <= 6


def test_a_roof_rack_and_a_spoiler_are_in_the_mask(monkeypatch):
    for part in ("rack", "spoiler"):
        seed = first_seed(part)
        _, with_part = drawing.draw_photo(seed, 5, SMALL)
        car = make_car(seed)
        without_part: Any = {part: False}
        plain = replace(car, **without_part)
        with monkeypatch.context() as patch:
            patch.setattr(drawing, "make_car", lambda _, plain=plain: plain)
            _, without = drawing.draw_photo(seed, 5, SMALL)
        assert not (without & ~with_part).any()
        assert (with_part & ~without).sum() > 20


def test_some_cars_have_the_colour_of_the_floor():
    tones = [np.mean(make_car(seed).paint) for seed in range(60)]
    assert any(165 < tone < 215 for tone in tones)
    assert any(tone < 40 for tone in tones)
    assert any(tone > 225 for tone in tones)


def test_views_go_round():
    small = (120, 80)
    _, mask = drawing.draw_photo(1, 1, small)
    widths = [
        np.ptp(np.nonzero(drawing.draw_photo(1, view, small)[1])[1]) for view in range(1, drawing.VIEWS + 1)
    ]
    assert widths[4] > 1.3 * widths[0]
    assert widths[12] > 1.3 * widths[8]
    assert mask.any()


def test_files_are_named_and_stored_like_the_competitions(tmp_path: Path, monkeypatch):
    draw = drawing.draw_photo
    monkeypatch.setattr(drawing, "draw_photo", lambda seed, view: draw(seed, view, (240, 160)))
    keys = list(drawing.iter_write_photos(tmp_path, count=6, seed=2, views=4))
    assert len(set(keys)) == 6
    assert len({key.split("_")[0] for key in keys}) == 2
    for key in keys:
        car, view = key.split("_")
        assert len(car) == 12
        assert int(car, 16) >= 0
        assert 1 <= int(view) <= 16
        assert len(view) == 2
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == sorted(f"{key}.jpg" for key in keys)
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == sorted(f"{key}_mask.gif" for key in keys)
    with Image.open(tmp_path / "images" / f"{keys[0]}.jpg") as photo:
        assert (photo.mode, photo.size) == ("RGB", (240, 160))
    with Image.open(tmp_path / "masks" / f"{keys[0]}_mask.gif") as stored:
        assert stored.mode == "P"
        truth = np.asarray(stored)
    expected = draw(2, int(keys[0][-2:]), (240, 160))[1]
    np.testing.assert_array_equal(truth, expected.astype(np.uint8))


def test_writing_twice_gives_the_same_bytes(tmp_path: Path, monkeypatch):
    draw = drawing.draw_photo
    monkeypatch.setattr(drawing, "draw_photo", lambda seed, view: draw(seed, view, (120, 80)))
    for name in ("a", "b"):
        drawing.write_photos(tmp_path / name, count=2)
    files = [p for p in sorted((tmp_path / "a").rglob("*")) if p.is_file()]
    assert len(files) == 4
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
