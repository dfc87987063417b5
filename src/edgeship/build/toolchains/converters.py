"""ONNX → TFLite by onnx2tf's ``flatbuffer_direct`` backend, in its own environment and process."""

from __future__ import annotations

import json
import os
import subprocess
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from edgeship.build.toolchains.environment import named
from edgeship_agent.contract.errors import ConversionError

TIMEOUT_S: Final = 600
MEMORY_BYTES: Final = 16 * 1024**3


class _Answer(Struct, frozen=True, kw_only=True):
    ok: bool
    error: str = ""
    custom_ops: tuple[str, ...] = ()


def convert_onnx(model: Path, folder: Path, *, timeout_s: float = TIMEOUT_S) -> Path:
    """Convert a private copy of an ONNX file.

    Args:
        model: the copy; onnx2tf rewrites its input file in place, so never hand it the user's.
        folder: for what it writes.
        timeout_s: how long it may take, in seconds.

    Returns:
        The float32 ``.tflite`` file.

    Raises:
        ConversionError: it failed, wrote nothing, lowered an operator to a custom one, or took too long. A file that
            it leaves beside an error is not used.
    """
    toolchain = named("onnx2tf")
    request = {"model": str(model), "folder": str(folder), "memory_bytes": MEMORY_BYTES}
    worker = resources.files("edgeship.build.toolchains").joinpath("onnx2tf_worker.py")
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}}
    with resources.as_file(worker) as script:
        try:
            done = subprocess.run(
                [str(toolchain.python), "-I", str(script)],
                input=json.dumps(request), capture_output=True, text=True, timeout=timeout_s, check=False,
                cwd=folder.parent, env=environment,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ConversionError(f"onnx2tf took longer than {timeout_s:.0f} s", target="litert") from error
    answer = _answer(done)
    if not answer.ok:
        raise ConversionError(f"onnx2tf: {answer.error}", target="litert")
    if answer.custom_ops:
        raise ConversionError(
            f"onnx2tf lowered {', '.join(answer.custom_ops)} to custom operators that LiteRT does not have",
            op=answer.custom_ops[0], target="litert",
        )  # fmt: skip
    found = folder / f"{model.stem}_float32.tflite"
    if not found.is_file():
        raise ConversionError("onnx2tf ended without an error and without a file", target="litert")
    return found


def _answer(done: subprocess.CompletedProcess[str]) -> _Answer:
    last = done.stdout.strip().splitlines()[-1:] or [""]
    if done.returncode < 0:
        return _Answer(ok=False, error=f"killed by signal {-done.returncode}")
    try:
        return msgspec.json.decode(last[0], type=_Answer)
    except msgspec.MsgspecError:
        lines = done.stderr.strip().splitlines()
        return _Answer(ok=False, error=lines[-1] if lines else f"exit code {done.returncode}")
