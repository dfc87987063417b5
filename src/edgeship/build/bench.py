"""Where candidates are measured and judged: on this machine, on a device over SSH, or on a device of a fleet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import msgspec
from msgspec import Struct, structs

from edgeship.build import verify
from edgeship.build.candidates import Built
from edgeship.build.devices.address import parse_address
from edgeship.build.devices.device import Candidate, Device
from edgeship.build.devices.link import Link, launcher
from edgeship.build.devices.worker import Plan
from edgeship.build.inputs import Inputs
from edgeship.build.measure import Latency, measure
from edgeship.build.options import BuildOptions
from edgeship.build.oracle import stacked
from edgeship.build.progress import Progress
from edgeship.build.schema import MeasuredOn
from edgeship.build.trials import Bench, Trial, Trials
from edgeship.targets import Measure, Target
from edgeship_agent.contract.errors import ConfigError, ConversionError
from edgeship_agent.runtime.isa import architecture, cpu_name, isa_class


class Here:
    """This machine: every candidate was run and compared here already."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @property
    def place(self) -> MeasuredOn:
        """This machine."""
        return MeasuredOn(arch=architecture(), isa=isa_class(), cpu=cpu_name())

    def try_all(self, _label: str, variants: Mapping[str, Built], inputs: Inputs, plan: Measure) -> Trials:
        """Latency alone."""
        runs = {precision: built.bound.run for precision, built in variants.items()}
        memory = inputs.memory
        key = {
            "cpu": cpu_name(),
            "files": {precision: memory.key_of(each.artifact) for precision, each in variants.items()},
            "samples": memory.digest(inputs.evaluation_inputs), "plan": msgspec.to_builtins(plan),
        }  # fmt: skip
        try:
            times = memory.figures(
                "latency", key, dict[str, Latency],
                lambda: measure(runs, inputs.evaluation_inputs, plan, self._progress) if runs else {},
            )  # fmt: skip
        except ConversionError as error:  # they ran side by side: which of them it was is not known
            return Trials(tried={}, refused=dict.fromkeys(variants, error.message))
        tried = {precision: Trial(built=variants[precision], latency=latency) for precision, latency in times.items()}
        return Trials(tried=tried, refused={})


class There:
    """A device: outputs, task metric and latency are the device's own."""

    def __init__(self, device: Device, progress: Progress) -> None:
        self._device = device
        self._progress = progress
        self._sent: Inputs | None = None

    @property
    def place(self) -> MeasuredOn:
        """The device."""
        facts = self._device.facts
        versions = {name: version for name, version in facts.runtimes.items() if version}
        return MeasuredOn(arch=facts.arch, isa=facts.isa, cpu=facts.cpu, device=self._device.name, runtimes=versions)

    def try_all(self, label: str, variants: Mapping[str, Built], inputs: Inputs, plan: Measure) -> Trials:
        """Outputs of each in a process of its own, then the latency of those that run."""
        if self._sent is not inputs:
            self._device.send_inputs(inputs.evaluation_inputs)
            self._sent = inputs
        candidates = {precision: _candidate(f"{label}/{precision}", built) for precision, built in variants.items()}
        compared: dict[str, Built] = {}
        notes: dict[str, str] = {}
        refused: dict[str, str] = {}
        for precision, candidate in candidates.items():
            try:
                outputs = stacked(list(self._device.outputs(candidate)), candidate.label)
            except ConversionError as error:
                refused[precision] = error.message
                continue
            there = verify.compare(inputs.truth, outputs)
            compared[precision] = structs.replace(variants[precision], comparison=there)
            notes[precision] = self._note(variants[precision], there)
        running = [candidates[precision] for precision in compared]
        times = self._device.latencies(running, _plan(plan)) if running else {}
        tried = {
            precision: Trial(built=built, latency=times[f"{label}/{precision}"], notes=(notes[precision],))
            for precision, built in compared.items()
        }
        return Trials(tried=tried, refused=refused)

    def _note(self, built: Built, there: verify.Comparison) -> str:
        here = built.comparison
        return (
            f"run on {self._device.name}: relative RMS {_text(there.relative_rms)} there, {_text(here.relative_rms)} "
            f"here; {there.metric.name} {there.metric.value:.4f} there, {here.metric.value:.4f} here"
        )


class Benches(Struct, frozen=True, kw_only=True):
    """This machine and, where one was named, a device for the targets of its architecture.

    Attributes:
        enrolled: id of a target → the device of a fleet that its file names.
    """

    here: Here
    there: There | None = None
    enrolled: Mapping[str, Bench] = {}

    def of(self, target: Target) -> Bench:
        """Where a target's candidates are tried."""
        if self.there is not None and self.there.place.arch == target.arch:
            return self.there
        return self.enrolled.get(target.id, self.here)


@contextmanager
def open_benches(options: BuildOptions, targets: Sequence[Target], progress: Progress) -> Iterator[Benches]:
    """Open what a build measures on; a device is left as it was found, whatever happens.

    Raises:
        ConfigError: the address is none, or no target is of the device's architecture.
        InputError: the fleet has no such device.
        TransferError: the device cannot be reached, or lacks something that cannot be installed.
    """
    here = Here(progress)
    if not options.measure:
        named = [target for target in targets if target.measure.runner == "device"]
        with ExitStack() as stack:
            yield Benches(here=here, enrolled=_enrolled(named, progress, stack) if named else {})
        return
    address = parse_address(options.measure)
    with Device(Link(address, launcher(options.ssh_config)), address.text, progress) as device:
        fitting = [target for target in targets if target.arch == device.machine]
        if not fitting:
            wanted = ", ".join(f"{target.id} ({target.arch})" for target in targets)
            raise ConfigError(f"the device is {device.machine}, and no target of this build is", key="--measure",
                              expected=wanted, got=f"{address.text} ({device.machine})",
                              next_step="name a device of the target's kind, or another target")  # fmt: skip
        device.prepare({entry.name: entry.version for target in reversed(fitting) for entry in target.runtimes})
        there = There(device, progress)
        runtimes = " · ".join(f"{name} {version}" for name, version in device.facts.runtimes.items() if version)
        progress.step("device", f"{address.text} · {there.place.isa} · {there.place.cpu} · {runtimes}")
        yield Benches(here=here, there=there)


def _enrolled(targets: Sequence[Target], progress: Progress, stack: ExitStack) -> dict[str, Bench]:
    from edgeship.build.enrolled import Enrolled  # an HTTP client, which few builds need

    return {target.id: Enrolled.open(target, progress, stack) for target in targets}


def _candidate(label: str, built: Built) -> Candidate:
    artifact = built.artifact
    return Candidate(label=label, runtime=artifact.runtime, threads=1, files=artifact.files,
                     variant=verify.draft_variant(artifact))  # fmt: skip


def _plan(plan: Measure) -> Plan:
    return Plan(warm_up=plan.warm_up, min_queries=plan.min_queries, min_seconds=plan.min_seconds)


def _text(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3g}"
