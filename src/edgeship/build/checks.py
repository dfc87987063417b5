"""What is checked before a build begins, so that a certain failure costs seconds and names its reason."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from edgeship.build.cache.memory import Memory
from edgeship.build.model_facts import facts_of
from edgeship.build.progress import Progress
from edgeship.build.sources.model import digest_of_files
from edgeship.build.stages import said
from edgeship.targets import CheckResult, ModelFacts, Target, blocking, check
from edgeship_agent.contract.errors import ConversionError, InputError

#: Suffixes of the formats that can be looked into without running them.
READABLE: Final = (".onnx", ".tflite")


def before_build(
    model: Path,
    targets: Sequence[Target],
    progress: Progress,
    memory: Memory | None = None,
    *,
    named: Path | None = None,
) -> dict[str, str]:
    """Check a model against every target.

    A format that cannot be looked into is left to its converter, and a file that cannot be read to its reader, which
    says so in its own words.

    Args:
        model: the source.
        targets: what it is to be built for.
        progress: told how many checks hold, and what else is known.
        memory: of earlier builds; None for none.
        named: the file as the user knows it, where ``model`` is made from it.

    Returns:
        Target → why nothing that a build does could succeed; targets that may work are missing.

    Raises:
        ConversionError: that holds for every target.
    """
    if model.suffix.lower() not in READABLE:
        return {}
    try:
        facts = _facts(model, {entry.name for target in targets for entry in target.runtimes}, memory)
    except InputError:
        return {}
    except ConversionError as error:  # a runtime that dies when it is asked refuses for itself alone
        progress.step("checked", f"nothing: {said(error.stage, error.message)}", "failed")
        return {}
    hopeless: dict[str, str] = {}
    steps: list[str] = []
    for target in targets:
        results = check(target, facts)
        failures = blocking(target, results)
        if failures:
            hopeless[target.id] = "; ".join(each.sentence for each in failures)
            steps += [each.next_step for each in failures if each.next_step]
        else:
            progress.step("checked", _line(target, results), "done")
    if len(hopeless) == len(targets):
        names, reasons = ", ".join(hopeless), "; ".join(dict.fromkeys(hopeless.values()))
        raise ConversionError(f"there is no way from this model to {names}: {reasons}", target=names,
                              file=named or model,
                              next_step=steps[0] if steps else "choose another target")  # fmt: skip
    return hopeless


def _facts(model: Path, runtimes: Collection[str], memory: Memory | None) -> ModelFacts:
    if memory is None or not model.is_file():
        return facts_of(model, runtimes, pieces=False)
    key = {"model": digest_of_files((model,)), "runtimes": sorted(runtimes)}
    return memory.figures("facts", key, ModelFacts, lambda: facts_of(model, runtimes, pieces=False))


def _line(target: Target, results: Sequence[CheckResult]) -> str:
    """One line a target: how many checks hold, and the first that does not."""
    open_ones = [each for each in results if each.holds is not True]
    text = f"{target.id} · {len(results) - len(open_ones)} of {len(results)} checks hold"
    return f"{text}; {open_ones[0].sentence}" if open_ones else text
