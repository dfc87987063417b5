"""``edgeship build``, step by step: read, build, judge, choose, prove, bundle, report."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, structs

from edgeship.build import assemble, inputs, output, select, target_files, toolchains
from edgeship.build.candidates import Workshop
from edgeship.build.decide import Assessed, Decision, decide
from edgeship.build.options import BuildOptions
from edgeship.build.progress import Progress
from edgeship.build.proof import make_proof
from edgeship.build.report import write_report
from edgeship.build.schema import BuildDocument, VariantReport
from edgeship.bundle import AuthorKey, WrittenBundle, write_bundle
from edgeship.targets import Target
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.runtime import runtime_version

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


class BuildResult(Struct, frozen=True, kw_only=True):
    """A finished build.

    Attributes:
        document: build.json.
        folder: where everything lies.
    """

    verdict: str
    document: BuildDocument
    folder: Path


def build(options: BuildOptions, progress: Progress) -> BuildResult:
    """Build a model for hardware targets.

    Args:
        options: what, from what, within which limits.
        progress: told what goes on.

    Returns:
        The verdict; on ``fail`` and ``inconclusive`` the report and the variants are written and no bundle.

    Raises:
        ConfigError: an option, a target or a TOML file cannot be followed.
        InputError: the model or the data cannot be used.
        ConversionError: there is no way to a target.
        VerificationError: the source file changed during the build.
    """
    targets = _targets(options)
    name = _name(options)
    output.check(options.output.absolute())
    started = time.monotonic()
    with output.staging(options.output) as staging:
        read = inputs.read(options, staging.scratch / "source", progress)
        timings = {"read": time.monotonic() - started}
        _install_toolchains(targets, options, progress)
        workshop = Workshop(read, staging.scratch, options.max_relative_rms, progress)
        try:
            decisions = tuple(decide(workshop, target, options, progress) for target in targets)
            verdict = select.overall([each.choice.verdict for each in decisions])
            timings["build"] = time.monotonic() - started - timings["read"]
            bundle = _bundle(read, decisions, options, name, staging, progress) if verdict == "pass" else None
        finally:
            workshop.close()
        read.source.check_unchanged()
        timings["total"] = time.monotonic() - started
        document = _document(options, read, decisions, staging, bundle)
        document = structs.replace(
            document,
            name=name,
            tried=tuple(workshop.tried),
            timings_s={key: round(value, 3) for key, value in timings.items()},
        )
        latencies = {each.judged.label: each.latency.times_ms for each in _all(decisions)}
        write_report(document, staging.draft / "report.html", latencies_ms=latencies)
        output.write_synced(staging.draft / "build.json", encode(document))
    return BuildResult(verdict=verdict, document=document, folder=options.output.absolute())


def encode(document: BuildDocument) -> bytes:
    """build.json, byte for byte what ``--json`` prints."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _targets(options: BuildOptions) -> tuple[Target, ...]:
    if not options.targets:
        raise ConfigError("no target", expected="-t TARGET", next_step="edgeship targets list")
    targets = tuple(target_files.load(name) for name in dict.fromkeys(options.targets))
    for target in targets:
        if not any(runtime_version(entry.name) for entry in target.runtimes):
            names = ", ".join(entry.name for entry in target.runtimes)
            raise ConfigError(f"{target.id} runs {names}, which is not installed here",
                              next_step=f"pip install edgeship-agent[{target.runtimes[0].name}]")  # fmt: skip
    return targets


def _name(options: BuildOptions) -> str:
    name = options.name or re.sub(r"[^A-Za-z0-9._+-]+", "-", options.source.stem).strip("-.") or "model"
    for key, value in (("--name", name), ("--version", options.version)):
        if not _PLAIN_NAME.fullmatch(value):
            raise ConfigError("needs plain characters", key=key, got=repr(value),
                              expected="letters, digits and . _ + -, at most 128",
                              next_step=f"choose another {key}")  # fmt: skip
    return name


def missing_toolchains(options: BuildOptions) -> list[str]:
    """Names of converters that this build needs and that are not installed."""
    wanted = any(entry.name == "litert" for target in _targets(options) for entry in target.runtimes)
    return [name for name in toolchains.TOOLCHAINS if wanted and not toolchains.status(name).installed]


def _install_toolchains(targets: Sequence[Target], options: BuildOptions, progress: Progress) -> None:
    for name in missing_toolchains(options):
        if not options.install_toolchains:
            raise ConfigError(f"{targets[0].id} needs the converter {name}, which is not installed yet",
                              next_step=f"edgeship toolchains install {name}   (or add --yes)")  # fmt: skip
        progress.step("toolchain", f"installing {name} in an environment of its own, once", "note")
        toolchains.install(name)


def _document(
    options: BuildOptions,
    read: inputs.Inputs,
    decisions: Sequence[Decision],
    staging: output.Staging,
    bundle: WrittenBundle | None,
) -> BuildDocument:
    runtimes = [entry.name for each in decisions for entry in each.target.runtimes]
    return BuildDocument(
        verdict=select.overall([each.choice.verdict for each in decisions]),
        bundle=str(staging.final / "bundle") if bundle else None,
        bundle_digest=bundle.digest if bundle else "",
        variants=tuple(_variant_report(each, one, staging) for one in decisions for each in one.assessed),
        version=options.version,
        report=str(staging.final / "report.html"),
        targets=tuple(each.verdict for each in decisions),
        gates=tuple(one for each in _all(decisions) for one in each.judged.gates),
        source=read.source_report(),
        data=read.data_report(),
        tools=assemble.tool_versions(runtimes),
    )


def _all(decisions: Sequence[Decision]) -> list[Assessed]:
    return [each for decision in decisions for each in decision.assessed]


def _bundle(
    read: inputs.Inputs,
    decisions: Sequence[Decision],
    options: BuildOptions,
    name: str,
    staging: output.Staging,
    progress: Progress,
) -> WrittenBundle:
    """Prove and write what was chosen: one variant a target, so that a device's choice is never ambiguous."""
    shipped = []
    for each in [decision.shipped for decision in decisions]:
        assert each is not None, "a pass names what ships"
        proof = make_proof(read, each.built, each.judged.label, progress)
        shipped.append(assemble.Shipped(target=each.target, entry=each.entry, built=each.built, proof=proof))
    key = AuthorKey.load_or_create(options.key)
    return write_bundle(staging.draft / "bundle", assemble.draft(name, options.version, read, shipped), key)


def _variant_report(each: Assessed, decision: Decision, staging: output.Staging) -> VariantReport:
    """Copy a variant's files into the output folder and describe it."""
    relative = Path("variants") / each.judged.label
    folder = staging.draft / relative
    folder.mkdir(parents=True)
    for file in each.built.artifact.files:
        shutil.copyfile(file, folder / file.name)
    final = staging.final / relative / each.built.artifact.model.name
    return each.report(str(final), chosen=each.judged.label == decision.choice.chosen)
