"""An out folder that was damaged between two runs, or was made with other settings."""

import json
import shutil

import pytest
from helpers import results_in

from carvana_batch.network.checkpoints import load_model, save_model

PREDICT = ("predict", "images", "out", "--precision", "fp32", "--workers", "0")


@pytest.fixture
def here(tmp_path, drawn):
    """A folder with four small photos in ``images``."""
    shutil.copytree(drawn / "images", tmp_path / "here" / "images")
    return tmp_path / "here"


def truncate_journal(out):
    (journal,) = (out / ".carvana-batch").glob("journal-*")
    journal.write_bytes(journal.read_bytes()[:-10])


def delete_journal(out):
    (journal,) = (out / ".carvana-batch").glob("journal-*")
    journal.unlink()


def zero_end_of_journal(out):
    """Fill the end of the journal with zeros, as some file systems do after a power cut."""
    (journal,) = (out / ".carvana-batch").glob("journal-*")
    content = journal.read_bytes()
    journal.write_bytes(content[:-100] + bytes(100))


def truncate_mask(out):
    mask = out / "car1.png"
    mask.write_bytes(mask.read_bytes()[:-1])


def empty_mask(out):
    (out / "car1.png").write_bytes(b"")


DAMAGES = {
    "journal truncated": truncate_journal,
    "journal deleted": delete_journal,
    "journal ends in zeros": zero_end_of_journal,
    "mask truncated": truncate_mask,
    "mask empty": empty_mask,
    "mask deleted": lambda out: (out / "car2.png").unlink(),
    "report deleted": lambda out: (out / "report.csv").unlink(),
    "run.json damaged": lambda out: (out / "run.json").write_text("{"),
    "holder damaged": lambda out: next((out / ".carvana-batch").glob("holder-*")).write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_only_what_was_damaged_is_made_again(zygote, here, damage, count_faults):
    assert zygote.run(here, *PREDICT).code == 0
    expected = results_in(here / "out")
    damage(here / "out")
    finished = zygote.run(here, *PREDICT, "--json")
    assert finished.code == 0, finished
    assert results_in(here / "out") == expected
    journal_is_readable = damage not in (delete_journal, zero_end_of_journal)
    assert json.loads(finished.stdout)["done"] <= 1 or not journal_is_readable
    count_faults("an out folder is damaged between two runs", 1)


@pytest.mark.parametrize("lost", ["_prob", "_prob/car1.tif", "_overlay"])
def test_lost_extra_files_are_made_again(zygote, here, lost, count_faults):
    command = (*PREDICT, "--save", "prob", "--save", "overlay", "--json")
    assert zygote.run(here, *command).code == 0
    expected = results_in(here / "out")
    path = here / "out" / lost
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    finished = zygote.run(here, *command)
    assert finished.code == 0, finished
    counts = json.loads(finished.stdout)
    # Overlays need no network, so their photos are not masked again.
    expected_counts = {"_prob": (4, 0, 0), "_prob/car1.tif": (1, 3, 0), "_overlay": (0, 4, 4)}[lost]
    assert (counts["done"], counts["already_done"], counts["drawn"]) == expected_counts
    assert results_in(here / "out") == expected
    count_faults("an out folder is damaged between two runs", 1)


def test_other_settings_are_refused_with_the_difference(zygote, here, count_faults):
    assert zygote.run(here, *PREDICT).code == 0
    expected = results_in(here / "out")
    model = load_model("segunet-s")
    weights = {key: value.clone() for key, value in model.network.state_dict().items()}
    next(iter(weights.values())).view(-1)[0] += 0.01
    save_model(here / "other.safetensors", "segunet-s", weights, model.mean, model.deviation, {})
    before = f"auto {load_model('auto').digest[:16]}"
    for options, difference in (
        (("--model", "other.safetensors"), f"model: '{before}' before, 'segunet-s "),
        (("--threshold", "0.4"), "threshold: 0.5 before, 0.4 now"),
        (("--tile", "64"), "tile: 'auto' before, '64x64' now"),
        (("--overlap", "32"), "overlap: "),
        (("--precision", "bf16"), "precision: 'fp32' before, 'bf16' now"),
        (("--tta", "flip"), "tta: 'none' before, 'flip' now"),
    ):
        finished = zygote.run(here, *PREDICT, *options)
        assert finished.code == 2, finished
        assert finished.stderr.startswith(f"Error: out holds masks made with other settings ({difference}"), (
            finished.stderr
        )
        assert finished.stderr.count("\n") == 1
        assert results_in(here / "out") == expected
        count_faults("a run with other settings on the same out folder", 1)
