"""The routing table: which worker answers what, as every worker is told. One value, replaced as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeship_agent.contract.pointer import ArmKey
from edgeship_agent.serving.control import ArmShare, Neighbour, Split
from edgeship_agent.supervisor.worker_process import WorkerProcess
from edgeship_agent.update.slots import Slot
from edgeship_agent.update.traffic import CHALLENGER_ARM, MAIN_ARM, SHADOW_ARM


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is meant to be served for an arm, and the worker that does, if one is there.

    Attributes:
        prefixes: how the ids of predictions begin that its worker remembers from those before it.
    """

    slot: Slot
    worker: WorkerProcess | None
    prefixes: tuple[str, ...]


class Table:
    """Who answers.

    Args:
        entries: of every arm that is meant to be served, in the order of their names.
    """

    def __init__(self, entries: Mapping[ArmKey, Entry]) -> None:
        self._entries = entries
        self.ready = {
            key: entry.worker for key, entry in entries.items() if entry.worker is not None and entry.worker.is_ready
        }

    def front_of(self, model: str) -> WorkerProcess | None:
        """The worker that a model is asked through: of the main arm, or while that is away of the challenger."""
        return self.ready.get((model, MAIN_ARM)) or self.ready.get((model, CHALLENGER_ARM))

    def front(self) -> WorkerProcess | None:
        """The worker that applications reach first: of the first model by name that has one."""
        fronts = (self.front_of(model) for model, _ in self._entries)
        return next((front for front in fronts if front is not None), None)

    def split_for(self, key: ArmKey) -> Split:
        """What the worker of an arm is told."""
        model, arm = key
        shared = [name for name in (MAIN_ARM, CHALLENGER_ARM) if (model, name) in self.ready]
        others = [self._share(model, other) for name, other in self.ready if name == model and other != arm]
        salt = ",".join(sorted(self.ready[model, name].slot.info.digest for name in shared))
        neighbours = tuple(
            self._neighbour(name, self._entries[key].slot)
            for name in sorted({name for name, _ in self._entries} - {model})
        )
        first = min(name for name, _ in self._entries)
        return Split(salt=salt, order=tuple(shared), others=tuple(others), neighbours=neighbours, first=first)

    def _share(self, model: str, arm: str) -> ArmShare:
        slot, worker = self._entries[model, arm].slot, self.ready[model, arm]
        return ArmShare(
            arm=arm,
            version=slot.info.version,
            digest=slot.info.digest,
            share=self._rest(model) if arm == MAIN_ARM else slot.traffic.share,
            socket=str(worker.socket_path),
            mirror=slot.traffic.mirror if arm == SHADOW_ARM else 0.0,
            cpu_ratio=slot.traffic.cpu_ratio,
        )

    def _rest(self, model: str) -> float:
        is_there = (model, CHALLENGER_ARM) in self.ready
        return 1.0 - self._entries[model, CHALLENGER_ARM].slot.traffic.share if is_there else 1.0

    def _neighbour(self, model: str, own: Slot) -> Neighbour:
        """Another model: reachable or not, since what is away for a moment is waited for."""
        front = self.front_of(model)
        arms = [entry for (name, _), entry in self._entries.items() if name == model]
        prefixes = [
            prefix
            for entry in arms
            for prefix in (*entry.prefixes, *(() if entry.worker is None else (entry.worker.prediction_prefix,)))
        ]
        is_sibling = any(0 < entry.slot.switched == own.switched for entry in arms)
        return Neighbour(
            model=model,
            socket="" if front is None else str(front.socket_path),
            digest="" if front is None else front.slot.info.digest,
            prefixes=tuple(prefixes),
            is_sibling=is_sibling,
        )


def is_nobody(split: Split) -> bool:
    """Whether there is nobody else, so that a worker that was told of nobody need not be told."""
    return not split.others and not split.neighbours
