"""Rules that a target's hardware makes for a finished artifact: types at its ends, operators, arena."""

from __future__ import annotations

from edgeship.build.backends import Artifact
from edgeship.build.microcontroller import operators
from edgeship.build.microcontroller.arena import estimate
from edgeship.build.microcontroller.emit import recommended_bytes
from edgeship.build.schema import GateReport
from edgeship.build.tflite_file import read_tflite
from edgeship.targets import RuntimeEntry, Target
from edgeship.targets.wording import listed, size_text


def target_gates(target: Target, entry: RuntimeEntry, artifact: Artifact) -> tuple[GateReport, ...]:
    """The rules that apply; silence about types that fit.

    Args:
        target: the hardware.
        entry: the runtime there.
        artifact: a file that runs here.
    """
    rules = _Rules(target, entry, artifact)
    found = [*rules.types()]
    if entry.is_micro:
        found += [rules.micro_operators(), rules.arena()]
    return tuple(found)


class _Rules:
    """The rules of one target for one artifact."""

    def __init__(self, target: Target, entry: RuntimeEntry, artifact: Artifact) -> None:
        self._target = target
        self._entry = entry
        self._artifact = artifact

    def types(self) -> list[GateReport]:
        """Only types that the target takes at inputs and outputs."""
        allowed = self._target.dtypes.io
        ends = {binding.dtype for binding in (*self._artifact.inputs, *self._artifact.outputs)}
        foreign = sorted(ends - set(allowed)) if allowed else []
        if not foreign:
            return []
        return [self._gate("types", f"inputs and outputs of {' or '.join(allowed)}", holds=False,
                           sentence=f"its inputs and outputs are {listed(foreign)}; {self._target.id} takes "
                                    f"{', '.join(allowed)}")]  # fmt: skip

    def micro_operators(self) -> GateReport:
        """Only operators and types that TensorFlow Lite Micro has kernels for."""
        model = read_tflite(self._artifact.model)
        refused = operators.unsupported(model)
        kinds = len({operator.name for operator in model.operators})
        sentence = f"TensorFlow Lite Micro takes its {kinds} kinds of operators"
        if refused:
            sentence = f"TensorFlow Lite Micro does not take {listed(refused)}"
        # float ends are another rule's
        ends = {model.main.tensors[index].dtype for index in (*model.main.inputs, *model.main.outputs)}
        floats = () if "float32" in ends else operators.floats_inside(model)
        if not refused and floats:
            sentence = f"not in integers throughout: {listed(floats)} would be computed in float"
        return self._gate("operators", "operators of TensorFlow Lite Micro, in integers",
                          holds=not refused and not floats, sentence=sentence,
                          figures=(float(len(refused) + len(floats)), 0.0))  # fmt: skip

    def arena(self) -> GateReport:
        """A tensor arena that fits into the memory."""
        found = estimate(read_tflite(self._artifact.model))
        needed, limit = recommended_bytes(found), self._target.memory_bytes
        sentence = (
            f"a tensor arena of about {size_text(needed)} (tensors {size_text(found.planned_bytes)}, kept "
            f"{size_text(found.persistent_bytes)}) of {size_text(limit)}"
        )
        evidence = {
            "planned_bytes": float(found.planned_bytes), "persistent_bytes": float(found.persistent_bytes),
            "planning_bytes": float(found.planning_bytes), "least_bytes": float(found.least_bytes),
        }  # fmt: skip
        return self._gate("arena_bytes", f"arena ≤ {limit} bytes", holds=needed <= limit, sentence=sentence,
                          figures=(float(needed), float(limit)), evidence=evidence)  # fmt: skip

    def _gate(
        self,
        name: str,
        rule: str,
        *,
        holds: bool,
        sentence: str,
        figures: tuple[float | None, float | None] = (None, None),
        evidence: dict[str, float] | None = None,
    ) -> GateReport:
        return GateReport(
            id=name, target=self._target.id, runtime=self._entry.name, precision=self._artifact.precision, rule=rule,
            value=figures[0], limit=figures[1], holds=holds, sentence=sentence, evidence=evidence or {},
        )  # fmt: skip
