"""Which samples a step uses, and how they are made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import write_pairs

from carvana_batch.training.pairs import find_pairs, load_pair
from carvana_batch.training.samples import Draw, Samples, draw_batches, take_passes
from carvana_batch.training.settings import NO_AUGMENTATION, AugmentationLimits, TrainingSettings


def test_reduced_masks_are_area_averages(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    pair = find_pairs(tmp_path)[0]
    _, full, _ = load_pair(pair, None)
    _, half, _ = load_pair(pair, (64, 32))
    averages = np.asarray(full, np.float64).reshape(32, 2, 64, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(np.asarray(half), averages, atol=1)


def test_every_epoch_draws_every_sample_once() -> None:
    settings = TrainingSettings(batch=4, seed=3, crop=(8, 8), crop_share=0.4)
    whole = list(draw_batches(10, settings, range(15)))
    numbers = [draw.number for batch in whole for draw in batch]
    assert numbers == list(range(60))
    indices = [draw.index for batch in whole for draw in batch]
    for epoch in range(6):
        assert sorted(indices[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert list(draw_batches(10, settings, range(7, 15))) == whole[7:]
    assert {len({draw.crop for draw in batch}) for batch in whole} == {1}
    assert {batch[0].crop for batch in whole} == {None, (8, 8)}


def test_image_and_mask_have_the_same_crop(tmp_path: Path) -> None:
    pairs = find_pairs(write_pairs(tmp_path))
    samples = Samples(pairs, None, NO_AUGMENTATION, seed=1)
    sample = samples[Draw(4, 2, (48, 32))]
    assert isinstance(sample, tuple)
    image, mask, known = sample
    assert known.shape == (1, 32, 48)
    assert image.shape == (3, 32, 48)
    assert mask.shape == (1, 32, 48)
    assert (image.float().mean(dim=0)[mask[0] > 0] > 100).all()
    assert (image.float().mean(dim=0)[mask[0] == 0] < 100).float().mean() > 0.98


@pytest.mark.parametrize(("accumulate", "count"), [(1, 1), (3, 1), (1, 2), (2, 3)])
def test_every_draw_is_in_exactly_one_pass(accumulate: int, count: int) -> None:
    draws = [Draw(number, number % 5, None) for number in range(12)]
    passes = [one for rank in range(count) for one in take_passes(draws, accumulate, rank, count)]
    assert {len(one) for one in passes} == {12 // (accumulate * count)}
    assert sorted((draw for one in passes for draw in one), key=lambda draw: draw.number) == draws


def test_photos_kept_in_memory_give_the_same_samples(tmp_path: Path) -> None:
    pairs = find_pairs(write_pairs(tmp_path))
    decoded, kept = (Samples(pairs, (64, 32), AugmentationLimits(), seed=4) for _ in range(2))
    progress: list[tuple[int, int]] = []
    kept.keep_in_memory(on_progress=lambda done, total: progress.append((done, total)))
    assert progress[-1] == (len(pairs), len(pairs))
    for path in (pair.image for pair in pairs):
        assert path.exists()
    for draw in (Draw(number, number % len(pairs), (40, 24)) for number in range(8)):
        first, second = decoded[draw], kept[draw]
        assert isinstance(first, tuple)
        assert isinstance(second, tuple)
        assert all(one.equal(other) for one, other in zip(first, second, strict=True))
