"""The agent for an hour: twenty requests a second, an update every minute; does anything grow?

    python benchmarks/soak.py --minutes 60 --json

Supervisor and worker are real processes beside a real broker, an update repository and the server's side of the
conversation. Memory and open file descriptors of both are sampled every five seconds. Growth is the median of the last
quarter of the samples over that of the first, minus one: a worker lives for one update, so both quarters hold workers
of every age. The first minute is left out: caches fill, the first model is installed. Memory is judged by the pages
that a process wrote, which the system can take back from nowhere else. PSS is reported beside it, and not judged: it
also moves when other programs that share its libraries begin or end, by a megabyte within minutes. Exit code 3 if
something grew by more than 2 %, a request failed, or an update did not end on the new version.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edgeship_agent.contract.errors import EdgeshipError
from edgeship_agent.contract.messages import UpdateState
from tests.agents import SHORT, AgentProcess, Broker, Depot, ServerSide, model_goal
from tests.conformance.slots import images

DEFAULT_MINUTES = 4.0
REQUESTS_PER_S = 20
UPDATE_EVERY_S = 60.0
SAMPLE_EVERY_S = 5.0
SAY_EVERY_S = 60.0
WARM_UP_S = 60.0
GROWTH_GOAL = 0.02
EXIT_GOAL_MISSED = 3


@dataclass(frozen=True)
class Memory:
    """Of one process, in MB: pages that were written, and its share of all pages that it has (PSS)."""

    written_mb: float
    pss_mb: float


@dataclass(frozen=True)
class Sample:
    """What two processes hold at one moment."""

    supervisor: Memory
    worker: Memory
    supervisor_files: int
    worker_files: int


@dataclass
class Seen:
    """What the soak saw."""

    samples: list[Sample] = field(default_factory=list)
    updates: int = 0
    wrong_ends: list[str] = field(default_factory=list)


def memory(pid: int) -> Memory:
    """Memory of a process."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    found = {name: int(size) * 1024 / 1e6 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    if not found.keys() >= {"Pss", "Private_Dirty", "Shared_Dirty"}:
        raise SystemExit("the system does not tell memory by process")
    return Memory(written_mb=found["Private_Dirty"] + found["Shared_Dirty"], pss_mb=found["Pss"])


