"""Ground for agent tests: bundles of a tiny real model, a signed repository over HTTP, a mosquitto broker,
the server's side of the conversation, and the agent as a real process."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgeship.bundle import AuthorKey, BundleDraft, DraftFile, VariantDraft, write_bundle
from edgeship.server.trust import Trust
from edgeship_agent.contract.errors import EdgeshipError
from edgeship_agent.contract.goal import ArmGoal, GoalState, ModelGoal, Probation, SignedGoal
from edgeship_agent.contract.manifest import BundleManifest, OutputContract, Variant
from edgeship_agent.contract.messages import PROTOCOL_VERSION, Ack, UpdateReport
from edgeship_agent.contract.oci import ImageIndex, canonical_json, hex_of
from edgeship_agent.contract.topics import Kind, Topic, fleet_filter
from edgeship_agent.contract.wire import decode, encode
from edgeship_agent.runtime.memory import SERVICE_ENVIRONMENT
from edgeship_agent.runtime.predictor import Predictor
from edgeship_agent.runtime.tensors import encode_tensor_file
from edgeship_agent.serving.client import Client, Prediction
from edgeship_agent.supervisor.places import find_socket
from edgeship_agent.telemetry.signals import make_profile, measure
from tests.conformance.slots import classifier_onnx, images, manifest_of, quantized_onnx, variant_of
from tests.programs import require_program

T = TypeVar("T")
DEVICE = "bench-1"
TARGET = "bench"
QUICK = Probation(inferences=20, duration_s=0.2, deadline_s=60.0)
SHORT = Probation(inferences=20, duration_s=0.1, deadline_s=0.3)


def until(condition: Callable[[], T], timeout_s: float = 60.0, what: str = "") -> T:
    """The first true value of a condition."""
    give_up_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up_s:
            raise AssertionError(f"waited {timeout_s:g} s for {what or condition}")
        time.sleep(0.02)


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A published bundle."""

    version: str
    digest: str
    size_bytes: int
    model: str = "digits"


class Depot:
    """What a server is to a device: an update repository, blobs, and the key of the goal states."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.trust = Trust.open(folder / "data", clock)
        self.root = folder / "data" / "trust" / "root.json"
        self.goal_key = folder / "data" / "trust" / "goal.pub"
        self.blobs: dict[str, bytes] = {}
        self.targets: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.cut_after_bytes: int | None = None
        self.stall_blob = ""
        self.closed = threading.Event()
        depot = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                depot.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """Serve metadata, targets and blobs; blobs with ranges, and cut short where a test wants it."""
        wanted = request.headers.get("Range", "")
        self.requests.append((request.path, wanted))
        data = self._find(request.path)
        if data is None:
            request.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        request.send_response(206 if wanted else 200)
        if wanted:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        body = data[start:]
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.cut_after_bytes is not None and "/blobs/" in request.path and len(body) > self.cut_after_bytes:
            body = body[: self.cut_after_bytes]
            request.close_connection = True
        if self.stall_blob and request.path.endswith(self.stall_blob):
            request.wfile.write(body[: len(body) // 2])
            self.closed.wait(60.0)
            return
        request.wfile.write(body)

    def _find(self, path: str) -> bytes | None:
        if path.startswith("/blobs/sha256/"):
            return self.blobs.get(path.rpartition("/")[2])
        if path.startswith("/tuf/targets/"):
            return self.targets.get(path.rpartition("/")[2].rpartition(".json")[0].rpartition(".")[2])
        file = self.trust.directory / path.rpartition("/")[2]
        return file.read_bytes() if path.startswith("/tuf/metadata/") and file.is_file() else None

    def publish(self, version: str, **changes: Any) -> Release:
        """Write a bundle of the tiny classifier, sign it, and let devices download it."""
        written = make_bundle(self.folder, version, **changes)
        for blob in (written / "blobs" / "sha256").iterdir():
            self.blobs[blob.name] = blob.read_bytes()
        top = msgspec.json.decode((written / "index.json").read_bytes(), type=ImageIndex).manifests[0]
        index = self.blobs[hex_of(top.digest)]
        self.targets[hex_of(top.digest)] = index
        self.trust.repository.add(top.digest, index)
        model = changes.get("model", "digits")
        return Release(version=version, digest=top.digest, size_bytes=len(index), model=model)

    def model_blob(self, release: Release) -> str:
        """Hexadecimal digest of a release's model file."""
        manifest = json.loads(self.blobs[hex_of(self.index_of(release).manifests[0].digest)])
        layers = {layer["annotations"]["org.cncf.model.filepath"]: layer["digest"] for layer in manifest["layers"]}
        return hex_of(layers["model.onnx"])

    def index_of(self, release: Release) -> ImageIndex:
        """The index of a release's variants."""
        return msgspec.json.decode(self.targets[hex_of(release.digest)], type=ImageIndex)

    def goal(self, generation: int, *models: ModelGoal, **changes: Any) -> bytes:
        """A signed goal state for the device, as it travels."""
        now_s = time.time()
        values: dict[str, Any] = {
            "protocol_version": PROTOCOL_VERSION,
            "device_id": DEVICE,
            "generation": generation,
            "issued_at_s": now_s,
            "expires_at_s": now_s + 3600.0,
            "models": models,
        }
        return encode(Kind.GOAL, self.trust.sign_goal(GoalState(**{**values, **changes})))

    def close(self) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()


