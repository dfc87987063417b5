"""From a trained model to a signed bundle: convert, quantize, verify on the device's own runtime, measure, choose."""

import sys
from typing import Final

#: What OpenVINO and NNCF report their users' calls with, without asking. Both take its absence as a no.
_REPORTER: Final = "openvino_telemetry"

sys.modules[_REPORTER] = None  # type: ignore[assignment]
