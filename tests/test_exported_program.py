"""Programs of torch.export and TorchScript as networks, and what of them is not run."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_files import (
    Known,
    change_archive,
    change_program,
    known_logits,
    known_probabilities,
    save_program,
    some_images,
)
from torch import nn

from carvana_batch.errors import ModelError
from carvana_batch.network.exported.program import load_exported_program
from carvana_batch.network.exported.torchscript import load_torchscript

DYNAMIC = torch.export.Dim.DYNAMIC


def run(path: Path, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        result = load_exported_program(path).network(torch.from_numpy(images))
    assert result.dtype == torch.float32
    return result.numpy()


@pytest.mark.parametrize(
    ("module", "example", "dynamic"),
    [
        (Known(), (1, 3, 24, 36), {2: DYNAMIC, 3: DYNAMIC}),
        (Known(), (4, 3, 24, 36), {2: DYNAMIC, 3: DYNAMIC}),
        (Known(), (2, 3, 24, 36), {0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC}),
        (Known(), (1, 3, 9, 14), {}),
        (Known(channels_last=True), (1, 24, 36, 3), {1: DYNAMIC, 2: DYNAMIC}),
        (Known(lambda logits: {"out": logits}), (1, 3, 24, 36), {2: DYNAMIC, 3: DYNAMIC}),
        (Known(lambda logits: logits[:, 0]), (1, 3, 24, 36), {2: DYNAMIC, 3: DYNAMIC}),
    ],
    ids=["one image", "four images", "any number", "fixed size", "NHWC", "in a dict", "no channels"],
)
def test_layouts_and_batches(tmp_path: Path, module: nn.Module, example, dynamic) -> None:
    path = save_program(tmp_path / "a.pt2", module, torch.zeros(example), dynamic=dynamic)
    for count in (1, 3):
        images = some_images(count)
        result = run(path, images)
        assert result.shape == (count, 1, 9, 14)
        assert np.abs(result - known_logits(images)).max() < 1e-5


def test_half_precision(tmp_path: Path) -> None:
    path = save_program(tmp_path / "a.pt2", Known().half(), torch.zeros(1, 3, 24, 36).half())
    assert np.abs(run(path, some_images()) - known_logits(some_images())).max() < 2e-2


@pytest.mark.parametrize(
    ("after", "output"),
    [
        (lambda logits: logits, "logits"),
        (lambda logits: logits.squeeze(1), "logits"),
        (torch.sigmoid, "probability"),
        (lambda logits: torch.cat((-logits, logits), 1).softmax(1)[:, 1:], "probability"),
        (lambda logits: logits + 2, None),
    ],
    ids=["convolution", "squeezed", "sigmoid", "one of softmax", "sum"],
)
def test_the_last_operator_says_what_the_output_is(tmp_path: Path, after, output) -> None:
    assert load_exported_program(save_program(tmp_path / "a.pt2", Known(after))).output == output


def test_a_fixed_size_is_known_and_asked_for(tmp_path: Path) -> None:
    exported = load_exported_program(
        save_program(tmp_path / "a.pt2", Known(), torch.zeros(1, 3, 64, 96), dynamic={})
    )
    assert exported.size == (64, 96)
    with pytest.raises(ModelError, match="images of 96x64 pixels only, not of 14x9"):
        exported.network(torch.from_numpy(some_images()))


def test_sizes_that_a_program_was_not_exported_for_are_errors(tmp_path: Path) -> None:
    dynamic = {2: 4 * torch.export.Dim("rows", max=64), 3: 4 * torch.export.Dim("columns", max=64)}
    path = save_program(tmp_path / "a.pt2", Known(torch.sigmoid), dynamic=dynamic)
    images = some_images(1, 8, 12)
    assert np.abs(run(path, images) - known_probabilities(images)).max() < 1e-6
    with pytest.raises(ModelError, match="not exported for"):
        run(path, some_images(1, 9, 12))


class One(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


class Two(One):
    def forward(self, images, other):  # type: ignore[override]
        return self.function(images, other)


@pytest.mark.parametrize(
    ("forward", "inputs", "reason"),
    [
        (lambda x: x[:, :1] / 255, [torch.zeros(1, 3, 8, 8, dtype=torch.uint8)], "torch.uint8, not a tensor"),
        (lambda x, y: x[:, :1] + y, [torch.zeros(1, 3, 8, 8), torch.zeros(1)], "it has 2 inputs"),
        (lambda x: (x[:, :1], x), [torch.zeros(1, 3, 8, 8)], "it has 2 outputs"),
        (lambda x: x[:1] + 1, [torch.zeros(3, 8, 8)], r"has the shape \(3, 8, 8\)"),
        (lambda x: x + 1, [torch.zeros(1, 1, 8, 8)], r"shape \(1, 1, 8, 8\).*needed"),
    ],
    ids=["uint8", "two inputs", "two outputs", "no batch", "grey"],
)
def test_other_programs_are_refused(tmp_path: Path, forward, inputs, reason: str, count_faults) -> None:
    module = One(forward) if len(inputs) == 1 else Two(forward)
    path = save_program(tmp_path / "a.pt2", module, *inputs, dynamic={})
    with pytest.raises(ModelError, match=reason) as caught:
        load_exported_program(path)
    assert str(caught.value).startswith(f"{path}: ")
    count_faults("exported files of others are run or refused", 1)


def test_damaged_files_are_refused(tmp_path: Path, count_faults) -> None:
    path = save_program(tmp_path / "a.pt2", Known())
    whole = path.read_bytes()
    contents = [whole[:length] for length in range(0, len(whole), len(whole) // 40)]
    state = tmp_path / "state.pt"
    torch.save(Known().state_dict(), state)
    contents += [b"no network", state.read_bytes()]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"a\.pt2: ") as caught:
            load_exported_program(path)
        assert "\n" not in str(caught.value)
    count_faults("exported files of others are run or refused", len(contents))


class Marks:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def evil(mark: Path) -> str:
    """Python that leaves a file where it is evaluated."""
    return f"__import__('pathlib').Path({str(mark)!r}).touch()"


def pickled_tensor(path: Path, mark: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            config = json.loads(content)
            next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config).encode()
        return pickle.dumps(Marks(mark)) if name.endswith("weight_0") else content

    change_archive(path, change)


def pickled_object(path: Path, mark: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        if name.endswith("constants_config.json"):
            entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
            return json.dumps({"config": {"a": entry}}).encode()
        return content

    change_archive(path, change, {"data/constants/opaque_obj_0": pickle.dumps(Marks(mark))})


def size_expression(path: Path, mark: Path) -> None:
    def change(program) -> None:
        sizes = program["graph_module"]["graph"]["tensor_values"]["images"]["sizes"]
        sizes[2]["as_expr"]["expr_str"] = evil(mark)

    change_program(path, change)


def check_of_sizes(path: Path, mark: Path) -> None:
    change_program(path, lambda program: program["guards_code"].append(f"{evil(mark)} is None"))


def operator_with_files(path: Path, mark: Path) -> None:
    def change(program) -> None:
        program["graph_module"]["graph"]["nodes"].insert(
            0,
            {
                "target": "torch.ops.aten.save.default",
                "inputs": [
                    {"name": "item", "arg": {"as_tensor": {"name": "images"}}, "kind": 1},
                    {"name": "filename", "arg": {"as_string": str(mark)}, "kind": 1},
                ],
                "outputs": [],
                "metadata": {},
                "is_hop_single_tensor_return": None,
                "name": "saved",
            },
        )

    change_program(path, change)


def function_of_torch(path: Path, _: Path) -> None:
    def change(program) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"

    change_program(path, change)


def class_of_the_output(path: Path, _: Path) -> None:
    def change(program) -> None:
        call = program["graph_module"]["module_call_graph"][0]["signature"]
        call["out_spec"] = '[1, {"type": "collections.defaultdict", "context": "[]", "children_spec": []}]'

    change_program(path, change)


def compiled_library(path: Path, _: Path) -> None:
    change_archive(path, extra={"data/aotinductor/model/model.so": b"code"})


def older_weights(path: Path, mark: Path) -> None:
    change_archive(path, extra={"data/weights/model.pt": pickle.dumps(Marks(mark))})


@pytest.mark.parametrize(
    "change",
    [
        pickled_tensor,
        pickled_object,
        size_expression,
        check_of_sizes,
        operator_with_files,
        function_of_torch,
        class_of_the_output,
        compiled_library,
        older_weights,
    ],
)
def test_code_in_a_file_is_not_run(tmp_path: Path, change, count_faults) -> None:
    path, mark = save_program(tmp_path / "a.pt2", Known(torch.sigmoid)), tmp_path / "mark"
    change(path, mark)
    with pytest.raises(ModelError, match=r"a\.pt2: (not loaded, because|damaged)"):
        load_exported_program(path)
    assert not mark.exists()
    count_faults("no code in an exported file is run", 1)


def test_pickled_examples_of_the_input_are_left_out(tmp_path: Path, count_faults) -> None:
    """torch would unpickle them, whatever they are."""
    path, mark = save_program(tmp_path / "a.pt2", Known()), tmp_path / "mark"
    harm = pickle.dumps(Marks(mark))
    change_archive(path, lambda name, content: harm if "sample_inputs" in name else content)
    assert np.abs(run(path, some_images()) - known_logits(some_images())).max() < 1e-5
    assert not mark.exists()
    count_faults("no code in an exported file is run", 1)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = save_program(tmp_path / "a.pt2", Known())
    change_archive(path, extra={"extra/zeros": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="unpacks to"):
        load_exported_program(path)


def save_script(path: Path, module: nn.Module, trace: tuple[int, ...] | None = None) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        scripted = torch.jit.trace(module, torch.zeros(trace)) if trace else torch.jit.script(module)
        torch.jit.save(scripted, path)
    return path


class Doubled(nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images[:, :1], images


class Saving(nn.Module):
    """Writes a file when it is run."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        torch.save(images, self.path)
        return images[:, :1]


