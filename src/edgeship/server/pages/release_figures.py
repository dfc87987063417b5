"""What build.json says about a release's variants, read with suspicion: it came along, it was not checked."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from edgeship.server.pages.queries import Device
from edgeship_agent.contract.manifest import BundleManifest, MetricClaim


class BuildFigures(Struct, frozen=True, kw_only=True):
    """One candidate of a build; the attributes are those of build.json."""

    target: str
    runtime: str
    precision: str
    chosen: bool = False
    size_bytes: int | None = None
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    on_target: bool = False
    verdict: str = ""
    reason: str = ""
    metric: MetricClaim | None = None

    @property
    def label(self) -> str:
        """``target/runtime/precision``."""
        return f"{self.target}/{self.runtime}/{self.precision}"


class _Build(Struct, frozen=True, kw_only=True):
    variants: tuple[BuildFigures, ...] = ()


def read_manifest(data: bytes) -> BundleManifest:
    """The manifest of a release; it was checked when the release was registered."""
    return msgspec.json.decode(data, type=BundleManifest)


def read_build(data: bytes | None) -> tuple[BuildFigures, ...]:
    """The variants of build.json; none where it did not come along or is of another form.

    >>> read_build(None), read_build(b"no JSON")
    ((), ())
    """
    if not data:
        return ()
    try:
        return msgspec.json.decode(data, type=_Build).variants
    except msgspec.MsgspecError:  # a foreign build.json is shown as "no data"
        return ()


def devices_running(devices: Sequence[Device], model: str, version: str) -> tuple[str, ...]:
    """Ids of the devices that have it loaded."""
    return tuple(
        sorted(d.id for d in devices if any((arm.model, arm.version) == (model, version) for arm in d.running))
    )
