"""The inference worker: one process, one model, one Unix socket.

::

    python -m edgeship_agent.serving.worker --slot DIR --arm A --boot-id B --socket PATH --control-fd N --settings JSON

A model that crashes its runtime kills this process and nothing else; the supervisor sees the end of the control socket.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError, ContractError, EdgeshipError
from edgeship_agent.contract.frames import Request
from edgeship_agent.contract.wire import read_json
from edgeship_agent.runtime.memory import give_back, settle, share_one_heap
from edgeship_agent.runtime.predictor import Predictor
from edgeship_agent.serving.connection import Connection
from edgeship_agent.serving.control import (
    ControlMessage,
    Drain,
    Drained,
    Failed,
    FromWorker,
    HandOn,
    Open,
    Ready,
    Recall,
    Replay,
    Replayed,
    Split,
    Stop,
    WindowClosed,
    WorkerSettings,
    encode_control,
)
from edgeship_agent.serving.control_line import ControlLine
from edgeship_agent.serving.loop import Loop
from edgeship_agent.serving.requests import Answer, RequestHandler
from edgeship_agent.serving.session import ModelSession
from edgeship_agent.serving.slot import LoadedSlot, read_slot
from edgeship_agent.serving.split import Splitter
from edgeship_agent.telemetry.gauges import resident_memory_bytes
from edgeship_agent.telemetry.window import Clock, WindowLimits

_MAX_SOCKET_PATH_BYTES: Final = 107
_BACKLOG: Final = 128
_WINDOW_TICK_S: Final = 0.25
_ACCEPT_PAUSE_S: Final = 0.2
_NEEDED: Final = frozenset({"--slot", "--arm", "--boot-id", "--socket", "--control-fd"})
#: When memory that the first calls needed and no later ones do goes back to the system, and how often afterwards.
_FIRST_RELIEF_S: Final = 1.5
_RELIEF_S: Final = 30.0
#: How long a worker that was stopped waits for its supervisor to read what it said last.
_LAST_WORDS_S: Final = 2.0


class WorkerOptions(Struct, frozen=True, kw_only=True):
    """A worker's command line."""

    slot: Path
    arm: str
    boot_id: str
    socket: Path
    control_fd: int
    settings: WorkerSettings


