"""An artifact that is opened when it is first run: what is remembered of it may be all that a build needs."""

from __future__ import annotations

from collections.abc import Mapping

from edgeship.build import verify
from edgeship.build.backends.base import Artifact
from edgeship.build.probing import Prober
from edgeship_agent.runtime.bound import BoundModel
from edgeship_agent.runtime.engine import Array


class LazyModel:
    """Runs an artifact as a device does.

    Args:
        artifact: any file.
        prober: loads it once beforehand in a process of its own.
    """

    def __init__(self, artifact: Artifact, prober: Prober) -> None:
        self._artifact = artifact
        self._prober = prober
        self._bound: BoundModel | None = None

    def run(self, sample: Mapping[str, Array]) -> Mapping[str, Array]:
        """One inference, batch axes included.

        Raises:
            ConversionError: it crashes its runtime, or is refused by it.
            EngineError: the runtime failed.
        """
        if self._bound is None:
            self._bound = verify.open_artifact(self._artifact, self._prober)
        return self._bound.run(sample)

    def close(self) -> None:
        """Release the engine, where there is one."""
        if self._bound is not None:
            self._bound.close()
