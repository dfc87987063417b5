"""How every command speaks: results on stdout, everything else on stderr, a word beside every glyph."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import click
import msgspec

from edgeship_agent.contract.errors import EdgeshipError

GLYPHS: Final = {"done": "✔", "failed": "✖", "undecided": "?", "note": "·"}
_STYLES: Final = {"done": "green", "failed": "red", "undecided": "yellow", "note": "bright_black"}
_LABEL_WIDTH: Final = 10
_state = {"color": True}

F = TypeVar("F", bound=Callable[..., Any])


def disable_color() -> None:
    """No colour from here on."""
    _state["color"] = False


def color_wanted(stream: Any) -> bool:
    """Whether colour is right for a stream: a terminal, and nobody asked for plain text."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not _state["color"]
    return not plain and hasattr(stream, "isatty") and stream.isatty()


def json_option(command: F) -> F:
    """``--json`` for a command; the flag arrives as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout.")(command)


def result(text: str) -> None:
    """A line of the result, on stdout."""
    click.echo(text, color=color_wanted(sys.stdout) or None)


def result_json(document: object) -> None:
    """The result as JSON, on stdout; ``document`` carries ``schema_version``."""
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def step(label: str, text: str, glyph: str = "done") -> None:
    """One line of progress, on stderr: glyph, label, text.

    Args:
        label: one word, such as ``read``.
        text: what happened, with figures.
        glyph: ``done``, ``failed``, ``undecided`` or ``note``.
    """
    mark = GLYPHS[glyph]
    if color_wanted(sys.stderr):
        mark = click.style(mark, fg=_STYLES[glyph])
    click.echo(f"{mark} {label:<{_LABEL_WIDTH - 1}} {text}", err=True, color=color_wanted(sys.stderr))


def note(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    click.echo(text, err=True)


def word(argument: object) -> str:
    """An argument as a shell takes it: names with blanks, brackets or letters beyond ASCII are quoted.

    >>> word("my model (1).onnx"), word("net.onnx")
    ("'my model (1).onnx'", 'net.onnx')
    """
    return shlex.quote(str(argument))


def next_steps(*commands: str) -> None:
    """The last line: what to do next, as commands that can be pasted."""
    click.echo("next: " + "   ·   ".join(commands), err=True)


def print_error(error: EdgeshipError) -> None:
    """An error for a person: what, where, expected, got, and the next step. Never a traceback."""
    head = "error:"
    if color_wanted(sys.stderr):
        head = click.style(head, fg="red", bold=True)
    click.echo(f"{head} {error.sentence()}", err=True)
    if error.next_step:
        click.echo(f"next: {error.next_step}", err=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table on stdout; columns are as wide as they need to be, numbers are the caller's strings."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
