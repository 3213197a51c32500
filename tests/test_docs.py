"""The documents: links, what is generated from the code, and the pages of the site."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from carvana_batch.commands import group
from carvana_batch.errors import EXIT_SOME_FAILED

CHECKOUT = Path(__file__).parent.parent
IN_SITE = (
    "README.md",
    "BENCHMARKS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Dockerfile",
    "docs",
    "recipes",
)
"""What ``scripts/docs`` puts into the site."""

sys.path.append(str(CHECKOUT / "scripts"))
from reference import TARGET as OPTIONS  # noqa: E402
from reference import escape, format_option, format_reference, iter_contexts  # noqa: E402
from rooms_picture import TARGET as PICTURE  # noqa: E402
from rooms_picture import draw_rooms, find_needed, push_apart  # noqa: E402

DOCUMENTS = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")])


def iter_links(text: str) -> Iterator[str]:
    """The targets of links and pictures of a Markdown text, except those in blocks of code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    text = re.sub(r"^    .*$", "", text, flags=re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match("[a-z]+:", target):
            yield target


def anchors_of(document: Path) -> set[str]:
    """The anchors of the headings of a document, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def iter_commands(text: str) -> Iterator[list[str]]:
    """The arguments of each ``carvana-batch`` in the indented blocks of code of a Markdown text."""
    for line in text.replace("\\\n", " ").splitlines():
        match = re.match(r"    +(?:[A-Z_]+=\S+ )*carvana-batch (.+)", line)
        if match and "[OPTIONS]" not in line:
            yield [word for word in shlex.split(match[1], comments=True) if word not in ("&", "|", ">")]


def find_command(arguments: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the first arguments name, and the other arguments."""
    command: click.Command = group
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        below = command.get_command(click.Context(command), arguments[0])
        assert below is not None, arguments
        command, arguments = below, arguments[1:]
    return command, arguments


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(CHECKOUT).as_posix())
def test_links_lead_to_files_of_the_site(document: Path) -> None:
    for target in iter_links(document.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.is_file(), target
        assert file.relative_to(CHECKOUT).parts[0] in IN_SITE, target
        if anchor:
            assert anchor in anchors_of(file), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(CHECKOUT).as_posix())
def test_commands_have_the_options_that_are_given(document: Path) -> None:
    for given in iter_commands(document.read_text(encoding="utf-8")):
        command, arguments = find_command(given)
        options = {name for option in command.params for name in option.opts} | {"--help"}
        assert [word for word in arguments if re.match("--?[a-z]", word) and word not in options] == [], given


def test_commands_are_found() -> None:
    text = (
        "    carvana-batch predict in out --size \\\n        auto   # all\n\n    A=b carvana-batch submit &\n"
    )
    assert list(iter_commands(text)) == [["predict", "in", "out", "--size", "auto"], ["submit"]]
    assert find_command(["models", "show", "segunet-s"])[1] == ["segunet-s"]
    total = sum(len(list(iter_commands(document.read_text(encoding="utf-8")))) for document in DOCUMENTS)
    assert total > 40


def test_links_are_found() -> None:
    text = "[a](b.md#c) ![d](e.png) [f](https://g.h)\n\n    [in](code.md)\n"
    assert list(iter_links(text)) == ["b.md#c", "e.png"]
    assert list(iter_links("```\n[in](code.md)\n```\n[a](b.md)\n")) == ["b.md"]


def test_every_document_is_in_the_navigation() -> None:
    navigation = (CHECKOUT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"^[^#\n]*?(\S+\.md)$", navigation, re.M)
    assert sorted(listed) == sorted(path.relative_to(CHECKOUT).as_posix() for path in DOCUMENTS)


def test_the_site_has_what_links_lead_to() -> None:
    script = (CHECKOUT / "scripts" / "docs").read_text(encoding="utf-8")
    linked = script.replace(
        "{README,BENCHMARKS,CHANGELOG,CONTRIBUTING}.md",
        "README.md BENCHMARKS.md CHANGELOG.md CONTRIBUTING.md",
    )
    assert [name for name in IN_SITE if name not in linked] == []


