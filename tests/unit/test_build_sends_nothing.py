"""A build reports to nobody: the libraries that would do so are told that they cannot."""

from __future__ import annotations

import subprocess
import sys

PROBE = """
import edgeship.build.backends.open_vino
import nncf.telemetry.wrapper
from openvino.tools.ovc import convert_impl

print(type(nncf.telemetry.wrapper.telemetry).__name__, convert_impl.tm.__name__)
"""


def test_openvino_and_nncf_have_no_reporter() -> None:
    # in a process of its own, since NNCF keeps quiet under pytest anyway
    outcome = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120, check=True)
    assert outcome.stdout.split() == ["MagicMock", "openvino.tools.ovc.telemetry_stub"]
