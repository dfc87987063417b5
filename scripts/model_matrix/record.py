"""One model built for every shipped target through the command line, and what is kept of the outcome."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from model_matrix.cases import FACTORY, Case

ROOT: Final = Path(__file__).resolve().parents[2]
#: Documented ends of a build. Source: interfaces.md, exit codes.
_ENDS: Final = {0: "pass", 1: "refused", 2: "refused", 3: "fail", 4: "inconclusive"}
_FOLDERS: Final = re.compile(r"(?<![\w.])/(?:[\w.+\-]+/)+")


def shipped_targets() -> tuple[str, ...]:
    """Ids of the targets of the repository."""
    return tuple(sorted(path.stem for path in (ROOT / "targets").glob("*.toml")))


def build(case: Case, data: Path, limit_s: float) -> dict[str, Any]:
    """Build one model for every target.

    Args:
        case: the model.
        data: folder of the test data.
        limit_s: for the whole command.

    Returns:
        What ``models.json`` keeps of it.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calibration, evaluation = case.feed(data)
        np.savez(folder / "calibration.npz", **calibration)
        np.savez(folder / "evaluation.npz", **evaluation)
        command = _command(case, data, folder)
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=limit_s, check=False,
                                  env={**os.environ, "XDG_DATA_HOME": str(folder / "home")})  # fmt: skip
        except subprocess.TimeoutExpired:
            return {**_head(case), "outcome": "not tried", "reason": f"took more than {limit_s:g} s", "targets": {}}
        found = _outcome(done)
    return {**_head(case), **found, "seconds": round(time.monotonic() - started)}


def _head(case: Case) -> dict[str, Any]:
    return {"title": case.title, "file": case.file, "inputs": case.inputs}


def _command(case: Case, data: Path, folder: Path) -> list[str]:
    file = data / case.file
    source = [f"{FACTORY}:{case.factory}", "--weights", str(file)] if case.factory else [str(file)]
    targets = [word for target in shipped_targets() for word in ("-t", target)]
    return [sys.executable, "-m", "edgeship", "build", *source, *targets, *case.options, "--effort", "quick", "--yes",
            "--calibration", "calibration.npz", "--evaluation", "evaluation.npz", "--json",
            "--key", str(folder / "author.key"), "-o", "out"]  # fmt: skip


def _outcome(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Every target's result, or why there is none.

    Raises:
        RuntimeError: the command ended in a way that is not documented.
    """
    if done.returncode not in _ENDS or "Traceback" in done.stderr:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    if not done.stdout:
        line = next(each for each in done.stderr.splitlines() if each.startswith("error:"))
        return {"outcome": "refused", "exit_code": done.returncode, "reason": plain(line[len("error:") :]),
                "targets": {}}  # fmt: skip
    document = json.loads(done.stdout)
    chosen = {each["target"]: each for each in document["variants"] if each["chosen"]}
    targets = {each["target"]: _target(each, chosen.get(each["target"])) for each in document["targets"]}
    return {"outcome": document["verdict"], "exit_code": done.returncode, "targets": targets}


def _target(verdict: dict[str, Any], variant: dict[str, Any] | None) -> dict[str, Any]:
    reason = plain(verdict["reason"])
    if variant is None:
        refused = verdict["verdict"] == "fail"
        return {"result": "refused" if refused else verdict["verdict"], "reason": reason}
    metric = variant["metric"]
    return {
        "result": variant["precision"],
        "runtime": variant["runtime"],
        "size_bytes": variant["size_bytes"],
        "relative_rms": _short(variant["relative_rms"]),
        "metric": metric["name"],
        "value": _short(metric["value"]),
        "drop": _short(metric["drop"]),
        "drop_low": _short(metric["drop_low"]),
        "drop_high": _short(metric["drop_high"]),
        "n": metric["n"],
        "route": next((note for note in variant["notes"] if note.startswith("converted by ")), ""),
        "reason": reason,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def plain(text: str) -> str:
    """A sentence without the folders of the machine that said it, on one line.

    >>> plain("error of /tmp/x1/model.onnx:  bad")
    'error of model.onnx: bad'
    """
    return " ".join(_FOLDERS.sub("", text).split())
