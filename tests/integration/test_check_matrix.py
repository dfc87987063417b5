"""``targets check`` over every model of the test data that can be looked into, for every target: what it says holds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgeship.build import target_files
from edgeship.cli.bundles import inspect
from edgeship.cli.targets import check

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", ROOT.parent / "shared" / "data"))
RECORD = json.loads((ROOT / "docs" / "reference" / "models.json").read_text("utf-8"))
#: Those of which no framework is needed to look into them.
NAMES = [name for name, each in RECORD.items() if Path(each["file"]).suffix in {".onnx", ".tflite"}]
SAMPLE = ["mnist_cntk", "hello_world", "microwakeword", "hard_invoking"]
TARGETS = [target.id for target in target_files.list_all()]
#: Built from less than the file: with an input given as a constant.
GIVEN = {"silero_onnx", "silero_onnx16k"}


def _failing(results: list[dict[str, Any]]) -> bool:
    """Whether the results say that nothing can be built: a rule of the target, or one for each of its runtimes."""
    failed = [each for each in results if each["holds"] is False and each.get("sure")]
    runtimes = {each["runtime"] for each in results if each.get("runtime")}
    return any(not each.get("runtime") for each in failed) or {each["runtime"] for each in failed} >= runtimes


def _look(name: str) -> None:
    file, recorded = DATA / RECORD[name]["file"], RECORD[name]["targets"]
    seen = CliRunner().invoke(inspect, [str(file), "--json"])
    assert seen.exit_code == 0, seen.output
    assert json.loads(seen.stdout)["operators"]
    done = CliRunner().invoke(check, [str(file), *(word for target in TARGETS for word in ("-t", target)), "--json"])
    assert isinstance(done.exception, SystemExit | None), done.exception
    assert done.exit_code in {0, 1, 3, 4}, done.output
    results = json.loads(done.stdout)["targets"]
    assert set(results) == set(TARGETS)
    for target, found in results.items():
        assert all(each["sentence"] and (each["holds"] is not False or each["next_step"]) for each in found)
        if not recorded:
            assert any(each["holds"] is False and each["id"] == "operators" for each in found), target
        elif "runtime" in recorded[target] and name not in GIVEN:
            assert not _failing(found), (target, found)
        elif recorded[target]["reason"].startswith("there is no way"):
            assert not all(each["holds"] for each in found), target
    expected = (
        1
        if any(each["holds"] is False and each["id"] == "operators" for one in results.values() for each in one)
        else 3
        if any(each["holds"] is False for one in results.values() for each in one)
        else None
    )
    assert expected is None or done.exit_code == expected


@pytest.mark.skipif(not DATA.is_dir(), reason="needs EDGESHIP_TEST_DATA")
@pytest.mark.parametrize("name", SAMPLE)
def test_what_is_said_of_some_models_holds(name: str) -> None:
    _look(name)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs EDGESHIP_TEST_DATA")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SAMPLE])
def test_what_is_said_of_every_model_holds(name: str) -> None:
    _look(name)
