"""Run every benchmark, print its figures and append them to results.jsonl with machine, commit and command.

    make bench                                                    every benchmark
    make bench ARGS=drift_quality                                 one of them
    make bench ARGS="build_quality --only resnet-20:litert"       one of them, with words of its own

Each figure is appended as it is printed, so that a run that is ended loses no finished one. Exit code 3 if a goal is
missed, 1 if a benchmark could not be run.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
#: A benchmark that prints nothing for so long is ended.
SILENCE_S = 1800
EXIT_FAILED = 1
EXIT_GOAL_MISSED = 3


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    from edgeship_agent.runtime.isa import cpu_name, isa_class

    cores = len(os.sched_getaffinity(0))
    return {"cpu": cpu_name(), "isa": isa_class(), "cores": cores, "python": platform.python_version()}


def commit() -> str:
    """The commit that is measured, marked where the working tree differs from it in more than what was measured."""
    described = _git("describe", "--always", "--abbrev=12").stdout.strip() or "unknown"
    return described + "-dirty" * bool(_git("diff", "--quiet", "HEAD", "--", ":/", f":!{RESULTS.name}").returncode)


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False)


class Running:
    """One script at work.

    Attributes:
        code: its exit code, once it has ended.
    """

    def __init__(self, script: Path, words: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(script), "--json", *words], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.code = 0

    def figures(self) -> Iterator[dict[str, object]]:
        """Each figure as it is printed; the script and what it started are ended if nothing comes for too long.

        What is no figure is progress: shown, and kept nowhere.
        """
        clock = self._clock()
        try:
            for line in self._process.stdout or ():
                clock.cancel()
                if line.startswith("{"):
                    yield json.loads(line)
                else:
                    print(f"  · {line.rstrip()}", flush=True)
                clock = self._clock()
            self.code = self._process.wait()
        finally:
            clock.cancel()
            self._end()

    def _clock(self) -> threading.Timer:
        clock = threading.Timer(SILENCE_S, self._end)
        clock.daemon = True
        clock.start()
        return clock

    def _end(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def show(figure: dict[str, object]) -> None:
    """One figure as a line for people."""
    mark = {True: "✔ met   ", False: "✖ MISSED", None: "· figure"}[figure.get("met")]  # type: ignore[index]
    interval = f" [{figure['low']}, {figure['high']}]" if figure.get("low") is not None else ""
    goal = f"   goal {figure['goal']}" if figure.get("goal") is not None else ""
    against = f"   against {figure['against']}" if figure.get("against") else ""
    text = f"{figure['name']}: {figure['value']} {figure['unit']}{interval}, n={figure['n']}{goal}{against}"
    print(f"  {mark} {text}", flush=True)


def append(figure: dict[str, object], about: dict[str, object], command: str) -> None:
    """One row, on disk when this returns."""
    stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with RESULTS.open("a", encoding="utf-8") as results:
        results.write(json.dumps({**figure, **about, "at": stamp, "command": command}, ensure_ascii=False) + "\n")


def chosen(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The scripts that were asked for, or all of them; and words for the one script, from the first option on."""
    options = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    names, rest = list(words[:options]), list(words[options:])
    scripts = {path.stem: path for path in sorted(HERE.glob("*.py")) if path.name != Path(__file__).name}
    unknown = [name for name in names if name not in scripts]
    if unknown or (rest and len(names) != 1):
        sys.exit(
            f"error: {', '.join(unknown) or 'options need exactly one benchmark'}\nnext: one of {', '.join(scripts)}"
        )
    return [scripts[name] for name in names] or list(scripts.values()), rest


def main() -> None:
    """Run what was asked for, or everything."""
    scripts, words = chosen(sys.argv[1:])
    about = {"machine": machine(), "commit": commit()}
    worst = 0
    for script in scripts:
        print(f"bench: {script.stem}", flush=True)
        running = Running(script, words)
        command = " ".join([f"python benchmarks/{script.name} --json", *words])
        for figure in running.figures():
            append(figure, about, command)
            show(figure)
        worst = max(worst, abs(running.code))
        if running.code not in (0, EXIT_GOAL_MISSED):
            print(f"  ✖ {script.name} ended with exit code {running.code}")
    sys.exit(EXIT_GOAL_MISSED if worst == EXIT_GOAL_MISSED else EXIT_FAILED if worst else 0)


if __name__ == "__main__":
    main()
