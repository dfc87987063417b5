"""HTTP for a quick ``curl``: ``GET /v1/status`` and ``POST /v1/infer``. Off unless asked for, and on loopback alone.

The fast path is the Unix socket; each request here asks through it, as any other application does, so that nothing
that comes by HTTP can harm a worker.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import socket
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import msgspec
import numpy as np

from edgeship_agent.contract.errors import ConfigError, ContractError, EdgeshipError, InputError, TransferError
from edgeship_agent.contract.frames import MAX_FRAME_BYTES
from edgeship_agent.contract.manifest import BundleManifest
from edgeship_agent.patterns.samples import from_bytes, from_json, parse_json
from edgeship_agent.processing import check_raw
from edgeship_agent.processing.arrays import Array
from edgeship_agent.serving.client import Client
from edgeship_agent.supervisor.places import Places
from edgeship_agent.supervisor.start import Say
from edgeship_agent.supervisor.status import read_status
from edgeship_agent.update.slots import Slot, Slots

#: Requests that are answered at the same time; more are told to come again.
_MOST_AT_ONCE: Final = 8
#: Open connections, those that a client keeps between its requests included; each costs a thread and a descriptor.
_MOST_CONNECTIONS: Final = 32
#: For each read and write; and for a whole request, which may come through a slow tunnel.
_TIMEOUT_S: Final = 10.0
_REQUEST_S: Final = 30.0
_INFER, _STATUS = "/v1/infer", "/v1/status"
_METHODS: Final = {_INFER: "POST", _STATUS: "GET"}
#: Media types of a request's body.
_JSON, _NPY, _RAW = "application/json", "application/x-npy", "application/octet-stream"


class HttpDoor:
    """The running HTTP server.

    Args:
        listen: ``ADDRESS:PORT`` on loopback; port 0 for any.
        places: where the socket and the slots are.
        log: says where it listens.

    Raises:
        ConfigError: the address is not on loopback, or taken.
    """

    def __init__(self, listen: str, places: Places, log: Say) -> None:
        host, port = parse_listen(listen)
        gate = threading.BoundedSemaphore(_MOST_AT_ONCE)

        class Handler(_Handler):
            desk = _Desk(places)
            free = gate

        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise ConfigError(f"cannot be listened on: {error.strerror}", key="serving.http", got=listen,
                              next_step="choose another port") from error  # fmt: skip
        self.address = "{}:{}".format(*self._server.server_address[:2])
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()
        log("http", address=self.address)

    def close(self) -> None:
        """Stop listening; requests in flight are let go."""
        self._server.shutdown()
        self._server.server_close()


def parse_listen(listen: str) -> tuple[str, int]:
    """Address and port.

    Raises:
        ConfigError: no loopback address with a port.

    >>> parse_listen("127.0.0.1:8080")
    ('127.0.0.1', 8080)
    """
    host, _, port = listen.rpartition(":")
    try:
        if ipaddress.ip_address(host).is_loopback and 0 <= int(port) < 1 << 16:
            return host, int(port)
    except ValueError:
        pass
    raise ConfigError("not a loopback address with a port", key="serving.http", expected="127.0.0.1:PORT", got=listen,
                      next_step="there is no login: reach it from elsewhere through an SSH tunnel")  # fmt: skip


class _Desk:
    """Answers, away from HTTP's own words."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def status(self) -> dict[str, Any]:
        document = read_status(self._places.status)
        if document is None:
            raise TransferError("the agent has said nothing of itself yet", retryable=True)
        return document

    def infer(self, body: bytes, kind: str, query: Mapping[str, list[str]]) -> dict[str, Any]:
        """One prediction.

        Raises:
            InputError: the body is not what the model takes.
            EngineError: the model failed.
            TransferError: no model is served.
        """
        model = query.get("model", [""])[-1]
        inputs = _read(body, kind, self._manifest(model))
        with Client(self._places.socket, _TIMEOUT_S) as client:
            found = client.infer(inputs, model=model)
        return {
            "prediction_id": found.prediction_id,
            "model": found.model,
            "version": found.version,
            "release_digest": found.release_digest,
            "latency_us": found.latency_us,
            "outputs": {name: values.tolist() for name, values in found.outputs.items()},
        }

    def _manifest(self, model: str) -> BundleManifest:
        slots = Slots(self._places.slots)
        active: dict[str, Slot] = {}
        for name, arm in slots.arms():
            slot = slots.active(name, arm)
            if slot is not None:
                active.setdefault(name, slot)
        if not active:
            raise TransferError("this device serves no model yet", retryable=True)
        if model not in active and (model or len(active) > 1):
            raise InputError("which model?", key="model", expected=" | ".join(active), got=model or "none",
                             next_step=f"POST {_INFER}?model={next(iter(active))}")  # fmt: skip
        return (active[model] if model else next(iter(active.values()))).manifest()


