"""Learning curves: what the axes show, and what the picture says if there is nothing to draw."""

import io
import subprocess
import sys

import numpy as np
import pytest
from helpers import is_colour, names_in
from PIL import Image

from carvana_batch.errors import UsageError
from carvana_batch.training.curves import draw_curves, plot_curves


def step_line(step, loss, rate=0.001):
    return {"step": step, "epoch": step / 100, "loss": loss, "learning_rate": rate, "samples_per_second": 5.1}


def val_line(step, dice, low=None, high=None):
    val = {"dice": dice, "dice_05": low, "dice_50": dice, "dice_95": high}
    return {"step": step, "epoch": step / 100, "val": val}


LINES = [
    step_line(50, 0.8, 0.0005),
    step_line(100, 0.4),
    val_line(100, 0.9, 0.8, 0.95),
    step_line(150, 0.3, 0.0007),
    step_line(200, 0.25, 0.0001),
    val_line(200, 0.97, 0.9, 0.99),
    step_line(250, 0.2, 0.00001),
    val_line(250, 0.96, 0.92, 0.98),
]


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib", reason="needs the extra train")


def data_of(axes, label):
    (line,) = [line for line in axes.lines if line.get_label().startswith(label)]
    return line.get_xydata().tolist()


def drawn(figure):
    """Return the pixels of the PNG; warnings while drawing become errors."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.usefixtures("matplotlib")
def test_axes_show_the_values_of_the_log():
    figure = draw_curves(LINES)
    loss, dice, rate = figure.axes
    assert data_of(loss, "loss") == [[0.5, 0.8], [1, 0.4], [1.5, 0.3], [2, 0.25], [2.5, 0.2]]
    assert data_of(rate, "learning rate") == [[0.5, 5e-4], [1, 1e-3], [1.5, 7e-4], [2, 1e-4], [2.5, 1e-5]]
    assert data_of(dice, "mean") == [[1, 0.9], [2, 0.97], [2.5, 0.96]]
    assert data_of(dice, "best: 0.9700 at epoch 2") == [[2, 0.97]]
    band = {tuple(point) for point in dice.collections[0].get_paths()[0].vertices.tolist()}
    assert band == {(1, 0.8), (2, 0.9), (2.5, 0.92), (1, 0.95), (2, 0.99), (2.5, 0.98)}
    assert loss.get_yscale() == "log"
    assert loss.get_xlim() == dice.get_xlim()
    drawn(figure)


@pytest.mark.usefixtures("matplotlib")
def test_equal_ratios_of_the_error_have_equal_height():
    figure = draw_curves(LINES)
    figure.draw_without_rendering()
    dice = figure.axes[1]

    def height(value):
        return dice.transData.transform((1, value))[1]

    assert height(0.95) - height(0.9) == pytest.approx(height(0.98) - height(0.96), rel=0.01)
    assert dice.get_ylim()[0] < 0.8 < 0.99 < dice.get_ylim()[1]
    shown = [label.get_text() for label in dice.get_yticklabels()]
    assert shown == ["0.8", "0.9", "0.95", "0.98", "0.99"]


@pytest.mark.usefixtures("matplotlib")
def test_a_narrow_dice_range_has_ticks():
    figure = draw_curves([val_line(100, 0.9955, 0.9951, 0.9957), val_line(200, 0.9956, 0.9952, 0.9958)])
    drawn(figure)
    low, high = figure.axes[1].get_ylim()
    ticks = [tick for tick in figure.axes[1].get_yticks() if low <= tick <= high]
    assert len(ticks) > 2
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert len(set(labels)) == len(labels)


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize(("highest", "lowest"), [(1.4, 0.84), (0.032, 0.028), (0.5, 0.06), (1.2, 0.004)])
def test_the_loss_axis_has_ticks_for_any_range(highest, lowest):
    figure = draw_curves([step_line(50, highest), step_line(100, lowest)])
    drawn(figure)
    axes = figure.axes[0]
    bottom, top = axes.get_ylim()
    labels = [
        label.get_text()
        for label in axes.get_yticklabels(which="both")
        if bottom <= label.get_position()[1] <= top
    ]
    assert 3 <= len(set(labels)) == len(labels) <= 9


@pytest.mark.usefixtures("matplotlib")
def test_the_png_has_the_requested_size_and_is_not_blank(tmp_path):
    plot_curves(LINES, tmp_path / "curves.png", size=(10, 4))
    with Image.open(tmp_path / "curves.png") as read:
        assert (read.format, read.size) == ("PNG", (1000, 400))
        pixels = np.asarray(read.convert("RGB"))
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    assert (pixels > 200).mean() > 0.8
    for colour in ((0, 0x72, 0xB2), (0, 0x9E, 0x73), (0xD5, 0x5E, 0)):
        assert is_colour(pixels, colour).sum() > 50
    assert names_in(tmp_path) == ["curves.png"]


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize(
    "lines",
    [
        LINES[:1],
        LINES[:2],
        [LINES[2]],
        [step_line(50, 0.0)],
        [step_line(50, 0.5), step_line(100, 0.0), step_line(150, 0.1)],
        [step_line(50, float("nan"))],
        [step_line(50, None, None), val_line(50, None)],
        [val_line(100, 0.0, 0.0, 0.0)],
        [val_line(100, 1.0, 1.0, 1.0), val_line(200, 0.0, 0.0, 1.0)],
        [val_line(100, 0.9)],
        [{"step": 3, "epoch": 1.0, "val": {"dice": 0.5}}],
    ],
)
def test_sparse_or_unusual_data_is_drawn_without_warnings(lines):
    pixels = drawn(draw_curves(lines))
    assert (pixels < 100).any()


@pytest.mark.usefixtures("matplotlib")
def test_a_single_step_and_validation_are_visible():
    pixels = drawn(draw_curves([step_line(50, 0.5), val_line(50, 0.9, 0.8, 0.95)]))
    left, right = np.split(pixels, 2, axis=1)
    assert is_colour(left[:, 100:], (0, 0x72, 0xB2)).sum() >= 4
    assert is_colour(right, (0xD5, 0x5E, 0)).sum() >= 20


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], [["no step logged yet"], ["not validated yet"]]),
        ([{"result": 1}], [["no step logged yet"], ["not validated yet"]]),
        (LINES[:2], [[], ["not validated yet"], []]),
        ([LINES[2]], [["no step logged yet"], []]),
    ],
)
def test_missing_data_is_reported_in_the_picture(lines, expected):
    figure = draw_curves(lines)
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == expected
    drawn(figure)


@pytest.mark.usefixtures("matplotlib")
def test_a_loss_of_0_is_kept_on_the_log_axis():
    loss = draw_curves([step_line(50, 0.5), step_line(100, 0.0)]).axes[0]
    assert data_of(loss, "loss") == [[0.5, 0.5], [1, 0]]
    assert loss.get_yscale() == "log"
    assert draw_curves([step_line(50, 0.0)]).axes[0].get_yscale() == "linear"


@pytest.mark.usefixtures("matplotlib")
def test_the_users_matplotlib_style_is_ignored(matplotlib, tmp_path):
    plot_curves(LINES, tmp_path / "plain.png")
    own = {"axes.facecolor": "black", "figure.facecolor": "black", "text.color": "white", "font.size": 20}
    with matplotlib.rc_context(own):
        plot_curves(LINES, tmp_path / "own.png")
        assert matplotlib.rcParams["font.size"] == 20
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


@pytest.mark.usefixtures("matplotlib")
def test_neither_display_nor_pyplot_is_needed(tmp_path):
    program = (
        "import sys; from pathlib import Path; from carvana_batch.training import curves;"
        "assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules;"
        "curves.plot_curves([], Path(sys.argv[1]));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    path = tmp_path / "curves.png"
    subprocess.run([sys.executable, "-W", "error", "-c", program, str(path)], check=True)
    assert path.exists()


def test_missing_matplotlib_is_reported_before_writing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for call in (lambda: plot_curves(LINES, tmp_path / "curves.png"), lambda: draw_curves(LINES)):
        with pytest.raises(UsageError, match=r"matplotlib: pip install 'carvana-batch\[train\]'"):
            call()
    assert names_in(tmp_path) == []