def open_files(pid: int) -> int:
    """File descriptors of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def sample(agent: AgentProcess) -> Sample | None:
    """Both processes now; None while one worker takes over from another."""
    assert agent.process is not None
    workers = [worker for worker in agent.status().get("workers", []) if worker["ready"]]
    if len(workers) != 1:
        return None
    supervisor, worker = agent.process.pid, workers[0]["pid"]
    try:
        return Sample(memory(supervisor), memory(worker), open_files(supervisor), open_files(worker))
    except OSError:
        return None  # the worker ended between two looks


class Application(threading.Thread):
    """Asks at a steady pace; every failure is kept."""

    def __init__(self, agent: AgentProcess) -> None:
        super().__init__(daemon=True)
        self.answered = 0
        self.failures: list[str] = []
        self.ended = threading.Event()
        self._agent = agent

    def run(self) -> None:
        """Until the end of the soak."""
        arrays = images(50, seed=3)
        with self._agent.client() as client:
            due_s = time.monotonic()
            while not self.ended.is_set():
                try:
                    client.infer(arrays[self.answered % 50])
                    self.answered += 1
                except EdgeshipError as error:
                    self.failures.append(str(error))
                due_s += 1 / REQUESTS_PER_S
                self.ended.wait(max(due_s - time.monotonic(), 0.0))


def update(number: int, depot: Depot, server: ServerSide, seen: Seen) -> None:
    """Publish a new version, ask for it, and see it committed."""
    release = depot.publish(str(number), seed_scale=1.0 + number / 1000)
    server.send_goal(depot.goal(number, model_goal(release, f"soak-{number}", probation=SHORT)))
    end = server.ended(f"soak-{number}")
    seen.updates += 1
    if end.state is not UpdateState.COMMITTED or end.loaded_digest != release.digest:
        seen.wrong_ends.append(f"{number}: {end.state.value} {end.reason}")


def soak(minutes: float, folder: Path) -> tuple[Seen, Application, int]:
    """Run it; what was seen, the application, windows that the server has."""
    depot, broker = Depot(folder / "depot"), Broker(folder / "broker")
    server, seen = ServerSide(broker.port), Seen()
    agent = AgentProcess(folder / "device", depot, broker.port)
    agent.start()
    try:
        update(1, depot, server, seen)
        application = Application(agent)
        application.start()
        start_s = said_s = time.monotonic()
        updated_s, number = start_s, 1
        while (now_s := time.monotonic()) < start_s + minutes * 60:
            if now_s - updated_s >= UPDATE_EVERY_S:
                updated_s, number = now_s, number + 1
                update(number, depot, server, seen)
            taken = sample(agent)
            if taken is not None and now_s - start_s >= WARM_UP_S:
                seen.samples.append(taken)
            if taken is not None and now_s - said_s >= SAY_EVERY_S:
                said_s = now_s
                say(now_s - start_s, minutes, taken, seen, application)
            time.sleep(SAMPLE_EVERY_S)
        application.ended.set()
        application.join(30)
        return seen, application, len(server.windows)
    finally:
        agent.stop()
        server.close()
        broker.kill()
        depot.close()


def say(passed_s: float, minutes: float, taken: Sample, seen: Seen, application: Application) -> None:
    """One line of progress."""
    written = f"written: supervisor {taken.supervisor.written_mb:.2f} MB, worker {taken.worker.written_mb:.2f} MB"
    requests = f"{application.answered} requests, {len(application.failures)} failed"
    print(f"{passed_s / 60:.0f} of {minutes:g} minutes: {requests}, {seen.updates} updates, {written}", flush=True)


def growth(name: str, unit: str, values: list[float], minutes: float, *, judged: bool = True) -> dict[str, object]:
    """One line: by how much the last quarter's median exceeds the first's."""
    quarter = max(len(values) // 4, 1)
    first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
    value = last / first - 1
    line = {"name": f"soak/{name}, growth in {minutes:g} minutes", "value": round(value, 5), "unit": "ratio"}
    line |= {"low": round(first, 3), "high": round(last, 3), "n": len(values)}
    line |= {"goal": f"≤ {GROWTH_GOAL:g}" if judged else None, "met": value <= GROWTH_GOAL if judged else None}
    return {**line, "against": f"median of the first quarter; low, high in {unit}"}


def growths(samples: list[Sample], minutes: float) -> Iterator[dict[str, object]]:
    """Memory and file descriptors of both processes."""
    for process in ("supervisor", "worker"):
        held = [getattr(each, process) for each in samples]
        yield growth(f"written memory of the {process}", "MB", [each.written_mb for each in held], minutes)
        yield growth(f"PSS of the {process}", "MB", [each.pss_mb for each in held], minutes, judged=False)
        files = [float(getattr(each, f"{process}_files")) for each in samples]
        yield growth(f"file descriptors of the {process}", "files", files, minutes)


def count(name: str, value: int, n: int, goal: str | None, met: bool | None) -> dict[str, object]:
    """One line of a count."""
    line = {"name": f"soak/{name}", "value": value, "unit": "count", "low": None, "high": None, "n": n}
    return {**line, "goal": goal, "met": met, "against": None}


def main() -> None:
    """Run the soak and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES)
    parser.add_argument("--json", action="store_true", help="one object per line")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen, application, windows = soak(given.minutes, Path(folder))
    lines = list(growths(seen.samples, given.minutes))
    asked, failed = application.answered + len(application.failures), len(application.failures)
    lines.append(count("failed requests", failed, asked, "= 0", failed == 0))
    lines.append(count("updates that did not commit", len(seen.wrong_ends), seen.updates, "= 0", not seen.wrong_ends))
    lines.append(count("windows that the server has", windows, windows, None, None))
    for line in lines:
        print(json.dumps(line, ensure_ascii=False) if given.json else f"{line['name']}: {line['value']} {line['unit']}")
    for wrong in (*seen.wrong_ends, *application.failures[:10]):
        print(wrong, file=sys.stderr)
    sys.exit(EXIT_GOAL_MISSED if any(line["met"] is False for line in lines) else 0)


if __name__ == "__main__":
    main()