def _read(body: bytes, kind: str, manifest: BundleManifest) -> dict[str, Array]:
    """The request's raw sample by input name; ``x`` alone stands for the model's only input.

    Raises:
        InputError: the body cannot be read as what the model takes.
    """
    if kind == _RAW:
        return from_bytes(body, manifest)
    contracts = manifest.input_contracts
    if kind == _JSON:
        document = parse_json(body, place="body")
        inputs = document.get("inputs") if isinstance(document, dict) else None
        if isinstance(inputs, dict) and set(inputs) == {"x"} and len(contracts) == 1:
            inputs = inputs["x"]
        return from_json(inputs, manifest)
    if len(contracts) != 1:
        names = ", ".join(contract.tensor for contract in contracts)
        raise InputError(f"{kind} holds one array", expected=f"{_JSON} with inputs {names}")
    try:
        array: Array = np.load(io.BytesIO(body), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot be read as a numpy array: {error}", expected="a .npy file") from error
    check_raw(contracts[0], array)
    return {contracts[0].tensor: array}


class _Server(ThreadingHTTPServer):
    """Gives a thread to a bounded number of connections and closes the others before they cost one."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a connection's thread, where there is one for it."""
        if not self._free.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.send(_BUSY)  # fits into the buffer of a new connection: waits for nobody
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, in that thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class _Line(io.RawIOBase):
    """What comes over a connection; a request must be complete by its deadline, however its bytes come in."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline_s = 0.0

    def begin(self) -> None:
        """The time of a request begins."""
        self._deadline_s = time.monotonic() + _REQUEST_S

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """What is there, or comes in time.

        Raises:
            TimeoutError: nothing came, or the request takes too long.
        """
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the request takes too long")
        self._connection.settimeout(min(left_s, _TIMEOUT_S))
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(_TIMEOUT_S)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    desk: _Desk
    free: threading.BoundedSemaphore
    protocol_version = "HTTP/1.1"
    server_version = "edgeship-agent"
    sys_version = ""
    timeout = _TIMEOUT_S

    def setup(self) -> None:
        """Read through a line that has a deadline."""
        super().setup()
        self.rfile.close()
        self._line = _Line(self.connection)
        self.rfile = io.BufferedReader(self._line)

    def handle_one_request(self) -> None:
        """One request, within its time."""
        self._line.begin()
        super().handle_one_request()

    def do_GET(self) -> None:
        """Answer."""
        self._answer()

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET  # noqa: N815 (the base class calls them so)

    def log_message(self, format: str, *values: object) -> None:  # noqa: A002 (the base class's word)
        """Requests are the application's own business: nothing is written."""

    def _answer(self) -> None:
        if not self.free.acquire(blocking=False):
            self._refuse(503, TransferError(f"more than {_MOST_AT_ONCE} requests at once", retryable=True))
            return
        try:
            self._route()
        except (InputError, ContractError) as error:
            self._refuse(400, error)
        except TransferError as error:
            self._refuse(503, error)
        except EdgeshipError as error:
            self._refuse(500, error)
        except TimeoutError:
            self.close_connection = True
        finally:
            self.free.release()

    def _route(self) -> None:
        address = urlsplit(self.path)
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        if not _is_local(host):
            # a page of another origin that resolves its name to this device
            self._refuse(403, InputError("asked under a foreign name", expected="localhost or 127.0.0.1", got=host))
        elif address.path not in _METHODS:
            self._refuse(404, InputError("no such address", expected=" | ".join(_METHODS), got=address.path))
        elif self.command != _METHODS[address.path]:
            self._refuse(405, InputError("another method", expected=_METHODS[address.path], got=self.command))
        elif address.path == _STATUS:
            self._send(200, self.desk.status())
        elif (body := self._body()) is not None:
            kind = self.headers.get_content_type()
            if kind not in {_JSON, _NPY, _RAW}:
                self._refuse(415, InputError("another kind of body", expected=f"{_JSON} | {_NPY} | {_RAW}", got=kind))
            else:
                self._send(200, self.desk.infer(body, kind, parse_qs(address.query)))

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            self._refuse(411, InputError("no length", key="Content-Length", expected="bytes"))
        elif int(length) > MAX_FRAME_BYTES:
            self._refuse(413, InputError("too large", expected=f"at most {MAX_FRAME_BYTES} bytes", got=length))
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                return body
            self.close_connection = True
        return None

    def _refuse(self, status: int, error: EdgeshipError) -> None:
        self.close_connection = True  # what is left of the request is not read
        self._send(status, _error(error))

    def _send(self, status: int, document: object) -> None:
        data = msgspec.json.encode(document) + b"\n"
        try:
            self.send_response(status)
            self.send_header("Content-Type", _JSON)
            self.send_header("Content-Length", str(len(data)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
        except OSError:
            self.close_connection = True  # whoever asked is gone


def _error(error: EdgeshipError) -> dict[str, Any]:
    return {"error": {"message": error.message, "key": error.key, "expected": error.expected, "got": error.got,
                      "next_step": error.next_step}}  # fmt: skip


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _busy() -> bytes:
    """The whole answer to a connection that is one too many."""
    error = TransferError(f"more than {_MOST_CONNECTIONS} connections at once", retryable=True)
    body = msgspec.json.encode(_error(error)) + b"\n"
    lines = ("HTTP/1.1 503 Service Unavailable", f"Content-Type: {_JSON}", f"Content-Length: {len(body)}",
             "Connection: close", "", "")  # fmt: skip
    return "\r\n".join(lines).encode() + body


_BUSY: Final = _busy()