def test_the_list_of_options_is_current() -> None:
    """If not, run scripts/write_reference."""
    assert OPTIONS.read_text(encoding="utf-8") == format_reference()


def test_every_option_is_in_the_list() -> None:
    text = OPTIONS.read_text(encoding="utf-8")
    for context in iter_contexts(click.Context(group, info_name="carvana-batch")):
        section = text.partition(f"\n## {context.command_path}\n")[2].partition("\n## ")[0]
        for option in context.command.params:
            for name in option.opts if isinstance(option, click.Option) else ():
                assert re.search(rf"^- `[^`]*{re.escape(name)}\b", section, re.M) or name in ("-h", "--help")


def test_an_option_is_described_as_in_its_help() -> None:
    option = click.Option(
        ["-n", "--number"], type=click.IntRange(min=1), default=3, show_default=True, help="Of a_b, x < y."
    )
    context = click.Context(click.Command("it", params=[option]))
    expected = "- `-n, --number INTEGER RANGE`: Of a\\_b, x &lt; y. [default: 3; x>=1]"
    assert format_option(option, context) == expected
    assert escape("*a* `b_c*`") == "\\*a\\* `b_c*`"


def test_exit_codes_are_listed() -> None:
    text = (CHECKOUT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    help_text = " ".join((group.help or "").split())
    codes = re.findall(r"\b(\d+)(?= )", help_text.partition("Exit codes:")[2])
    assert str(EXIT_SOME_FAILED) in codes
    assert [code for code in codes if not re.search(rf"^\|[ \d,]*\b{code}\b", text, re.M)] == []


def test_the_picture_of_the_rooms_is_current() -> None:
    """If not, run scripts/write_reference."""
    assert PICTURE.read_text(encoding="utf-8") == draw_rooms()


def test_arrows_that_follow_from_others_are_not_drawn() -> None:
    assert find_needed({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_boxes_of_a_floor_do_not_overlap() -> None:
    placed = push_apart([100, 100, 500], [50, 50, 50])
    assert placed[0] == 100
    assert placed[1] - placed[0] > 100
    assert placed[2] == 500


@pytest.fixture
def build_site(tmp_path: Path) -> Callable[[], subprocess.CompletedProcess[str]]:
    """Build the site as ``scripts/docs`` does, from links to the documents in a folder of its own."""
    pytest.importorskip("material", reason="needs the extra docs: scripts/docs")
    (tmp_path / "docs").mkdir()
    for name in IN_SITE:
        (tmp_path / "docs" / name).symlink_to(CHECKOUT / name)
    config = (CHECKOUT / "mkdocs.yml").read_text(encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(config.replace("build/docs", "docs").replace("build/site", "site"))
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}

    def build() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return build


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(
    build_site: Callable[[], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    result = build_site()
    assert result.returncode == 0, result.stderr
    site = tmp_path / "site"
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    expected = {"index.html", "BENCHMARKS.html", "docs/reference/options.html", "docs/decisions/index.html"}
    assert expected <= pages
    for page in pages:
        text = (site / page).read_text(encoding="utf-8")
        # Nothing is fetched from other servers.
        assert (
            re.findall(r'(?:<script[^>]* src|<link[^>]* href|<img[^>]* src)="(?:https?:)?//[^"]*', text) == []
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "link", ["docs/nowhere.md", "recipes/nothing.toml", "docs/formats.md#nothing", "setup.cfg"]
)
def test_a_dead_link_is_an_error(
    link: str, build_site: Callable[[], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    changelog = tmp_path / "docs" / "CHANGELOG.md"
    changelog.unlink()
    changelog.write_text(f"# Changelog\n\n[dead]({link})\n")
    result = build_site()
    assert result.returncode != 0
    assert link.partition("#")[0] in result.stderr