class Worker:
    """Serves one session until it is told to stop or its supervisor dies.

    Requests of all connections wait in one queue, in the order in which they were complete; the engine runs one at a
    time. Between two of them the loop looks at every socket, so that waiting is measured and deadlines are kept.
    """

    def __init__(self, session: ModelSession, options: WorkerOptions) -> None:
        self._session = session
        self._options = options
        self._settings = options.settings
        self._handler = RequestHandler(session, round(options.settings.deadline_ms * 1000.0))
        self._waiting: deque[tuple[Connection, Request, int]] = deque()
        self._connections: set[Connection] = set()
        self._loop = Loop(options.settings.spin_us, spare=session.measure_some)
        self._splitter = Splitter(self._loop, session, options.boot_id, self._answer_here, self._settled)
        self._since_window = 0  # requests; as many answers at most are in the window that is open
        self._pump_is_due = False
        self._is_pumping = False
        self._is_draining = False
        self._control: ControlLine | None = None
        self._listener: socket.socket | None = None
        self._is_stopping = False

    def serve(self, control: socket.socket) -> None:
        """Listen, tell the supervisor, and serve until stopped.

        Raises:
            EdgeshipError: the socket cannot be opened.
        """
        listener = listen(self._options.socket, self._settings.socket_mode)
        listener.listen(_BACKLOG)
        self._listener = listener
        if not self._settings.held:
            self._listen_again()
        self._control = ControlLine(self._loop, control, self.obey, self._misunderstand, self.lose_supervisor)
        slot = self._session.slot.slot
        self._tell(
            Ready(
                digest=slot.digest,
                model=slot.model,
                version=slot.version,
                variant=slot.variant,
                memory_bytes=resident_memory_bytes(),
                arm=slot.arm,
            )
        )
        self._loop.every(self._settings.counters_s, self._report_counters)
        self._loop.call_later(_FIRST_RELIEF_S, give_back)
        self._loop.every(_RELIEF_S, give_back)
        self._loop.every(min(_WINDOW_TICK_S, self._settings.window_s / 4.0), self._send_due_window)
        self._loop.run()
        self._loop.close()

    def _let_go(self) -> None:
        """Close everything; what was told to the supervisor still goes out, if it listens."""
        self._stop_listening()
        for connection in list(self._connections):
            connection.close()
        self._loop.call_later(_LAST_WORDS_S, self._loop.stop)
        self._splitter.close()
        if self._control is not None:
            self._control.close()

    def _misunderstand(self, error: ContractError) -> None:
        self.stop(f"the supervisor cannot be understood: {error}")

    def _accept(self) -> None:
        """Take the applications that wait at the door."""
        for _ in range(_BACKLOG):
            if self._listener is None:
                return
            try:
                endpoint, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                # no descriptors left: the door stays open, and is looked at again when some may be free
                self._loop.remove_reader(self._listener)
                self._loop.call_later(_ACCEPT_PAUSE_S, self._listen_again)
                return
            endpoint.setblocking(False)
            self._connections.add(
                Connection(self._loop, endpoint, self._enqueue, self._lost, self._settings.max_frame_bytes)
            )

    def _listen_again(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener, self._accept)

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            self._loop.remove_reader(listener)
            listener.close()

    def _enqueue(self, connection: Connection, request: Request, received_ns: int) -> None:
        if not self._splitter.is_alone and self._splitter.passes_on(connection, request, received_ns):
            return
        self._answer_here(connection, request, received_ns)

    def _answer_here(self, connection: Connection, request: Request, received_ns: int) -> None:
        if len(self._waiting) >= self._settings.max_waiting:
            connection.reply(self._handler.shed(request, f"{len(self._waiting)} requests are waiting").frame)
            # not at once: a buffer full of small frames would go through here once a frame, ever deeper
            self._loop.call_soon(connection.finish)
            return
        self._waiting.append((connection, request, received_ns))
        if len(self._connections) == 1 and not self._is_pumping and not self._pump_is_due:
            self._pump()  # there is nobody else whose waiting could go unseen
        else:
            self._schedule_pump()

    def _schedule_pump(self) -> None:
        if not self._pump_is_due:
            self._pump_is_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Answer the oldest request; what is counted is counted after the answer was sent."""
        self._pump_is_due = False
        if not self._waiting:
            return
        self._is_pumping = True
        connection, request, received_ns = self._waiting.popleft()
        try:
            try:
                answer = self._handler.answer(request, received_ns, connection.memory)
            except Exception as error:  # noqa: BLE001 (the application hears of it, and asks on)
                answer = self._fail(request, error)
            connection.reply(answer.frame)
            self._handler.count(answer, pressed=self._loop.is_pressed)
            if not self._splitter.is_alone:
                self._splitter.mirror(request, answer)
        finally:
            connection.finish()
            self._is_pumping = False
            if self._waiting:
                self._schedule_pump()
            self._since_window += 1
            if self._since_window >= self._settings.window_inferences:  # by time they close on the loop's own tick
                self._send_due_window()
            if self._is_draining:
                self._finish_drain()

    def _fail(self, request: Request, error: Exception) -> Answer:
        import traceback

        traceback.print_exc()
        return self._handler.fail(request, error)

    def obey(self, message: ControlMessage) -> None:
        """Do what the supervisor says."""
        if isinstance(message, Stop):
            self._send_last_window()
            self.stop("")
        elif isinstance(message, Replay):
            self._loop.step_through(self._replay(message.inferences))
        elif isinstance(message, Recall):
            self._tell(HandOn(predictions=tuple(self._session.hand_on())))
        elif isinstance(message, Split):
            self._splitter.change(message)
            self._handler.take_neighbours(message.neighbours)
        elif isinstance(message, Open):
            self._listen_again()
        elif isinstance(message, HandOn):
            for ring in message.predictions:
                self._session.predictions.take_over(ring)
            self._session.predictions.lose(message.lost)
        elif isinstance(message, Drain) and not self._is_draining:
            self._drain()

    def _drain(self) -> None:
        self._is_draining = True
        self._stop_listening()
        for connection in list(self._connections):
            connection.close()
        self._finish_drain()

    def _finish_drain(self) -> None:
        """When every accepted request is answered, say so."""
        if self._waiting or self._splitter.outstanding:
            return
        self._send_last_window()
        self._tell(self._session.counters(resident_memory_bytes()))
        self._tell(HandOn(predictions=tuple(self._session.hand_on())))
        self._tell(Drained(inferences=self._session.inferences))

    def _settled(self) -> None:
        if self._is_draining:
            self._finish_drain()

    def _lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._splitter.forget(connection)

    def _replay(self, inferences: int) -> Iterator[None]:
        """Run the golden inputs, again and again, one at a time between the requests of applications."""
        done = 0
        try:
            samples = self._session.golden_samples()
            while True:
                outputs = []
                for sample in samples:
                    outputs.append(self._session.predict(sample))
                    yield
                done += len(samples)
                result = self._session.judge_golden(outputs)
                if not result.passed or done >= inferences:
                    break
        except EdgeshipError as error:
            self._tell(Replayed(passed=False, relative_rms=-1.0, inferences=done, reason=str(error)))
            return
        self._tell(
            Replayed(passed=result.passed, relative_rms=result.relative_rms, inferences=done, reason=result.reason)
        )

    def _report_counters(self) -> None:
        if not self._is_stopping:
            self._tell(self._session.counters(resident_memory_bytes()))

    def _send_due_window(self) -> None:
        window = self._session.due_window()
        if window is not None:
            self._since_window = 0
            self._tell(WindowClosed(window=window))

    def _send_last_window(self) -> None:
        window = self._session.last_window()
        if window is not None:
            self._tell(WindowClosed(window=window))

    def _tell(self, message: FromWorker) -> None:
        if self._control is not None:
            self._control.tell(message)

    def lose_supervisor(self) -> None:
        """The control socket is closed, from either side."""
        if not self._is_stopping:
            self.stop("the supervisor is gone")
        self._loop.stop()

    def stop(self, reason: str) -> None:
        """Leave the loop; the reason, if any, goes to stderr."""
        if reason:
            print(f"worker: {reason}", file=sys.stderr)  # noqa: T201 (the supervisor logs what a worker writes here)
        if not self._is_stopping:
            self._is_stopping = True
            self._let_go()


def listen(path: Path, mode: int) -> socket.socket:
    """A listening Unix socket at a path; a socket that a dead worker left there is replaced.

    Raises:
        EdgeshipError: the path is too long or cannot be used.
    """
    if len(str(path).encode()) > _MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            "the socket's path is too long for this system",
            file=path,
            expected=f"≤ {_MAX_SOCKET_PATH_BYTES} bytes",
            got=len(str(path).encode()),
            next_step="use a shorter state_dir",
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(mode)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise EdgeshipError(f"the socket cannot be opened: {error.strerror}", file=path) from error
    return listener


def read_clocks() -> Clock:
    """Now, on both clocks."""
    return Clock(monotonic_s=time.monotonic(), wall_s=time.time())


def die_with_supervisor(control: socket.socket) -> None:
    """End this process when the other end of its control socket is closed, even while a model runs or hangs.

    The loop notices as well, and leaves in good order, but not before the running inference returns.
    """

    def watch() -> None:
        poll = select.poll()
        poll.register(control.fileno(), 0)  # nothing but the hang-up, which is always reported
        poll.poll()
        time.sleep(_LAST_WORDS_S)
        os._exit(1)

    threading.Thread(target=watch, name="supervisor watch", daemon=True).start()


def parse_arguments(arguments: Sequence[str]) -> WorkerOptions:
    """The command line.

    Raises:
        ContractError: the settings are not what this version knows.
    """
    given = dict(zip(arguments[::2], arguments[1::2], strict=False))
    is_whole = len(arguments) % 2 == 0 and given.keys() >= _NEEDED
    if not is_whole or given.keys() - _NEEDED - {"--settings"} or not given["--control-fd"].isdigit():
        got = " ".join(arguments)[:200]
        raise ContractError("not a worker's command line", expected=" ".join(sorted(_NEEDED)), got=got)
    return WorkerOptions(
        slot=Path(given["--slot"]),
        arm=given["--arm"],
        boot_id=given["--boot-id"],
        socket=Path(given["--socket"]),
        control_fd=int(given["--control-fd"]),
        settings=read_json(given.get("--settings", "{}").encode(), WorkerSettings, file="--settings"),
    )


def run(options: WorkerOptions) -> int:
    """Open the slot, its engine and the socket, serve until told to stop; returns the exit code."""
    if options.settings.threads == 1:  # a runtime with threads of its own allocates in several at once
        share_one_heap()
    control = socket.socket(fileno=options.control_fd)
    die_with_supervisor(control)
    settings = options.settings
    step = "slot"
    try:
        slot = read_slot(options.slot)
        _check_arm(slot, options)
        step = "engine"
        predictor = Predictor.open(slot.manifest, slot.variant, slot.model_path, threads=settings.threads)
        limits = WindowLimits(
            duration_s=settings.window_s,
            inferences=settings.window_inferences,
            remembered_predictions=settings.remembered_predictions,
        )
        session = ModelSession(slot, predictor, limits, options.boot_id, read_clocks, settings.clock_quality)
        step = "warmup"
        session.warm_up()
        settle(for_calls=True)
        step = "socket"
        Worker(session, options).serve(control)
    except EdgeshipError as error:
        control.setblocking(True)
        with contextlib.suppress(OSError):
            control.sendall(encode_control(Failed(reason=step, detail=str(error))))
        print(f"worker: {error}", file=sys.stderr)  # noqa: T201 (the supervisor logs what a worker writes here)
        return error.exit_code
    finally:
        options.socket.unlink(missing_ok=True)
    session.close()
    return 0


def _check_arm(slot: LoadedSlot, options: WorkerOptions) -> None:
    if slot.slot.arm != options.arm:
        raise ContractError("the slot is of another arm", file=options.slot, expected=options.arm, got=slot.slot.arm)


def main() -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the supervisor decides
    try:
        options = parse_arguments(sys.argv[1:])
    except EdgeshipError as error:
        print(f"worker: {error}", file=sys.stderr)  # noqa: T201 (no supervisor to tell yet)
        sys.exit(2)
    sys.exit(run(options))


if __name__ == "__main__":
    main()
