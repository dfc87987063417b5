"""Programs in C around ``edgeship.h``, compiled as strictly as compilers can."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

INCLUDE = Path(__file__).resolve().parents[1] / "device_agent" / "c"
COMPILER = shutil.which("cc")
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]


def compiled(source: Path, program: Path, *flags: str) -> Path:
    command = [str(COMPILER), *STRICT, *flags, f"-I{INCLUDE}", "-o", str(program), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return program
