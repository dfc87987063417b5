"""TensorFlow Lite Micro: what fits into a microcontroller's tensor arena, before anything is built."""

from __future__ import annotations

from edgeship.targets.facts import CheckResult, ModelFacts
from edgeship.targets.model import Target
from edgeship.targets.wording import size_text

#: float32 activations in int8.
_FLOAT_SHARE = 4


def arena(target: Target, facts: ModelFacts) -> CheckResult:
    """Whether the tensor arena fits: planned for a full-int8 file, bounded from below for anything else."""
    gives = f"{target.id} gives {size_text(target.memory_bytes)}"
    if facts.arena_bytes is not None and facts.quantized:
        holds = facts.arena_bytes <= target.memory_bytes
        return CheckResult(
            id="memory", runtime="litert", holds=holds, sure=True,
            sentence=f"a tensor arena of about {size_text(facts.arena_bytes)}; {gives}",
            next_step="" if holds else "use a smaller model, or a target file with more memory",
        )  # fmt: skip
    if facts.peak_activation_bytes is None:
        return CheckResult(id="memory", runtime="litert", holds=None, sentence=f"activations unknown; {gives}",
                           next_step="give every input a fixed shape" if facts.dynamic_inputs else "")  # fmt: skip
    least = facts.peak_activation_bytes if facts.quantized else facts.peak_activation_bytes // _FLOAT_SHARE
    holds = least <= target.memory_bytes
    return CheckResult(
        id="memory", runtime="litert", holds=holds, sure=True,
        sentence=f"at least {size_text(least)} of activations in int8; {gives}",
        next_step="" if holds else "use a smaller model, or a target file with more memory",
    )  # fmt: skip
