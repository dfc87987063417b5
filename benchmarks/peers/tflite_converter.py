"""TensorFlow's own TFLiteConverter, full integer with a representative dataset, in the tensorflow toolchain."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from benchmarks.peers.quantizers import Peer, Sample

from edgeship.build.toolchains import TOOLCHAINS, install

_TIMEOUT_S: Final = 300
#: Name → what is set on the converter beside its defaults.
_VARIANTS: Final[dict[str, dict[str, bool | str]]] = {
    "TFLiteConverter default": {},
    "TFLiteConverter per tensor": {"_experimental_disable_per_channel": True},
    "TFLiteConverter int8 inputs and outputs": {"inference_input_type": "int8", "inference_output_type": "int8"},
    "TFLiteConverter old quantizer": {"experimental_new_quantizer": False},
}
#: Runs in the toolchain: the source, the calibration array, the settings, the file to write.
_PROGRAM: Final = """
import json, sys
import numpy as np
source, data, settings, out = sys.argv[1:]
import tensorflow as tf
import tf_keras
samples = np.load(data)
model = tf_keras.models.load_model(source, compile=False)
converter = tf.lite.TFLiteConverter.from_keras_model(model)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = lambda: ([each[None]] for each in samples)
converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
for name, value in json.loads(settings).items():
    setattr(converter, name, tf.int8 if value == "int8" else value)
open(out, "wb").write(converter.convert())
"""


def tflite_converter(source: Path) -> dict[str, Peer]:
    """Name → peer that starts from a Keras file or a SavedModel; the toolchain is installed where it is missing.

    Args:
        source: read by tf_keras in the toolchain.
    """
    install("tensorflow")
    return {name: _peer(source, settings) for name, settings in _VARIANTS.items()}


def _peer(source: Path, settings: dict[str, bool | str]) -> Peer:
    def quantize(_model: Path, samples: Sequence[Sample], folder: Path) -> Path:
        data, made = folder / "calibration.npy", folder / "model.tflite"
        np.save(data, np.concatenate([next(iter(sample.values())) for sample in samples]))
        command = [str(TOOLCHAINS["tensorflow"].python), "-c", _PROGRAM, str(source), str(data), json.dumps(settings),
                   str(made)]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S, cwd=folder)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip().rsplit("\n", 1)[-1] or f"exit code {done.returncode}")
        return made

    return quantize
