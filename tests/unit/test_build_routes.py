"""Routes from a source to a runtime: a table, each step made once, a failure remembered."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeship.build import routes, sources
from edgeship.build.sources import InputShape
from edgeship_agent.contract.errors import ConfigError, ConversionError
from tests import models


def test_every_step_of_every_route_exists():
    for ways in routes.ROUTES.values():
        for route in ways:
            assert set(route) <= set(routes.STEPS)


def test_no_route_is_said_and_names_both_ends():
    with pytest.raises(ConversionError, match="no way from onnx to abacus"):
        routes.plan("onnx", "abacus")


def test_a_step_is_made_once_on_a_copy_and_its_failure_is_remembered(tmp_path: Path, monkeypatch):
    source = sources.load(models.classifier(tmp_path / "m.onnx"))
    calls: list[Path] = []

    def fails(_source, model: Path, _folder: Path) -> Path:
        model.write_bytes(b"rewritten, as converters do")
        calls.append(model)
        raise ConversionError("does not work")

    monkeypatch.setitem(routes.STEPS, "odd", routes.Step(name="odd", toolchain="none", run=fails))
    asked: list[str] = []
    forms = routes.Forms(source, tmp_path / "forms", asked.append)
    for _ in range(2):
        with pytest.raises(ConversionError, match="does not work"):
            forms.file(("odd",))
    assert len(calls) == 1
    assert asked == ["none"]
    assert forms.file(()).read_bytes() == source.data
    source.check_unchanged()


@pytest.mark.parametrize(
    ("text", "shape", "name", "dtype"),
    [
        ("1,3,32,32", (1, 3, 32, 32), "", ""),
        ("image=1,8:uint8", (1, 8), "image", "uint8"),
        ("a=b=1,8", (1, 8), "a=b", ""),
        ("sr=:int64", (), "sr", "int64"),
    ],
)
def test_shapes_are_read(text: str, shape: tuple[int, ...], name: str, dtype: str):
    assert InputShape.parse(text) == InputShape(shape=shape, name=name, dtype=dtype)


@pytest.mark.parametrize("text", ["1,x", "1;3", "x=1,2:florp9", "1,-1"])
def test_shapes_of_another_form_are_refused(text: str):
    with pytest.raises(ConfigError) as refusal:
        InputShape.parse(text)
    assert refusal.value.exit_code == 2
