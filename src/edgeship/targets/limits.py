"""Memory and storage that a model needs on a device, before it is built."""

from __future__ import annotations

from typing import Final

from edgeship.targets.facts import CheckResult, ModelFacts
from edgeship.targets.knowledge import RUNTIME_MEMORY_BYTES
from edgeship.targets.model import RuntimeEntry, Target
from edgeship.targets.wording import size_text

#: A runtime packs weights anew for its kernels, so that two copies may be in memory while a model is loaded.
_WEIGHT_COPIES: Final = 2
#: A device with the agent keeps the active bundle and the one to go back to.
_STORED_COPIES: Final = 2
#: float32 weights in int8.
_SMALLEST_SHARE: Final = 4


def memory(target: Target, entry: RuntimeEntry, facts: ModelFacts) -> CheckResult:
    """Whether the worker process fits: the runtime, the weights twice, the largest sum of live tensors.

    A failure is certain where the runtime with the weights alone, in int8 and once, is too much already.
    """
    runtime = RUNTIME_MEMORY_BYTES[entry.name]
    activations = facts.peak_activation_bytes
    needed = runtime + _WEIGHT_COPIES * facts.weight_bytes + (activations or 0)
    sentence = (
        f"about {size_text(needed)} for a worker {_as_it_is(facts)} (runtime {size_text(runtime)}, "
        f"weights {size_text(facts.weight_bytes)} twice, activations "
        f"{'unknown' if activations is None else size_text(activations)}); "
        f"{target.id} gives {size_text(target.memory_bytes)}"
    )
    if needed > target.memory_bytes:
        sure = runtime + _smallest(facts) > target.memory_bytes
        return CheckResult(id="memory", runtime=entry.name, holds=False, sentence=sentence, sure=sure,
                           next_step="use a smaller model, or a target with more memory")  # fmt: skip
    holds = None if activations is None else True
    free = "give every input a fixed shape to have activations estimated"
    hint = free if holds is None and facts.dynamic_inputs else ""
    return CheckResult(id="memory", runtime=entry.name, holds=holds, sentence=sentence, next_step=hint)


def storage(target: Target, facts: ModelFacts) -> CheckResult:
    """Whether the model fits on the disk, twice where the agent keeps the former version."""
    copies = _STORED_COPIES if target.agent else 1
    integers = bool(target.dtypes.weights) and not any(each.startswith("float") for each in target.dtypes.weights)
    smaller = integers and not facts.quantized  # such a target gets the model in int8 or not at all
    needed = copies * (_smallest(facts) if smaller else facts.weight_bytes)
    versions = "two versions" if copies > 1 else "the model"
    form = "in int8" if smaller else _as_it_is(facts)
    sentence = f"{size_text(needed)} for {versions} {form}; {target.id} gives {size_text(target.storage_bytes)}"
    holds = needed <= target.storage_bytes
    sure = copies * _smallest(facts) > target.storage_bytes
    hint = "" if holds else "use a smaller model"
    return CheckResult(id="storage", holds=holds, sentence=sentence, next_step=hint, sure=sure)


def _smallest(facts: ModelFacts) -> int:
    """Bytes that the weights have at least once they are built."""
    return facts.weight_bytes if facts.quantized else facts.weight_bytes // _SMALLEST_SHARE


def _as_it_is(facts: ModelFacts) -> str:
    return "as it is" if facts.quantized else "in fp32"