def test_torchscript_that_is_trusted_is_run(tmp_path: Path) -> None:
    path = save_script(tmp_path / "a.pt", Known().eval(), (1, 3, 24, 36))
    exported = load_torchscript(path, is_trusted=True, size=(9, 14))
    assert (exported.size, exported.output, exported.header) == ((9, 14), None, None)
    with torch.inference_mode():
        result = exported.network(torch.from_numpy(some_images())).numpy()
    assert np.abs(result - known_logits(some_images())).max() < 1e-5


def test_torchscript_is_not_run_unasked(tmp_path: Path, count_faults) -> None:
    mark = tmp_path / "mark"
    path = save_script(tmp_path / "a.pt", Saving(str(mark)))
    with pytest.raises(ModelError, match=r"a\.pt: is a TorchScript program, .*--network torchscript"):
        load_torchscript(path, is_trusted=False, size=None)
    network = load_torchscript(path, is_trusted=True, size=None).network
    assert not mark.exists()
    network(torch.zeros(1, 3, 4, 4))
    assert mark.exists()  # so it is right to ask
    count_faults("no code in an exported file is run", 1)


def test_damaged_torchscript_is_refused(tmp_path: Path, count_faults) -> None:
    path = save_script(tmp_path / "a.pt", Known().eval(), (1, 3, 24, 36))
    content = path.read_bytes()
    lengths = range(0, len(content), len(content) // 20)
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"a\.pt: damaged, or not for this version of torch") as caught:
            load_torchscript(path, is_trusted=True, size=None)
        assert "\n" not in str(caught.value)
    count_faults("exported files of others are run or refused", len(lengths))


def test_torchscript_with_several_results_is_an_error(tmp_path: Path) -> None:
    path = save_script(tmp_path / "a.pt", Doubled())
    with pytest.raises(ModelError, match="returns Tensor, Tensor; needed is one tensor"):
        load_torchscript(path, is_trusted=True, size=None).network(torch.zeros(1, 3, 4, 4))
