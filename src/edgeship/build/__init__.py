"""From a trained model to a signed bundle: convert, quantize, verify on the device's own runtime, measure, choose."""

import os
import sys
from typing import Final

# ONNX Runtime reports its users' calls without asking, unless this is said before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

#: What OpenVINO and NNCF report their users' calls with, without asking. Both take its absence as a no.
_REPORTER: Final = "openvino_telemetry"

sys.modules[_REPORTER] = None  # type: ignore[assignment]