def make_bundle(
    folder: Path,
    version: str,
    *,
    seed_scale: float = 1.0,
    golden_scale: float | None = None,
    output: OutputContract | None = None,
    model_bytes: bytes | None = None,
    with_fallback: bool = False,
    model: str = "digits",
    **variant_changes: Any,
) -> Path:
    """A signed bundle; golden outputs come from another model where ``golden_scale`` differs from ``seed_scale``.

    With ``with_fallback`` its first variant is quantized, and full precision ships beside it.
    """
    name = version if model == "digits" else f"{model}-{version}"
    work = folder / f"work-{name}"
    work.mkdir(parents=True, exist_ok=True)
    net = classifier_onnx(work / "model.onnx", scale=seed_scale)
    golden = net if golden_scale is None else classifier_onnx(work / "golden.onnx", scale=golden_scale)
    variant = msgspec.structs.replace(variant_of("onnxruntime", net), target=TARGET, **variant_changes)
    manifest = manifest_of(variant, name=model, version=version)
    if output is not None:
        manifest = msgspec.structs.replace(manifest, output=output)
    variants = [_variant_draft(manifest, variant, golden, model_bytes or net.read_bytes())]
    if with_fallback:
        small = quantized_onnx(work / "small.onnx", scale=seed_scale)
        chosen = msgspec.structs.replace(variant, precision="int8")
        variants.insert(0, _variant_draft(manifest, chosen, small, small.read_bytes()))
    draft = BundleDraft(
        name=manifest.name,
        version=version,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        input_contracts=manifest.input_contracts,
        input_schema=manifest.input_schema,
        output=manifest.output,
        lineage=manifest.lineage,
        variants=tuple(variants),
    )
    return write_bundle(folder / f"bundle-{name}", draft, AuthorKey.load_or_create(folder / "author.key")).directory


def _variant_draft(manifest: BundleManifest, variant: Variant, golden: Path, model: bytes) -> VariantDraft:
    predictor = Predictor.open(manifest, variant, golden)
    samples = images(8)
    answers = [predictor.run(sample) for sample in samples]
    values = [measure(raw, predictor.run(raw), manifest.output) for raw in images(200, seed=1)]
    predictor.close()
    contents = (
        ("model.onnx", "model", model),
        ("golden_inputs.msgpack", "golden_inputs", encode_tensor_file(samples)),
        ("golden_outputs.msgpack", "golden_outputs", encode_tensor_file(answers)),
        ("profile.json", "profile", canonical_json(make_profile(values, class_count=10))),
    )
    files = tuple(DraftFile(path=path, role=role, data=data) for path, role, data in contents)
    return VariantDraft(variant=variant, files=files)


