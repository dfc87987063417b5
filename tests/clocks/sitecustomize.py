"""Shifts the wall clock of a Python process by ``CLOCK_OFFSET_S`` seconds, and that of every child: a device whose
clock is wrong. Found by the interpreter where this folder is on PYTHONPATH."""

from __future__ import annotations

import datetime
import os
import time

_offset_s = float(os.environ.get("CLOCK_OFFSET_S", "0"))
_time = time.time
_datetime = datetime.datetime


class _Shifted(_datetime):
    """``datetime`` whose now() is that of the wrong clock."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _Shifted:
        return cls.fromtimestamp(time.time(), tz)


if _offset_s:
    time.time = lambda: _time() + _offset_s
    datetime.datetime = _Shifted
