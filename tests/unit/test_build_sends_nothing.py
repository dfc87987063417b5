"""A build reports to nobody: the libraries that would do so are told that they cannot."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


MLFLOW_PROBE = """
import os
for name in ("CI", "PYTEST_CURRENT_TEST", "GITHUB_ACTIONS"):  # there it keeps quiet anyway
    os.environ.pop(name, None)
os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
from edgeship.build import tracker
with tracker.opened("nothing"):
    pass
from mlflow.telemetry.client import get_telemetry_client
from mlflow.telemetry.utils import is_telemetry_disabled
print(is_telemetry_disabled(), get_telemetry_client())
"""


def test_mlflow_sends_no_usage_data() -> None:
    pytest.importorskip("mlflow")
    outcome = subprocess.run([sys.executable, "-c", MLFLOW_PROBE], capture_output=True, text=True, timeout=120,
                             check=True)  # fmt: skip
    assert outcome.stdout.split() == ["True", "None"]
