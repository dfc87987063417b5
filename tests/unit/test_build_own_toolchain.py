"""A framework beside Edgeship is used from there; only metadata tells."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeship.build.toolchains import environment


def _install(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("torch", "onnxscript", "own"),
    [("2.13.0+cpu", "0.7.2", True), ("2.8.0", "0.7.2", False), ("2.13.0", "", False), ("", "0.7.2", False)],
)
def test_a_supported_framework_of_the_user_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str, onnxscript: str, own: bool
) -> None:
    for name, version in (("torch", torch), ("onnxscript", onnxscript)):
        if version:
            _install(tmp_path, name, version)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = environment.named("torch")
    assert found.is_own is own
    assert (found.python == Path(sys.executable)) is own
    if own:
        assert environment.install("torch") == Path(sys.prefix)
        assert not environment.named("onnx2tf").is_own
