"""`carvana-batch models`: the costs and the origin of what can be used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers import Terminal

from carvana_batch.commands.models import command
from carvana_batch.errors import ModelError, NoModelError
from carvana_batch.network import BUNDLED_WEIGHTS, NETWORKS
from carvana_batch.network.checkpoints import load_model, save_model


def output_of(*arguments: str) -> list[str]:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output.splitlines()


def test_what_is_shown_fits_a_terminal_and_digests_stay_whole(tmp_path: Path) -> None:
    with Terminal() as terminal:
        program = [sys.executable, "-m", "carvana_batch", "models", "show", "segunet-s"]
        subprocess.run(program, stdout=terminal.screen, check=True, timeout=120, cwd=tmp_path)
        printed = terminal.printed.splitlines()
    digest = load_model("segunet-s").digest
    assert f"sha256            {digest}" in printed
    assert max(len(line) for line in printed if digest not in line) <= 80
    data = printed.index(next(line for line in printed if line.startswith("data")))
    assert printed[data + 1].startswith(" " * 18)


@pytest.mark.parametrize("name", ["notes.txt", "weights"])
def test_files_of_no_kind_are_told_which_kinds_there_are(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("hello")
    with pytest.raises(
        ModelError, match=r"not a whole safetensors file .*; files of other kinds have to end in"
    ):
        output_of("show", str(tmp_path / name))


def test_the_list_has_a_row_for_each_network() -> None:
    lines = output_of()
    assert lines == output_of("list")
    assert max(map(len, lines)) <= 80
    names = {*NETWORKS, *BUNDLED_WEIGHTS}
    rows = {line.split()[0]: line.split()[1:] for line in lines[1 : 1 + len(names)]}
    assert set(rows) == names
    parameters, megabytes, gmac, memory, unit, dice, *weights = rows["segunet-s"]
    network = load_model("segunet-s")
    assert int(parameters.replace(",", "")) == sum(one.numel() for one in network.network.parameters())
    assert float(megabytes) == pytest.approx(BUNDLED_WEIGHTS["segunet-s"].stat().st_size / 1e6, abs=0.05)
    assert float(dice) == pytest.approx(json.loads(network.notes["val"])["dice"], abs=5e-5)
    assert weights == ["MIT"]
    assert (int(gmac) > 0, int(memory) > 0, unit) == (True, True, "MB")
    assert rows["unet"][4:] == ["MB", "-", "none"]

    (line,) = output_of("list", "--json")
    by_name = {model["name"]: model for model in json.loads(line)["models"]}
    assert set(by_name) == names
    row = by_name["segunet-s"]
    assert f"{row['parameters']:,}" == parameters
    assert row["bytes"] == BUNDLED_WEIGHTS["segunet-s"].stat().st_size
    assert (f"{row['multiply_adds'] / 1e9:.0f}", f"{row['memory_bytes'] / 1e6:,.0f}") == (gmac, memory)
    assert (f"{row['val_dice']:.4f}", row["weights"]) == (dice, "MIT")
    assert (by_name["unet"]["val_dice"], by_name["unet"]["weights"]) == (None, None)


def test_a_network_joins_the_list_through_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "new", NETWORKS["segunet-s"])
    assert any(line.startswith("new ") for line in output_of("list"))


def test_show_tells_what_the_header_says() -> None:
    text = "\n".join(output_of("show", "segunet-s"))
    model = load_model("segunet-s")
    for part in (model.digest, "segunet-s", "about 1918 pixels", model.notes["data"], model.notes["licence"]):
        assert part in text


def test_show_tells_of_both_models_of_a_pair() -> None:
    text = "\n".join(output_of("show", "auto"))
    for part in ("segunet-s-anywhere", *(load_model(name).digest for name in BUNDLED_WEIGHTS)):
        assert part in text


def test_show_reads_a_file_and_its_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = NETWORKS["segunet-s"]().state_dict()
    save_model(tmp_path / "own", "segunet-s", weights, (0.1, 0.2, 0.3), (1, 1, 1), {"a": "b"}, (480, 320))
    lines = output_of("show", str(tmp_path / "own"))
    assert "photos            resized to 480x320" in lines
    assert "mean              0.1 0.2 0.3" in lines
    assert "a                 b" in lines


def test_show_prints_no_control_characters_of_a_file(tmp_path: Path) -> None:
    weights = NETWORKS["segunet-s"]().state_dict()
    notes = {"licence": "\x1b[31mred", "a\rb": '{"c\x07": "d\ne"}'}
    save_model(tmp_path / "odd.safetensors", "segunet-s", weights, (0.5,) * 3, (0.5,) * 3, notes)
    text = "\n".join(output_of("show", str(tmp_path / "odd.safetensors")))
    assert r"\x1b[31mred" in text
    assert [character for character in text if not character.isprintable() and character != "\n"] == []


def test_show_names_what_there_is_not() -> None:
    with pytest.raises(NoModelError, match="no model 'nothing'") as caught:
        CliRunner().invoke(command, ["show", "nothing"], catch_exceptions=False)
    assert caught.value.exit_code == 2  # as for other wrong arguments
    assert str(caught.value).endswith(" (auto, segunet-s, segunet-s-anywhere)")
    with pytest.raises(NoModelError, match=r"; did you mean segunet-s-anywhere\?$"):
        CliRunner().invoke(command, ["show", "segunet-s-anywere"], catch_exceptions=False)
