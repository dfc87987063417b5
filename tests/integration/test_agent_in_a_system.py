"""The agent as a system runs it: its unit under a systemd that was booted for it, its image built and run.

Both stand on a small Debian that mmdebstrap makes, since nothing here asks a registry for an image.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from edgeship.bundle import AuthorKey
from edgeship.server.trust import Trust
from tests.agents import make_bundle
from tests.conformance.slots import images
from tests.programs import require_program

AGENT = Path(__file__).parents[2] / "device_agent"
INSTALLED = "/opt/edgeship-agent/bin/edgeship-agent"
IMAGE = "docker.io/library/python:3.11-slim-bookworm"
CONFIG = """\
device_id = "unit-1"
target = "bench"
state_dir = "/var/lib/edgeship"
allow_volatile_state = true
server_url = "http://127.0.0.1:9"
broker_url = "mqtt://127.0.0.1:9"
root = "/etc/edgeship/root.json"
goal_key = "/etc/edgeship/goal.pub"
"""
#: Looks at the service, kills it, hangs it, looks and asks each time, stops it, and turns the system off.
PROBE = """\
[Unit]
After=edgeship-agent.service
[Service]
Type=oneshot
StandardOutput=file:/probe.out
StandardError=append:/probe.err
ExecStart=/bin/sh /probe.sh
ExecStopPost=/bin/sh -c 'journalctl -u edgeship-agent --no-pager -o cat > /probe.journal; systemctl poweroff --no-block'
[Install]
WantedBy=multi-user.target
"""
SCRIPT = """\
show() { echo $(systemctl show edgeship-agent -p ActiveState,NRestarts,ExecMainStatus); }
ask() { /opt/edgeship-agent/bin/edgeship-agent infer --config /etc/edgeship/agent.toml --input /x.npy --timeout-s 30; }
await_restart() {  # the number of restarts, the seconds to wait at most
    for _ in $(seq "$2"); do
        case "$(show)" in *ActiveState=active*NRestarts=$1*|*NRestarts=$1*ActiveState=active*) return;; esac
        sleep 1
    done
}
show
ask
systemctl kill -s KILL --kill-who=main edgeship-agent
await_restart 1 30
show
ask
systemctl kill -s STOP --kill-who=main edgeship-agent
ask
await_restart 2 120
show
ask
stat -c '%U %a' /var/lib/edgeship
systemctl stop edgeship-agent
show
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes and boots a root file system"),
]


