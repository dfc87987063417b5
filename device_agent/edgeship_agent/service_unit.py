"""The agent as a systemd service: the unit file, made for one device's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.runtime.memory import SERVICE_ENVIRONMENT

_STATE_ROOT: Final = Path("/var/lib")
#: Not there, each for a reason: MemoryDenyWriteExecute (runtimes compile kernels when they load a model); ProtectClock
#: and PrivateDevices (they take /dev/video* and the accelerators' files away).
_UNIT: Final = """\
# Written by: edgeship-agent unit --config {config}
[Unit]
Description=Edgeship device agent
Wants=network-online.target
After=network-online.target
# a device in the field has nobody to press a button: try for ever
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} run --config {config}
Environment={environment}
User={user}
Restart=always
RestartSec=2
WatchdogSec={watchdog_s}
TimeoutStopSec=15
KillMode=mixed
UMask=0077
{state}
ReadOnlyPaths={config}

NoNewPrivileges=true
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome={protect_home}
PrivateTmp=true
ProtectControlGroups=true
ProtectHostname=true
ProtectKernelLogs=true
ProtectKernelModules=true
ProtectKernelTunables=true
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=true
RestrictRealtime=true
RestrictSUIDSGID=true
LockPersonality=true
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


def unit_file(program: Path, config: Path, state_dir: Path, user: str, watchdog_s: int = 60) -> str:
    """The unit file.

    Args:
        program: ``edgeship-agent`` as it is installed.
        config: agent.toml.
        state_dir: as the configuration names it; under ``/var/lib`` systemd makes it and gives it to the user.
        user: who runs the agent; not root.
        watchdog_s: the service is started again when its main loop has not turned for so long.

    Raises:
        ConfigError: a path or name that a unit file cannot hold, or root.
    """
    for key, value in (("program", program), ("--config", config), ("state_dir", state_dir), ("--user", user)):
        text = str(value)
        if not text or any(character in text for character in " \t\n\r\"'\\%$"):
            raise ConfigError("cannot stand in a unit file", key=key, got=repr(text),
                              expected="no blanks, quotes, backslashes, % or $")  # fmt: skip
    if user == "root":
        raise ConfigError("the agent needs no rights of root", key="--user", expected="a user of its own",
                          next_step="sudo useradd --system --no-create-home edgeship")  # fmt: skip
    home = any(path.is_relative_to(root) for path in (program, config, state_dir) for root in ("/home", "/root"))
    return _UNIT.format(
        program=program, config=config, user=user, watchdog_s=watchdog_s, state=_state_lines(state_dir),
        protect_home="false" if home else "true",
        environment=" ".join(f"{name}={value}" for name, value in SERVICE_ENVIRONMENT.items()),
    )  # fmt: skip


def _state_lines(state_dir: Path) -> str:
    if state_dir != _STATE_ROOT and state_dir.is_relative_to(_STATE_ROOT):
        return f"StateDirectory={state_dir.relative_to(_STATE_ROOT)}\nStateDirectoryMode=0700"
    return f"ReadWritePaths={state_dir}"
