from collections import Counter
from pathlib import Path

import pytest
from devtools import Chromium, find_chromium
from helpers import Zygote, write_photo

COUNTS = pytest.StashKey[Counter]()


@pytest.fixture(scope="session")
def model():
    """The bundled network; on one thread, so that other work on the machine does not make its steps wait."""
    import torch

    from carvana_batch.network.checkpoints import load_model

    torch.set_num_threads(1)
    return load_model("segunet-s")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """images/<id>.jpg and masks/<id>_mask.gif of four small photos; to be read only."""
    folder = tmp_path_factory.mktemp("drawn")
    for number in range(4):
        write_photo(
            folder / "images" / f"car{number}.jpg", folder / "masks" / f"car{number}_mask.gif", number
        )
    return folder


@pytest.fixture(scope="session")
def zygote():
    with Zygote(Path(__file__).with_name("zygote.py")) as started:
        yield started


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    with Chromium(find_chromium(), tmp_path_factory.mktemp("chromium")) as chromium:
        yield chromium


@pytest.fixture
def show_page(chromium):
    """Open pages; afterwards check that they logged nothing and requested no file but ``allowed`` ones."""
    opened = []

    def open_page(file, allowed=(), **options):
        addresses = {each.as_uri() for each in (file, *allowed)}
        opened.append((chromium.open(file, **options), addresses))
        return opened[-1][0]

    yield open_page
    for page, addresses in opened:
        assert page.log == []
        assert set(page.requests) <= addresses
        assert not [event for event in page.events if event["method"] == "Page.javascriptDialogOpening"]
        page.close()


def pytest_configure(config):
    config.stash[COUNTS] = Counter()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Add the counts of one of the processes among which pytest-xdist has divided the tests."""
    node.config.stash[COUNTS].update(getattr(node, "workeroutput", {}).get("counts", {}))


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["counts"] = dict(session.config.stash[COUNTS])


@pytest.fixture(scope="session")
def count_faults(pytestconfig):
    """``count_faults(promise, number)`` adds to the table that is printed after the tests."""

    def add(promise, number):
        pytestconfig.stash[COUNTS][promise] += number

    return add


def pytest_terminal_summary(terminalreporter, config):
    counts = config.stash.get(COUNTS, None)
    if counts:
        terminalreporter.section("injected faults")
        for promise, number in sorted(counts.items()):
            terminalreporter.line(f"{number:6,}  {promise}")
