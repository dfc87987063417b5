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

from edgeship.build import (
    activations,
    assemble,
    checks,
    ci,
    delegates,
    documents,
    fallback,
    hints,
    inputs,
    labelling,
    output,
    pending,
    routes,
    select,
    sensitivity,
    sources,
    target_files,
    toolchains,
    tracker,
    tracking,
)
from edgeship.build.bench import open_benches
from edgeship.build.cache import Cache
from edgeship.build.cache.basis import open_cache
from edgeship.build.cache.memory import Memory
from edgeship.build.candidates import Goals, Workshop
from edgeship.build.decide import Assessed, Decision, decide, stopped
from edgeship.build.keep_float import KeepFloat
from edgeship.build.microcontroller.export import C_ARRAY, write_variant
from edgeship.build.options import BuildOptions
from edgeship.build.progress import Agree, Progress, never
from edgeship.build.proof import make_proof
from edgeship.build.report import write_report
from edgeship.build.schema import BuildDocument, CacheReport, VariantReport
from edgeship.build.stages import words
from edgeship.build.sufficiency import Sufficiency
from edgeship.build.survival import journal
from edgeship.bundle import AuthorKey, BundleDraft, WrittenBundle, write_bundle
from edgeship.targets import Target
from edgeship_agent.contract.errors import ConfigError, ConversionError
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


def build(options: BuildOptions, progress: Progress, agree: Agree = never) -> BuildResult:
    """Build a model for hardware targets.

    Args:
        options: what, from what, within which limits.
        progress: told what goes on.
        agree: asked before a converter is installed.

    Returns:
        The verdict; on ``fail`` and ``inconclusive`` the report and the variants are written and no bundle.

    Raises:
        ConfigError: an option, a target or a TOML file cannot be followed.
        InputError: the model or the data cannot be used.
        ConversionError: there is no way to a target.
        TransferError: the device that was named cannot be reached, or lacks what a run needs.
        VerificationError: the source file changed during the build.
    """
    targets = _targets(options)
    options = structs.replace(options, name=_name(options))
    statement, base = documents.read_statement(options), ci.read_base(options.base)
    output.check(options.output.absolute())
    if options.log_mlflow:
        tracker.check()
    started, began = time.monotonic(), journal.began_s()
    with output.staging(options.output) as staging, open_benches(options, targets, progress) as benches:
        site = _open_site(options, targets, staging.scratch, progress, agree)
        read, workshop, memory = site.read, site.workshop, site.read.memory
        timings = {"read": time.monotonic() - started}
        try:
            decisions = tuple(
                stopped(workshop, target, site.hopeless[target.id], progress)
                if target.id in site.hopeless
                else decide(workshop, target, options, benches, progress)
                for target in targets
            )
            _check_any_way(decisions, options, workshop)
            verdict = select.overall([each.choice.verdict for each in decisions])
            timings["build"] = time.monotonic() - started - timings["read"]
            bundle = None
            if verdict == "pass":
                draft = _draft(read, decisions, options, statement, progress)
                bundle = write_bundle(staging.draft / "bundle", draft, AuthorKey.load_or_create(options.key))
            waits = pending.leave(read, decisions, options, statement, staging.draft, progress)
        finally:
            workshop.close()
        read.source.check_unchanged()
        memory.cache.trim()
        timings["total"] = time.monotonic() - began
        document = structs.replace(
            _document(options, site, decisions, staging, bundle),
            lineage=documents.lineage_report(read.source.facts, statement),
            timings_s={key: round(value, 3) for key, value in timings.items()},
            to_label=str(staging.final / labelling.LABELS_FILE) if waits else "",
        )
        document = hints.added(document, options, progress)
        _write(document, decisions, base, staging.draft)
    if options.log_mlflow:
        tracking.log(document, tracking.run_of(read.source.facts), options.output.absolute(), progress)
    return BuildResult(verdict=verdict, document=document, folder=options.output.absolute())


def prepare(options: BuildOptions, progress: Progress, agree: Agree, only: Sequence[str]) -> None:
    """Work out and remember what a build of some targets will ask for; without any, what the source says.

    Raises:
        EdgeshipError: what :func:`build` would raise.
    """
    wanted = {target_files.load(name).id for name in only}
    targets = _targets(options)
    options = structs.replace(options, name=_name(options))
    with output.scratch() as folder, open_benches(options, targets, progress) as benches:
        site = _open_site(options, targets, folder, progress, agree)
        try:
            for target in targets:
                if target.id in wanted and target.id not in site.hopeless:
                    decide(site.workshop, target, options, benches, progress)
        finally:
            site.workshop.close()


