import shutil

import pytest


@pytest.fixture
def here(tmp_path, drawn):
    """A folder with two small photos in ``images``."""
    folder = tmp_path / "here"
    (folder / "images").mkdir(parents=True)
    for name in ("car0.jpg", "car1.jpg"):
        shutil.copy2(drawn / "images" / name, folder / "images")
    return folder
