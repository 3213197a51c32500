"""Splits into photos to train on and to validate on, which never divide a car."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carvana_batch.errors import UsageError
from carvana_batch.training.pairs import Pair
from carvana_batch.training.split import check_no_shared_cars, choose_val_cars, read_cars, split_by_car


def pairs_of(*ids: str) -> list[Pair]:
    return [Pair(id, Path(f"{id}.jpg"), Path(f"{id}.gif")) for id in ids]


def test_cars_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "val.txt"
    path.write_bytes(
        b"\xef\xbb\xbf# for validation\r\n00087a6bd4dc\r\n\r\n  x/b  # a comment\nno#comment\n00087a6bd4dc\n"
    )
    assert read_cars(path) == {"00087a6bd4dc", "x/b", "no#comment"}
    path.write_text("\n# nothing\n")
    with pytest.raises(UsageError, match=r"val\.txt names no car"):
        read_cars(path)
    with pytest.raises(UsageError, match=r"missing\.txt cannot be read: No such file"):
        read_cars(tmp_path / "missing.txt")
    with pytest.raises(UsageError, match="Is a directory"):
        read_cars(tmp_path)


def test_cars_may_be_listed_with_either_form_of_accents(tmp_path: Path) -> None:
    pairs = pairs_of("Citro\u00ebn_01", "Citroe\u0308n_02", "b_01")
    (tmp_path / "val.txt").write_text("Citroe\u0308n\n", encoding="utf-8")
    train, val = split_by_car(pairs, read_cars(tmp_path / "val.txt"))
    assert (train, val) == (pairs[2:], pairs[:2])


def test_listed_cars_are_used_for_validation() -> None:
    pairs = pairs_of("a_01", "b_01", "a_02", "c_01", "a_b_01")
    train, val = split_by_car(pairs, {"a", "c"})
    assert [pair.id for pair in train] == ["b_01", "a_b_01"]
    assert [pair.id for pair in val] == ["a_01", "a_02", "c_01"]


def test_cars_without_photos_are_named() -> None:
    with pytest.raises(UsageError, match=r"2 of the 3 cars.*such as a\.") as caught:
        split_by_car(pairs_of("a_01", "b_01"), {"a", "z", "b_01"})
    assert str(caught.value).split("\n")[1:] == ["  b_01", "  z"]


def test_neither_side_may_be_empty() -> None:
    pairs = pairs_of("a_01", "a_02", "b_01")
    with pytest.raises(UsageError, match="No car is left for validation"):
        split_by_car(pairs, set())
    with pytest.raises(UsageError, match="All 2 cars are for validation"):
        split_by_car(pairs, ["a", "b"])
    with pytest.raises(UsageError, match="No car is left"):
        split_by_car([], [])


@pytest.mark.parametrize("ids", [["a_01", "a_02"], []])
def test_a_single_car_cannot_be_split(ids: list[str]) -> None:
    with pytest.raises(UsageError, match="--val DIR"):
        choose_val_cars(pairs_of(*ids), 0.5, 0)
    if ids:
        with pytest.raises(UsageError, match=r"1 car \(a\).*--val DIR"):
            split_by_car(pairs_of(*ids), {"a"})


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_the_fraction_must_be_between_0_and_1(fraction: float) -> None:
    with pytest.raises(UsageError, match="--val-fraction"):
        choose_val_cars(pairs_of("a_01", "b_01"), fraction, 0)


ids = st.builds(
    "{}{}_{:02}".format, st.sampled_from(["", "x/", "x_y/"]), st.text("abc_", max_size=3), st.integers(1, 16)
)


@given(st.sets(ids, min_size=1, max_size=40), st.floats(0.001, 0.999), st.integers(0, 2**32), st.randoms())
def test_a_split_never_divides_a_car(ids: set[str], fraction: float, seed: int, shuffler: Any) -> None:
    pairs = pairs_of(*sorted(ids))
    cars = {pair.car for pair in pairs}
    if len(cars) == 1:
        with pytest.raises(UsageError):
            choose_val_cars(pairs, fraction, seed)
        return
    chosen = choose_val_cars(pairs, fraction, seed)
    assert chosen <= cars
    assert 1 <= len(chosen) < len(cars)
    assert abs(len(chosen) - fraction * len(cars)) <= 1
    train, val = split_by_car(pairs, chosen)
    assert sorted(pair.id for pair in train + val) == sorted(ids)
    assert {pair.car for pair in val} == chosen
    check_no_shared_cars(train, val)
    shuffled = list(pairs)
    shuffler.shuffle(shuffled)
    assert choose_val_cars(shuffled, fraction, seed) == chosen


def test_the_choice_depends_on_the_seed_more_than_on_other_cars() -> None:
    pairs = pairs_of(*(f"car{number}_01" for number in range(100)))
    chosen = choose_val_cars(pairs, 0.1, 0)
    assert len(chosen) == 10
    assert choose_val_cars(pairs + pairs_of("car7_02", "car7_03"), 0.1, 0) == chosen
    assert choose_val_cars(pairs, 0.2, 0) > chosen
    assert len({frozenset(choose_val_cars(pairs, 0.1, seed)) for seed in range(20)}) == 20
    for number in range(100, 120):
        assert len(choose_val_cars(pairs + pairs_of(f"car{number}_01"), 0.1, 0) - chosen) <= 1


def test_the_choice_is_the_same_in_another_process() -> None:
    """Python's own hash of a string differs between processes."""
    code = (
        "from pathlib import Path\n"
        "from carvana_batch.training.pairs import Pair\n"
        "from carvana_batch.training.split import choose_val_cars\n"
        "pairs = [Pair(f'car{n}_01', Path(), Path()) for n in range(30)]\n"
        "import sys; assert 'torch' not in sys.modules\n"
        "print(*sorted(choose_val_cars(pairs, 0.2, 5)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pairs = pairs_of(*(f"car{number}_01" for number in range(30)))
    assert answer.stdout.split() == sorted(choose_val_cars(pairs, 0.2, 5))


def test_cars_on_both_sides_are_named() -> None:
    train, val = pairs_of("a_01", "b_01", "c_01"), pairs_of("b_02", "c_02", "d_02")
    with pytest.raises(UsageError, match="2 of the 3 cars for validation") as caught:
        check_no_shared_cars(train, val)
    assert str(caught.value).split("\n")[1:] == ["  b", "  c"]
    check_no_shared_cars(train, pairs_of("d_01", "bb_01"))
