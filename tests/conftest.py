"""What every test may rely on."""

from __future__ import annotations

import os
import signal

# What one test has built must not be what another one finds: tests of the cache name a folder of their own.
os.environ["EDGESHIP_CACHE"] = "none"
# A shell starts what runs in its background with interrupts ignored, and every child of it inherits that: the tests
# that interrupt a child would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
