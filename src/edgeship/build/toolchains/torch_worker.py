"""Runs where PyTorch is: describes, runs or converts one model, then out. Standard library, PyTorch and ONNX only.

One JSON object on stdin: ``{"command": "describe" | "run" | "convert", "model": path of a private copy,
"options": {…}, "memory_bytes": limit, …}``. JSON lines on the real stdout, the last one the answer: ``{"ok": true, …}``
or ``{"ok": false, "error": sentence, "kind": "input" | "conversion", "next": …}``. All else goes to stderr.

Options: ``kind``, which is ``exported-program`` (.pt2), ``torchscript``, ``state-dict`` (weights for a factory) or
``pickled-module``; ``weights_kind``; ``input_shapes`` [{name, shape, dtype}]; ``factory`` {module, file, attribute};
``paths`` of the user's own modules; ``allow_pickle``.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer the one request on stdin."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    request = json.load(sys.stdin)
    limit_bytes = int(request["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    try:
        tell(_part("commands").serve(request, tell))
    except MemoryError:
        tell(_no(f"more memory than the {limit_bytes / 1024**3:.0f} GiB it may take"))
    except Exception as error:  # noqa: BLE001 (the outermost loop of this process)
        traceback.print_exc()
        tell(_no(f"PyTorch: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"))


def _no(error: str) -> dict[str, Any]:
    return {"ok": False, "error": error, "kind": "conversion", "next": ""}


def _part(name: str) -> Any:
    """A module of ``torch_parts``, which lies beside this file and on no import path."""
    folder = Path(__file__).with_name("torch_parts")
    spec = importlib.util.spec_from_file_location("torch_parts", folder / "__init__.py",
                                                  submodule_search_locations=[str(folder)])  # fmt: skip
    assert spec is not None
    sys.modules["torch_parts"] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"torch_parts.{name}")


if __name__ == "__main__":
    main()
