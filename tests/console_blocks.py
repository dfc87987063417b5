"""The command lines of the documentation: what stands behind ``$`` in its console blocks, and the files beside them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"(?:<!-- ([^\n]+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
_KEYWORDS = {"until", "while", "do", "if", "then", "!", "time"}
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")
_OPERATORS = {"&", "&&", "|", "||", ";", "(", ")"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: the comment before it, its language, its text."""

    note: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """What stands behind ``$``; a line that ends with a backslash goes on in the next one."""
        found: list[str] = []
        goes_on = False
        for line in self.text.splitlines():
            if goes_on:
                found[-1] += "\n" + line
            elif line.startswith("$ "):
                found.append(line[2:])
            else:
                continue
            goes_on = line.endswith("\\")
        return found

    @property
    def printed(self) -> list[str]:
        """What the commands print, by the page."""
        commands = "\n".join(self.commands).splitlines()
        return [line for line in self.text.splitlines() if line.removeprefix("$ ") not in commands]


def pages() -> list[Path]:
    """Every page of the documentation."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Block(note=note, language=language, text=text) for note, language, text in found]


def simple_commands(line: str) -> Iterator[list[str]]:
    """The single commands of a shell line: no operators, redirections, keywords or assignments."""
    lexer = shlex.shlex(line.replace("\\\n", " "), posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    words: list[str] = []
    tokens = list(lexer)
    for index, token in enumerate(tokens):
        redirects = index + 1 < len(tokens) and tokens[index + 1].startswith((">", "<"))
        if token in _OPERATORS:
            yield from _without_prefix(words)
            words = []
        elif token.startswith((">", "<")) or (index and tokens[index - 1].startswith((">", "<"))):
            continue
        elif not (redirects and token.isdigit()):
            words.append(token)
    yield from _without_prefix(words)


def _without_prefix(words: list[str]) -> Iterator[list[str]]:
    while words and (words[0] in _KEYWORDS or _ASSIGNMENT.fullmatch(words[0])):
        words = words[1:]
    if words:
        yield words
