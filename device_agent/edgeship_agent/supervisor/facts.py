"""What this device is and has: asked anew before each update."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from edgeship_agent.config import AgentConfig
from edgeship_agent.runtime import installed_runtimes
from edgeship_agent.runtime.isa import architecture
from edgeship_agent.update.offer import DeviceFacts

_MEMINFO: Final = Path("/proc/meminfo")


def available_memory_bytes() -> int:
    """Memory that a new process could get, as Linux estimates it; 0 where it does not tell."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0


def gather_facts(config: AgentConfig) -> DeviceFacts:
    """The facts that an update is checked against."""
    free_bytes = shutil.disk_usage(config.state_dir).free
    return DeviceFacts(
        target=config.target,
        arch=architecture(),
        runtimes=installed_runtimes(),
        memory_bytes=available_memory_bytes(),
        disk_free_bytes=free_bytes - config.update.disk_reserve_bytes,
        accepts=config.accepted(),
        keeps_fallback=config.update.keep_fallback,
    )
