"""Set-ups that are wrong in one way each: doctor names the finding and the next step."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from edgeship.server.brokers import free_port
from edgeship.server.identity.authority import Authority
from edgeship.server.trust import Trust
from edgeship_agent import doctor
from edgeship_agent.contract.topics import Kind
from edgeship_agent.identity.keys import load_or_make_key, private_pem, signing_request
from tests.agents import AgentProcess, Broker, Depot, ServerSide, until
from tests.integration.test_enrolment import HOST, edgeship, enroll, token
from tests.programs import require_program
from tests.server_process import ServerProcess

DEVICE = "doc-1"
Check = doctor.Check


class Device:
    """An enrolled device, set up right; each test makes one thing of it wrong."""

    def __init__(self, server: ServerProcess, folder: Path, device_id: str = DEVICE) -> None:
        self.server, self.folder = server, folder
        self.config = folder / f"{device_id}.toml"
        self.identity = folder / device_id / "identity"
        self.config.write_text(f"allow_volatile_state = true\n{self.config.read_text()}")

    def change(self, old: str, new: str) -> None:
        text = self.config.read_text()
        assert old in text
        self.config.write_text(text.replace(old, new))

    def add(self, text: str) -> None:
        self.config.write_text(f"{self.config.read_text()}{text}\n")

    def failures(self) -> dict[str, Check]:
        """What fails or warns, by name; an agent and a model need not be there."""
        found = {check.name: check for check in doctor.examine(self.config) if check.state != "ok"}
        assert all(check.mend for check in found.values())
        return {name: check for name, check in found.items() if name not in ("agent", "model", "state directory")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    require_program("mosquitto")
    ports = [free_port(HOST) for _ in range(3)]
    options = ("--devices-host", HOST, "--devices-port", str(ports[0]), "--enrol-port", str(ports[1]))
    running = ServerProcess(tmp_path_factory.mktemp("server") / "data", *options, "--broker-port", str(ports[2]))
    running.start()
    yield running
    assert running.stop() == 0, running.log.read_text()


@pytest.fixture(scope="module")
def enrolled(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("enrolled")
    assert enroll(server, folder, token(server), DEVICE).returncode == 0
    return folder


@pytest.fixture
def device(server: ServerProcess, enrolled: Path, tmp_path: Path) -> Device:
    folder = tmp_path / "device"
    shutil.copytree(enrolled, folder)
    config = folder / f"{DEVICE}.toml"
    config.write_text(config.read_text().replace(str(enrolled), str(folder)))
    return Device(server, folder)


def broker_that_is_not_there(device: Device) -> None:
    device.change(f"mqtts://{HOST}:", "mqtts://127.0.0.7:")


def broker_without_a_name(device: Device) -> None:
    device.change(f"mqtts://{HOST}:", "mqtts://broker.invalid:")


def broker_without_tls(device: Device) -> None:
    device.change("mqtts://", "mqtt://")


def key_for_all_to_read(device: Device) -> None:
    (device.identity / "identity.pem").chmod(0o644)


def root_of_another_fleet(device: Device) -> None:
    Trust.open(device.folder / "other", time.time)
    shutil.copy(device.folder / "other" / "trust" / "root.json", device.identity)


def no_root(device: Device) -> None:
    (device.identity / "root.json").write_text('{"signed": {"_type": "timestamp"}}')


def certificate_of_another_fleet(device: Device) -> None:
    authority = Authority.open(device.folder / "other", time.time)
    key = load_or_make_key(device.folder / "other.key")
    issued = authority.issue_device(DEVICE, signing_request(key, DEVICE))
    (device.identity / "identity.pem").write_bytes(private_pem(key) + issued.public_bytes(Encoding.PEM))


def server_of_another_fleet(device: Device) -> None:
    certificate_of_another_fleet(device)
    (device.identity / "authority.pem").write_bytes(Authority.open(device.folder / "other", time.time).pem)


def disk_almost_full(device: Device) -> None:
    device.add(f"[update]\ndisk_reserve_bytes = {1 << 60}")


def key_that_nobody_knows(device: Device) -> None:
    device.add("enrol_ulr = 'https://fleet.example.org'")


Wrong = Callable[[Device], None]
WRONGS: list[tuple[Wrong, str, str, str]] = [
    (broker_that_is_not_there, "broker", "refused", "check host and port in broker_url"),
    (broker_without_a_name, "broker", "broker.invalid", "check the host in broker_url"),
    (broker_without_tls, "broker", "only over TLS", "mqtts://HOST:PORT"),
    (key_for_all_to_read, "identity", "others may read this private key (mode 0644)", "chmod 600 "),
    (root_of_another_fleet, "trust", "of another fleet", "copy DATA/trust/root.json"),
    (no_root, "root of trust", "not root metadata", "copy DATA/trust/root.json"),
    (certificate_of_another_fleet, "identity", "not issued by", "rm -r "),
    (server_of_another_fleet, "server", "certificate", "edgeship-agent enroll https://"),
    (disk_almost_full, "disk", "less than the reserve is free", "df -h"),
    (key_that_nobody_knows, "configuration", "unknown key `enrol_ulr`", "lists every key"),
]


@pytest.mark.parametrize(("wrong", "name", "said", "mend"), WRONGS, ids=[each[0].__name__ for each in WRONGS])
def test_each_is_found_and_has_a_next_step(device: Device, wrong: Wrong, name: str, said: str, mend: str) -> None:
    wrong(device)
    found = device.failures()
    assert name in found, found
    assert said in found[name].detail, found[name]
    assert mend in found[name].mend, found[name]
    assert set(found) <= {name, "server", "broker"}, "nothing else is accused"


def test_a_device_that_is_right_has_no_finding_until_it_is_revoked(server: ServerProcess, tmp_path: Path) -> None:
    assert enroll(server, tmp_path, token(server), "doc-2").returncode == 0
    device = Device(server, tmp_path, "doc-2")
    assert device.failures() == {}
    assert edgeship(server, "devices", "revoke", "doc-2").returncode == 0
    found = device.failures()
    assert set(found) == {"server", "broker"}
    for check in found.values():
        assert "does not take this device's certificate" in check.detail
        assert f"rm -r {device.identity} && edgeship-agent enroll {server.info['enrol_url']}" in check.mend
    # and that command, with a token, brings the device back
    shutil.rmtree(device.identity)
    device.add("# what the integrator added")
    again = enroll(server, tmp_path, token(server), "doc-2")
    assert again.returncode == 0, again.stderr
    kept = device.config.with_name("doc-2.toml.before")
    assert "what the integrator added" in kept.read_text()
    assert str(kept) in again.stderr
    assert Device(server, tmp_path, "doc-2").failures() == {}


def test_a_second_enrolment_says_what_it_does_not_change(device: Device) -> None:
    device.change('target = "bench"', 'target = "raspberry-pi-5"')
    done = enroll(device.server, device.folder, "es1." + "0" * 32 + "." + "a" * 32, DEVICE)
    assert done.returncode == 0, done.stderr
    assert "the target stays raspberry-pi-5" in done.stderr


@pytest.mark.parametrize(("days", "name"), [(-3650.0, "clock"), (3650.0, "identity"), (0.1, "server")])
def test_clocks_that_are_wrong(device: Device, monkeypatch: pytest.MonkeyPatch, days: float, name: str) -> None:
    real = time.time
    monkeypatch.setattr(doctor.time, "time", lambda: real() + days * 86400.0)
    found = device.failures()
    assert "sudo timedatectl set-ntp true" in found[name].mend, found


def test_a_port_that_is_taken(device: Device) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        device.add(f'[serving]\nhttp = "127.0.0.1:{other.getsockname()[1]}"')
        found = device.failures()
    assert set(found) == {"http"}
    assert "another port in serving.http" in found["http"].mend


def test_no_runtime(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_runtimes", dict)
    found = device.failures()
    assert set(found) == {"runtimes"}
    assert "-m pip install 'edgeship-agent[litert]'" in found["runtimes"].mend


def test_a_state_directory_in_memory(device: Device) -> None:
    device.change("allow_volatile_state = true", "allow_volatile_state = false")
    device.change(f'state_dir = "{device.folder / DEVICE}"', 'state_dir = "/dev/shm/edgeship-nowhere"')
    device.add(f'folder = "{device.identity}"')
    check = next(check for check in doctor.examine(device.config) if check.name == "state directory")
    assert (check.state, "tmpfs" in check.detail, "name a folder on a disk" in check.mend) == ("fail", True, True), (
        check
    )


def test_a_goal_key_of_another_server_is_found_in_the_goal_that_waits(tmp_path: Path) -> None:
    """Before the agent runs for the first time, and while it is connected: neither is disturbed."""
    depot, broker = Depot(tmp_path / "depot"), Broker(tmp_path / "broker")
    server = ServerSide(broker.port)
    agent = AgentProcess(tmp_path / "device", depot, broker.port)
    other = Trust.open(tmp_path / "other", time.time).goal_public.hex()

    def kept_goal() -> Check:
        return next(check for check in doctor.examine(agent.config) if check.name == "kept goal")

    try:
        assert "keeps none for this device yet" in kept_goal().detail
        server.send_goal(depot.goal(7))
        found = kept_goal()
        assert (found.state, found.detail) == ("ok", "generation 7, signed by the goal key")
        agent.start()
        until(lambda: agent.status().get("connected"), 60.0, "the link")
        session = agent.status()["session"]
        foreign = tmp_path / "foreign.pub"
        foreign.write_text(other)
        right = agent.config.read_text()
        agent.config.write_text(right.replace(str(depot.goal_key), str(foreign)))
        found = kept_goal()
        assert found.state == "fail"
        assert "the goal state is signed by another key" in found.detail
        assert f"copy DATA/trust/goal.pub of the server to {foreign}" in found.mend
        status = agent.status()
        assert (status["connected"], status["session"]) == (True, session)
        foreign.write_text("no key")
        assert "kept goal" not in {check.name for check in doctor.examine(agent.config)}, "the goal key is named"
        agent.config.write_text(right)
        server.say(Kind.GOAL, b"\x00", retain=True)
        assert kept_goal().state == "fail"
    finally:
        agent.stop()
        server.close()
        broker.kill()
        depot.close()
