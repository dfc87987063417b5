"""A throw-away process that loads a file and runs it on zeros: ``python -m edgeship.build.probe RUNTIME MODEL``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edgeship_agent.contract.errors import EdgeshipError
from edgeship_agent.runtime import open_engine


def main() -> int:
    """Exit code: 0 it runs, 1 it is refused (the reason is the last line of stderr); a signal speaks for itself."""
    runtime, model = sys.argv[1:]
    try:
        engine = open_engine(runtime, Path(model))
        engine.run([np.zeros(info.shape, info.dtype) for info in engine.signature.inputs])
    except EdgeshipError as error:
        sys.stderr.write(f"\n{error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
