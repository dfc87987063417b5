"""Olive's static quantization pass, in an environment of its own, made from its lock on first use."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.peers.quantizers import Peer, Sample

from edgeship.build.toolchains.environment import root

_LOCK: Final = Path(__file__).with_name("olive.lock")
_TIMEOUT_S: Final = 300
_INSTALL_TIMEOUT_S: Final = 900
_PIP: Final = ("install", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", "--no-input",
               "--disable-pip-version-check", "-r")  # fmt: skip
_UNSIGNED: Final = {"activation_type": "uint8"}
_PERCENTILE: Final = {"calibrate_method": "Percentile", "extra_options": {"CalibPercentile": 99.999}}
#: Name → what is set beside the pass's defaults.
_VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "Olive default": {},
    "Olive u8s8 per channel": {**_UNSIGNED, "per_channel": True},
    "Olive u8s8 per channel, percentile 99.999": {**_UNSIGNED, "per_channel": True, **_PERCENTILE},
}
#: Runs in its environment: the model, the calibration arrays, the settings, the folder to write in.
_PROGRAM: Final = """
import json, shutil, sys
import numpy as np
model, data, settings, out = sys.argv[1:]
from olive.data.component.dataset import BaseDataset
from olive.data.config import DataComponentConfig, DataConfig
from olive.data.registry import Registry
from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx.quantization import OnnxStaticQuantization

arrays = dict(np.load(data))
count = len(next(iter(arrays.values())))

@Registry.register_dataset("calibration_samples")
def calibration_samples(**_):
    return BaseDataset([({name: array[index] for name, array in arrays.items()}, 0) for index in range(count)])

component = lambda name: DataComponentConfig(type=name)
config = DataConfig(name="calibration", load_dataset_config=component("calibration_samples"),
                    pre_process_data_config=component("skip_pre_process"),
                    post_process_data_config=component("skip_post_process"),
                    dataloader_config=component("no_auto_batch_dataloader"))
settings = {"data_config": config, **json.loads(settings)}
step = create_pass_from_dict(OnnxStaticQuantization, settings, disable_search=True)
made = step.run(ONNXModelHandler(model), out + "/olive")
shutil.copyfile(made.model_path, out + "/model.onnx")
"""


def olive() -> dict[str, Peer]:
    """Name → peer that starts from the float ONNX file."""
    return {name: _peer(settings) for name, settings in _VARIANTS.items()}


def environment() -> Path:
    """The interpreter of Olive's environment, which is made where it is not there yet.

    Raises:
        RuntimeError: venv or pip could not do it; nothing half-made is left.
    """
    key = hashlib.sha256(f"{_LOCK.read_text('utf-8')}\0{sys.version_info[:2]}".encode()).hexdigest()[:16]
    place = root().with_name("peers") / f"olive-{key}"
    if not (place / "ready").is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".olive-", dir=place.parent))
        try:
            _run([sys.executable, "-m", "venv", str(draft)], _INSTALL_TIMEOUT_S, draft)
            _run([str(draft / "bin" / "python"), "-m", "pip", *_PIP, str(_LOCK)], _INSTALL_TIMEOUT_S, draft)
            (draft / "ready").touch()
            draft.rename(place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return place / "bin" / "python"


def _peer(settings: dict[str, Any]) -> Peer:
    def quantize(model: Path, samples: Sequence[Sample], folder: Path) -> Path:
        data = folder / "calibration.npz"
        np.savez(data, **{name: np.stack([sample[name] for sample in samples]) for name in samples[0]})
        copy = folder / "source.onnx"
        shutil.copyfile(model, copy)
        command = [str(environment()), "-c", _PROGRAM, str(copy), str(data), json.dumps(settings), str(folder)]
        _run(command, _TIMEOUT_S, folder)
        return folder / "model.onnx"

    return quantize


def _run(command: Sequence[str], timeout_s: int, folder: Path) -> None:
    """A command, whose last words of an error are the reason."""
    variables = {**os.environ, "OLIVE_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout_s, cwd=folder,
                          env=variables)  # fmt: skip
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(lines[-1] if lines else f"exit code {done.returncode}")
