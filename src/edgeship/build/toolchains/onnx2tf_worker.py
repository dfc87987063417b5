"""Runs inside the onnx2tf toolchain: one conversion, then out. Standard library only, besides onnx2tf itself.

One JSON object on stdin: ``{"model": path of a private copy, "folder": where to write, "memory_bytes": limit}``.
One JSON object on the last line of stdout: ``{"ok": bool, "error": text, "kind": "conversion", "custom_ops": [...]}``.
"""

import json
import re
import resource
import runpy
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO


def main() -> None:
    """Convert what stdin names."""
    request = json.load(sys.stdin)
    limit = int(request["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.argv = ["onnx2tf", "-i", request["model"], "-o", request["folder"], "-tb", "flatbuffer_direct"]
    said = StringIO()
    error = ""
    with redirect_stdout(said), redirect_stderr(said):
        try:
            runpy.run_module("onnx2tf", run_name="__main__")
        except SystemExit as stop:
            error = "" if stop.code in {None, 0} else f"exit code {stop.code}"
        except Exception as failure:  # noqa: BLE001 (the outermost loop of this process)
            error = "".join(traceback.format_exception_only(failure)).strip() or type(failure).__name__
    lines = said.getvalue()
    if error.startswith("exit code"):
        error = _last_error(lines) or error
    custom = re.search(r"Custom ops lowered:.*?op_types=\[([^\]]*)\]", lines)
    answer = {"ok": not error, "error": error, "kind": "conversion",
              "custom_ops": custom.group(1).split(", ") if custom else []}  # fmt: skip
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


def _last_error(lines: str) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", lines)
    told = re.compile(r"error|unsupported|not supported", re.IGNORECASE)
    found = [line.strip() for line in plain.splitlines() if told.search(line)]
    return found[-1][:300] if found else ""


if __name__ == "__main__":
    main()
