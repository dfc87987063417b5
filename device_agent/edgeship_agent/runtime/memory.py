"""Memory that a process has let go of, and the allocator has not."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from typing import Final

_ARENA_MAX: Final = -8


def share_one_heap() -> None:
    """Let all threads take memory from one heap; to be called before a second thread starts.

    By default each gets one of its own, of which part is never used; under Python's lock they seldom allocate at once.

    Source: mallopt(3), M_ARENA_MAX.
    """
    with contextlib.suppress(AttributeError, OSError):  # other C libraries than GNU's
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def settle() -> None:
    """To be called when a process is ready: what only starting up needed goes back to the system.

    What is left then stays: the collector need not walk it again while somebody waits.
    """
    give_back()
    gc.freeze()


def give_back() -> None:
    """Hand free memory back to the system; some hundred microseconds, or a millisecond after a busy time.

    What only cycles hold is let go before: where little is allocated the collector comes round once in hours.

    Source: malloc_trim(3); freed memory in the middle of the heap would stay with the process for ever.
    """
    gc.collect()
    # other C libraries than GNU's have no such call, and need none
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
