"""What telemetry costs: bytes on the wire per window, and bytes written to the disk in a day.

    python benchmarks/telemetry_size.py --json

Wire: a model of 16 features answers 500 calls per window; its windows go through the real outbox and the real link to
a real broker, and every byte is counted by a TCP relay between the two, in both directions, MQTT and acknowledgements
included. They travel one by one, as they do while the link is up.
Disk: a day of windows (one a minute, the default) through the same outbox, first while the server acknowledges each,
then while it is away. Counted by the system: ``write_bytes`` of /proc/self/io. Exit code 3 if a goal is missed.
"""

from __future__ import annotations

import json
import queue
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from msgspec import structs
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.agents.slots import Case, write_slot

from edgeship_agent.config import TelemetryConfig
from edgeship_agent.contract.messages import PROTOCOL_VERSION, Ack, Window
from edgeship_agent.contract.wire import decode
from edgeship_agent.link.address import Backoff, parse_address
from edgeship_agent.link.paho import PahoLink
from edgeship_agent.link.port import Connected, LinkEvent, Received
from edgeship_agent.serving.library import LocalModel
from edgeship_agent.supervisor.sending import Pace, WindowSender
from edgeship_agent.telemetry.outbox import Outbox
from edgeship_agent.telemetry.waiting import WaitingWindows
from edgeship_agent.telemetry.window import WindowLimits
from tests.agents import DEVICE, Broker, ServerSide
from tests.relay import Relay

FEATURES = 16
CLASSES = 10
CALLS = 500
WINDOWS = 24
WIRE_GOAL_BYTES = 2048
DAY_S = 86_400
DISK_GOAL_MB = 20.0
EXIT_GOAL_MISSED = 3


def feature_model(path: Path) -> Path:
    """X [1, 16] → ten probabilities."""
    weights = np.random.default_rng(7).normal(size=(FEATURES, CLASSES)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"]), helper.make_node("Softmax", ["scores"], ["y"])],
        "features",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def made_windows(folder: Path, count: int) -> list[Window]:
    """Windows of 500 calls with 16 features, as the model's own session closes them."""
    case = Case(
        name="features",
        file=feature_model(folder / "features.onnx"),
        runtime="onnxruntime",
        shape=(FEATURES,),
        dtype="float32",
    )
    windows = []
    with LocalModel.open(
        write_slot(case, folder / "slot"), limits=WindowLimits(duration_s=1e9, inferences=CALLS)
    ) as model:
        for sample in case.samples(CALLS * count, seed=5):
            model.predict(sample)
            window = model.take_window()
            if window is not None:
                windows.append(window)
    assert len(windows) == count
    assert sum(name.startswith("input/x/") for name in windows[0].signals) >= FEATURES, sorted(windows[0].signals)
    return windows


def listen(link: PahoLink) -> tuple[queue.Queue[LinkEvent], threading.Event]:
    """Open the link; its events, and whether it is up."""
    events: queue.Queue[LinkEvent] = queue.Queue()
    is_up = threading.Event()

    def take(event: LinkEvent) -> None:
        if isinstance(event, Connected):
            is_up.set()
        events.put(event)

    link.open(take)
    return events, is_up


def wire_bytes(folder: Path, windows: list[Window]) -> list[int]:
    """Bytes of every window on the wire, both directions, until the server's acknowledgement is here."""
    broker = Broker(folder / "broker")
    server, relay = ServerSide(broker.port), Relay(broker.port)
    link = PahoLink(parse_address(f"mqtt://127.0.0.1:{relay.port}"), DEVICE, lambda: 1, Backoff())
    waiting = WaitingWindows(Outbox(folder / "wire.sqlite", 1 << 26))
    try:
        events, is_up = listen(link)
        assert is_up.wait(30)
        sender = WindowSender(waiting, DEVICE, "boot", link.publish, Pace(resend_s=1e9, flush_s=1e9))
        while not events.empty():
            events.get()
        threading.Event().wait(0.5)  # the subscription is answered
        sizes = []
        for window in windows:
            before = relay.from_device_bytes + relay.to_device_bytes
            sender.add(window, 0.0)
            while waiting.counters().waiting:
                event = events.get(timeout=30)
                if isinstance(event, Received):
                    sender.acknowledged(decode(event.topic.kind, event.payload), 0.0)
            threading.Event().wait(0.1)  # the receipt of the acknowledgement
            sizes.append(relay.from_device_bytes + relay.to_device_bytes - before)
        return sizes
    finally:
        link.close()
        relay.close()
        server.close()
        broker.kill()
        waiting.close()


def written_bytes() -> int:
    """Bytes that this process has caused to be written to disks. Source: Linux proc_pid_io(5)."""
    for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    raise SystemExit("the system does not count written bytes")


def day_mb(folder: Path, windows: list[Window], *, online: bool) -> float:
    """Megabytes that the outbox writes in a day of windows, at the default window and flush interval."""
    config = TelemetryConfig()
    path = folder / f"day-{online}.sqlite"
    waiting = WaitingWindows(Outbox(path, config.outbox_bytes))

    def publish(*_: object) -> bool:
        return online

    sender = WindowSender(waiting, DEVICE, "boot", publish, Pace(resend_s=config.resend_s, flush_s=config.flush_s))
    before = written_bytes()
    for number, now_s in enumerate(range(0, DAY_S, int(config.window_s)), start=1):
        sender.add(structs.replace(windows[number % len(windows)]), float(now_s))
        if online:
            sender.acknowledged(Ack(protocol_version=PROTOCOL_VERSION, boot_id="boot", seq=number), float(now_s))
        sender.keep(float(now_s))
    waiting.close()
    return (written_bytes() - before) / 1e6


def figures(folder: Path) -> Iterator[dict[str, object]]:
    """Every figure."""
    windows = made_windows(folder, WINDOWS)
    sizes = sorted(wire_bytes(folder, windows))
    line = {"name": f"telemetry/{FEATURES} features: bytes on the wire per window", "value": sizes[len(sizes) // 2]}
    line |= {"unit": "bytes", "low": sizes[0], "high": sizes[-1], "n": len(sizes), "goal": f"≤ {WIRE_GOAL_BYTES}"}
    yield {**line, "met": sizes[-1] <= WIRE_GOAL_BYTES, "against": None}
    for online, name in ((True, "the server acknowledges"), (False, "the server is away")):
        value = round(day_mb(folder, windows, online=online), 3)
        line = {"name": f"telemetry/written to the disk in a day, {name}", "value": value, "unit": "MB", "low": None}
        line |= {"high": None, "n": DAY_S // int(TelemetryConfig().window_s), "goal": f"≤ {DISK_GOAL_MB:g}"}
        yield {**line, "met": value <= DISK_GOAL_MB, "against": None}


def main() -> None:
    """Measure and print."""
    missed = False
    # beside the sources, not in the folder for temporary files: that may lie in memory, where nothing is counted
    with tempfile.TemporaryDirectory(dir=Path(__file__).resolve().parents[1]) as folder:
        for line in figures(Path(folder)):
            missed |= line["met"] is False
            shown = json.dumps(line, ensure_ascii=False) if "--json" in sys.argv else f"{line['name']}: {line['value']}"
            print(shown, flush=True)
    sys.exit(EXIT_GOAL_MISSED if missed else 0)


if __name__ == "__main__":
    main()
