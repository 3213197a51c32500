"""``docs/notebook.ipynb`` runs: cell by cell in this process, and in a kernel if Jupyter is there.

The extra ``test`` does without it: it would be some thirty packages, of which only the last test needs any.
"""

import ast
import json
from pathlib import Path

import pytest

import carvana_batch

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebook.ipynb"


def read_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_cell(source, names):
    """Run a cell; the value of its last line if that is an expression, as a notebook would show it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_cells_run_and_show_what_they_say(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = {}
    shown = [run_cell(source, names) for source in read_cells()]
    pictures = [value for value in shown if isinstance(value, carvana_batch.MaskedPhoto)]
    assert len(pictures) == 2
    assert all(picture._repr_jpeg_().startswith(b"\xff\xd8\xff") for picture in pictures)
    assert (names["report"].exit_code, names["report"].done) == (3, 3)
    assert (names["again"].already_done, names["again"].done) == (3, 0)
    assert names["strange"].is_doubtful
    assert not names["car"].is_doubtful
    assert len(names["scores"]) == 3
    assert names["summary"].rows == 3
    printed = capfd.readouterr().out
    assert 'UsageError: memory="4XB" is no amount of memory' in printed
    assert "torn failed: torn.jpg is damaged" in printed


def test_the_saved_outputs_are_small_and_without_errors():
    assert NOTEBOOK.stat().st_size < 200_000
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert {output["output_type"] for output in outputs} == {"display_data", "execute_result", "stream"}
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.slow
def test_a_kernel_shows_a_bar_and_pictures():
    reason = "needs nbclient and ipykernel"
    nbformat = pytest.importorskip("nbformat", reason=reason)
    nbclient = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    (bar,) = [each["text/html"] for each in data if "text/html" in each]
    assert bar.startswith('<progress value="4" max="4"')
    assert "1 failed" in bar
    assert sum("image/jpeg" in each for each in data) == 2
