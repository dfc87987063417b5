"""A backend whose every step is written down, so that one that kills its process is known by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeship.build.backends.base import Artifact, Backend, Job, Scheme
from edgeship.build.survival.journal import step

if TYPE_CHECKING:
    from edgeship.build.backends.calibration import Calibration


class WatchedBackend:
    """Another backend, watched; it computes nothing of its own."""

    def __init__(self, runtime: str, backend: Backend) -> None:
        self._runtime = runtime
        self._backend = backend

    def convert(self, job: Job, model: Path) -> Artifact:
        """See :class:`edgeship.build.backends.base.Backend`; one step for each route."""
        with step(f"{self._runtime} convert {job.folder.name}", "conversion"):
            return self._backend.convert(job, model)

    def quantize(self, job: Job, float_artifact: Artifact, scheme: Scheme) -> Artifact:
        """See :class:`edgeship.build.backends.base.Backend`; one step for each scheme."""
        with step(f"{self._runtime} quantize {scheme.name}", "quantization"):
            return self._backend.quantize(job, float_artifact, scheme)

    def calibration(self, job: Job, float_artifact: Artifact) -> Calibration:
        """See :class:`edgeship.build.backends.base.Backend`."""
        with step(f"{self._runtime} calibration", "quantization"):
            return self._backend.calibration(job, float_artifact)
