"""Infrastructure at the end of a window: memory, CPU, temperature. What the system does not tell is left out."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

_STATM: Final = Path("/proc/self/statm")
_THERMAL: Final = Path("/sys/class/thermal")


def resident_memory_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def temperature_c() -> float | None:
    """The hottest thermal zone in °C, or None."""
    readings = []
    for zone in sorted(_THERMAL.glob("thermal_zone*/temp")):
        try:
            readings.append(int(zone.read_text(encoding="ascii")) / 1000.0)
        except (OSError, ValueError):
            continue
    return max(readings, default=None)


class ProcessGauges:
    """Gauges of this process; the CPU share is taken since the last reading."""

    def __init__(self) -> None:
        self._wall_s = time.monotonic()
        self._cpu_s = time.process_time()

    def read(self) -> dict[str, float]:
        """``memory_bytes``, ``cpu_ratio`` (of one core) and, where known, ``temperature_c``."""
        wall_s, cpu_s = time.monotonic(), time.process_time()
        elapsed_s = max(wall_s - self._wall_s, 1e-6)
        gauges = {
            "memory_bytes": float(resident_memory_bytes()),
            "cpu_ratio": round((cpu_s - self._cpu_s) / elapsed_s, 4),
        }
        self._wall_s, self._cpu_s = wall_s, cpu_s
        temperature = temperature_c()
        if temperature is not None:
            gauges["temperature_c"] = temperature
        return gauges