def run(*command: object, timeout_s: float = 600.0, **environment: str) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout_s,
                          env={**os.environ, **environment}, check=False)  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian with Python and systemd, in a folder; the machine's own pip settings and certificates are lent to it."""
    make = require_program("mmdebstrap")
    root = tmp_path_factory.mktemp("system") / "root"
    command = [
        make,
        "--mode=root",
        "--variant=apt",
        "--include=python3,python3-venv,systemd,systemd-sysv,dbus",
        "bookworm",
    ]
    done = subprocess.run([*command, str(root)], capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        pytest.skip(f"no Debian could be made here: {done.stderr.strip().splitlines()[-1:]}")
    for path in ("/etc/pip.conf", "/etc/resolv.conf"):
        if Path(path).exists():
            (root / path[1:]).unlink(missing_ok=True)
            (root / path[1:]).write_bytes(Path(path).read_bytes())
    run("cp", "-rT", "/etc/ssl/certs", root / "etc/ssl/certs")
    (root / "usr/bin/python").symlink_to("python3")
    run("tar", "-C", root, "-cf", root.parent / "system.tar", ".")  # as it is before a test changes it
    return root


def test_the_unit_starts_is_started_again_and_stops(root: Path, tmp_path: Path) -> None:
    boot = require_program("systemd-nspawn")
    run("cp", "-rT", AGENT, root / "src")
    run("chroot", root, "python3", "-m", "venv", "/opt/edgeship-agent")
    run("chroot", root, "/opt/edgeship-agent/bin/pip", "install", "-q", "--no-cache-dir", "/src[onnxruntime]")
    Trust.open(tmp_path, time.time)
    (root / "etc/edgeship").mkdir()
    for name in ("root.json", "goal.pub"):
        (root / "etc/edgeship" / name).write_bytes((tmp_path / "trust" / name).read_bytes())
    (root / "etc/edgeship/agent.toml").write_text(CONFIG)
    run("chroot", root, "useradd", "--system", "--no-create-home", "edgeship")
    unit = run("chroot", root, INSTALLED, "unit", "--config", "/etc/edgeship/agent.toml")
    install_model(root, tmp_path)
    units = root / "etc/systemd/system"
    (units / "edgeship-agent.service").write_text(unit)
    (units / "probe.service").write_text(PROBE)
    (root / "probe.sh").write_text(SCRIPT)
    run("chroot", root, "systemd-analyze", "verify", "/etc/systemd/system/edgeship-agent.service")
    run("chroot", root, "systemctl", "enable", "edgeship-agent", "probe")
    subprocess.run([boot, "--register=no", "--keep-unit", "-q", "-D", str(root), "-b"], stdin=subprocess.DEVNULL,
                   capture_output=True, timeout=400, check=False)  # fmt: skip
    if not (root / "probe.out").exists():
        pytest.skip("systemd could not be booted in a container here")
    journal = (root / "probe.journal").read_text()
    said = (root / "probe.out").read_text().splitlines()
    assert len(said) == 9, (said, journal)
    started, again, hung, owner, stopped = said[0], said[2], said[5], said[7], said[8]
    answers = [said[1], said[3], said[4], said[6]]
    served = all(answer.startswith("digits 1 ") for answer in answers)
    assert served, ("a worker serves on while its supervisor hangs", answers, journal)
    assert "ActiveState=active" in started and "NRestarts=0" in started, journal
    assert "ActiveState=active" in again and "NRestarts=1" in again, journal
    assert "ActiveState=active" in hung and "NRestarts=2" in hung, journal
    assert "Watchdog timeout (limit 1min)" in journal
    assert owner == "edgeship 700"
    assert "ActiveState=inactive" in stopped and "ExecMainStatus=0" in stopped, journal
    assert journal.count(" started device=unit-1") == 3
    assert " stopped device=unit-1" in journal
    assert "unclean_end count=1" in journal
    assert "unclean_end count=2" in journal


def install_model(root: Path, folder: Path) -> None:
    """A model for the device, carried there as a file, before its first start."""
    bundle = make_bundle(folder, "1")
    run("cp", "-r", bundle, root / "bundle")
    key = AuthorKey.load_or_create(folder / "author.key").public_hex
    (root / "etc/edgeship/author.pub").write_text(f"{key}\n")
    np.save(root / "x.npy", images(1)[0]["image"])
    run("chroot", root, "install", "-d", "-o", "edgeship", "-m", "700", "/var/lib/edgeship")
    install = (INSTALLED, "install", "/bundle", "--author-key", "/etc/edgeship/author.pub")
    run("chroot", root, "runuser", "-u", "edgeship", "--", *install, "--config", "/etc/edgeship/agent.toml")


def test_the_image_is_built_and_runs_as_its_own_user(root: Path, tmp_path: Path) -> None:
    tool = (require_program("buildah"), "--root", tmp_path / "store", "--runroot", tmp_path / "run")
    ways = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
    base = run(*tool, "from", "scratch", **ways).strip()
    run(*tool, "add", "-q", base, root.parent / "system.tar", "/", **ways)
    run(*tool, "commit", "-q", "--rm", base, IMAGE, **ways)
    arguments = ("--pull-never", "--network", "host", "--build-arg", "RUNTIME=onnxruntime", "-t", "edgeship-agent")
    run(*tool, "bud", *arguments, AGENT, **ways)
    made = run(*tool, "from", "--pull-never", "localhost/edgeship-agent", **ways).strip()
    assert run(*tool, "run", made, "--", "id", "-un", **ways).strip() == "edgeship"
    assert "usage: edgeship-agent" in run(*tool, "run", made, "--", INSTALLED, "--help", **ways)
    kept = run(*tool, "run", made, "--", "stat", "-c", "%U %a", "/var/lib/edgeship", **ways).strip()
    assert kept == "edgeship 700"
