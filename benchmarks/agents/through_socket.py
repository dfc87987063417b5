"""A model called in every way that shows what its socket costs, and the part of each call that was spent on the way.

The ways, all of the same frames, one after another in every round:

raw
    the runtime itself, on the same bytes.
in process
    :class:`LocalModel`: preprocessing, runtime and telemetry without a socket. What was counted is counted before the
    call returns; the worker counts after its answer, while the application works on.
ours
    :class:`Client` and worker as they are by default: both look for what is to come where it came soon the last times.
sleeping
    the same with ``spin_us = 0`` on both sides: both sleep while there is nothing to do.
room
    as ours, but the application had its frame written into :meth:`Client.room`.
echo, wake
    two bare processes that exchange as many bytes, and 128 bytes: what sleeping and waking costs here.
shared
    two bare processes that hand each other as many bytes in shared memory, neither of which ever sleeps: the floor.

Which figure the goal of the socket means: the issue names the overhead in process (10 µs) and the socket's round trip
(40 µs) side by side, and the design's figures for the latter (21 µs) were those of a frame's way there and back with no
model behind it. So the round trip is what is left of a call without the worker's own time, which the worker says in its
answer: *on the way*. The call less the raw runtime, *added*, contains preprocessing and a model on cold caches as well;
it has the same goal, as ever, and is the harder one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from benchmarks.agents.raw import open_raw
from benchmarks.agents.slots import Case
from benchmarks.agents.workers import Echo, SharedEcho, worker

from edgeship_agent.processing.arrays import Array
from edgeship_agent.serving.client import Client
from edgeship_agent.serving.library import LocalModel
from edgeship_agent.serving.looking import LONGEST_LOOK_US

_SAMPLES = 4
_SHORT_BYTES = 128
#: At this pace an application asks when the processor time of a call is measured, in s.
_PACE_S = 0.005
_PACED_CALLS = 100

Times = dict[str, list[list[float]]]


class SocketWays:
    """The calls, and what the workers said about them.

    Attributes:
        calls: name of a way → the call.
        processes: those that run besides this one.
    """

    def __init__(self, case: Case, samples: list[dict[str, Array]], model: LocalModel) -> None:
        raw, _, _ = open_raw(case.runtime, case.file)
        self.calls: dict[str, Callable[[int], object]] = {
            "raw": lambda index: raw(samples[index % _SAMPLES]["x"][np.newaxis]),
            "in process": lambda index: model.predict(samples[index % _SAMPLES]),
        }
        self.processes: list[int] = []
        self._samples = samples
        self._clients: dict[str, tuple[Client, int]] = {}
        self._latencies_us: dict[str, list[float]] = {}

    def add_client(self, name: str, client: Client, process: int) -> None:
        """Ask a worker."""
        samples, latencies = self._samples, self._latencies_us.setdefault(name, [])
        self._clients[name] = client, process
        self.processes.append(process)
        self.calls[name] = lambda index: latencies.append(client.infer(samples[index % _SAMPLES]).latency_us)

    def add_room(self, name: str, client: Client, process: int) -> None:
        """Ask a worker, the sample in room that the application filled: here, with what is left from earlier."""
        kinds = {tensor: (sample.shape, sample.dtype.name) for tensor, sample in self._samples[0].items()}
        latencies = self._latencies_us.setdefault(name, [])
        self.processes.append(process)
        self.calls[name] = lambda _: latencies.append(client.infer(client.room(kinds)).latency_us)

    def add_echo(self, name: str, echo: Echo | SharedEcho) -> None:
        """Ask a bare process."""
        self.processes.append(echo.pid)
        self.calls[name] = lambda _: echo.call()

    def on_the_way(self, times: Times) -> Times:
        """Each call through a socket less the time that its worker says it took, in µs, by round."""
        found: Times = {}
        for name, latencies in self._latencies_us.items():
            counts = [len(part) for part in times[name]]
            own = iter(latencies[len(latencies) - sum(counts) :])  # those before were to find the pace
            found[f"{name}, on the way"] = [[call - next(own) for call in part] for part in times[name]]
        return found

    def processor_us(self, name: str) -> float:
        """Processor time of both processes for one call, where an application asks 200 times a second."""
        client, process = self._clients[name]
        client.infer(self._samples[0])
        started_ns = _used_ns(process) + time.process_time_ns()
        for index in range(_PACED_CALLS):
            time.sleep(_PACE_S)
            client.infer(self._samples[index % _SAMPLES])
        time.sleep(_PACE_S)
        return (_used_ns(process) + time.process_time_ns() - started_ns) / 1000.0 / _PACED_CALLS


@contextmanager
def socket_ways(case: Case, slot: Path) -> Iterator[SocketWays]:
    """Workers, clients and bare processes for one model."""
    size_bytes = int(np.prod(case.shape))
    # forked before anything has threads
    bare: dict[str, Echo | SharedEcho] = {"echo": Echo(size_bytes), "wake": Echo(_SHORT_BYTES)}
    bare["shared"] = SharedEcho(size_bytes)
    try:
        with ExitStack() as stack:
            ways = SocketWays(case, case.samples(_SAMPLES), stack.enter_context(LocalModel.open(slot)))
            for name, spin_us in (("ours", LONGEST_LOOK_US), ("sleeping", 0)):
                path = slot.parent / f"{slot.name}.{name}.sock"
                ways.add_client(name, *stack.enter_context(worker(slot, path, spin_us)))
            ways.add_room("room", *stack.enter_context(worker(slot, slot.parent / f"{slot.name}.room.sock")))
            for name, echo in bare.items():
                ways.add_echo(name, echo)
            yield ways
    finally:
        for echo in reversed(bare.values()):  # one that was forked later holds the ends of those before it
            echo.close()


def _used_ns(process: int) -> int:
    """Processor time of all threads of a process. Source: proc(5), /proc/PID/task/TID/schedstat."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
