"""Run every benchmark, print its figures and append them to results.jsonl with machine, commit and command.

    make bench                     every benchmark
    make bench ARGS=drift_quality  one of them

Exit code 3 if a goal is missed, 1 if a benchmark could not be run.
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
TIMEOUT_S = 1800
EXIT_FAILED = 1
EXIT_GOAL_MISSED = 3


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    from edgeship_agent.runtime.isa import cpu_name, isa_class

    cores = len(__import__("os").sched_getaffinity(0))
    return {"cpu": cpu_name(), "isa": isa_class(), "cores": cores, "python": platform.python_version()}


def commit() -> str:
    """The commit that is measured, marked where the working tree differs from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def run(script: Path) -> tuple[int, list[dict[str, object]]]:
    """Run one script; returns its exit code and its figures."""
    outcome = subprocess.run(
        [sys.executable, str(script), "--json"], stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False
    )
    return outcome.returncode, [json.loads(line) for line in outcome.stdout.splitlines() if line.startswith("{")]


def show(figure: dict[str, object]) -> None:
    """One figure as a line for people."""
    mark = {True: "✔ met   ", False: "✖ MISSED", None: "· figure"}[figure.get("met")]  # type: ignore[index]
    interval = f" [{figure['low']}, {figure['high']}]" if figure.get("low") is not None else ""
    goal = f"   goal {figure['goal']}" if figure.get("goal") is not None else ""
    against = f"   against {figure['against']}" if figure.get("against") else ""
    print(f"  {mark} {figure['name']}: {figure['value']} {figure['unit']}{interval}, n={figure['n']}{goal}{against}")


def main() -> None:
    """Run what was asked for, or everything."""
    wanted = sys.argv[1:]
    scripts = [path for path in sorted(HERE.glob("*.py")) if path.name != Path(__file__).name]
    if wanted:
        scripts = [path for path in scripts if path.stem in wanted]
    about = {"machine": machine(), "commit": commit()}
    worst = 0
    with RESULTS.open("a", encoding="utf-8") as results:
        for script in scripts:
            print(f"bench: {script.stem}")
            code, figures = run(script)
            worst = max(worst, code)
            for figure in figures:
                show(figure)
                stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                row = {**figure, **about, "at": stamp, "command": f"python benchmarks/{script.name} --json"}
                results.write(json.dumps(row, ensure_ascii=False) + "\n")
            if code not in (0, EXIT_GOAL_MISSED):
                print(f"  ✖ {script.name} ended with exit code {code}")
    sys.exit(EXIT_GOAL_MISSED if worst == EXIT_GOAL_MISSED else EXIT_FAILED if worst else 0)


if __name__ == "__main__":
    main()
