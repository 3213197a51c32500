"""ONNX files as networks: compared with arithmetic by hand, and refused where they are something else."""

from __future__ import annotations

import copy
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from exported_files import known_logits, known_probabilities, some_images, write_graph

from carvana_batch.errors import ModelError
from carvana_batch.main_memory import keep_freed_memory, limit_new_memory, trim_main_memory
from carvana_batch.network.exported.onnx_graph import load_onnx

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

TO_LAST, TO_FIRST = ("Transpose", {"perm": [0, 2, 3, 1]}), ("Transpose", {"perm": [0, 3, 1, 2]})


def run(path: Path, images: np.ndarray) -> np.ndarray:
    result = load_onnx(path).network(torch.from_numpy(images))
    assert result.dtype == torch.float32
    return result.numpy()


@pytest.mark.parametrize(
    ("operators", "shape"),
    [
        ([("Conv",)], ("n", 3, "h", "w")),
        ([TO_FIRST, ("Conv",), TO_LAST], ("n", "h", "w", 3)),
        ([TO_FIRST, ("Conv",)], ("n", "h", "w", 3)),
        ([("Conv",), ("Squeeze",)], ("n", 3, "h", "w")),
        ([("Conv",)], (1, 3, "h", "w")),
        ([("Conv",)], (4, 3, "h", "w")),
        ([("Conv",)], ("n", 3, 9, 14)),
    ],
    ids=["NCHW", "NHWC", "NHWC to NCHW", "no channels", "one image", "four images", "fixed size"],
)
def test_layouts_and_batches(tmp_path: Path, operators, shape) -> None:
    for count in (1, 2, 5):
        images = some_images(count)
        result = run(write_graph(tmp_path / "a.onnx", operators, shape), images)
        assert result.shape == (count, 1, 9, 14)
        assert np.abs(result - known_logits(images)).max() < 1e-5


def test_half_precision(tmp_path: Path) -> None:
    images = some_images()
    result = run(write_graph(tmp_path / "a.onnx", dtype="FLOAT16"), images)
    assert np.abs(result - known_logits(images)).max() < 2e-2


def test_two_channels(tmp_path: Path) -> None:
    images = some_images()
    result = run(write_graph(tmp_path / "a.onnx", [("Conv2",)]), images)
    assert np.abs(result - np.concatenate((0 * images[:, :1], known_logits(images)), 1)).max() < 1e-5


def test_probabilities(tmp_path: Path) -> None:
    images = some_images()
    result = run(write_graph(tmp_path / "a.onnx", [("Conv",), ("Sigmoid",)]), images)
    assert np.abs(result - known_probabilities(images)).max() < 1e-6


@pytest.mark.parametrize(
    ("operators", "output"),
    [
        ([("Conv",)], "logits"),
        ([("Conv",), TO_LAST], "logits"),
        ([("Conv",), ("Sigmoid",)], "probability"),
        ([("Conv",), ("Sigmoid",), TO_LAST, ("Identity",)], "probability"),
        ([("Conv2",), ("Softmax", {"axis": 1})], "probability"),
        ([("Conv",), ("Add",)], None),
        ([("Conv",), ("Sigmoid",), ("Clip",)], None),
    ],
)
def test_the_last_operator_says_what_the_output_is(tmp_path: Path, operators, output) -> None:
    assert load_onnx(write_graph(tmp_path / "a.onnx", operators)).output == output


