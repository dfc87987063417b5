"""onnx2tf's own full-integer quantization, in its toolchain's environment."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from benchmarks.peers.quantizers import Peer, Sample

from edgeship.build.toolchains import TOOLCHAINS, install

_TIMEOUT_S = 300


def onnx2tf_int8(source: Path, input_name: str, granularity: str) -> Peer:
    """A peer that starts from the ONNX source; its toolchain is installed where it is missing.

    Args:
        source: the ONNX file; a copy is handed over.
        input_name: of its one input.
        granularity: ``per-channel`` or ``per-tensor``.
    """
    install("onnx2tf")

    def quantize(_model: Path, samples: Sequence[Sample], folder: Path) -> Path:
        copy = folder / "source.onnx"
        copy.write_bytes(source.read_bytes())
        data = folder / "calibration.npy"
        (array,) = [np.concatenate([next(iter(sample.values())) for sample in samples])]
        np.save(data, array)
        command = [str(TOOLCHAINS["onnx2tf"].python), "-m", "onnx2tf", "-i", str(copy), "-o", str(folder / "out"),
                   "-tb", "flatbuffer_direct", "-oiqt", "-qt", granularity, "-cind", input_name, str(data), "[0.0]",
                   "[1.0]"]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S, cwd=folder)
        if done.returncode != 0:  # it may leave a file all the same
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise RuntimeError(said[-1] if said else f"exit code {done.returncode}")
        return folder / "out" / "source_integer_quant.tflite"

    return quantize
