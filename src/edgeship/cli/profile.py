"""``edgeship profile``: how fast something is on a device of the fleet."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from edgeship.cli import console
from edgeship.cli.pace import Pace, shown
from edgeship.cli.server_option import server_option
from edgeship.cli.values import Finite

if TYPE_CHECKING:
    from edgeship_agent.contract.profiling import ProfileResult, TaskResult

_MISSED: Final = 3
_FAILED: Final = 1
_REDRAW_S: Final = 0.5
_MB: Final = 1e6


@click.command(short_help="Measure a model on a device of the fleet.")
@click.argument("model", metavar="MODEL")
@click.option("--device", "device_id", required=True, metavar="ID", help="Which device. See: edgeship devices list.")
@click.option("--variant", default="", metavar="TARGET/RUNTIME/PRECISION",
              help="Which variant of a bundle or release.  [the one that fits the device]")  # fmt: skip
@click.option("--warm-up", type=click.IntRange(0), default=50, show_default=True,
              help="Inferences before the clock starts.")  # fmt: skip
@click.option("--min-queries", type=click.IntRange(1, 1_000_000), default=1000, show_default=True,
              help="Inferences that are timed, at least.")  # fmt: skip
@click.option("--min-seconds", type=click.FloatRange(0, 600), default=1.0, show_default=True,
              help="Time that is measured, at least.")  # fmt: skip
@click.option("--memory-bytes", type=click.IntRange(1), help="What a measuring process may take on the device.")
@click.option("--timeout-s", type=click.FloatRange(1, 3600), default=600.0, show_default=True,
              help="How long the device may take.")  # fmt: skip
@click.option("--latency-p99-ms", type=Finite(0, min_open=True), help="Latency budget: exit code 3 above it.")
@server_option
@console.json_option
def profile(model: str, device_id: str, variant: str, server: str, as_json: bool, latency_p99_ms: float | None,
            memory_bytes: int | None, **limits: Any) -> None:  # fmt: skip
    """Measure MODEL on a device: latency distribution, memory, parity with its golden outputs, throttling.

    MODEL is a bundle's folder, MODEL@VERSION of a release, or a file that a runtime loads (.onnx, .tflite, .xml). The
    device measures in processes of its own, at low priority, while its model serves on. Ctrl-C ends the job there.
    """
    from edgeship.build.devices.fleet import FleetDevice, Limits
    from edgeship.build.devices.profiled import find

    with FleetDevice(server, device_id, _Lines()) as device:
        found = find(model, device, variant)
        wanted = Limits(memory_bytes=memory_bytes or 0, **limits)
        result = device.measure([found.artifact], found.inputs, wanted)
    [task] = result.tasks
    code = exit_code(task, latency_p99_ms)
    if as_json:
        console.result_json(document(device_id, result))
    else:
        _show(device_id, result, task, latency_p99_ms)
        console.next_steps(f"edgeship devices show {device_id}")
    sys.exit(code)


def exit_code(task: TaskResult, latency_p99_ms: float | None) -> int:
    """0 measured and well; 1 it does not run there; 3 parity or the latency budget is missed."""
    if task.error or task.latency is None:
        return _FAILED
    is_late = latency_p99_ms is not None and task.latency.p99_ms > latency_p99_ms
    return _MISSED if is_late or (task.parity is not None and not task.parity.passed) else 0


def document(device_id: str, result: ProfileResult) -> dict[str, Any]:
    """The result as JSON: figures without the single times."""
    import msgspec

    tasks: list[dict[str, Any]] = []
    for task in result.tasks:
        shown_task: dict[str, Any] = msgspec.to_builtins(task)
        if shown_task["latency"] is not None:
            del shown_task["latency"]["times_ms"]
        tasks.append(shown_task)
    return {
        "schema_version": 1,
        "device": device_id,
        "measured_on": {"arch": result.arch, "isa": result.isa, "cpu": result.cpu, "device": device_id,
                        "runtimes": result.runtimes},
        "tasks": tasks,
        "throttling": list(result.throttling),
        "conditions": {"first": msgspec.to_builtins(result.first), "last": msgspec.to_builtins(result.last)},
    }  # fmt: skip


def _show(device_id: str, result: ProfileResult, task: TaskResult, latency_p99_ms: float | None) -> None:
    runtimes = " · ".join(f"{name} {version}" for name, version in sorted(result.runtimes.items()))
    console.step("device", f"{device_id} · {result.isa} · {result.cpu} · {runtimes}")
    if task.error or task.latency is None:
        console.step("measured", f"{task.label}: {task.error}", "failed")
        return
    latency = task.latency
    console.result(
        f"{task.label}: p50 {latency.p50_ms:.3g} ms, p90 {latency.p90_ms:.3g} ms, p99 {latency.p99_ms:.3g} ms, "
        f"p99.9 {latency.p999_ms:.3g} ms (n={latency.queries})"
    )
    if latency_p99_ms is not None:
        met = latency.p99_ms <= latency_p99_ms
        sign = "≤" if met else ">"
        console.step("budget", f"p99 {latency.p99_ms:.3g} ms {sign} {latency_p99_ms:g} ms", "done" if met else "failed")
    console.result(f"memory: {task.peak_memory_bytes / _MB:.1f} MB, the process at its highest")
    if task.parity is not None:
        parity = task.parity
        value = "not a number" if parity.relative_rms < 0 else f"{parity.relative_rms:.3g}"
        text = f"relative RMS {value} over {parity.samples} inputs, limit {parity.tolerance:g}"
        console.step("parity", text, "done" if parity.passed else "failed")
    for reason in result.throttling:
        console.step("throttled", reason, "undecided")


class _Lines:
    """Progress on stderr: on a terminal one line that is redrawn."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._drawn_s = 0.0

    def step(self, label: str, text: str, glyph: str = "done") -> None:
        """A line."""
        console.step(label, text, glyph)

    def count(self, label: str, done: int, total: int) -> None:
        """A line that replaces itself, where there is a terminal."""
        now_s = time.monotonic()
        left_s = self._pace.left_s(label, done, total, now_s)
        if not sys.stderr.isatty() or now_s - self._drawn_s < _REDRAW_S:
            return
        self._drawn_s = now_s
        click.echo(f"\r\x1b[2K  {shown(label, done, total, left_s)}\r", nl=False, err=True)
