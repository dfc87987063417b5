"""``edgeship-agent install``: a bundle that something else carried to the device, and no server anywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from edgeship.bundle import AuthorKey, Bundle
from edgeship_agent.supervisor.lasting import file_system_of
from edgeship_agent.update.slots import Slots, verify_slot
from tests.agents import DEVICE, TARGET, AgentProcess, make_bundle
from tests.conformance.slots import images

ROOT = Path(__file__).resolve().parents[2]


class Bench:
    """A device whose server and broker do not exist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.config = folder / "agent.toml"
        self.key = folder / "author.pub"
        self.key.write_text(AuthorKey.load_or_create(folder / "author.key").public_hex + "\n")
        (folder / "goal.pub").write_text("00" * 32)
        (folder / "root.json").write_text("{}")
        self.config.write_text(
            f'device_id = "{DEVICE}"\ntarget = "{TARGET}"\nstate_dir = "state"\nserver_url = "http://127.0.0.1:9"\n'
            "allow_volatile_state = true\n"
            'broker_url = "mqtt://127.0.0.1:9"\nroot = "root.json"\ngoal_key = "goal.pub"\nauthor_key = "author.pub"\n'
            "[update]\ndisk_reserve_bytes = 0\n"
        )

    def install(
        self, *bundles: Path, module: str = "edgeship_agent.cli", python: str = sys.executable, **environment: str
    ) -> tuple[int, dict[str, Any], str]:
        command = [python, "-W", "error", "-m", module, "install", *map(str, bundles), "--json"]
        done = subprocess.run(
            [*command, "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr

    def active(self, model: str = "digits") -> str:
        slot = Slots(self.state / "slots").active(model, "main")
        assert slot is not None
        verify_slot(slot)
        return slot.info.version


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.timeout(200)
def test_committed_or_rolled_back_and_the_exit_code_says_which(bench: Bench) -> None:
    code, said, _ = bench.install(make_bundle(bench.folder, "1"))
    assert (code, said["attempt"]["state"], bench.active()) == (0, "committed", "1")
    assert said["attempt"]["without_field_traffic"]
    assert said["attempt"]["figures"]["replayed"] >= 20

    wrong = make_bundle(bench.folder, "2", seed_scale=1.5, golden_scale=3.0)
    code, said, _ = bench.install(wrong)
    assert (code, said["attempt"]["state"], said["attempt"]["reason"]) == (3, "rejected", "golden_mismatch")
    code, said, _ = bench.install(wrong)
    assert (code, said["attempt"]["reason"]) == (3, "known_bad")
    assert bench.active() == "1"

    agent = AgentProcess.__new__(AgentProcess)  # the agent that is already configured
    agent.folder, agent.state, agent.config, agent.log = bench.folder, bench.state, bench.config, bench.folder / "log"
    agent.module, agent.process = "edgeship_agent.cli", None
    agent.start()
    try:
        agent.worker_pid()
        with agent.client() as client:
            assert client.infer(images(1)[0]).version == "1"
        code, _, stderr = bench.install(make_bundle(bench.folder, "3", seed_scale=2.0))
        assert code == 2
        assert "another agent uses this state directory" in stderr
        assert "systemctl stop edgeship-agent" in stderr
    finally:
        assert agent.stop() == 0


@pytest.mark.timeout(200)
def test_several_bundles_are_one_release(bench: Bench) -> None:
    ear, eye = make_bundle(bench.folder, "1", model="ear"), make_bundle(bench.folder, "1", model="eye")
    code, said, stderr = bench.install(ear, eye)
    assert code == 0, stderr
    assert [(end["model"], end["state"]) for end in said["attempts"]] == [("ear", "committed"), ("eye", "committed")]
    assert (bench.active("ear"), bench.active("eye")) == ("1", "1")

    better = make_bundle(bench.folder, "2", model="ear", seed_scale=1.5)
    wrong = make_bundle(bench.folder, "2", model="eye", seed_scale=1.5, golden_scale=3.0)
    code, said, _ = bench.install(better, wrong)
    assert code == 3
    assert [(end["model"], end["state"], end["reason"]) for end in said["attempts"]] == [
        ("ear", "failed_clean", "release_member"),
        ("eye", "rejected", "golden_mismatch"),
    ]
    assert (bench.active("ear"), bench.active("eye")) == ("1", "1")
    code, _, stderr = bench.install(ear, better)
    assert (code, "two bundles of one model" in stderr) == (2, True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_process_that_is_killed_before_any_change_is_finished_by_the_next(bench: Bench) -> None:
    """Real SIGKILLs of real processes, at every tenth change of the disk; the next call goes on."""
    assert bench.install(make_bundle(bench.folder, "1"))[0] == 0
    for version, kill_at in enumerate(range(1, 400, 10), start=2):
        bundle = make_bundle(bench.folder, str(version), seed_scale=1.0 + version / 10)
        code, _, stderr = bench.install(bundle, module="tests.killing_disk", KILL_AT=str(kill_at))
        assert bench.active() in (str(version - 1), str(version))
        if code != -9:
            assert kill_at > 60, stderr
            break
        code, said, stderr = bench.install(bundle)
        assert (code, said["attempt"]["state"], bench.active()) == (0, "committed", str(version)), stderr
    else:
        pytest.fail("it was killed every time")


def python_of(user: int, packages: str) -> str:
    """An interpreter that another user may start; this environment's own may lie in somebody's home."""
    for python in (sys.executable, "/usr/bin/python3"):
        probe = [python, "-c", "import importlib.metadata, edgeship_agent.cli, numpy, onnxruntime"]
        environment = {"PATH": "/usr/bin", "PYTHONPATH": packages}
        try:
            done = subprocess.run(probe, user=user, group=user, env=environment, capture_output=True, check=False)
        except OSError:
            continue
        if done.returncode == 0:
            return python
    pytest.skip("not tried: no interpreter here that another user may start")


def test_what_root_installs_belongs_to_the_agents_user() -> None:
    if os.geteuid() != 0:
        pytest.skip("not tried: only root may act for another user")
    nobody, packages = 65534, f"{sysconfig.get_path('purelib')}:{ROOT / 'device_agent'}"
    python = python_of(nobody, packages)
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="edgeship-") as folder:
        Path(folder).chmod(0o755)
        bench = Bench(Path(folder))
        bench.state.mkdir(mode=0o700)
        os.chown(bench.state, nobody, nobody)
        code, said, stderr = bench.install(make_bundle(bench.folder, "1"), python=python, PYTHONPATH=packages)
        assert (code, said["attempt"]["state"]) == (0, "committed"), stderr
        assert {path.lstat().st_uid for path in bench.state.rglob("*")} == {nobody}


def test_what_the_carrier_changed_is_not_taken(bench: Bench) -> None:
    good = make_bundle(bench.folder, "1")
    strange = bench.folder / "strange"
    shutil.copytree(good, strange)
    model = next(file for file in Bundle.open(good).manifest.variants[0].files if file.role == "model")
    blob = strange / "blobs" / "sha256" / model.digest.removeprefix("sha256:")
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    code, said, _ = bench.install(strange)
    assert (code, said["attempt"]["state"], said["attempt"]["reason"]) == (1, "failed_clean", "digest_mismatch")
    blob.unlink()
    code, said, _ = bench.install(strange)
    assert (code, said["attempt"]["reason"]) == (1, "download")
    index = strange / "index.json"
    document = json.loads(index.read_bytes())
    document["manifests"][0]["annotations"]["dev.edgeship.author-signature"] = "00" * 64
    index.write_text(json.dumps(document))
    code, _, stderr = bench.install(strange)
    assert code == 1
    assert "not signed by the author" in stderr
    assert Slots(bench.state / "slots").active("digits", "main") is None


@pytest.mark.parametrize(
    ("key", "code", "words"),
    [
        (None, 2, "nothing says whose bundles"),
        ("ff" * 32, 1, "not signed by the author"),
        ("zz", 2, "not a public key"),
    ],
)
def test_without_the_authors_key_nothing_is_installed(bench: Bench, key: str | None, code: int, words: str) -> None:
    bundle = make_bundle(bench.folder, "1")
    if key is None:
        bench.config.write_text(bench.config.read_text().replace('author_key = "author.pub"\n', ""))
    else:
        bench.key.write_text(key)
    got, _, stderr = bench.install(bundle)
    assert (got, words in stderr) == (code, True), stderr


def test_a_state_directory_that_a_restart_empties_is_refused(bench: Bench) -> None:
    memory = Path("/dev/shm")
    if file_system_of(memory, Path("/proc/self/mountinfo").read_text()) != "tmpfs":
        pytest.skip("not tried: /dev/shm is no tmpfs here")
    bundle = make_bundle(bench.folder, "1")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        text = bench.config.read_text().replace('"state"', f'"{folder}"')
        bench.config.write_text(text.replace("allow_volatile_state = true\n", ""))
        code, _, stderr = bench.install(bundle)
        assert code == 2
        assert "of type tmpfs" in stderr
        assert "allow_volatile_state" in stderr
        assert not any(Path(folder).iterdir())


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "overlay"),
        ("/data/a b/c", "ext4"),
        ("/data/a", "overlay"),
        ("/var/x", "squashfs"),
        ("/var/lib/y", "tmpfs"),
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str) -> None:
    table = "\n".join(
        [
            "1 0 0:1 / / rw - overlay overlay rw,upperdir=/u",
            "2 1 8:1 / /data/a\\040b rw shared:1 master:2 - ext4 /dev/sda1 rw",
            "3 1 8:2 / /var ro - squashfs /dev/sda2 ro",
            "4 3 8:3 / /var/lib rw - ext4 /dev/sda3 rw",
            "5 4 0:9 / /var/lib rw - tmpfs tmpfs rw",
            "no mount",
        ]
    )
    assert file_system_of(PurePosixPath(path), table) == kind


def test_no_bundle(bench: Bench) -> None:
    code, _, stderr = bench.install(bench.folder / "nothing")
    assert (code, "not a bundle" in stderr) == (2, True)
