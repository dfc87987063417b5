"""Where a build comes from: what the user says of it, its licence, and the commit of the working folder."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgeship.build.schema import CodeReport
from edgeship_agent.contract.errors import ConfigError

_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9._/-]{0,63}")
_MAX_VALUE_LENGTH: Final = 1000
_GIT_TIMEOUT_S: Final = 10.0
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def parse_lineage(pairs: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` pairs as a mapping, keys sorted.

    Raises:
        ConfigError: not a pair, a key that cannot be one, twice the same key, or a value of several lines.

    >>> parse_lineage(["run=7", "commit=a=b"])
    {'commit': 'a=b', 'run': '7'}
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not _KEY.fullmatch(key):
            raise ConfigError("not a fact about the model's origin", key="--lineage", got=repr(pair[:80]),
                              expected="KEY=VALUE, the key of letters, digits and . _ / -",
                              next_step="--lineage experiment=2026-07")  # fmt: skip
        if not value.isprintable() or not value.strip() or len(value) > _MAX_VALUE_LENGTH:
            raise ConfigError("not a value", key=f"--lineage {key}", got=repr(value[:80]),
                              expected=f"one line of 1 to {_MAX_VALUE_LENGTH} characters",
                              next_step=f"--lineage {key}=VALUE")  # fmt: skip
        if key in found:
            raise ConfigError("given twice", key=f"--lineage {key}", got=f"{found[key]} and {value}",
                              next_step="give each key once")  # fmt: skip
        found[key] = value
    return dict(sorted(found.items()))


def check_license(text: str) -> str:
    """An SPDX licence expression in its canonical spelling; nothing where nothing was given.

    Raises:
        ConfigError: it is not one.

    >>> check_license("apache-2.0"), check_license("mit or gpl-2.0-only"), check_license("")
    ('Apache-2.0', 'MIT OR GPL-2.0-only', '')
    """
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    if not text:
        return ""
    try:
        return str(canonicalize_license_expression(text))
    except InvalidLicenseExpression as error:
        raise ConfigError(
            f"not a licence: {error}", key="--license", expected="an SPDX expression", got=repr(text[:80]),
            next_step="--license Apache-2.0, or --license LicenseRef-Proprietary",
        ) from error  # fmt: skip


def read_code(folder: Path) -> CodeReport | None:
    """The commit that a folder is at, and whether anything tracked in it was changed; None outside a git checkout."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None or not _COMMIT.fullmatch(commit.strip()):
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return CodeReport(commit=commit.strip(), dirty=None if changed is None else bool(changed.strip()))


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None where there is no git or no answer. It takes no lock and runs no hook or helper."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_TIMEOUT_S, check=False, env=environment,
                              stdin=subprocess.DEVNULL)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
