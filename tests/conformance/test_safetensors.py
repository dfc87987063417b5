"""Weights in the safetensors format: read as PyTorch's own, and refused where the header says what cannot be."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeship.build import sources, toolchains
from edgeship.build.sources import InputShape, SourceModel, SourceRequest
from edgeship.build.toolchains import environment
from edgeship_agent.contract.errors import InputError
from tests import models

TOOLCHAINS = Path(toolchains.__file__).parent
NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(3, 2)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        return self.line(x) + self.count
"""
#: Reads every file of a folder: name → what each tensor is, or why it is refused.
READ = """
import json, pathlib, sys
sys.path.insert(0, sys.argv[1])
from torch_parts import model, safe_tensors
told = {}
for path in pathlib.Path(sys.argv[2]).iterdir():
    try:
        read = safe_tensors.read(path)
        told[path.stem] = {name: [str(each.dtype), list(each.shape), each.flatten().tolist()]
                           for name, each in read.items()}
    except model.Refused as error:
        told[path.stem] = f"{error}; next: {error.next_step}"
print(json.dumps(told))
"""


def _write(path: Path, header: object, numbers: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
    return path


def _entry(dtype: object, shape: object, *place: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(place)}


def _read_all(folder: Path) -> dict[str, Any]:
    toolchains.install("torch")
    command = [str(environment.named("torch").python), "-I", "-c", READ, str(TOOLCHAINS), str(folder)]
    said = subprocess.run(command, check=True, timeout=200, capture_output=True, stdin=subprocess.DEVNULL, text=True)
    told: dict[str, Any] = json.loads(said.stdout)
    return told


def _load(folder: Path, weights: Path) -> SourceModel:
    (folder / "net.py").write_text(NET)
    return sources.load(
        SourceRequest(text=f"{folder / 'net.py'}:Net", weights=weights, input_shapes=(InputShape(shape=(1, 3)),))
    )


def test_a_factory_takes_them_as_weights(tmp_path: Path) -> None:
    weight, bias = np.arange(6, dtype="<f4").reshape(2, 3), np.array([0.5, -1.0], "<f4")
    header = {
        "__metadata__": {"format": "pt"},
        "model.count": _entry("I64", [], 32, 40),
        "model.line.weight": _entry("F32", [2, 3], 0, 24),
        "model.line.bias": _entry("F32", [2], 24, 32),
    }
    numbers = weight.tobytes() + bias.tobytes() + (7).to_bytes(8, "little")
    source = _load(tmp_path, _write(tmp_path / "w.safetensors", header, numbers))
    sample = np.array([[1.0, -2.0, 0.25]], np.float32)
    (said,) = models.answers(source, [{"x": sample}], tmp_path / "run")
    assert np.allclose(next(iter(said.values())), sample @ weight.T + bias + 7)


def test_a_truncated_file_is_told(tmp_path: Path) -> None:
    weights = _write(tmp_path / "w.safetensors", {"line.bias": _entry("F32", [2], 0, 8)}, b"\0" * 7)
    with pytest.raises(InputError, match="damaged or truncated: its tensors take 8 bytes, and it has 7") as refusal:
        _load(tmp_path, weights)
    assert refusal.value.exit_code == 2
    assert refusal.value.next_step


def test_every_type_is_read_wherever_it_lies(tmp_path: Path) -> None:
    values = {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U8": "u1",
    }
    numbers = b"\x02"  # a boolean; all that follows lies on odd addresses
    header = {"BOOL": _entry("BOOL", [1], 0, 1), "none": _entry("F32", [0, 5], 1, 1)}
    for name, dtype in values.items():
        more = np.array([[1], [0], [3]], dtype).tobytes()
        header[name] = _entry(name, [3, 1], len(numbers), len(numbers) + len(more))
        numbers += more
    header["BF16"] = _entry("BF16", [], len(numbers), len(numbers) + 2)
    _write(tmp_path / "all", header, numbers + b"\x40\xc0")
    told = _read_all(tmp_path)["all"]
    assert told.pop("BOOL") == ["torch.bool", [1], [True]]
    assert told.pop("none") == ["torch.float32", [0, 5], []]
    assert told.pop("BF16") == ["torch.bfloat16", [], [-3.0]]
    assert {name: (shape, each) for name, (_, shape, each) in told.items()} == dict.fromkeys(
        values, ([3, 1], [1, 0, 3])
    )
    assert told["F16"][0] == "torch.float16"


#: What is wrong → header and its words.
WRONG: dict[str, tuple[object, str]] = {
    "no-json": (b"{", "no JSON"),
    "nested": (b"[" * 100_000, "no JSON"),
    "long-number": (b'{"w": ' + b"9" * 5000 + b"}", "no JSON"),
    "no-text": (b"\xff\xff", "no JSON"),
    "list": ([], "no table"),
    "no-entry": ({"w": 1}, "does not say what w is"),
    "no-type": ({"w": _entry(None, [2], 0, 8)}, "does not say what w is"),
    "no-offsets": ({"w": {"dtype": "F32", "shape": [2]}}, "does not say what w is"),
    "negative-axes": ({"w": _entry("F32", [-1, -2], 0, 8)}, "does not say what w is"),
    "negative-offsets": ({"w": _entry("F32", [2], -8, 0)}, "does not say what w is"),
    "three-offsets": ({"w": _entry("F32", [2], 0, 8, 8)}, "does not say what w is"),
    "fractions": ({"w": _entry("F32", [2.0], 0, 8)}, "does not say what w is"),
    "truth": ({"w": _entry("F32", [True, 2], 0, 8)}, "does not say what w is"),
    "many-axes": ({"w": _entry("F32", [1] * 1000 + [2], 0, 8)}, "does not say what w is"),
    "none-of-many": ({"w": _entry("F32", [0, 2**40, 2**40], 0, 0)}, "does not say what w is"),
    "another-type": ({"w": _entry("F8_E4M3", [8], 0, 8)}, "the tensor w is of the type F8_E4M3"),
    "another-size": ({"w": _entry("F32", [3], 0, 8)}, "not as many bytes as its shape [3] of F32"),
    "reversed": ({"w": _entry("F32", [2], 8, 0)}, "not as many bytes"),
    "behind-the-end": ({"w": _entry("F32", [4], 0, 16)}, "take 16 bytes, and it has 8"),
    "hole": ({"w": _entry("F32", [1], 4, 8)}, "overlap or leave holes"),
    "overlap": ({"v": _entry("F32", [2], 0, 8), "w": _entry("F32", [1], 4, 8)}, "overlap or leave holes"),
    "left-over": ({"w": _entry("F32", [1], 0, 4)}, "take 4 bytes, and it has 8"),
    "escapes": ({"\x1b[2J": 1}, r"does not say what \x1b[2J is"),
}


def test_a_header_that_cannot_be_true_is_refused(tmp_path: Path) -> None:
    for name, (header, _) in WRONG.items():
        _write(tmp_path / name, header, b"\0" * 8)
    (tmp_path / "short").write_bytes(b"\x10")
    (tmp_path / "endless").write_bytes(b"\xff" * 8 + b"{}")
    told = _read_all(tmp_path)
    wanted = {name: words for name, (_, words) in WRONG.items()} | dict.fromkeys(
        ("short", "endless"), "behind the file"
    )
    assert {name: words for name, words in wanted.items() if words not in str(told[name])} == {}
    assert all("; next: s" in each or "; next: copy" in each for each in told.values())
