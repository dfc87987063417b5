"""The documentation is true where a machine can tell: links lead somewhere, commands parse, pages are fresh."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

from edgeship.cli.main import edgeship
from edgeship_agent.cli import build_parser
from tests.console_blocks import ROOT, blocks, pages, simple_commands

PAGES = pages()
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_PAGE_IN_CODE = re.compile(r"docs/(?:adr|guide|reference|tutorial)/[a-z0-9_-]+\.md")
_TARGET = re.compile(r"^([a-z0-9-]+):.*##", re.MULTILINE)


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings: lower case, hyphens for blanks, no other signs."""
    headings = _HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _without_blocks(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def _links(page: Path) -> list[tuple[Path, str]]:
    """Relative links: the file, and the anchor or nothing."""
    found = [link for link in _LINK.findall(_without_blocks(page)) if "://" not in link]
    return [((page.parent / path).resolve() if path else page, anchor) for path, _, anchor in map(_split, found)]


def _split(link: str) -> tuple[str, str, str]:
    return link.partition("#")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    links = _links(page)
    missing = [str(file) for file, _ in links if not file.exists()]
    assert not missing
    lost = [f"{_name(file)}#{anchor}" for file, anchor in links if anchor and anchor not in _anchors(file)]
    assert not lost


def test_every_page_is_linked() -> None:
    linked = {file for page in PAGES for file, _ in _links(page)}
    start = {ROOT / "README.md"}
    assert not [_name(page) for page in PAGES if page not in linked | start]


def _commands() -> list[tuple[str, list[str]]]:
    return [
        (_name(page), words)
        for page in PAGES
        for block in blocks(page)
        if block.language == "console"
        for line in block.commands
        for words in simple_commands(line)
    ]


@pytest.mark.parametrize(("page", "words"), _commands(), ids=lambda value: value if isinstance(value, str) else None)
def test_documented_commands_parse(page: str, words: Sequence[str]) -> None:
    program, *arguments = words
    if program == "edgeship":
        _parse(edgeship, arguments)
    elif program == "edgeship-agent":
        build_parser().parse_args(arguments)
    elif program == "make":
        targets = _TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8"))
        assert [word for word in arguments if "=" not in word and word not in targets] == [], page


def _parse(command: click.Command, arguments: list[str]) -> None:
    """Walk down the groups, then let the command read its own options and arguments, without running it."""
    while isinstance(command, click.Group) and arguments:
        if arguments[0].startswith("-"):
            assert any(arguments[0] in parameter.opts for parameter in command.params), arguments
            arguments = arguments[1:]
            continue
        child = command.get_command(click.Context(command), arguments[0])
        assert child is not None, f"{command.name} has no command {arguments[0]}"
        command, arguments = child, arguments[1:]
    if isinstance(command, click.Group):
        return
    try:
        command.make_context(command.name, list(arguments))
    except click.exceptions.Exit as stop:  # --help
        assert stop.exit_code == 0
    except click.UsageError as error:
        pytest.fail(f"{command.name} {' '.join(arguments)}: {error.format_message()}")


def test_make_targets_of_the_contributors_page_exist() -> None:
    targets = set(_TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    named = re.findall(r"^    make ([a-z0-9-]+)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert named
    assert set(named) <= targets


def test_generated_pages_are_fresh() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "generate_docs.py"), "--check"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


def test_pages_that_the_code_names_exist() -> None:
    """Error messages and docstrings name pages of the documentation: each must be there."""
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "device_agent" / "edgeship_agent").rglob("*.py")]
    named = {
        (_name(source), page)
        for source in sources
        for page in _PAGE_IN_CODE.findall(source.read_text(encoding="utf-8"))
    }
    assert not [(source, page) for source, page in sorted(named) if not (ROOT / page).is_file()]
