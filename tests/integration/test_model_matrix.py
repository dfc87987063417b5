"""Every model of the test data for every shipped target, through the command line: an hour, and restartable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", ROOT.parent / "shared" / "data"))
SCRIPT = ROOT / "scripts" / "record_models.py"
RECORD = ROOT / "docs" / "reference" / "models.json"
RESULTS = {"int8", "fp16", "fp32", "refused", "inconclusive"}
LIMIT_S = 1200
#: The record of a former run, on some machine: what is built there is built here.
NAMES = list(json.loads(RECORD.read_text("utf-8")))


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
@pytest.mark.skipif(not DATA.is_dir(), reason="needs EDGESHIP_TEST_DATA")
@pytest.mark.parametrize("name", NAMES)
def test_what_was_recorded_is_built_again(tmp_path: Path, name: str) -> None:
    """A precision may be another one where a measured time decides; what can be built at all may not."""
    record = tmp_path / "models.json"
    command = [sys.executable, str(SCRIPT), "--only", name, "--record", str(record), "--limit-s", str(LIMIT_S)]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "EDGESHIP_TEST_DATA": str(DATA)})
    found = json.loads(record.read_text("utf-8"))[name]
    known = json.loads(RECORD.read_text("utf-8"))[name]
    assert found["targets"].keys() == known["targets"].keys(), found.get("reason")
    for target, result in found["targets"].items():
        assert (result["result"] in RESULTS) and result["reason"]
        built, was_built = "runtime" in result, "runtime" in known["targets"][target]
        assert built == was_built, (target, result["reason"])
    if not found["targets"]:
        assert found["outcome"] == "refused"
        assert "\n" not in found["reason"]


@pytest.mark.parametrize("name", NAMES)
def test_a_record_tells_every_shipped_target(name: str) -> None:
    """Cheap: the committed record is whole, and no result lacks its reason."""
    known = json.loads(RECORD.read_text("utf-8"))[name]
    shipped = {path.stem for path in (ROOT / "targets").glob("*.toml")}
    assert known["outcome"] in {"pass", "fail", "inconclusive", "refused"}
    assert set(known["targets"]) in (shipped, set())
    assert known["targets"] or known["reason"]
    assert all(each["result"] in RESULTS and each["reason"] for each in known["targets"].values())