class _Site(Struct, frozen=True, kw_only=True):
    """What targets are built from.

    Attributes:
        hopeless: target → why nothing could succeed.
    """

    read: inputs.Inputs
    workshop: Workshop
    hopeless: dict[str, str]
    enough: Sufficiency


def _open_site(
    options: BuildOptions, targets: Sequence[Target], scratch: Path, progress: Progress, agree: Agree
) -> _Site:
    """Check and read everything."""
    ready = _Toolchains(options, progress, agree)
    sources.toolchain_of(options.request)  # refuses what needs no toolchain to be refused
    memory = Memory(open_cache(progress, enabled=options.cache), scratch / "memory", ready)
    try:
        with journal.step("read", "conversion"):
            checked = sources.file_to_check(options.request, scratch / "pinned")
            hopeless = checks.before_build(checked, targets, progress, memory, named=options.source)
            read = inputs.read(options, scratch / "source", progress, memory)
    except ConversionError as error:
        error.file, error.message = error.file or str(options.source), words(error)
        raise
    enough = _sufficiency(read, scratch, progress)
    if not memory.cache.found("source"):  # a build that begins anew will convert: better refused now than half-way
        for toolchain in routes.toolchains(read.source.format, _runtimes(targets)):
            ready(toolchain)
    asked = _runtimes([target for target in targets if target.id not in hopeless])
    goals = Goals(max_relative_rms=options.max_relative_rms, size_bytes=options.size_bytes or 0,
                  effort=options.effort, keep_float=KeepFloat(options.keep_float, asked))  # fmt: skip
    forms = routes.Forms(read.source, scratch / "forms", ready)
    workshop = Workshop(read, scratch, forms, goals, progress)
    return _Site(read=read, workshop=workshop, hopeless=hopeless, enough=enough)


def _write(document: BuildDocument, decisions: Sequence[Decision], base: BuildDocument | None, folder: Path) -> None:
    """The report for people, the one for a pull request, and build.json, which says that all is there."""
    latencies = {each.judged.label: each.latency.times_ms for each in _all(decisions)}
    output.write_synced(folder / "report.md", ci.comment(document, base).encode())
    write_report(document, folder / "report.html", latencies_ms=latencies)
    output.write_synced(folder / "build.json", encode(document))


def _sufficiency(read: inputs.Inputs, scratch: Path, progress: Progress) -> Sufficiency:
    """Whether the calibration data is enough; said where it is not."""
    folder = scratch / "observed"
    key = {"source": read.source.key, "samples": read.memory.digest(read.source_inputs),
           "lasting": read.source.is_lasting}  # fmt: skip
    enough = read.memory.figures(
        "ranges", key, Sufficiency,
        lambda: activations.sufficiency(read.source, read.source_inputs, read.calibration_outputs, folder),
    )  # fmt: skip
    if enough.note:
        progress.step("note", enough.note, "note")
    return enough


def cache_report(cache: Cache) -> CacheReport:
    """What of a build came from earlier ones."""
    found, made = (sum(counts[index] for counts in cache.counts.values()) for index in (0, 1))
    return CacheReport(found=found, made=made, saved_s=round(cache.saved_s, 1))


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
    stem = "" if options.name else sources.stem_of(options.request)
    name = options.name or re.sub(r"[^A-Za-z0-9._+-]+", "-", stem).strip("-.") or "model"
    for key, value in (("--name", name), ("--version", options.version)):
        if not _PLAIN_NAME.fullmatch(value):
            raise ConfigError("needs plain characters", key=key, got=repr(value),
                              expected="letters, digits and . _ + -, at most 128",
                              next_step=f"choose another {key}")  # fmt: skip
    return name


class _Toolchains:
    """Installs converters when they are needed, where the user has agreed."""

    def __init__(self, options: BuildOptions, progress: Progress, agree: Agree) -> None:
        self._agreed = options.install_toolchains
        self._progress = progress
        self._agree = agree

    def __call__(self, name: str) -> None:
        """Have a toolchain ready.

        Raises:
            ConfigError: it is not installed, and nobody agreed to install it.
            ConversionError: it could not be installed.
        """
        if toolchains.status(name).installed:
            return
        if not (self._agreed or self._agree(name, toolchains.TOOLCHAINS[name].size_bytes)):
            raise ConfigError(f"this build needs the converter {name}, which is not installed yet",
                              next_step=f"edgeship toolchains install {name}   (or add --yes)")  # fmt: skip
        self._progress.step("toolchain", f"installing {name} in an environment of its own, once", "note")
        toolchains.install(name)


