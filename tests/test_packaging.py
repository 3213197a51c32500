"""The wheel and the source distribution are complete, and the wheel works outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers import write_photo

import carvana_batch

CHECKOUT = Path(__file__).parent.parent
FOLDERS = ("carvana_batch", "docs", "recipes", "scripts", "tests")
"""Folders of the checkout that belong to the project; others may hold data or environments."""

WHEEL = f"carvana_batch-{carvana_batch.__version__}-py3-none-any.whl"
SDIST = f"carvana_batch-{carvana_batch.__version__}.tar.gz"
TIMEOUT = 300

pytestmark = pytest.mark.slow


def run_python(folder: Path, *arguments: object, **environment: str) -> str:
    """Run the Python of the tests in ``folder``; return its standard output."""
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build_wheel(source: Path, target: Path) -> Path:
    """Build a wheel without network access."""
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", target]
    run_python(source, "-m", "pip", "wheel", *options, source)
    return target / WHEEL


def read_package(folder: Path) -> dict[str, bytes]:
    """The content of all files of the package in ``folder``, by their POSIX path below it."""
    paths = [path for path in (folder / "carvana_batch").rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in paths
        if "__pycache__" not in path.parts
    }


def read_archive(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, because building leaves files behind."""
    folder = tmp_path_factory.mktemp("packaging") / "source"
    for name in FOLDERS:
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in CHECKOUT.iterdir():
        if path.is_file():
            shutil.copy2(path, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build_wheel(source, source.parent / "wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder that contains only the installed wheel."""
    target = wheel.parent.parent / "installed"
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", target]
    run_python(wheel.parent, "-m", "pip", "install", *options, wheel)
    return target


def test_installed_package_equals_the_checkout(installed: Path) -> None:
    found, expected = read_package(installed), read_package(CHECKOUT)
    assert {"carvana_batch/py.typed", "carvana_batch/network/weights/segunet-s.safetensors"} < set(expected)
    assert sum("/page_files/" in name for name in expected) == 16
    assert found.keys() == expected.keys()
    assert [name for name, content in expected.items() if found[name] != content] == []


def test_wheel_contains_the_license_and_only_the_package(wheel: Path) -> None:
    files = read_archive(wheel)
    info = f"carvana_batch-{carvana_batch.__version__}.dist-info"
    assert {name.split("/")[0] for name in files} == {"carvana_batch", info}
    assert files[f"{info}/licenses/LICENSE"] == (CHECKOUT / "LICENSE").read_bytes()


def test_installed_wheel_masks_a_photo(installed: Path, tmp_path: Path) -> None:
    write_photo(tmp_path / "car.png", size=(192, 128))
    (tmp_path / "elsewhere").mkdir()

    def run(*arguments: object, package: Path) -> str:
        return run_python(tmp_path / "elsewhere", *arguments, PYTHONPATH=str(package))

    module = run("-c", "import carvana_batch; print(carvana_batch.__file__)", package=installed)
    assert Path(module.strip()).parent == installed / "carvana_batch"
    version = run("-m", "carvana_batch", "--version", package=installed)
    assert version == f"carvana-batch, version {carvana_batch.__version__}\n"
    for package in (installed, CHECKOUT):
        mask = tmp_path / f"{package.name}.png"
        predict = ["predict", tmp_path / "car.png", mask, "--precision", "fp32", "--quiet"]
        run("-m", "carvana_batch", *predict, package=package)
    mask, expected = (tmp_path / f"{package.name}.png" for package in (installed, CHECKOUT))
    assert mask.read_bytes() == expected.read_bytes()


def test_sdist_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run_python(source, "-c", build, tmp_path)
    with tarfile.open(tmp_path / SDIST) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / SDIST.removesuffix(".tar.gz")
    assert (unpacked / "LICENSE").read_bytes() == (CHECKOUT / "LICENSE").read_bytes()
    # The tests can be run from the source distribution.
    for name in ("constraints.txt", "scripts/test", "tests/helpers.py", "recipes/unet-240x160.toml"):
        assert (unpacked / name).is_file()
    assert read_archive(build_wheel(unpacked, tmp_path / "wheel")) == read_archive(wheel)
