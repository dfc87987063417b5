"""Bad input, through the command line as a user types it: a clear error, the documented code, nothing half-written."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeship.demo.building import models_folder, write_data
from tests.bundles import written

EXIT_FAILED = 1
EXIT_USAGE = 2


class Workspace:
    """A folder with the digits model and its data, and a build command that can be spoiled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_data(folder)
        self.model = Path(shutil.copy(models_folder() / "digits-v1.onnx", folder / "model.onnx"))

    def build(self, **changes: str) -> subprocess.CompletedProcess[str]:
        """``edgeship build`` with some options changed."""
        options = {"calibration": "calibration.npz", "evaluation": "evaluation.npz", "target": "x86-64-server"}
        options |= {"source": str(self.model), "preprocess": "preprocess.toml"} | changes
        source, target = options.pop("source"), options.pop("target")
        words = [word for name, value in options.items() if value for word in (f"--{name}", value)]
        command = [sys.executable, "-m", "edgeship", "build", source, "-t", target, *words]
        command += ["--key", "author.key", "-o", "out"]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False)

    def save(self, name: str, **arrays: np.ndarray) -> str:
        """Write an .npz."""
        np.savez(self.folder / name, **arrays)
        return name

    def arrays(self, name: str = "calibration.npz") -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of a data file."""
        with np.load(self.folder / name) as data:
            return data["x"], data["y"]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def _truncated(work: Workspace) -> dict[str, str]:
    (work.folder / "truncated.onnx").write_bytes(work.model.read_bytes()[:9000])
    return {"source": "truncated.onnx"}


def _unknown_domain(work: Workspace) -> dict[str, str]:
    model = onnx.load(work.model)
    model.graph.node[1].domain = "com.example.private"
    model.opset_import.append(onnx.helper.make_opsetid("com.example.private", 1))
    onnx.save(model, work.folder / "foreign.onnx")
    return {"source": "foreign.onnx"}


def _wrong_shape(work: Workspace) -> dict[str, str]:
    images, labels = work.arrays()
    return {"calibration": work.save("bad.npz", x=images[:, :, :7], y=labels)}


def _wrong_dtype(work: Workspace) -> dict[str, str]:
    images, labels = work.arrays()
    return {"calibration": work.save("bad.npz", x=images.astype(np.int32), y=labels)}


def _with_nan(work: Workspace) -> dict[str, str]:
    images, labels = work.arrays()
    spoiled = images.astype(np.float32)[:, None] / 16.0
    spoiled[5, 0, 3, 3] = np.nan
    return {"calibration": work.save("bad.npz", x=spoiled, y=labels), "preprocess": ""}


def _unknown_target(_work: Workspace) -> dict[str, str]:
    return {"target": "raspberry-pi-9"}


def _empty_evaluation(work: Workspace) -> dict[str, str]:
    images, labels = work.arrays("evaluation.npz")
    return {"evaluation": work.save("bad.npz", x=images[:0], y=labels[:0])}


def _not_a_data_file(work: Workspace) -> dict[str, str]:
    (work.folder / "bad.npz").write_bytes(b"PK\x03\x04 not really")
    return {"evaluation": "bad.npz"}


def _same_images_twice(_work: Workspace) -> dict[str, str]:
    return {"evaluation": "calibration.npz"}


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (_truncated, EXIT_USAGE, ["truncated.onnx", "truncated"]),
        (_unknown_domain, EXIT_FAILED, ["foreign.onnx", "com.example.private"]),
        (_wrong_shape, EXIT_USAGE, ["bad.npz", "expected", "8, 8", "8, 7"]),
        (_wrong_dtype, EXIT_USAGE, ["bad.npz", "expected", "uint8", "int32"]),
        (_with_nan, EXIT_USAGE, ["bad.npz", "NaN"]),
        (_unknown_target, EXIT_USAGE, ["raspberry-pi-9", "edgeship targets list"]),
        (_empty_evaluation, EXIT_USAGE, ["bad.npz", "empty"]),
        (_not_a_data_file, EXIT_USAGE, ["bad.npz"]),
        (_same_images_twice, EXIT_USAGE, ["calibration.npz"]),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else None,
)
def test_a_build_refuses(
    workspace: Workspace, spoil: Callable[[Workspace], dict[str, str]], code: int, words: list[str]
) -> None:
    changes = spoil(workspace)
    before = _digests(workspace.folder)
    outcome = workspace.build(**changes)
    assert outcome.returncode == code, outcome.stderr
    for word in words:
        assert word in outcome.stderr
    assert "error:" in outcome.stderr
    assert "next:" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not outcome.stdout
    after = _digests(workspace.folder)
    after.pop("author.key", None)  # made on first use, on purpose
    assert after == before, "sources unchanged, nothing half-written"


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("command", [["verify"], ["releases", "add"]])
def test_a_bundle_with_one_byte_flipped_is_refused(tmp_path: Path, command: list[str]) -> None:
    bundle = written(tmp_path).directory
    blob = max((bundle / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    outcome = subprocess.run(
        [sys.executable, "-m", "edgeship", *command, str(bundle)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert outcome.returncode == EXIT_FAILED, outcome.stderr
    assert "sha256" in outcome.stderr
    assert blob.name[:12] in outcome.stderr
    assert "Traceback" not in outcome.stderr
