"""Measuring over SSH, against a real sshd on loopback: what comes back, what is said, and what stays there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeship.build import verify
from edgeship.build.backends import Artifact
from edgeship.build.backends.base import bind
from edgeship.build.devices.address import parse_address
from edgeship.build.devices.device import Candidate, Device
from edgeship.build.devices.link import Link, launcher
from edgeship.build.devices.worker import Plan
from edgeship.build.progress import Silence
from edgeship_agent.contract.errors import ConversionError, TransferError
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.isa import isa_class
from tests import models
from tests.ssh_server import SshServer, ssh_server

COMMAND = (sys.executable, "-m", "edgeship")
_PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("ssh") / "server") as running:
        yield running


def link(server: SshServer) -> Link:
    return Link(parse_address(server.address), launcher(server.config))


def device(server: SshServer) -> Device:
    return Device(link(server), "device", Silence())


def gone(server: SshServer) -> bool:
    """Whether everything was removed, within the patience that a busy machine needs."""
    end = time.monotonic() + _PATIENCE_S
    while server.leftovers and time.monotonic() < end:
        time.sleep(0.05)
    return not server.leftovers


def candidate(model: Path, label: str = "t/onnxruntime/fp32") -> Candidate:
    engine = open_engine("onnxruntime", model)
    signature = engine.signature
    engine.close()
    artifact = Artifact(runtime="onnxruntime", precision="fp32", model=model,
                        inputs=tuple(bind(info.name, info) for info in signature.inputs),
                        outputs=tuple(bind(info.name, info) for info in signature.outputs))  # fmt: skip
    return Candidate(label=label, runtime="onnxruntime", threads=1, files=(model,),
                     variant=verify.draft_variant(artifact))  # fmt: skip


def samples(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    return [{"x": rng.normal(size=(1, 1, 8, 8)).astype(np.float32)} for _ in range(count)]


def test_files_go_there_and_back_and_nothing_stays(server: SshServer) -> None:
    data = os.urandom(3_000_000)
    with link(server) as open_link:
        open_link.put("a/b.bin", data)
        assert len(server.leftovers) == 1
        assert open_link.get("a/b.bin") == data
        lines: list[str] = []
        code, said = open_link.run(
            ["sh", "-c", "echo one; echo two; echo wrong >&2; exit 3"], environment={}, timeout_s=30.0,
            on_line=lines.append,
        )  # fmt: skip
        assert (code, lines, said) == (3, ["one", "two"], ["wrong"])
        with pytest.raises(TransferError, match="outside the folder"):
            open_link.put("../elsewhere", b"x")
        with pytest.raises(TransferError, match="No such file"):
            open_link.get("missing")
        # the session goes on after an error
        open_link.put("c", b"c")
        assert open_link.get("c") == b"c"
    assert server.leftovers == []


def test_arguments_reach_the_program_as_they_are(server: SshServer) -> None:
    strange = ["a b", "$(touch x)", "'", '"', ";", "", "ü"]
    lines: list[str] = []
    with link(server) as open_link:
        code, _ = open_link.run(["python3", "-c", "import sys, json; print(json.dumps(sys.argv[1:]))", *strange],
                                environment={}, timeout_s=30.0, on_line=lines.append)  # fmt: skip
    assert code == 0
    assert json.loads(lines[0]) == strange


def test_a_child_that_takes_too_long_is_ended(server: SshServer) -> None:
    with link(server) as open_link:
        code, _ = open_link.run(["sleep", "1000"], environment={}, timeout_s=0.5)
    assert code == -signal.SIGKILL


def test_a_dead_client_leaves_nothing(server: SshServer, tmp_path: Path) -> None:
    """Killed without a chance to clean up, while a child with a child of its own runs there."""
    marker = tmp_path / "pids"
    script = (
        "import sys; from pathlib import Path; from edgeship.build.devices.address import parse_address;"
        "from edgeship.build.devices.link import Link, launcher;"
        "link = Link(parse_address(sys.argv[1]), launcher(Path(sys.argv[2])));"
        "link.run(['sh', '-c', 'sleep 1000 & echo $! $$ > ' + sys.argv[3] + '; wait'], environment={}, timeout_s=900.0)"
    )
    client = subprocess.Popen([sys.executable, "-c", script, server.address, str(server.config), str(marker)])
    try:
        end = time.monotonic() + _PATIENCE_S
        while not (marker.exists() and marker.read_text().strip()) and time.monotonic() < end:
            time.sleep(0.05)
        assert server.leftovers
    finally:
        client.kill()
        client.wait()
    assert gone(server)
    for number in map(int, marker.read_text().split()):
        assert not _alive(number)


def _alive(number: int) -> bool:
    stat = Path(f"/proc/{number}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_ssh_says_is_passed_on(server: SshServer, tmp_path: Path) -> None:
    stranger = f"ssh://no-such-account@{server.address.partition('@')[2]}"
    with pytest.raises(TransferError, match=r"no connection: .*Permission denied") as caught:
        Link(parse_address(stranger), launcher(server.config))
    assert "ssh -l " in (caught.value.next_step or "")
    other_key = tmp_path / "known_hosts"
    other_key.write_text((server.home / "known_hosts").read_text().split()[0] + " "
                         + " ".join((server.home / "user.pub").read_text().split()[:2]) + "\n")  # fmt: skip
    config = tmp_path / "config"
    config.write_text(server.config.read_text().replace(str(server.home / "known_hosts"), str(other_key)))
    with pytest.raises(TransferError, match="Host key verification failed"):
        Link(parse_address(server.address), launcher(config))
    with pytest.raises(TransferError, match="cannot be started"):
        Link(parse_address(server.address), ("no-such-ssh",))


def test_python_that_is_missing_or_too_old(server: SshServer, tmp_path: Path) -> None:
    with (
        ssh_server(tmp_path / "none", python=Path("/no/such/python3")) as bare,
        pytest.raises(TransferError, match="Python is missing there"),
    ):
        link(bare)
    old = link(server)
    old.greeting = {**old.greeting, "python": [3, 8, 1]}
    with pytest.raises(TransferError, match=r"Python 3\.8\.1 is too old"):
        Device(old, "device", Silence())
    assert gone(server)


def test_outputs_and_latency_are_the_devices(server: SshServer, tmp_path: Path) -> None:
    model = models.classifier(tmp_path / "m.onnx")
    one = candidate(model)
    inputs = samples(20)
    engine = open_engine("onnxruntime", model)
    expected = [engine.run([sample["x"]])[0] for sample in inputs]
    engine.close()
    with device(server) as there:
        there.prepare({"onnxruntime": ""})
        assert (there.machine, there.facts.isa) == (os.uname().machine, isa_class())
        assert there.facts.runtimes["onnxruntime"]
        there.send_inputs(inputs)
        answers = there.outputs(one)
        assert len(answers) == len(expected)
        for answer, right in zip(answers, expected, strict=True):
            np.testing.assert_array_equal(answer["scores"], right)
        times = there.latencies([one, candidate(model, "t/onnxruntime/again")],
                                Plan(warm_up=5, min_queries=60, min_seconds=0.0))  # fmt: skip
        assert {label: len(each.times_ms) >= 60 for label, each in times.items()} == {
            "t/onnxruntime/fp32": True, "t/onnxruntime/again": True,
        }  # fmt: skip
        assert all(time_ms > 0 for each in times.values() for time_ms in each.times_ms)
    assert server.leftovers == []


def test_a_candidate_that_is_refused_there_says_why(server: SshServer, tmp_path: Path) -> None:
    one = candidate(models.classifier(tmp_path / "m.onnx"))
    (tmp_path / "m.onnx").write_bytes(b"damaged on its way")
    with device(server) as there:
        there.prepare({"onnxruntime": ""})
        there.send_inputs(samples(2))
        with pytest.raises(ConversionError, match=r"t/onnxruntime/fp32 on device: .*ONNX Runtime refused the model"):
            there.outputs(one)


def test_what_is_missing_and_cannot_be_installed_is_named(tmp_path: Path) -> None:
    """A Python without numpy, msgspec and a runtime, on a device that reaches no package index."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    nowhere = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"}
    with ssh_server(tmp_path / "server", python=bare / "bin" / "python", environment=nowhere) as server:
        with device(server) as there, pytest.raises(TransferError) as caught:
            there.prepare({"onnxruntime": ">=1.23,<2"})
        assert "numpy, msgspec, onnxruntime is missing there" in caught.value.message
        assert caught.value.next_step == "on the device: python3 -m pip install numpy msgspec 'onnxruntime>=1.23,<2'"
        assert gone(server)


