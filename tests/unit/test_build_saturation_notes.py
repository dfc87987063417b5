"""Where pairs of 8-bit products may be added in 16 bits."""

from __future__ import annotations

import pytest

from edgeship.build import decide


@pytest.mark.parametrize(
    ("runtime", "precision", "here", "expected"),
    [
        ("onnxruntime", "int8", "x86_64", True),
        ("openvino", "int8", "x86_64", True),
        ("onnxruntime", "dynamic", "x86_64", True),
        ("litert", "int8", "x86_64", False),
        ("onnxruntime", "fp16", "x86_64", False),
        ("openvino", "fp32", "x86_64", False),
        ("onnxruntime", "int8", "x86_64+vnni", False),
        ("onnxruntime", "int8", "aarch64", False),
    ],
)
def test_only_integers_saturate(
    monkeypatch: pytest.MonkeyPatch, runtime: str, precision: str, here: str, expected: bool
) -> None:
    monkeypatch.setattr(decide, "isa_class", lambda: here)
    assert decide.may_saturate(runtime, precision) is expected
