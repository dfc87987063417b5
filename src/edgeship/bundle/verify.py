"""Verifying a bundle: signature, digests, claims of its certificates, golden outputs on every installed runtime."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from edgeship.bundle.claims import ClaimCheck, check_claims
from edgeship.bundle.read import Bundle
from edgeship_agent.contract import oci
from edgeship_agent.contract.manifest import Variant
from edgeship_agent.runtime import RUNTIMES, runtime_version

#: Version of the report's JSON.
REPORT_VERSION: Final = 1
_TIMEOUT_S: Final = 120.0
_NEEDED_ROLES: Final = ("golden_inputs", "golden_outputs")


class GoldenCheck(Struct, frozen=True, kw_only=True):
    """The golden outputs of one variant, computed here.

    Attributes:
        relative_rms: ‖here − golden‖₂ ÷ ‖golden‖₂; None where nothing came out.
        same_isa: whether the golden outputs were made on this machine's ISA class; if not, the wider limit holds.
        detail: why it did not pass.
    """

    variant: str
    runtime_version: str
    passed: bool
    relative_rms: float | None = None
    limit: float = 0.0
    samples: int = 0
    same_isa: bool = True
    detail: str = ""


class NotRun(Struct, frozen=True, kw_only=True):
    """A variant whose golden outputs could not be computed here, and why."""

    variant: str
    reason: str


class VerifyReport(Struct, frozen=True, kw_only=True):
    """What was verified. Signature and digests hold where there is a report at all.

    Attributes:
        claims: what the certificates claim, recomputed without data.
        without_certificate: labels of variants that carry none: bundles of older versions.
    """

    schema_version: int = REPORT_VERSION
    name: str
    version: str
    digest: str
    author_key: str
    blobs: int
    size_bytes: int
    golden: tuple[GoldenCheck, ...]
    not_run: tuple[NotRun, ...]
    claims: tuple[ClaimCheck, ...] = ()
    without_certificate: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every golden check that could be run passed, and every claim holds."""
        return all(each.passed for each in self.golden) and all(each.holds for each in self.claims)


class _GoldenAnswer(Struct, frozen=True, kw_only=True):
    """What the throw-away process prints."""

    passed: bool
    relative_rms: float = -1.0
    limit: float = 0.0
    samples: int = 0
    reason: str = ""
    same_isa: bool = True


def verify(bundle: Bundle, *, launcher: Sequence[str] = (), timeout_s: float = _TIMEOUT_S) -> VerifyReport:
    """Verify a bundle offline.

    Args:
        bundle: an opened bundle.
        launcher: put before the command line of the golden check, such as an emulator.
        timeout_s: for one variant's golden check.

    Raises:
        VerificationError: the signature is missing or wrong, or a blob is missing or altered.
    """
    author_key = bundle.verify_signature()
    blobs = bundle.verify_digests()
    claims, without_certificate = check_claims(bundle)
    golden: list[GoldenCheck] = []
    not_run: list[NotRun] = []
    for variant in bundle.manifest.variants:
        reason = _cannot_run(variant)
        if reason:
            not_run.append(NotRun(variant=variant.label, reason=reason))
        else:
            golden.append(_check(bundle, variant, launcher, timeout_s))
    return VerifyReport(
        name=bundle.manifest.name,
        version=bundle.manifest.version,
        digest=bundle.digest,
        author_key=author_key,
        blobs=blobs,
        size_bytes=bundle.size_bytes,
        golden=tuple(golden),
        not_run=tuple(not_run),
        claims=claims,
        without_certificate=without_certificate,
    )


def _cannot_run(variant: Variant) -> str:
    if variant.runtime not in RUNTIMES:
        return f"this version knows no runtime {variant.runtime}"
    if runtime_version(variant.runtime) is None:
        return f"{variant.runtime} is not installed (pip install edgeship-agent[{variant.runtime}])"
    missing = [role for role in _NEEDED_ROLES if variant.file(role) is None]
    return f"it has no {' and no '.join(missing)}" if missing else ""


def _check(bundle: Bundle, variant: Variant, launcher: Sequence[str], timeout_s: float) -> GoldenCheck:
    """Lay the variant out as a device does and run its golden inputs in a process that may die."""
    version = runtime_version(variant.runtime) or ""
    with tempfile.TemporaryDirectory(prefix="edgeship-verify-") as name:
        slot = Path(name)
        _lay_out(bundle, variant, slot)
        command = [*launcher, sys.executable, "-m", "edgeship_agent.serving.golden", "--slot", str(slot)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            detail = f"no answer within {timeout_s:g} s"
            return GoldenCheck(variant=variant.label, runtime_version=version, passed=False, detail=detail)
    if done.returncode < 0:
        detail = f"the runtime died of {signal.Signals(-done.returncode).name}"
        return GoldenCheck(variant=variant.label, runtime_version=version, passed=False, detail=detail)
    try:
        answer = msgspec.json.decode(done.stdout, type=_GoldenAnswer)
    except msgspec.MsgspecError:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["the check gave no answer"]
        return GoldenCheck(variant=variant.label, runtime_version=version, passed=False, detail=lines[-1])
    passed = answer.passed and done.returncode == 0
    return GoldenCheck(
        variant=variant.label,
        runtime_version=version,
        passed=passed,
        relative_rms=answer.relative_rms if answer.relative_rms >= 0 else None,
        limit=answer.limit,
        samples=answer.samples,
        same_isa=answer.same_isa,
        detail="" if passed else answer.reason or "the golden outputs were not reached",
    )


def _lay_out(bundle: Bundle, variant: Variant, slot: Path) -> None:
    """A slot directory as the device's updater makes it."""
    identity = {
        "schema_version": 1,
        "model": bundle.manifest.name,
        "version": bundle.manifest.version,
        "digest": bundle.digest,
        "variant": variant.label,
        "arm": "",
    }
    (slot / "slot.json").write_bytes(oci.canonical_json(identity))
    (slot / oci.MANIFEST_FILE).write_bytes(bundle.blob(bundle.manifest_digest))
    for file in variant.files:
        path = slot / "files" / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bundle.blob(file.digest))
