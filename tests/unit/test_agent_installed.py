"""Versions of what is installed: the same as Python's own way to ask."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from edgeship_agent.runtime.installed import installed_version


@pytest.mark.parametrize("name", ["numpy", "msgspec", "onnxruntime", "ai-edge-litert", "AI_Edge.LiteRT"])
def test_it_is_what_python_says(name: str) -> None:
    assert installed_version(name) == metadata.version(name)


def test_every_way_to_write_it_down_is_read(tmp_path: Path) -> None:
    for folder in ("new_name-1.2.3.dist-info", "old.name-4.5.egg-info", "debian-0.9-py3.11.egg-info"):
        (tmp_path / folder).mkdir()
    places = ["/no/such/folder", str(tmp_path)]
    assert [installed_version(name, places) for name in ("new-name", "Old_Name", "debian", "name")] == [
        "1.2.3", "4.5", "0.9", None,
    ]  # fmt: skip