def test_a_fixed_size_is_known_and_asked_for(tmp_path: Path) -> None:
    exported = load_onnx(write_graph(tmp_path / "a.onnx", shape=(1, 3, 64, 96)))
    assert exported.size == (64, 96)
    assert load_onnx(write_graph(tmp_path / "b.onnx")).size is None
    with pytest.raises(ModelError, match="images of 96x64 pixels only, not of 14x9"):
        exported.network(torch.from_numpy(some_images()))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "UINT8", "operators": [("Identity",)]}, r"input x is a tensor\(uint8\).*float32"),
        ({"inputs": ("x", "sigma")}, r"2 inputs \(x, sigma\)"),
        ({"operators": [("Conv",), ("Sigmoid",)], "outputs": ("v0", "v1")}, r"2 outputs \(v0, v1\)"),
        ({"shape": ("n", 3, "l"), "operators": [("Identity",)]}, r"has the shape \(\?, 3, \?\)"),
        ({"shape": ("n", 1, "h", "w"), "operators": [("Identity",)]}, r"shape \(\?, 1, \?, \?\).*needed"),
        ({"shape": ("n", "c", "h", "w")}, r"shape \(\?, \?, \?, \?\).*needed"),
        ({"shape": ("n", 3, 64, "w")}, "one side is fixed"),
        ({"external": True}, "weights lie in another file"),
        ({"operators": [("NoSuchOperator",)]}, "ONNX Runtime cannot load it: .*NoSuchOperator"),
    ],
)
def test_other_graphs_are_refused(tmp_path: Path, options, reason: str, count_faults) -> None:
    path = write_graph(tmp_path / "a.onnx", **options)
    with pytest.raises(ModelError, match=reason) as caught:
        load_onnx(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    count_faults("exported files of others are run or refused", 1)


@pytest.mark.parametrize(
    "operators",
    [[("Conv",), ("Resize", {"mode": "nearest"})], [("Identity",)], [("Conv",), ("Flatten",)]],
    ids=["half the size", "three channels", "no map"],
)
def test_an_output_that_is_no_map_is_an_error(tmp_path: Path, operators, count_faults) -> None:
    network = load_onnx(write_graph(tmp_path / "a.onnx", operators)).network
    with pytest.raises(ModelError, match=r"returns the shape \(2, .* for images of 14x10; needed is"):
        network(torch.from_numpy(some_images(height=10)))
    count_faults("exported files of others are run or refused", 1)


def test_damaged_files_are_refused(tmp_path: Path, count_faults) -> None:
    """Wherever a file is cut short, and whatever else it is."""
    whole = write_graph(tmp_path / "whole.onnx", [("Conv",), ("Sigmoid",)]).read_bytes()
    path = tmp_path / "a.onnx"
    contents = [whole[:length] for length in range(0, len(whole), 7)]
    contents += [b"no network", b"\x80\x05." * 100]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"a\.onnx: ") as caught:
            load_onnx(path)
        assert "\n" not in str(caught.value)
    count_faults("exported files of others are run or refused", len(contents))


def test_nothing_is_printed_of_what_is_raised(tmp_path: Path, capfd) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no network")
    with pytest.raises(ModelError):
        load_onnx(tmp_path / "a.onnx")
    network = load_onnx(write_graph(tmp_path / "b.onnx", shape=("n", 3, "h", "w"))).network
    with pytest.raises(ModelError, match="cannot run"):
        network(torch.zeros(1, 4, 5, 6))
    assert capfd.readouterr() == ("", "")


def test_running_out_of_memory_is_told_apart(tmp_path: Path) -> None:
    network = load_onnx(write_graph(tmp_path / "a.onnx", [("Conv",), ("Sigmoid",)])).network
    images = torch.zeros(1, 3, 5000, 5000)
    with pytest.raises(MemoryError), limit_new_memory(2**25):
        network(images)
    assert network(images[..., :9, :9]).shape == (1, 1, 9, 9)


def test_memory_does_not_grow_with_the_shapes_of_inputs(tmp_path: Path) -> None:
    """ONNX Runtime keeps memory of its own for later runs."""
    operators = [("Conv",), ("Sigmoid",), ("Identity",)]
    network = load_onnx(write_graph(tmp_path / "a.onnx", operators)).network
    process = psutil.Process()
    keep_freed_memory(False)  # of the C library, which is not what this is about
    network(torch.zeros(1, 3, 50, 50))
    trim_main_memory()
    before = process.memory_info().rss
    for side in range(2000, 3000, 100):
        network(torch.zeros(1, 3, side, side))
    network(torch.zeros(1, 3, 50, 50))
    trim_main_memory()
    assert process.memory_info().rss - before < 2e7  # the largest map alone takes 3.4e7


def test_copies_share_the_session_and_processes_do_not(tmp_path: Path) -> None:
    """A session has threads, which a forked process lacks: it would wait for them for ever."""
    images = some_images()
    network = load_onnx(write_graph(tmp_path / "a.onnx")).network
    assert copy.deepcopy(network) is network
    network(torch.from_numpy(images))
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=lambda: there.send(network(torch.from_numpy(images)).numpy()))
    process.start()
    try:
        assert here.poll(30)
        assert np.abs(here.recv() - known_logits(images)).max() < 1e-5
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_packages_one_line_says_what_to_install(tmp_path: Path, monkeypatch, missing) -> None:
    path = write_graph(tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModelError, match=rf"a\.onnx: .* {missing}.*: pip install 'carvana-batch\[onnx\]'$"):
        load_onnx(path)
