"""Infrastructure at the end of a window: memory, CPU, temperature. What the system does not tell is left out."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

_STATM: Final = "/proc/self/statm"
_THERMAL: Final = Path("/sys/class/thermal")
#: Longest that files of the kernel's are that hold a number or a line of them.
_MOST_BYTES: Final = 256
#: How long a look at which thermal zones there are holds: drivers come while a device starts, and seldom later.
_ZONES_HOLD_S: Final = 600.0


def resident_memory_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        pages = int(_read(_STATM).split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _read(path: str) -> bytes:
    """A short file, without what buffers and decoding would take: windows close between two requests."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _MOST_BYTES)
    finally:
        os.close(descriptor)


class ProcessGauges:
    """Gauges of this process; the CPU share is taken since the last reading.

    Args:
        thermal: where the system's thermal zones are.
    """

    def __init__(self, thermal: Path = _THERMAL) -> None:
        self._wall_s = time.monotonic()
        self._cpu_s = time.process_time()
        self._thermal = thermal
        self._zones: list[str] = []
        self._zones_until_s = -1.0

    def read(self) -> dict[str, float]:
        """``memory_bytes``, ``cpu_ratio`` (of one core) and, where known, ``temperature_c``."""
        wall_s, cpu_s = time.monotonic(), time.process_time()
        elapsed_s = max(wall_s - self._wall_s, 1e-6)
        gauges = {
            "memory_bytes": float(resident_memory_bytes()),
            "cpu_ratio": round((cpu_s - self._cpu_s) / elapsed_s, 4),
        }
        self._wall_s, self._cpu_s = wall_s, cpu_s
        temperature = self._temperature_c(wall_s)
        if temperature is not None:
            gauges["temperature_c"] = temperature
        return gauges

    def _temperature_c(self, now_s: float) -> float | None:
        """The hottest thermal zone in °C, or None."""
        if now_s >= self._zones_until_s:
            self._zones = [str(path) for path in sorted(self._thermal.glob("thermal_zone*/temp"))]
            self._zones_until_s = now_s + _ZONES_HOLD_S
        readings = []
        for zone in self._zones:
            try:
                readings.append(int(_read(zone)) / 1000.0)
            except (OSError, ValueError):
                continue
        return max(readings, default=None)
