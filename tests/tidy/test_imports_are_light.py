"""Help is instant and the agent is small: what may be imported, and how much memory it takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FRAMEWORKS = {
    "onnx", "onnxruntime", "openvino", "nncf", "tensorflow", "torch", "sklearn", "scipy", "pandas", "pydantic",
    "litestar", "uvicorn", "sqlalchemy", "ai_edge_litert", "ai_edge_quantizer", "paho", "tuf", "numpy",
}  # fmt: skip
AGENT_FORBIDDEN = {"onnx", "openvino", "pandas", "pydantic", "edgeship"}
AGENT_MEMORY_LIMIT_BYTES = 45_000_000


def _run(code: str) -> dict[str, object]:
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    document = json.loads(outcome.stdout.splitlines()[-1])
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("arguments", [["--help"], ["rollouts", "--help"], ["releases", "--help"], ["build", "--help"]])
def test_help_imports_no_framework(arguments: list[str]) -> None:
    loaded = _run(
        "import json, sys\n"
        "from edgeship.cli.main import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "print(json.dumps({'modules': sorted({name.split('.')[0] for name in sys.modules})}))\n"
    )["modules"]
    assert isinstance(loaded, list)
    assert not FRAMEWORKS & set(loaded)


@pytest.mark.parametrize("module", ["edgeship_agent", "edgeship_agent.serving.client", "edgeship_agent.contract.wire"])
def test_the_agent_library_is_small(module: str) -> None:
    seen = _run(
        "import json, sys\n"
        f"import {module}\n"
        "status = open('/proc/self/status').read()\n"
        "rss = int(next(l for l in status.splitlines() if l.startswith('VmRSS')).split()[1]) * 1024\n"
        "print(json.dumps({'modules': sorted({n.split('.')[0] for n in sys.modules}), 'rss_bytes': rss}))\n"
    )
    modules, rss_bytes = seen["modules"], seen["rss_bytes"]
    assert isinstance(modules, list)
    assert isinstance(rss_bytes, int)
    assert not AGENT_FORBIDDEN & set(modules)
    assert rss_bytes < AGENT_MEMORY_LIMIT_BYTES
