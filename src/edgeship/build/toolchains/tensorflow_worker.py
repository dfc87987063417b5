"""Runs inside the tensorflow toolchain: one command, then out. It imports nothing of Edgeship.

One JSON object on stdin: ``{"command": "describe" | "run" | "convert", "model": path of a private copy, "format":
"keras" | "saved_model" | "frozen_graph" | "tflite", "options": {…}, "memory_bytes": limit, …}``. JSON lines on stdout:
``{"done": n, "total": n}`` now and then, and last the answer, ``{"ok": true, …}`` or ``{"ok": false, "error": a
sentence, "kind": "input" | "conversion", "next": what mends it}``.
"""

import importlib
import json
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

_PROGRESS_EVERY = 50


def main() -> None:
    """Do what stdin asks."""
    request = json.load(sys.stdin)
    answers = _take_stdout()
    limit = int(request["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _prepare()
    answer = _answer(request, answers)
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    os._exit(0)  # TensorFlow's threads need not be waited for, and their end has crashed before


def _take_stdout() -> TextIO:
    """Keep stdout for answers: what frameworks print, from C too, goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _prepare() -> None:
    sys.path.append(str(Path(__file__).resolve().parent))
    os.environ.update({
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_ENABLE_ONEDNN_OPTS": "0",  # plain float32 arithmetic, in one order of additions
        "KERAS_BACKEND": "tensorflow",
        "OMP_NUM_THREADS": "1",
    })  # fmt: skip


def _answer(request: dict[str, Any], answers: TextIO) -> dict[str, Any]:
    files = importlib.import_module("in_tensorflow.files")
    command = request["command"]
    try:
        commands = importlib.import_module("in_tensorflow.commands").COMMANDS
        return {"ok": True, **commands[command](request, _teller(answers))}
    except files.Refused as refusal:
        return {"ok": False, "error": str(refusal), "kind": refusal.kind, "next": refusal.next_step}
    except MemoryError:
        limit = int(request["memory_bytes"])
        return {"ok": False, "error": f"needs more than the {limit / 1e9:.1f} GB of memory allowed", "kind": "input"}
    except Exception as error:  # noqa: BLE001 (the outermost loop of this process)
        traceback.print_exc()
        kind = "conversion" if command == "convert" else "input"
        return {"ok": False, "error": f"{type(error).__name__}: {files.first_line(error)}", "kind": kind}


def _teller(answers: TextIO) -> Any:
    def tell(done: int, total: int) -> None:
        if done % _PROGRESS_EVERY == 0 or done == total:
            answers.write(json.dumps({"done": done, "total": total}) + "\n")
            answers.flush()

    return tell


if __name__ == "__main__":
    main()
