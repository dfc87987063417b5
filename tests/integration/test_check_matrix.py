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


def _checked(file: Path) -> tuple[int, dict[str, Any]]:
    """The exit code for every target together, and each target's results."""
    done = CliRunner().invoke(check, [str(file), *(word for target in TARGETS for word in ("-t", target)), "--json"])
    assert isinstance(done.exception, SystemExit | None), done.exception
    results = json.loads(done.stdout)["targets"]
    assert set(results) == set(TARGETS)
    return done.exit_code, results


def _expected_exit(results: dict[str, Any]) -> int:
    """An operator without a route, before a limit that is missed, before what could not be told."""
    found = [each for one in results.values() for each in one]
    if any(each["holds"] is False for each in found):
        return 1 if any(each["holds"] is False and each["id"] == "operators" for each in found) else 3
    return 4 if any(each["holds"] is None for each in found) else 0


def _contradiction(name: str, target: str, found: list[dict[str, Any]]) -> str:
    """How the results contradict themselves, or what the record of real builds says; empty where they do not."""
    recorded = RECORD[name]["targets"]
    if not all(each["sentence"] and (each["holds"] is not False or each["next_step"]) for each in found):
        return "a result without words, or a failure without what mends it"
    if not recorded:
        refused = any(each["holds"] is False and each["id"] == "operators" for each in found)
        return "" if refused else "nothing was ever built of it, and every operator has a route"
    if "runtime" in recorded[target] and name not in GIVEN:
        return "it was built, and it is said that it cannot be" if _failing(found) else ""
    if recorded[target]["reason"].startswith("there is no way") and all(each["holds"] for each in found):
        return "there was no way, and everything holds"
    return ""


def _contradictions(name: str, results: dict[str, Any]) -> dict[str, str]:
    return {target: why for target, found in results.items() if (why := _contradiction(name, target, found))}


def _operators(file: Path) -> list[Any]:
    seen = CliRunner().invoke(inspect, [str(file), "--json"])
    assert seen.exit_code == 0, seen.output
    return list(json.loads(seen.stdout)["operators"])


@pytest.mark.skipif(not DATA.is_dir(), reason="needs EDGESHIP_TEST_DATA")
@pytest.mark.parametrize("name", SAMPLE)
def test_what_is_said_of_some_models_holds(name: str) -> None:
    file = DATA / RECORD[name]["file"]
    exit_code, results = _checked(file)
    assert _operators(file)
    assert _contradictions(name, results) == {}
    assert exit_code == _expected_exit(results)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs EDGESHIP_TEST_DATA")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SAMPLE])
def test_what_is_said_of_every_model_holds(name: str) -> None:
    file = DATA / RECORD[name]["file"]
    exit_code, results = _checked(file)
    assert _operators(file)
    assert _contradictions(name, results) == {}
    assert exit_code == _expected_exit(results)
