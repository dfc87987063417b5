"""Ctrl-C is not lost: foreign libraries swallow an exception that strikes while they clean up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def remembered() -> Iterator[Callable[[], None]]:
    """Keep in mind that the user interrupted; what is yielded raises KeyboardInterrupt again if that was swallowed.

    Python raises it wherever the main thread happens to be. In a finalizer or in a callback of native code nobody hears
    it, and the work would go on to its end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    interrupted = False

    def handler(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    former = signal.signal(signal.SIGINT, handler)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, former)
