"""A process that loads files and runs each on zeros: ``python -m edgeship.build.probe``.

One JSON object a line on stdin, ``{"runtime", "model"}``; one a line on stdout, ``{"refused": reason or ""}``. A file
that kills the process speaks for itself.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from edgeship_agent.contract.errors import EdgeshipError
from edgeship_agent.runtime import open_engine


def main() -> None:
    """Serve until stdin ends; runtimes print to what they take for stdout, so answers go to a copy of it."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            asked = json.loads(line)
            answers.write(json.dumps({"refused": _refusal(asked["runtime"], Path(asked["model"]))}) + "\n")
            answers.flush()


def _refusal(runtime: str, model: Path) -> str:
    try:
        engine = open_engine(runtime, model)
        engine.run([np.zeros([max(size, 1) for size in info.shape], info.dtype) for info in engine.signature.inputs])
        engine.close()
    except EdgeshipError as error:
        return error.message or "no reason given"
    return ""


if __name__ == "__main__":
    main()
