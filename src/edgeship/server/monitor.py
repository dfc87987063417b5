"""The drift monitor: looks at what has new windows, keeps the figures, opens and closes incidents."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct, structs
from sqlalchemy import Connection

from edgeship.drift import AlarmState, SignalDistance, worst
from edgeship.rollout import DriftFigure
from edgeship.server import incident_rules
from edgeship.server.context import ServerContext
from edgeship.server.drift_figures import Figures, baseline_distances, field_accuracy, look
from edgeship.server.store import drift as store
from edgeship.server.store import windows
from edgeship.server.store.drift import ModelKey
from edgeship_agent.contract.profile import Family

#: After a start the monitor looks again at what was heard in this time.
_CATCH_UP_S: Final = 3600.0
#: Most devices and versions of one step, so that a step stays short.
_MOST_LOOKS: Final = 200


class DriftEvidence(Struct, frozen=True, kw_only=True):
    """What a rollout's gates read; None where nothing could be compared."""

    prediction: DriftFigure | None = None
    data: DriftFigure | None = None


class Monitor:
    """Looks once at every device and version that has new windows, each evaluation step.

    Args:
        context: the server's parts.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        with context.read() as connection:
            self._touched: set[ModelKey] = windows.keys_since(connection, context.clock() - _CATCH_UP_S)

    def touch(self, key: ModelKey) -> None:
        """New windows arrived for a device, model and version."""
        with self._lock:
            self._touched.add(key)

    def step(self) -> None:
        """Judge what was touched since the last step, then close what no longer applies."""
        for key in self._take():
            with self._context.read() as connection:
                figures = self._look(connection, key)
            with self._context.write() as connection:
                self._judge(connection, key, figures)
        incident_rules.close_replaced(self._context)

    def _take(self) -> list[ModelKey]:
        with self._lock:
            taken = sorted(self._touched)[:_MOST_LOOKS]
            self._touched.difference_update(taken)
        return taken

    def _look(self, connection: Connection, key: ModelKey) -> Figures:
        config = self._context.config
        figures = look(connection, self._context.profiles, key, config.drift, accept_baseline=config.accept_baseline)
        if not figures.recent:
            return figures
        return structs.replace(figures, accuracy=field_accuracy(connection, key, figures.recent[-1].variant))

    def _judge(self, connection: Connection, key: ModelKey, figures: Figures) -> None:
        if figures.reference is not None:
            store.save_reference(connection, key, figures.profile_hash, figures.reference)
        alarms = _alarms(connection, key)
        if incident_rules.is_committed(connection, key):
            alarms = incident_rules.apply(self._context, connection, key, figures, alarms)
        store.save_state(connection, key, self._state_row(figures, alarms))

    def _state_row(self, figures: Figures, alarms: dict[str, AlarmState]) -> dict[str, Any]:
        named = figures.worst()
        return {
            "updated_at_s": self._context.clock(),
            # of the signal that is named beside it: those of pictures and windows come from a share of the calls
            "sample_count": figures.samples if named is None else named.n,
            "worst_signal": "" if named is None else named.signal,
            "worst_value": 0.0 if named is None else named.value,
            "state": figures.state.value,
            "figures": msgspec.to_builtins(figures.distances),
            "alarm": msgspec.to_builtins(alarms),
        }


def drift_evidence(
    context: ServerContext, connection: Connection, key: ModelKey, since_s: float, models: int = 1
) -> DriftEvidence:
    """The worst drift of a device's predictions and inputs from what the release declares as normal.

    Args:
        context: the server's parts.
        connection: of any transaction.
        key: device id, model, version.
        since_s: only windows received since then, such as the activation.
        models: how many models of one release are compared like this; what breaks a gate is proven at the level that
            all of them share.
    """
    distances = baseline_distances(connection, context.profiles, key, since_s)
    shared = baseline_distances(connection, context.profiles, key, since_s, models) if models > 1 else ()
    proven = {distance.signal: distance.low for distance in shared}
    prediction, data = (worst(distances, family.value) for family in (Family.OUTPUT, Family.INPUT))
    return DriftEvidence(prediction=_figure(prediction, proven), data=_figure(data, proven))


def _figure(named: SignalDistance | None, proven: Mapping[str, float]) -> DriftFigure | None:
    if named is None:
        return None
    return DriftFigure(
        signal=named.signal,
        statistic=named.statistic,
        value=named.value,
        low=named.low,
        high=named.high,
        n=named.n,
        proven=proven.get(named.signal),
    )


def _alarms(connection: Connection, key: ModelKey) -> dict[str, AlarmState]:
    row = store.find_state(connection, key)
    stored = {} if row is None else row.alarm
    return {kind: msgspec.convert(state, AlarmState) for kind, state in stored.items()}
