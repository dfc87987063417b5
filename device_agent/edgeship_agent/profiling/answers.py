"""What a measuring child leaves in the job's folder, and where; without numpy, since the supervisor reads it."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from edgeship_agent.contract.profiling import Conditions, TaskLatency, TaskParity

PLAN_FILE: Final = "plan.json"
INPUTS_FILE: Final = "inputs"
EXPECTED_FILE: Final = "expected"
TIMES_FILE: Final = "times.json"
OUTPUTS_FILE: Final = "outputs.json"
TASKS_FOLDER: Final = "tasks"


class Outputs(Struct, frozen=True, kw_only=True):
    """What one task gave, and took."""

    peak_memory_bytes: int
    parity: TaskParity | None = None


class Times(Struct, frozen=True, kw_only=True):
    """Label → latency of all tasks in one process; conditions when it began and ended."""

    latencies: dict[str, TaskLatency]
    throttling: tuple[str, ...]
    first: Conditions
    last: Conditions
