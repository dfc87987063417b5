"""A model inside the application's own process: the worker's prediction path without a socket.

Nothing is isolated here: a model that crashes its runtime takes the application with it.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from edgeship_agent.contract.errors import EdgeshipError
from edgeship_agent.contract.messages import Window
from edgeship_agent.processing.arrays import Array
from edgeship_agent.runtime.golden import GoldenResult
from edgeship_agent.runtime.predictor import Predictor
from edgeship_agent.serving.client import Prediction
from edgeship_agent.serving.session import ModelSession
from edgeship_agent.serving.slot import read_slot
from edgeship_agent.telemetry.window import Clock, WindowLimits


class LocalModel:
    """A slot's model, in this process; not for use by several threads at once.

    ::

        with LocalModel.open("/var/lib/edgeship/slots/digits/main/active") as model:
            prediction = model.predict({"image": image})
    """

    def __init__(self, session: ModelSession, boot_id: str) -> None:
        self._session = session
        self._slot = session.slot.slot
        self._prefix = f"{boot_id}-{os.getpid():x}-"
        self._predictions = 0

    @classmethod
    def open(
        cls, slot_directory: str | os.PathLike[str], *, threads: int = 1, limits: WindowLimits | None = None
    ) -> LocalModel:
        """Read the slot, check its digests, open its runtime and warm it up.

        Raises:
            ContractError: the slot is damaged.
            VerificationError: a file has the wrong digest.
            ConfigError: the runtime is not installed.
            EngineError: the runtime refused the model.
        """
        slot = read_slot(Path(slot_directory))
        predictor = Predictor.open(slot.manifest, slot.variant, slot.model_path, threads=threads)
        boot_id = uuid.uuid4().hex[:12]
        session = ModelSession(slot, predictor, limits or WindowLimits(), boot_id, _now)
        session.warm_up()
        return cls(session, boot_id)

    def predict(self, inputs: Mapping[str, Array]) -> Prediction:
        """Run the model on one raw sample.

        Args:
            inputs: model input name → raw sample (no batch axis), before the manifest's preprocessing.

        Raises:
            InputError: an input is missing or of the wrong shape or dtype.
            EngineError: the runtime failed.
        """
        started_ns = time.perf_counter_ns()
        try:
            outputs = self._session.predict(inputs)
        except EdgeshipError as error:
            self._session.count_failure(inputs, error)
            raise
        latency_ns = time.perf_counter_ns() - started_ns
        self._session.count_answer(inputs, outputs, latency_ns, late=False)
        self._predictions += 1
        slot = self._slot
        return Prediction(
            prediction_id=f"{self._prefix}{self._predictions:x}",
            model=slot.model,
            version=slot.version,
            release_digest=slot.digest,
            latency_us=(latency_ns + 500) // 1000,
            outputs=outputs,
        )

    def check_golden(self) -> GoldenResult:
        """Run the golden inputs through the loaded model.

        Raises:
            ContractError: the bundle has none.
        """
        session = self._session
        return session.judge_golden(session.predict(sample) for sample in session.golden_samples())

    def take_window(self) -> Window | None:
        """The telemetry window that is due, or None; the application hands it on, or lets it go."""
        return self._session.due_window()

    def close(self) -> None:
        """Release the engine."""
        self._session.close()

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _now() -> Clock:
    return Clock(monotonic_s=time.monotonic(), wall_s=time.time())
