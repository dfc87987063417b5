"""A model inside the application's own process: the worker's prediction path without a socket.

Nothing is isolated here: a model that crashes its runtime takes the application with it.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from edgeship_agent.contract.errors import EdgeshipError, VerificationError
from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.wire import read_json
from edgeship_agent.processing.arrays import Array
from edgeship_agent.runtime.golden import GoldenResult
from edgeship_agent.runtime.predictor import Predictor
from edgeship_agent.serving.client import Prediction
from edgeship_agent.serving.pointed import find_together
from edgeship_agent.serving.session import ModelSession
from edgeship_agent.serving.slot import SLOT_FILE, SlotFile, read_slot
from edgeship_agent.telemetry.window import Clock, WindowLimits

#: Calls that come in shorter intervals press: more than a hundred a second are enough to be judged by a sample, and
#: what measuring each would take is no longer little beside the calls.
_PRESSED_BELOW_NS: Final = 10_000_000


class LocalModel:
    """A slot's model, in this process; not for use by several threads at once.

    ::

        with LocalModel.open("/var/lib/edgeship/slots/digits/main/active") as model:
            prediction = model.predict({"image": image})
    """

    def __init__(
        self,
        session: ModelSession,
        opener: _Opener,
        on_release_change: Callable[[Prediction], None] | None = None,
    ) -> None:
        self._opener = opener
        self._on_release_change = on_release_change
        self._is_changed = False
        self._last_windows: list[Window] = []
        self._started_ns = 0
        self._take(session)

    def _take(self, session: ModelSession) -> None:
        self._session = session
        self._slot = session.slot.slot
        self._prefix = session.prediction_prefix
        self._predictions = 0

    @classmethod
    def open(
        cls,
        slot_directory: str | os.PathLike[str],
        *,
        threads: int = 1,
        limits: WindowLimits | None = None,
        on_release_change: Callable[[Prediction], None] | None = None,
    ) -> LocalModel:
        """Read the slot, check its digests, open its runtime and warm it up.

        Args:
            slot_directory: a slot, or the agent's ``active`` pointer to one, which :meth:`refresh` follows.
            threads: of one inference.
            limits: when windows close, and how many predictions are remembered for labels.
            on_release_change: called with the first prediction of every further release, before :meth:`predict`
                returns it.

        Raises:
            ContractError: the slot is damaged.
            VerificationError: a file has the wrong digest.
            ConfigError: the runtime is not installed.
            EngineError: the runtime refused the model.
        """
        opener = _Opener(Path(slot_directory), threads, limits or WindowLimits())
        return cls(opener.open(), opener, on_release_change)

    def predict(self, inputs: Mapping[str, Array]) -> Prediction:
        """Run the model on one raw sample.

        Args:
            inputs: model input name → raw sample (no batch axis), before the manifest's preprocessing.

        Raises:
            InputError: an input is missing or of the wrong shape or dtype.
            EngineError: the runtime failed.
        """
        started_ns = time.perf_counter_ns()
        pressed = started_ns - self._started_ns < _PRESSED_BELOW_NS
        self._started_ns = started_ns
        try:
            outputs = self._session.predict(inputs)
        except EdgeshipError as error:
            self._session.count_failure(inputs, error)
            raise
        latency_ns = time.perf_counter_ns() - started_ns
        self._session.count_answer(inputs, outputs, latency_ns, late=False, pressed=pressed)
        self._predictions += 1
        slot = self._slot
        prediction = Prediction(
            prediction_id=f"{self._prefix}{self._predictions:x}",
            model=slot.model,
            version=slot.version,
            release_digest=slot.digest,
            latency_us=(latency_ns + 500) // 1000,
            outputs=outputs,
            arm=slot.arm,
        )
        if self._is_changed:
            self._is_changed = False
            if self._on_release_change is not None:
                self._on_release_change(prediction)
        return prediction

    def label(self, prediction_id: str, label: int | str) -> bool:
        """Say what the right answer to an earlier prediction was; saying it again changes nothing.

        Args:
            prediction_id: of the prediction.
            label: index of the class, or its name where the output contract names the classes.

        Returns:
            Whether the prediction is still remembered; if not, the label is counted as unknown.

        Raises:
            InputError: the model takes no labels, or has no such class.
        """
        return self._session.label(prediction_id, label)

    def outcome(self, name: str, value: float, prediction_id: str) -> bool:
        """Report what became of an earlier prediction in a figure of your own; a name counts once per prediction.

        Args:
            name: of the figure, its unit last, such as ``rework_minutes``.
            value: a number from -1e15 to 1e15, so that sums of squares stay finite.
            prediction_id: of the prediction.

        Returns:
            Whether the prediction is still remembered.

        Raises:
            InputError: no such name or number can be counted.
        """
        return self._session.outcome(name, value, prediction_id)

    def refresh(self) -> bool:
        """Take the model that the slot directory names now, if it is another one; else nothing happens.

        Call it where a pause does no harm, such as once a second between two predictions. The old model answers until
        the new one is open, warm and has passed its golden inputs.

        Returns:
            Whether another model answers from now on.

        Raises:
            ContractError, VerificationError, ConfigError, EngineError: as :meth:`open`, or the new model fails its
                golden inputs; the old one answers on.
        """
        session = self._opener.reopen(self._slot.digest)
        if session is not None:
            self._exchange(session)
        return session is not None

    @staticmethod
    def refresh_together(models: Sequence[LocalModel]) -> bool:
        """Take the models that the agent's pointer names now, all at one moment: for models of one release.

        Either all that changed are exchanged when this returns, or none. While the agent is switching nothing happens:
        the next call finds the new release.

        Returns:
            Whether another model answers from now on, of any of them.

        Raises:
            ContractError, VerificationError, ConfigError, EngineError: as :meth:`refresh`, of whichever fails; the old
                ones all answer on.
        """
        directories = find_together([model._opener.directory for model in models])
        fresh: list[tuple[LocalModel, ModelSession]] = []
        try:
            for model, directory in zip(models, directories or (), strict=directories is not None):
                session = model._opener.reopen(model._slot.digest, directory)
                if session is not None:
                    fresh.append((model, session))
        except EdgeshipError:
            for _, session in fresh:
                session.close()
            raise
        for model, session in fresh:
            model._exchange(session)
        return bool(fresh)

    def _exchange(self, session: ModelSession) -> None:
        """Let a session answer that is open, warm and proven."""
        old = self._session
        window = old.last_window()
        if window is not None:
            self._last_windows.append(window)
        for ring in old.hand_on():
            session.predictions.take_over(ring)
        self._take(session)
        self._is_changed = True
        old.close()

    def check_golden(self) -> GoldenResult:
        """Run the golden inputs through the loaded model.

        Raises:
            ContractError: the bundle has none.
        """
        session = self._session
        return session.judge_golden(session.predict(sample) for sample in session.golden_samples())

    def take_window(self) -> Window | None:
        """The telemetry window that is due, or None; the application hands it on, or lets it go."""
        return self._last_windows.pop(0) if self._last_windows else self._session.due_window()

    def close(self) -> None:
        """Release the engine."""
        self._session.close()

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Opener:
    """Opens sessions on what a slot directory holds."""

    def __init__(self, directory: Path, threads: int, limits: WindowLimits) -> None:
        self.directory = directory
        self._threads = threads
        self._limits = limits
        self._boot_id = uuid.uuid4().hex[:12]

    def open(self, directory: Path | None = None) -> ModelSession:
        """A warm session; of what lies in ``directory`` now, where that was looked up before."""
        # what the pointer names is looked up once: it may change while the files are read
        slot = read_slot(directory or self.directory.resolve())
        predictor = Predictor.open(slot.manifest, slot.variant, slot.model_path, threads=self._threads)
        session = ModelSession(slot, predictor, self._limits, self._boot_id, _now)
        session.warm_up()
        return session

    def reopen(self, digest: str, directory: Path | None = None) -> ModelSession | None:
        """A warm session that passed its golden inputs, or None where the bundle is the one of that digest."""
        path = (directory or self.directory) / SLOT_FILE
        try:
            info = read_json(path.read_bytes(), SlotFile, file=path)
        except FileNotFoundError:
            return None  # no model is active
        if info.digest == digest:
            return None
        session = self.open(directory)
        if session.slot.golden_inputs is not None:
            result = session.judge_golden(session.predict(sample) for sample in session.golden_samples())
            if not result.passed:
                session.close()
                raise VerificationError(f"golden outputs: {result.reason}", file=self.directory)
        return session


def _now() -> Clock:
    return Clock(monotonic_s=time.monotonic(), wall_s=time.time())
