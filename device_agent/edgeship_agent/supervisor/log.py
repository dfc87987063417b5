"""The agent's log: one structured line per state change, on stderr."""

from __future__ import annotations

import json
import sys
import time
from typing import TextIO


class Log:
    """Writes ``time event key=value …`` lines.

    Args:
        stream: where to; standard error by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def __call__(self, event: str, **fields: object) -> None:
        """Write one line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        parts = [f"{key}={_text(value)}" for key, value in fields.items() if value not in ("", None)]
        self._stream.write(" ".join((at, event, *parts)) + "\n")
        self._stream.flush()


def _text(value: object) -> str:
    """A value in one word, quoted where it would not be one.

    >>> _text("serving"), _text("a b"), _text(3)
    ('serving', '"a b"', '3')
    """
    text = str(value)
    return text if text.isprintable() and not any(c in text for c in ' "=') else json.dumps(text)
