"""What the repository may and may not hold."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".lock", ".sh", ".yml", ".yaml", ".json", ".css", ".html", ""}
#: Hosts of package registries, spelled so that this file does not hold them.
HOSTS = [r"pypi\." + "org", "files.python" + "hosted", r"registry\.npm" + "js", r"deb\.deb" + "ian"]
REGISTRY = re.compile("|".join(HOSTS))
INDEX_LINE = re.compile(r"^\s*(--index-url|--extra-index-url|-i\s)", re.MULTILINE)
MACHINE_PATH = re.compile(r"(?<![\w.])/(" + "work|root|" + r"home/\w+)/")


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def _texts() -> list[tuple[str, str]]:
    return [
        (str(path.relative_to(ROOT)), path.read_text(errors="replace"))
        for path in _tracked()
        if path.suffix in TEXT_SUFFIXES
    ]


def test_no_registry_address_and_no_path_of_a_machine() -> None:
    found = [
        name for name, text in _texts() if REGISTRY.search(text) or INDEX_LINE.search(text) or MACHINE_PATH.search(text)
    ]
    assert not found


def test_top_level_is_what_the_readme_promises() -> None:
    wanted = {
        "pyproject.toml", "README.md", "Makefile", "src", "device_agent", "targets", "tests", "benchmarks", "docs",
        "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", ".ci", ".github",
    }  # fmt: skip
    assert wanted <= {path.name for path in ROOT.iterdir()}


def test_locks_are_hashed_and_hold_no_index() -> None:
    locks = sorted((ROOT / "src").rglob("*.lock"))
    assert locks
    for lock in locks:
        text = lock.read_text()
        requirements = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
        assert requirements
        assert text.count("--hash=sha256:") >= len(requirements), lock.name


def test_layers_hold() -> None:
    linter = ROOT / ".venv" / "bin" / "lint-imports"
    command = [str(linter) if linter.exists() else "lint-imports", "--no-cache"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout[-3000:]
