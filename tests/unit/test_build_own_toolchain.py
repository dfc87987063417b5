"""A framework beside Edgeship is used from there; only metadata tells."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeship.build.toolchains import environment
from edgeship_agent.contract.errors import ConversionError


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


def test_a_lock_for_another_python_is_refused_in_words_before_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.sys, "version_info", (3, 13, 1, "final", 0))
    for act in (environment.check, environment.install):
        with pytest.raises(ConversionError, match=r"holds files for Python 3\.11 on x86_64, and this is Python 3\.13"):
            act("torch")
    with pytest.raises(ConversionError, match="is not installed"):
        environment.check("onnx2tf")
