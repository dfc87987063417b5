"""Devices of another address: let in by a token, held to their own topics, updated over TLS, put out."""

from __future__ import annotations

import hashlib
import json
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from cryptography import x509
from paho.mqtt.enums import CallbackAPIVersion

from edgeship.server.brokers import free_port
from edgeship_agent.contract.enrolment import EnrolRequest, Token
from edgeship_agent.contract.errors import TransferError
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.identity import renewal
from edgeship_agent.identity.credentials import Credentials, client_context
from edgeship_agent.identity.keys import certificate_in, load_or_make_key, signing_request
from edgeship_agent.identity.service import EnrolmentService
from edgeship_agent.serving.client import Client
from tests.agents import TARGET, Traffic, make_bundle, until
from tests.programs import require_program
from tests.server_process import ServerProcess, wait_for

HOST = "127.0.0.2"
POLICY = """
name = "threshold"
min_windows = 1
min_calls = 20
soak_s = 0.0
max_drift = 1.0
[probation]
inferences = 20
duration_s = 0.2
deadline_s = 60.0
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    require_program("mosquitto")
    ports = [free_port(HOST) for _ in range(4)]
    options = ("--devices-host", HOST, "--devices-port", str(ports[0]), "--enrol-port", str(ports[1]))
    options += ("--websockets-port", str(ports[3]))
    running = ServerProcess(tmp_path_factory.mktemp("server") / "data", *options, "--broker-port", str(ports[2]))
    running.start()
    yield running
    assert running.stop() == 0, running.log.read_text()


def edgeship(server: ServerProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeship", *arguments, "--server", server.info["url"]]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def ask(server: ServerProcess, *arguments: str) -> Any:
    done = edgeship(server, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def token(server: ServerProcess, *arguments: str) -> str:
    return str(ask(server, "devices", "enroll", *arguments)["token"])


def enroll(
    server: ServerProcess, folder: Path, secret: str, device_id: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "edgeship_agent.cli", "enroll", server.info["enrol_url"]]
    command += ["--token", secret, "--target", TARGET, "--device-id", device_id]
    command += ["--state-dir", str(folder / device_id), "--config", str(folder / f"{device_id}.toml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def credentials(folder: Path, device_id: str) -> Credentials:
    return Credentials.inside(folder / device_id / "identity")


class Member:
    """A bare MQTT client with a device's certificate."""

    def __init__(self, server: ServerProcess, who: Credentials, client_id: str = "") -> None:
        self.heard: list[str] = []
        self.up, self.down = threading.Event(), threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5)
        self.client.tls_set_context(client_context(who, time.time(), 0.0))
        self.client.on_connect = lambda *arguments: self.up.set() if not arguments[3].is_failure else self.down.set()
        self.client.on_disconnect = lambda *_: self.down.set()
        self.client.on_message = lambda _client, _data, message: self.heard.append(message.topic)
        self.client.reconnect_on_failure = False
        self.client.connect(HOST, server.broker_port)
        self.client.loop_start()

    def subscribe(self, topic: str) -> None:
        done = threading.Event()
        self.client.on_subscribe = lambda *_: done.set()
        self.client.subscribe(topic, 1)
        assert done.wait(20)

    def publish(self, topic: str) -> None:
        self.client.publish(topic, b"x", 1, retain=True).wait_for_publish(10)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class Agent:
    """``edgeship-agent run`` with the configuration that enrolment wrote."""

    def __init__(self, folder: Path, device_id: str) -> None:
        self.state = folder / device_id
        config = folder / f"{device_id}.toml"
        tables = (
            "[telemetry]\nwindow_s = 0.5\nwindow_inferences = 40\nheartbeat_s = 0.5\n"
            "[update]\ndisk_reserve_bytes = 0\nretry_s = 0.1\n[link]\nreconnect_start_s = 0.1\nreconnect_max_s = 0.5\n"
        )
        config.write_text(f"allow_volatile_state = true\n{config.read_text()}{tables}")
        self.log = folder / f"{device_id}.log"
        command = [sys.executable, "-W", "error", "-m", "edgeship_agent.cli", "run", "--config", str(config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def status(self) -> dict[str, Any]:
        path = self.state / "run" / "status.json"
        return json.loads(path.read_bytes()) if path.exists() else {}

    def client(self) -> Client:
        until((self.state / "run" / "socket-path").exists, 60.0, "the socket's path")
        return Client(Path((self.state / "run" / "socket-path").read_text().strip()), 30.0)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


def running(server: ServerProcess, device_id: str) -> dict[str, str]:
    return {arm["version"]: arm["state"] for arm in server.get(f"devices/{device_id}")["running"]}


def roll_out(server: ServerProcess, version: str, *options: str) -> None:
    folder = server.data.parent  # one author signs all releases of a model
    policy = folder / "policy.toml"
    policy.write_text(POLICY)
    assert edgeship(server, "releases", "add", str(make_bundle(folder, version))).returncode == 0
    made = edgeship(
        server, "rollouts", "create", "digits", version, "--stages", "100%", "--policy", str(policy), *options
    )
    assert made.returncode == 0, made.stderr


def ends(server: ServerProcess) -> list[str]:
    """States of the rollouts, the newest first."""
    return [each["state"] for each in server.get("rollouts")["rollouts"]]


def test_a_second_host_enrols_serves_updates_and_rolls_back(server: ServerProcess, tmp_path: Path) -> None:
    done = enroll(server, tmp_path, token(server, "--group", "lab"), "press-1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"next: edgeship-agent run --config {tmp_path / 'press-1.toml'}"
    agent = Agent(tmp_path, "press-1")
    try:
        device = wait_for(lambda: next(iter(server.get("devices")["devices"]), None), "the device")
        assert (device["tags"], device["online"]) == ({"group": "lab"}, True)
        roll_out(server, "1.0")
        with Traffic(agent) as traffic:
            wait_for(lambda: running(server, "press-1") == {"1.0": "committed"}, "1.0 committed")
            wait_for(lambda: ends(server)[0] == "completed", "the end of its rollout")
            roll_out(server, "2.0")
            wait_for(lambda: running(server, "press-1") == {"2.0": "committed"}, "2.0 committed")
            wait_for(lambda: ends(server)[0] == "completed", "the end of its rollout")
            newest = server.get("rollouts")["rollouts"][0]["id"]
            assert edgeship(server, "rollouts", "rollback", newest).returncode == 0
            wait_for(lambda: running(server, "press-1") == {"1.0": "committed"}, "back on 1.0")
            wait_for(lambda: ends(server)[0] == "rolled_back", "the end of the rollback")
        assert traffic.versions[-1] == "1.0"
        assert {"1.0", "2.0"} <= set(traffic.versions)
    finally:
        assert agent.stop() == 0, agent.log.read_text()


def test_a_token_is_for_one_device_and_a_lost_answer_costs_nothing(server: ServerProcess, tmp_path: Path) -> None:
    secret = token(server)
    assert enroll(server, tmp_path, secret, "once-1").returncode == 0
    again = enroll(server, tmp_path, secret, "once-1")
    assert again.returncode == 0
    other = enroll(server, tmp_path, secret, "once-2")
    assert other.returncode == 1
    assert "was for 1 device, and they have come" in other.stderr
    assert not (tmp_path / "once-2.toml").exists()
    # the same key again, as a device does whose connection broke before the answer came
    parsed, service = Token.parse(secret), EnrolmentService(server.info["enrol_url"], time.time(), 0.0)
    key = load_or_make_key(tmp_path / "once-1" / "identity" / "identity.pem")
    request = EnrolRequest(secret=parsed.secret, device_id="once-1", csr=signing_request(key, "once-1"))
    answer = service.enrol(service.authority(parsed.authority), request)
    assert answer.certificate in (tmp_path / "once-1" / "identity" / "identity.pem").read_text()
    stranger = EnrolRequest(secret=parsed.secret, device_id="once-1",
                            csr=signing_request(load_or_make_key(tmp_path / "other.pem"), "once-1"))  # fmt: skip
    with pytest.raises(TransferError, match="once-1 is in the fleet already, with another key"):
        service.enrol(service.authority(parsed.authority), stranger)


def test_a_batch_key_waits_for_approval(server: ServerProcess, tmp_path: Path) -> None:
    secret = token(server, "--count", "2", "--expires", "1", "--approve", "--group", "hall")
    first = enroll(server, tmp_path, secret, "batch-1", "--wait-s", "0")
    assert first.returncode == 1
    assert "waits for an operator's approval" in first.stdout
    row = next(i for i in ask(server, "devices", "identities")["identities"] if i["device_id"] == "batch-1")
    assert (row["state"], row["tags"]) == ("pending", {"group": "hall"})
    assert row["key_sha256"][:16] in first.stdout
    assert edgeship(server, "devices", "approve", "batch-1").returncode == 0
    second = enroll(server, tmp_path, secret, "batch-1", "--wait-s", "0")
    assert second.returncode == 0, second.stderr
    assert edgeship(server, "devices", "approve", "batch-1").returncode == 2


def test_a_device_reaches_its_own_topics_and_no_other(server: ServerProcess, tmp_path: Path) -> None:
    secret = token(server, "--count", "2")
    for name in ("own-a", "own-b"):
        assert enroll(server, tmp_path, secret, name).returncode == 0
    a, b = (Member(server, credentials(tmp_path, name), name) for name in ("own-a", "own-b"))
    assert a.up.wait(20)
    assert b.up.wait(20)
    goal_a, birth_a = (Topic(device_id="own-a", kind=kind).path() for kind in (Kind.GOAL, Kind.BIRTH))
    a.subscribe(goal_a)
    b.subscribe("edgeship/#")
    b.publish(goal_a)
    b.publish(birth_a)
    a.publish(goal_a)  # not even its own goal
    b.subscribe(Topic(device_id="own-b", kind=Kind.GOAL).path())
    server_files = server.data / "identity"
    fleet = ssl.create_default_context(cafile=str(server_files / "authority.pem"))
    fleet.load_cert_chain(server_files / "server.pem", server_files / "server.key")
    ears = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    heard: list[str] = []
    ready = threading.Event()
    ears.tls_set_context(fleet)
    ears.on_message = lambda _client, _data, message: heard.append(message.topic)
    ears.on_subscribe = lambda *_: ready.set()
    ears.on_connect = lambda client, *_: client.subscribe("edgeship/#", 1)
    ears.connect(HOST, server.broker_port)
    ears.loop_start()
    assert ready.wait(20)
    ears.publish(Topic(device_id="own-b", kind=Kind.GOAL).path(), b"y", 1).wait_for_publish(10)
    until(lambda: Topic(device_id="own-b", kind=Kind.GOAL).path() in b.heard, 20.0, "its own goal")
    assert set(b.heard) == {Topic(device_id="own-b", kind=Kind.GOAL).path()}
    assert a.heard == []
    assert goal_a not in heard
    assert birth_a not in heard
    ears.disconnect()
    ears.loop_stop()
    for member in (a, b):
        member.close()


def test_a_revoked_device_is_cut_off_everywhere(server: ServerProcess, tmp_path: Path) -> None:
    assert enroll(server, tmp_path, token(server), "gone-1").returncode == 0
    who = credentials(tmp_path, "gone-1")
    member = Member(server, who)
    assert member.up.wait(20)
    assert edgeship(server, "devices", "revoke", "gone-1").returncode == 0
    assert member.down.wait(20), "its open connection ended"
    member.close()
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        late = Member(server, who)
        try:
            assert late.up.wait(3)
        finally:
            late.close()
    port = int(server.options[server.options.index("--devices-port") + 1])
    assert not fetches(port, who)
    with pytest.raises(TransferError, match="is not in use any more"):
        renewal.renew(who, server.info["enrol_url"], time.time(), 0.0)
    assert edgeship(server, "devices", "revoke", "gone-1").returncode == 2
    # its name is free again, for a key that is invited anew
    assert enroll(server, tmp_path / "new", token(server), "gone-1").returncode == 0


def test_a_rollout_does_not_wait_for_a_device_that_was_put_out(server: ServerProcess, tmp_path: Path) -> None:
    assert enroll(server, tmp_path, token(server, "--group", "away"), "away-1").returncode == 0
    agent = Agent(tmp_path, "away-1")
    wait_for(lambda: any(d["id"] == "away-1" for d in server.get("devices")["devices"]), "the device")
    assert agent.stop() == 0
    roll_out(server, "9.0", "--filter", "group=away")
    rollout = server.get("rollouts")["rollouts"][0]["id"]
    assert edgeship(server, "devices", "revoke", "away-1").returncode == 0
    (member,) = server.get(f"rollouts/{rollout}")["devices"]
    assert (member["state"], member["reason"]) == ("removed", "put out of the fleet")
    wait_for(lambda: server.get(f"rollouts/{rollout}")["state"] == "aborted", "the end of the rollout")
    assert "away-1 was put out of the fleet" in server.get(f"rollouts/{rollout}")["reason"]
    listed = edgeship(server, "devices", "list")
    assert "✖ revoked" in next(line for line in listed.stdout.splitlines() if line.startswith("away-1"))


def fetches(port: int, who: Credentials | None) -> bool:
    """Whether the update service answers this member."""
    import http.client

    context = client_context(who, time.time(), 0.0) if who else ssl._create_unverified_context()
    connection = http.client.HTTPSConnection(HOST, port, timeout=10, context=context)
    try:
        connection.request("GET", "/tuf/metadata/timestamp.json")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def test_a_copied_disk_is_noticed_and_gets_no_update(server: ServerProcess, tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    assert enroll(server, original, token(server), "twin-1").returncode == 0
    shutil.copytree(original, copy)
    (copy / "twin-1.toml").write_text((copy / "twin-1.toml").read_text().replace(str(original), str(copy)))
    twins = [Agent(folder, "twin-1") for folder in (original, copy)]
    try:
        found = wait_for(lambda: [i for i in server.get("incidents")["incidents"] if i["kind"] == "cloned_device"],
                         "the incident")  # fmt: skip
        assert found[0]["device_id"] == "twin-1"
        assert "two machines share this identity" in found[0]["sentence"]
        explained = edgeship(server, "explain", f"incident/{found[0]['id']}")
        assert explained.returncode == 0, explained.stderr
        assert "session numbers come again at most 2 times in 10 minutes" in explained.stdout
        assert edgeship(server, "devices", "tag", "twin-1", "case=twin").returncode == 0
        roll_out(server, "7.0", "--filter", "case=twin")
        made = server.get("rollouts")["rollouts"][0]["id"]
        wait_for(lambda: server.get(f"rollouts/{made}")["devices"][0]["state"] == "canceled", "no offer to it")
    finally:
        for twin in twins:
            twin.stop()


def test_web_sockets_reach_through_where_mqtt_does_not(server: ServerProcess, tmp_path: Path) -> None:
    assert enroll(server, tmp_path, token(server), "web-1").returncode == 0
    port = server.options[server.options.index("--websockets-port") + 1]
    config = tmp_path / "web-1.toml"
    config.write_text(config.read_text().replace(server.info["broker_url"], f"wss://{HOST}:{port}/mqtt"))
    agent = Agent(tmp_path, "web-1")
    try:
        wait_for(lambda: any(d["id"] == "web-1" and d["online"] for d in server.get("devices")["devices"]), "web-1")
        doctor = [sys.executable, "-m", "edgeship_agent.cli", "doctor", "--json", "--config", str(config)]
        checks = json.loads(subprocess.run(doctor, capture_output=True, timeout=60, check=False).stdout)["checks"]
        states = {check["name"]: check["state"] for check in checks}
        named = ("identity", "server", "broker", "kept goal")
        assert [states[name] for name in named] == ["ok"] * len(named), checks
    finally:
        agent.stop()


def test_updates_are_for_members_and_nothing_else_is_served(server: ServerProcess, tmp_path: Path) -> None:
    assert enroll(server, tmp_path, token(server), "reader-1").returncode == 0
    port = int(server.options[server.options.index("--devices-port") + 1])
    assert fetches(port, credentials(tmp_path, "reader-1"))
    assert not fetches(port, None)
    import http.client

    for asked in (port, int(server.info["enrol_url"].rpartition(":")[2])):
        context = client_context(credentials(tmp_path, "reader-1"), time.time(), 0.0)
        for path in ("/api/v1/devices", "/", "/api"):
            connection = http.client.HTTPSConnection(HOST, asked, timeout=10, context=context)
            connection.request("GET", path)
            assert connection.getresponse().status == 404
            connection.close()


def test_a_certificate_is_renewed_for_a_new_key(server: ServerProcess, tmp_path: Path) -> None:
    assert enroll(server, tmp_path, token(server), "renew-1").returncode == 0
    who = credentials(tmp_path, "renew-1")
    before = certificate_in(who.identity)
    old = tmp_path / "old"
    old.mkdir()
    for file in (who.identity, who.authority):
        (old / file.name).write_bytes(file.read_bytes())
        (old / file.name).chmod(0o600)
    assert not renewal.is_due(who, time.time(), 0.0)
    assert renewal.is_due(who, time.time() + 300 * 86400.0, 0.0)
    until_s = renewal.renew(who, server.info["enrol_url"], time.time(), 0.0)
    after = certificate_in(who.identity)
    assert until_s == after.not_valid_after_utc.timestamp()
    assert spki(before) != spki(after)
    member = Member(server, who)
    assert member.up.wait(20)
    member.close()
    # whoever holds the old key gets no further with it
    with pytest.raises(TransferError, match="is not in use any more"):
        renewal.renew(Credentials.inside(old), server.info["enrol_url"], time.time(), 0.0)


def spki(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).hexdigest()


def test_an_impostor_of_the_server_is_not_told_the_secret(server: ServerProcess, tmp_path: Path) -> None:
    parsed = Token.parse(token(server))
    wrong = Token(authority="0" * 32, secret=parsed.secret).text
    done = enroll(server, tmp_path, wrong, "fooled-1")
    assert done.returncode == 1
    assert "the server is not the one that the token was made by" in done.stderr
    assert all(i["device_id"] != "fooled-1" for i in ask(server, "devices", "identities")["identities"])


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--token", "hello"), 2, "not an enrolment token"),
        (("--token", "@/nowhere"), 2, "cannot be read"),
        (("--device-id", "a/b"), 2, "not a device id"),
        (("--device-id", "edgeship-server"), 1, "that name is the server's own"),
    ],
)
def test_mistakes_are_told_in_words(
    server: ServerProcess, tmp_path: Path, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    done = enroll(server, tmp_path, token(server), "wrong-1", *arguments)
    assert (done.returncode, sentence in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "wrong-1.toml").exists()


def test_a_server_for_its_own_machine_invites_nobody(tmp_path: Path) -> None:
    alone = ServerProcess(tmp_path / "data")
    alone.start()
    try:
        done = edgeship(alone, "devices", "enroll")
        assert done.returncode == 2
        assert "--devices-host" in done.stderr
    finally:
        alone.stop()