def model_goal(release: Release, deployment: str = "d1", **changes: Any) -> ModelGoal:
    """The whole device on one release."""
    arm = ArmGoal(version=release.version, digest=release.digest, size_bytes=release.size_bytes)
    values = {"model": release.model, "arms": (arm,), "deployment": deployment, "probation": QUICK}
    return ModelGoal(**{**values, **changes})


def joint_goals(deployment: str, *releases: Release, **changes: Any) -> list[ModelGoal]:
    """Several models that switch together."""
    goals = [model_goal(release, deployment, **changes) for release in releases]
    return [msgspec.structs.replace(goal, release=f"line@{deployment}") for goal in goals]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """A mosquitto of its own."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.port = port or free_port()
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "mosquitto.conf"
        config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\nuser root\n")
        self._process = subprocess.Popen(
            [require_program("mosquitto"), "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self._listens, 20.0, "mosquitto")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(20)


class ServerSide:
    """Hears what a device says, acknowledges its windows, and sends goals."""

    def __init__(self, port: int, *, acknowledges: bool = True) -> None:
        self.messages: list[tuple[Kind, Any]] = []
        self.windows: dict[tuple[str, int], Any] = {}
        self.acknowledges = acknowledges
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="server", protocol=mqtt.MQTTv5)
        ready = threading.Event()
        self._client.on_connect = lambda client, *_: client.subscribe([(fleet_filter(kind), 1) for kind in _HEARD])
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.on_message = lambda _client, _data, message: self._hear(message)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert ready.wait(20)

    def _hear(self, message: mqtt.MQTTMessage) -> None:
        topic = Topic.parse(message.topic)
        said = decode(topic.kind, message.payload)
        self.messages.append((topic.kind, said))
        if topic.kind is not Kind.WINDOWS or not self.acknowledges:
            return
        for window in said.windows:
            self.windows[window.boot_id, window.seq] = window
        seq = said.floor_seq - 1
        while (said.boot_id, seq + 1) in self.windows:
            seq += 1
        ack = Ack(protocol_version=PROTOCOL_VERSION, boot_id=said.boot_id, seq=seq)
        # no waiting here: this is the network's own thread
        self._client.publish(Topic(device_id=DEVICE, kind=Kind.ACK).path(), encode(Kind.ACK, ack), qos=1)

    def say(self, kind: Kind, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(Topic(device_id=DEVICE, kind=kind).path(), payload, qos=1, retain=retain).wait_for_publish(
            10
        )

    def send_goal(self, payload: bytes) -> None:
        self.say(Kind.GOAL, payload, retain=True)

    def heard(self, kind: Kind) -> list[Any]:
        return [message for said, message in list(self.messages) if said is kind]

    def reports(self, deployment: str) -> list[UpdateReport]:
        """Reports of a deployment, repeats dropped, in order."""
        reports = [report for birth in self.heard(Kind.BIRTH) for report in birth.last_reports]
        reports += self.heard(Kind.REPORT)
        newest = {(r.attempt, r.seq): r for r in reports if r.deployment == deployment}
        return [newest[key] for key in sorted(newest)]

    def ended(self, deployment: str, attempt: int = 1, timeout_s: float = 90.0) -> UpdateReport:
        """The report that ends an attempt."""

        def end() -> UpdateReport | None:
            reports = [r for r in self.reports(deployment) if r.attempt == attempt and r.state.is_terminal]
            return reports[-1] if reports else None

        return until(end, timeout_s, f"the end of {deployment}: {[r.state.value for r in self.reports(deployment)]}")

    def states(self, deployment: str) -> list[str]:
        return [report.state.value for report in self.reports(deployment)]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


_HEARD = (Kind.BIRTH, Kind.DEATH, Kind.HEARTBEAT, Kind.WINDOWS, Kind.REPORT)


class AgentProcess:
    """``edgeship-agent run`` as a process of its own."""

    def __init__(self, folder: Path, depot: Depot, broker_port: int, **changes: Any) -> None:
        self.folder = folder
        self.state = folder / "state"
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "agent.toml"
        self.module = changes.pop("module", "edgeship_agent.cli")
        self.extra = changes.pop("extra", "")
        self.config.write_text(
            f'device_id = "{DEVICE}"\ntarget = "{TARGET}"\nstate_dir = "state"\nallow_volatile_state = true\n'
            f'server_url = "{depot.url}"\nbroker_url = "mqtt://127.0.0.1:{broker_port}"\n'
            f'root = "{depot.root}"\ngoal_key = "{depot.goal_key}"\n[tags]\nsite = "bench"\n'
            "[telemetry]\nwindow_s = 0.5\nwindow_inferences = 50\nheartbeat_s = 0.5\nresend_s = 1.0\n"
            "[update]\nretry_s = 0.1\nretry_max_s = 0.3\nattempts = 5\ndisk_reserve_bytes = 0\n"
            f"[link]\nreconnect_start_s = 0.1\nreconnect_max_s = 0.5\n{self.extra}"
        )
        self.log = folder / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return find_socket(self.state)

    def start(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-W", "error", "-m", self.module, "run", "--config", str(self.config), *arguments]
        with self.log.open("ab") as log:
            own = {**os.environ, **SERVICE_ENVIRONMENT, **environment}
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=own)

    def status(self) -> dict[str, Any]:
        """What it says of itself; before it says anything, that nothing runs."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.state / "run" / "status.json").read_bytes())
        return {"running": []}

    def worker_pid(self) -> int:
        """Process id of the worker that serves."""

        def pid() -> int:
            workers = [worker for worker in self.status().get("workers", []) if worker["ready"]]
            return workers[0]["pid"] if workers and self.status()["pid"] == self.process.pid else 0

        return until(pid, 60.0, "a worker that serves")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)

    def stop(self) -> int:
        if self.process is None or self.process.poll() is not None:
            return self.process.returncode if self.process else 0
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def client(self, timeout_s: float = 30.0) -> Client:
        until((self.state / "run" / "socket-path").exists, 30.0, "the socket's path")
        return Client(self.socket, timeout_s)


