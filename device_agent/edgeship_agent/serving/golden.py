"""The golden check in a throw-away process: a model that crashes its runtime takes this process with it, nothing else.

::

    python -m edgeship_agent.serving.golden --slot DIR [--threads N]

Prints one JSON object (:class:`edgeship_agent.runtime.golden.GoldenResult`, with ``error`` where it could not be made)
and exits with 0 when the check was made, whatever it found, else with 1. Death by a signal is the model's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from edgeship_agent.contract.errors import ContractError, EdgeshipError
from edgeship_agent.runtime.golden import GoldenResult, check_golden
from edgeship_agent.runtime.isa import isa_class
from edgeship_agent.runtime.predictor import Predictor
from edgeship_agent.serving.slot import read_slot


def check_slot(directory: Path, *, threads: int = 1) -> GoldenResult:
    """Run a slot's golden inputs in its runtime.

    Raises:
        ContractError: the slot is damaged, or its bundle has no golden inputs and outputs.
        VerificationError: a file has the wrong digest.
        EngineError: the runtime refused the model.
    """
    slot = read_slot(directory)
    if slot.golden_inputs is None or slot.golden_outputs is None:
        raise ContractError("the bundle has no golden inputs and outputs", file=directory)
    predictor = Predictor.open(slot.manifest, slot.variant, slot.model_path, threads=threads)
    try:
        return check_golden(
            predictor.run, slot.manifest, slot.variant, slot.golden_inputs, slot.golden_outputs, isa_class()
        )
    finally:
        predictor.close()


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="edgeship-agent golden", description=__doc__)
    parser.add_argument("--slot", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    try:
        result = check_slot(given.slot, threads=given.threads)
    except EdgeshipError as error:
        refused = GoldenResult(
            passed=False, relative_rms=-1.0, limit=0.0, top_class_disagreements=0, samples=0, reason=str(error)
        )
        sys.stdout.buffer.write(msgspec.json.encode(refused) + b"\n")
        sys.exit(1)
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")


if __name__ == "__main__":
    main()