def build(tmp_path: Path, server: SshServer, *options: str) -> list[str]:
    model = models.classifier(tmp_path / "model.onnx")
    calibration, evaluation = tmp_path / "calibration.npz", tmp_path / "evaluation.npz"
    np.savez(calibration, x=models.inputs(60, seed=1))
    np.savez(evaluation, x=models.inputs(80, seed=2))
    return [
        *COMMAND, "build", str(model), "--calibration", str(calibration), "--evaluation", str(evaluation),
        "-o", str(tmp_path / "build"), "--key", str(tmp_path / "key"), "--ssh-config", str(server.config), *options,
    ]  # fmt: skip


def test_build_measures_on_the_device(server: SshServer, tmp_path: Path) -> None:
    command = build(tmp_path, server, "-t", "x86-64-server", "--measure", server.address, "--json")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 4}, done.stderr
    document = json.loads(done.stdout)
    name = parse_address(server.address).text
    assert document["variants"]
    for variant in document["variants"]:
        assert variant["measured_on"]["device"] == name
        assert variant["measured_on"]["isa"] == isa_class()
        assert variant["on_target"] is (isa_class() == "x86_64+vnni")
        assert variant["latency_queries"] >= 1000
        assert any(f"run on {name}: relative RMS" in note for note in variant["notes"])
    assert f"device    {name}" in done.stderr
    assert server.leftovers == []


def test_device_of_another_kind_is_refused_at_once(server: SshServer, tmp_path: Path) -> None:
    command = build(tmp_path, server, "-t", "raspberry-pi-5", "--yes", "--measure", server.address)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no target of this build is" in done.stderr
    assert not (tmp_path / "build").exists()
    assert gone(server)


def test_bad_address_is_a_usage_error(server: SshServer, tmp_path: Path) -> None:
    command = build(tmp_path, server, "-t", "x86-64-server", "--measure", "ssh://pi@-oProxyCommand=touch x")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not the address of a device" in done.stderr


def test_interrupted_build_leaves_nothing_there(server: SshServer, tmp_path: Path) -> None:
    command = build(tmp_path, server, "-t", "x86-64-server", "--measure", server.address)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if b"device" in line:
                break
        assert server.leftovers
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=_PATIENCE_S)
        # interrupted while a library is imported, CPython 3.11 ends itself by the signal after it has cleaned up
        assert process.returncode in {130, -signal.SIGINT}, said
    assert gone(server)
    assert not (tmp_path / "build").exists()