def _runtimes(targets: Sequence[Target]) -> list[str]:
    return [entry.name for target in targets for entry in target.runtimes]


def _check_any_way(decisions: Sequence[Decision], options: BuildOptions, workshop: Workshop) -> None:
    """Refuse a build that has nothing to show for any target, or that could not do what it was told.

    Raises:
        ConversionError: the first target's reason.
        ConfigError: an operator that should stay in float is in no file.
    """
    workshop.keep_float.check()
    if not _all(decisions):
        first = decisions[0]
        looks = hints.of_attempts(options, workshop.inputs.source.format, workshop.tried)
        raise ConversionError(first.choice.reason, target=first.target.id, file=options.source,
                              next_step=looks[0] if looks else "choose a target with another runtime: "
                                                               "edgeship targets list")  # fmt: skip


def _document(
    options: BuildOptions,
    site: _Site,
    decisions: Sequence[Decision],
    staging: output.Staging,
    bundle: WrittenBundle | None,
) -> BuildDocument:
    read, workshop, enough = site.read, site.workshop, site.enough
    one_score = read.truth.one_score
    return BuildDocument(
        name=options.name,
        verdict=select.overall([each.choice.verdict for each in decisions]),
        bundle=str(staging.final / "bundle") if bundle else None,
        bundle_digest=bundle.digest if bundle else "",
        variants=tuple(
            _variant_report(each, one, staging, read, options) for one in decisions for each in one.assessed
        ),
        version=options.version,
        report=str(staging.final / "report.html"),
        targets=tuple(each.verdict for each in decisions),
        gates=tuple(one for each in _all(decisions) for one in each.judged.gates),
        source=read.source_report(),
        data=read.data_report(),
        tools={**assemble.tool_versions(_runtimes([each.target for each in decisions])), **read.source.tools},
        tried=tuple(workshop.tried),
        sensitivity=sensitivity.reports(workshop),
        cache=cache_report(read.memory.cache),
        calibration=enough.report(),
        notes=tuple(each for each in (enough.note, one_score.sentence if one_score else "") if each),
    )


def _all(decisions: Sequence[Decision]) -> list[Assessed]:
    return [each for decision in decisions for each in decision.assessed]


def _draft(
    read: inputs.Inputs,
    decisions: Sequence[Decision],
    options: BuildOptions,
    statement: documents.Statement,
    progress: Progress,
) -> BundleDraft:
    """Prove and document what was chosen: one variant a target, and full precision for devices that it fails on."""
    assert all(decision.shipped for decision in decisions), "a pass names what ships"
    shipped = []
    for each in fallback.shipped(decisions, options):
        proof = make_proof(read, each.built, each.judged.label, progress)
        shipped.append(assemble.Shipped(target=each.target, entry=each.entry, built=each.built, proof=proof,
                                        place=each.place, gates=each.judged.gates))  # fmt: skip
    draft = assemble.draft(options.name, options.version, read, shipped)
    return documents.attach(draft, read, shipped, statement)


def _variant_report(
    each: Assessed, decision: Decision, staging: output.Staging, read: inputs.Inputs, options: BuildOptions
) -> VariantReport:
    """Copy a variant's files into the output folder, with C sources where the target wants them, and describe it."""
    relative = Path("variants") / each.judged.label
    folder = staging.draft / relative
    folder.mkdir(parents=True)
    for file in each.built.artifact.files:
        shutil.copyfile(file, folder / file.name)
    if each.target.format == C_ARRAY and each.judged.verdict != "fail":
        write_variant(each.built.artifact, read.calibration_inputs[0], _name(options), folder)
    final = staging.final / relative / each.built.artifact.model.name
    described = each.report(str(final), chosen=each.judged.label == decision.choice.chosen)
    if each is fallback.fallback_of(decision, decision.shipped, options):
        described = structs.replace(described, reason=fallback.SHIPS)
    split = delegates.note_of(each.entry, each.built.artifact, read.memory)
    return structs.replace(described, notes=(*described.notes, *split))
