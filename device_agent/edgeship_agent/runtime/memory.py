"""Memory that a process has let go of, and the allocator has not."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from typing import Final

_ARENA_MAX: Final = -8
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
#: Most free bytes at the end of the heap that stay with a process until :func:`give_back`, and the largest array that
#: lies in the heap at all: what malloc itself allows on 64 bits, and on 32.
_KEPT_BYTES: Final = 1 << 27
_LARGEST_BYTES: Final = (1 << 25, 1 << 19)


#: Of an agent's service, from its start on. By default each thread keeps some of what it frees to itself, in pieces
#: that hold pages which :func:`give_back` could return. Inference needs the speed of that, so no child of the service
#: inherits this. Source: the GNU C library's manual, tunables.
SERVICE_ENVIRONMENT: Final = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}


def share_one_heap() -> None:
    """Let all threads take memory from one heap; to be called before a second thread starts.

    By default each gets one of its own, of which part is never used; under Python's lock they seldom allocate at once.

    Source: mallopt(3), M_ARENA_MAX.
    """
    with contextlib.suppress(AttributeError, OSError):  # other C libraries than GNU's
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def settle(*, for_calls: bool = False) -> None:
    """To be called when a process is ready: what only starting up needed goes back to the system.

    What is left then stays: the collector need not walk it again while somebody waits.

    Args:
        for_calls: what one call takes is kept for the next one. By default the allocator hands arrays of some hundred
            kilobytes back with every call, and the next one waits while the system makes each of their pages anew.
    """
    give_back()
    gc.freeze()
    if for_calls:
        _keep_between_calls()


def _keep_between_calls() -> None:
    """Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
    with contextlib.suppress(AttributeError, OSError):  # other C libraries than GNU's
        library = ctypes.CDLL(None)
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        for size_bytes in _LARGEST_BYTES:
            if library.mallopt(_MMAP_THRESHOLD, size_bytes):
                return


def _forget_looked_up_names() -> None:
    """CPython keeps the last 4,096 names that were looked up on a type, those made for one look among them.

    Some libraries make one anew for every look: paho-mqtt, of each property that a message might have. Source:
    ``Objects/typeobject.c`` of CPython.
    """
    forget = getattr(sys, "_clear_internal_caches", None) or getattr(sys, "_clear_type_cache", None)
    if forget is not None:
        forget()


def give_back() -> None:
    """Hand free memory back to the system; some hundred microseconds, or a millisecond after a busy time.

    What only cycles hold is let go before: where little is allocated the collector comes round once in hours.

    Source: malloc_trim(3); freed memory in the middle of the heap would stay with the process for ever.
    """
    gc.collect()
    _forget_looked_up_names()
    # other C libraries than GNU's have no such call, and need none
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
