"""A bench that is an enrolled device: latency is the device's own, outputs are held against this machine's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

import numpy as np

from edgeship.build import verify
from edgeship.build.backends.base import Samples
from edgeship.build.candidates import Built
from edgeship.build.devices.fleet import Artifact, FleetDevice, Limits, files_of
from edgeship.build.inputs import Inputs
from edgeship.build.measure import Latency
from edgeship.build.progress import Progress
from edgeship.build.schema import MeasuredOn
from edgeship.build.trials import Trial, Trials
from edgeship.targets import Measure, Target
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.profiling import MAX_TASKS, ProfileResult, TaskResult
from edgeship_agent.runtime.isa import isa_class_of

_SERVER_VARIABLE: Final = "EDGESHIP_SERVER"
_DEFAULT_SERVER: Final = "http://127.0.0.1:8080"
#: Evaluation inputs that are run there; the device has a model to serve.
_INPUTS: Final = 32
#: Largest relative RMS of the first output between the two machines. Kernels of another ISA round otherwise; where more
#: differs, something other than rounding does.
_TOLERANCE: Final = 0.05
#: One candidate may take so long there, in seconds, beside the time that is measured.
_PATIENCE_S: Final = 60.0
_LONGEST_S: Final = 3600.0


class Enrolled:
    """An enrolled device.

    Args:
        device: open.
        progress: told what goes on.
    """

    def __init__(self, device: FleetDevice, progress: Progress) -> None:
        self._device = device
        self._progress = progress
        facts = device.facts
        #: As the server knows it; after the first trial as the device itself says.
        self.place = MeasuredOn(arch=facts["arch"], isa=isa_class_of(facts["arch"], facts["isa"]), cpu="",
                                device=device.id, runtimes=facts["runtimes"])  # fmt: skip

    @classmethod
    def open(cls, target: Target, progress: Progress, stack: ExitStack) -> Enrolled:
        """The device that a target's file names; closed with the stack.

        Raises:
            ConfigError: the file names none, or one of another architecture.
            TransferError: its server cannot be reached.
            InputError: the server knows no such device.
        """
        measure = target.measure
        key = "measure.device"
        if not measure.device:
            raise ConfigError("the runner \"device\" needs a device", file=f"target {target.id}", key=key,
                              expected="the id of an enrolled device",
                              next_step="edgeship devices list")  # fmt: skip
        server = measure.server or os.environ.get(_SERVER_VARIABLE) or _DEFAULT_SERVER
        device = stack.enter_context(FleetDevice(server, measure.device, progress))
        if device.facts["arch"] != target.arch:
            raise ConfigError("the device is of another architecture", file=f"target {target.id}", key=key,
                              expected=target.arch, got=f"{device.id} ({device.facts['arch']})",
                              next_step="name a device of the target's kind: edgeship devices list")  # fmt: skip
        bench = cls(device, progress)
        runtimes = " · ".join(f"{name} {version}" for name, version in sorted(bench.place.runtimes.items()))
        progress.step("device", f"{device.id} of {server} · {bench.place.isa} · {runtimes}")
        return bench

    def try_all(self, label: str, variants: Mapping[str, Built], inputs: Inputs, plan: Measure) -> Trials:
        """Parity of each with this machine in a process of its own, then the latency of all in turn."""
        samples = inputs.evaluation_inputs[:_INPUTS]
        artifacts = {precision: _artifact(f"{label}/{precision}", built, samples, self._progress)
                     for precision, built in variants.items()}  # fmt: skip
        limits = Limits(
            warm_up=plan.warm_up, min_queries=plan.min_queries, min_seconds=plan.min_seconds,
            timeout_s=min(_LONGEST_S, len(artifacts) * (_PATIENCE_S + plan.min_seconds)),
        )  # fmt: skip
        tried: dict[str, Trial] = {}
        refused: dict[str, str] = {}
        names = list(artifacts)
        for start in range(0, len(names), MAX_TASKS):
            part = names[start : start + MAX_TASKS]
            result = self._device.measure([artifacts[name] for name in part], samples, limits)
            self._learn(result)
            for name, task in zip(part, result.tasks, strict=True):
                reason = self._refusal(task)
                if reason or task.latency is None:
                    refused[name] = reason
                    continue
                latency = Latency(times_ms=task.latency.times_ms)
                notes = (self._note(task), *(f"{self._device.id}: {word}" for word in result.throttling))
                tried[name] = Trial(built=variants[name], latency=latency, notes=notes)
        return Trials(tried=tried, refused=refused)

    def _learn(self, result: ProfileResult) -> None:
        self.place = MeasuredOn(arch=result.arch, isa=result.isa, cpu=result.cpu, device=self._device.id,
                                runtimes=result.runtimes)  # fmt: skip

    def _refusal(self, task: TaskResult) -> str:
        if task.error or task.latency is None:
            return f"on {self._device.id}: {task.error or 'it was not measured'}"
        parity = task.parity
        if parity is not None and not parity.passed:
            value = "not a number" if parity.relative_rms < 0 else f"relative RMS {parity.relative_rms:.3g}"
            return f"its outputs on {self._device.id} are not this machine's: {value}, limit {parity.tolerance:g}"
        return ""

    def _note(self, task: TaskResult) -> str:
        parity = task.parity
        same = "" if parity is None else (
            f": relative RMS {parity.relative_rms:.3g} against this machine over {parity.samples} inputs"
        )  # fmt: skip
        return f"run on {self._device.id}{same}; peak memory {task.peak_memory_bytes / 1e6:.1f} MB"


def _artifact(label: str, built: Built, samples: Samples, progress: Progress) -> Artifact:
    artifact = built.artifact
    expected = [{name: np.asarray(array) for name, array in answer.items()}
                for answer in verify.run_each(built.bound.run, samples, f"expect {label}", progress)]  # fmt: skip
    return Artifact(label=label, runtime=artifact.runtime, files=files_of(artifact.files),
                    variant=verify.draft_variant(artifact), expected=expected, tolerance=_TOLERANCE)  # fmt: skip
