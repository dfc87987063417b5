"""Sizes and purity that no linter holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*sorted((ROOT / "src").rglob("*.py")), *sorted((ROOT / "device_agent" / "edgeship_agent").rglob("*.py"))]
PURE = ["src/edgeship/rollout", "src/edgeship/drift", "src/edgeship/targets", "src/edgeship/charts"]
PURE += ["src/edgeship/statistics", "device_agent/edgeship_agent/contract"]
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _code_lines(function: Function) -> int:
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    docstring = ast.get_docstring(function, clean=False)
    return lines - (docstring.count("\n") + 1 if docstring else 0)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_file_and_functions_are_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    long = {f.name: _code_lines(f) for f in _functions(path) if _code_lines(f) > MAX_FUNCTION_LINES}
    assert not long


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_nothing_is_left_for_later(path: Path) -> None:
    text = path.read_text()
    assert not [word for word in ("TODO", "FIXME", "XXX", "NotImplementedError") if word in text]


@pytest.mark.parametrize("folder", PURE)
def test_pure_packages_draw_no_numbers_of_their_own(folder: str) -> None:
    drawn = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "random" and isinstance(node.value, ast.Name):
                drawn.append(f"{_name(path)}:{node.lineno}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("numpy.random"):
                drawn.append(f"{_name(path)}:{node.lineno}")
    # a Generator may be named as the type of an argument; it is never made or called through the module
    allowed = [place for place in drawn if "Generator" in _line(place)]
    assert drawn == allowed


def _line(place: str) -> str:
    path, number = place.rsplit(":", 1)
    return (ROOT / path).read_text().splitlines()[int(number) - 1]


def test_every_package_says_what_it_is() -> None:
    packages = [path for path in SOURCES if path.name == "__init__.py"]
    silent = [_name(path) for path in packages if not (ast.get_docstring(ast.parse(path.read_text())) or "").strip()]
    assert not silent
