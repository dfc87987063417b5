"""Applications of the demo: each device's camera, sending real test images to its agent through the Unix socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from edgeship.demo.digits import Images, Split
from edgeship_agent.contract.errors import EdgeshipError
from edgeship_agent.serving.client import Client

Corruption = Callable[[Images], Images]
CLIENT_TIMEOUT_S: Final = 5.0
RETRY_S: Final = 0.2


class Stream(threading.Thread):
    """Sends images in random order at a steady rate until it is stopped.

    Args:
        device_id: names the thread.
        socket: the agent's inference socket.
        split: images [N, 8, 8] and labels [N].
        rate_hz: requests per second.
        seed: of the order.
    """

    def __init__(self, device_id: str, socket: Path, split: Split, rate_hz: float, seed: int) -> None:
        super().__init__(name=f"stream-{device_id}", daemon=True)
        self.device_id = device_id
        self._socket = socket
        self._split = split
        self._period_s = 1.0 / rate_hz
        self._rng = np.random.default_rng(seed)
        self._images: Images = split.images
        self._running = threading.Event()
        self._running.set()
        self._stopped = threading.Event()
        self._idle = threading.Event()
        self.answered = 0
        self.failed = 0

    def corrupt(self, corruption: Corruption) -> None:
        """Send every image through a corruption from now on."""
        self._images = corruption(self._split.images)

    def pause(self) -> None:
        """Stop sending, and wait until the request under way is answered."""
        self._running.clear()
        self._idle.wait(CLIENT_TIMEOUT_S)

    def resume(self) -> None:
        """Send again."""
        self._running.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._running.set()
        self.join(CLIENT_TIMEOUT_S + 1.0)

    def run(self) -> None:
        """Send until stopped; an agent that is away is tried again."""
        while not self._stopped.is_set():
            try:
                with Client(self._socket, timeout_s=CLIENT_TIMEOUT_S) as client:
                    self._send(client)
            except (EdgeshipError, OSError):
                self.failed += 1
                self._stopped.wait(RETRY_S)

    def _send(self, client: Client) -> None:
        due_s = time.monotonic()
        while not self._stopped.is_set():
            if not self._running.is_set():
                self._idle.set()
                self._running.wait()
                self._idle.clear()
                due_s = time.monotonic()
                continue
            index = int(self._rng.integers(len(self._images)))
            client.infer({"image": self._images[index]})
            self.answered += 1
            due_s += self._period_s
            self._stopped.wait(max(0.0, due_s - time.monotonic()))


def call_latencies_ms(socket: Path, images: Images, calls: int) -> list[float]:
    """Time single requests, bytes in to answer out, as the application sees them.

    Returns:
        One wall-clock time per call, in ms, after a warm-up of a tenth of the calls.
    """
    latencies: list[float] = []
    warm_up = calls // 10
    with Client(socket, timeout_s=CLIENT_TIMEOUT_S) as client:
        for index in range(calls + warm_up):
            image = images[index % len(images)]
            started_ns = time.perf_counter_ns()
            client.infer({"image": image})
            if index >= warm_up:
                latencies.append((time.perf_counter_ns() - started_ns) / 1e6)
    return latencies
