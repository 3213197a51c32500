"""``carvana-batch models``: what is listed is what is there."""

import re

import pytest
from click.testing import CliRunner

from carvana_batch.commands import group
from carvana_batch.models import BUNDLED_WEIGHTS, NETWORKS


@pytest.mark.parametrize("arguments", [["models"], ["models", "list"]])
def test_every_network_is_listed_with_its_costs(arguments):
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert NETWORKS.keys() <= lines.keys()
    assert "31,043,521" in lines["unet"]
    assert re.search(r"2,461,476 +24 ", lines["segunet-s"])
    for name in NETWORKS:
        assert ("bundled" in lines[name]) == (name in BUNDLED_WEIGHTS)
    assert max(map(len, result.output.splitlines())) <= 100


def test_show_prints_the_header():
    result = CliRunner().invoke(group, ["models", "show", "segunet-s"], catch_exceptions=False)
    assert result.exit_code == 0
    assert re.search(r"^network +segunet-s$", result.output, flags=re.MULTILINE)
    assert re.search(r"^sha256 +[0-9a-f]{64}$", result.output, flags=re.MULTILINE)
