"""Keep foreign libraries' chatter off our streams, native code included."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Send whatever is written to the process's stdout and stderr to nowhere, and drop warnings, for a while.

    Converters draw progress bars and greet; stdout belongs to the result and stderr to our own lines. What matters of
    what they say arrives as an exception.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    disabled = logging.root.manager.disable
    try:
        with tempfile.TemporaryFile() as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.ERROR)
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            try:
                yield
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os.dup2(kept[0], 1)
                os.dup2(kept[1], 2)
    finally:
        logging.disable(disabled)
        for descriptor in kept:
            os.close(descriptor)
