"""Run with the tensorflow toolchain's Python: what its loader says about files, all in one process.

``python tensorflow_refusals.py WORKER_FOLDER FOLDER NAME…`` prints one JSON object, name → [kind, sentence, next step].
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.update({"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"})
sys.path.append(sys.argv[1])

from in_tensorflow import commands, files

FORMATS = {".keras": "keras", ".h5": "keras", ".pb": "frozen_graph", "": "saved_model"}


def main(folder: Path, names: list[str]) -> None:
    """Describe each."""
    said = {}
    for name in names:
        request = {"model": str(folder / name), "format": FORMATS[Path(name).suffix], "options": {}}
        try:
            said[name] = ["accepted", str(commands.describe(request, lambda _done, _total: None)), ""]
        except files.Refused as refusal:
            said[name] = [refusal.kind, str(refusal), refusal.next_step]
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[2]), sys.argv[3:])
