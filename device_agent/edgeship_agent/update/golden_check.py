"""Golden inputs in a throw-away process: a model that kills its runtime kills nothing else."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from edgeship_agent.contract.errors import TransferError
from edgeship_agent.update.launcher import Launcher

_TIMEOUT_S: Final = 120.0


class GoldenOutcome(Struct, frozen=True, kw_only=True):
    """What came of it: a code and a sentence where it did not pass."""

    passed: bool
    relative_rms: float = 0.0
    limit: float = 0.0
    reason: str = ""
    detail: str = ""


def check_slot(launcher: Launcher, directory: Path, *, timeout_s: float = _TIMEOUT_S) -> GoldenOutcome:
    """Run the golden inputs of a slot on this device's runtime; everything but a clear pass is a failure."""
    try:
        done = launcher.run("edgeship_agent.serving.golden", ("--slot", str(directory)), timeout_s=timeout_s)
    except TransferError as error:
        return GoldenOutcome(passed=False, reason="golden_timeout", detail=error.sentence())
    if done.return_code < 0:
        name = signal.Signals(-done.return_code).name
        return GoldenOutcome(
            passed=False, reason="golden_crash", detail=f"the runtime died of {name} on the golden inputs"
        )
    try:
        result: dict[str, Any] = msgspec.json.decode(done.output, type=dict[str, Any])
    except msgspec.MsgspecError:
        last = done.errors.decode(errors="replace").strip().splitlines()[-1:]
        return GoldenOutcome(passed=False, reason="golden_error", detail=" ".join(last) or "the check gave no answer")
    return _read(result, done.return_code)


def _read(result: dict[str, Any], return_code: int) -> GoldenOutcome:
    passed = result.get("passed") is True and return_code == 0
    relative_rms = float(result.get("relative_rms") or 0.0)
    limit = float(result.get("limit") or 0.0)
    if passed:
        return GoldenOutcome(passed=True, relative_rms=relative_rms, limit=limit)
    said = str(result.get("reason") or "")
    detail = said or f"relative RMS {relative_rms:.4g} exceeds the limit {limit:.4g}"
    reason, detail = "golden_mismatch", f"golden outputs: {detail}"
    return GoldenOutcome(passed=False, relative_rms=relative_rms, limit=limit, reason=reason, detail=detail)