def measuring(state: Path) -> list[int]:
    """Process ids of the children that measure for the agent of a state directory."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"profiling.measuring" in line and str(state).encode() in line:
            found.append(int(folder.name))
    return found


class Asked(Protocol):
    """What an application asks: an agent's process."""

    def client(self) -> Client:
        """A connection of its own."""


class Traffic:
    """An application that keeps asking; every answer and every error is kept."""

    def __init__(self, agent: Asked, pause_s: float = 0.002, deadline_ms: float = 0.0) -> None:
        self.answers: list[Prediction] = []
        self.errors: list[EdgeshipError] = []
        self._stopped = threading.Event()
        self._agent = agent
        self._pause_s = pause_s
        self._deadline_ms = deadline_ms
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def versions(self) -> list[str]:
        """Of the answers so far."""
        return [answer.version for answer in self.answers]

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(60)

    def _run(self) -> None:
        samples = images(50, seed=3)
        with self._agent.client() as client:
            number = 0
            while not self._stopped.is_set():
                try:
                    self.answers.append(client.infer(samples[number % 50], deadline_ms=self._deadline_ms))
                except EdgeshipError as error:
                    self.errors.append(error)
                number += 1
                self._stopped.wait(self._pause_s)


def forged(payload: bytes) -> bytes:
    """The same goal state with one bit of its signature changed."""
    signed: SignedGoal = decode(Kind.GOAL, payload)
    signature = bytes([signed.signature[0] ^ 1]) + signed.signature[1:]
    return encode(Kind.GOAL, msgspec.structs.replace(signed, signature=signature))


def is_gone(pid: int) -> bool:
    """Whether a process has ended (a zombie counts)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"
