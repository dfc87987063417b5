"""Every example in a docstring gives what it says."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (ROOT / "src", ROOT / "device_agent")


def _modules() -> list[str]:
    """Those that show an example."""
    return [
        ".".join(file.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        for package in PACKAGES
        for file in sorted(package.glob("edgeship*/**/*.py"))
        if re.search(r"^ +>>> ", file.read_text("utf-8"), re.MULTILINE)
    ]


@pytest.mark.parametrize("name", _modules())
def test_an_example_gives_what_it_says(name):
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.attempted
    assert not found.failed
