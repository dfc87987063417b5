"""``edgeship inspect``, ``verify`` and ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeship.cli import console
from edgeship.cli.watched import watched
from edgeship_agent.contract.errors import ConfigError, VerificationError

if TYPE_CHECKING:
    from edgeship.build.inspection import Inspection
    from edgeship.bundle import Bundle, VerifyReport

_SHOWN_OPERATORS = 12
_SHOWN_CLASSES = 20
_SHOWN_CLAIMS = 5


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@console.json_option
@watched
def inspect(path: Path, as_json: bool) -> None:
    """Show what a model file, data file or bundle is.

    The formats of frameworks are read in that framework's own environment; nothing else is run.
    """
    from edgeship.build.inspection import inspect_path

    found = inspect_path(path)
    if as_json:
        console.result_json(found)
    else:
        _show(found)
    console.next_steps(_after_inspect(found))


def _show(found: Inspection) -> None:
    console.result(f"{found.kind}  {found.path}")
    console.result(f"{found.size_bytes:,} bytes  {found.digest}".rstrip())
    for name, value in found.facts.items():
        if value:
            console.result(f"{name}: {value}")
    if found.weight_bytes:
        console.result(f"weights: {found.weight_bytes:,} bytes")
    if found.tensors:
        console.result("")
        rows = [
            [each.role, each.name, each.dtype, "[" + ", ".join(map(str, each.shape)) + "]", _range(each.low, each.high),
             _quantized(each.scale, each.zero_point), f"{each.not_finite} not finite" if each.not_finite else ""]
            for each in found.tensors
        ]  # fmt: skip
        console.table(["", "name", "dtype", "shape", "range", "quantized", ""], rows)
    if found.operators:
        names = list(found.operators.items())
        more = len(names) - _SHOWN_OPERATORS
        text = ", ".join(f"{name} ×{count}" for name, count in names[:_SHOWN_OPERATORS])
        console.result(f"\noperators: {text}" + (f" and {more} more kinds" if more > 0 else ""))
    if found.classes:
        names = list(found.classes.items())
        more = len(names) - _SHOWN_CLASSES
        text = ", ".join(f"{name} ×{count}" for name, count in names[:_SHOWN_CLASSES])
        console.result(f"\nclasses: {text}" + (f" and {more} more" if more > 0 else ""))


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:g} … {high:g}"


def _quantized(scale: float, zero_point: int) -> str:
    return f"scale {scale:g}, zero {zero_point}" if scale else ""


def _after_inspect(found: Inspection) -> str:
    if found.kind in {"onnx", "tflite"}:
        return f"edgeship targets check {console.word(found.path)} -t raspberry-pi-5"
    if found.kind in {"data", "images", "openvino"}:
        return "edgeship build --help"
    verb = "verify" if found.kind == "bundle" else "init"
    return f"edgeship {verb} {console.word(found.path)}"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--evaluation", type=click.Path(path_type=Path), help="The evaluation data: recompute the metric too.")
@click.option("--source", type=click.Path(path_type=Path), help="The trained model: recompute closeness and drop too.")
@click.option("--ground-truth", type=click.Path(path_type=Path), help="COCO JSON or YOLO folder, for a detector's mAP.")
@console.json_option
@watched
def verify(
    bundle: Path, evaluation: Path | None, source: Path | None, ground_truth: Path | None, as_json: bool
) -> None:
    """Verify a bundle: signature, digests, certificates, golden outputs on each runtime that is installed.

    Every figure of a certificate that follows from its counts is recomputed; with --evaluation the counts themselves,
    with --source also how close each variant is to the source. Exit code 1 where anything does not fit.
    """
    from edgeship.bundle import Bundle
    from edgeship.bundle import verify as verify_bundle
    from edgeship.bundle.layout import LAYOUT_FILE

    if source is not None and evaluation is None:
        raise ConfigError("the source is compared on the evaluation data", key="--source", expected="--evaluation F",
                          next_step=f"edgeship verify {console.word(bundle)} --source {console.word(source)} "
                                    "--evaluation F")  # fmt: skip
    inner = bundle / "bundle"
    opened = Bundle.open(inner if (inner / LAYOUT_FILE).is_file() else bundle)
    report = verify_bundle(opened)
    if evaluation is not None:
        report = _with_data(opened, report, evaluation, source, ground_truth)
    if as_json:
        console.result_json(report)
    _show_report(report)
    _refuse(report, opened.directory)
    if not as_json:
        console.result(f"{report.name} {report.version} verified: {report.digest}")
    console.next_steps(f"edgeship releases add {console.word(opened.directory)}")


def _with_data(
    opened: Bundle, report: VerifyReport, evaluation: Path, source: Path | None, ground_truth: Path | None
) -> VerifyReport:
    """The report with the figures that take the data."""
    import msgspec

    from edgeship.build.documents.recompute import recompute
    from edgeship.build.progress import Silence
    from edgeship.bundle import NotRun

    sound = {each.variant for each in report.golden if each.passed}
    found = recompute(opened, sound, evaluation, source, Silence(), ground_truth=ground_truth)
    not_run = tuple(NotRun(variant=each.variant, reason=each.reason) for each in found.skipped)
    return msgspec.structs.replace(report, claims=(*report.claims, *found.checks), not_run=(*report.not_run, *not_run))


def _refuse(report: VerifyReport, directory: Path) -> None:
    """Raise what does not fit."""
    wrong = [each for each in report.claims if not each.holds]
    if wrong:
        raise VerificationError(
            f"{len(wrong)} of {len(report.claims)} claims of the certificates do not hold", file=directory,
            got="; ".join(f"{each.variant}: {each.claim}: {each.detail}" for each in wrong[:_SHOWN_CLAIMS]),
            next_step="do not ship this bundle; build it again",
        )  # fmt: skip
    failed = [each for each in report.golden if not each.passed]
    if failed:
        raise VerificationError(
            f"golden outputs of {len(failed)} of {len(report.golden)} variants were not reached", file=directory,
            got="; ".join(f"{each.variant}: {each.detail}" for each in failed),
            next_step="do not ship this bundle; build it again",
        )  # fmt: skip


def _show_report(report: VerifyReport) -> None:
    console.step("signature", f"by author key {report.author_key}")
    console.step("digests", f"{report.blobs} blobs, {report.size_bytes:,} bytes")
    _show_claims(report)
    for each in report.golden:
        if each.passed:
            place = "" if each.same_isa else " (golden outputs from another ISA class: wider limit)"
            rms = 0.0 if each.relative_rms is None else each.relative_rms
            console.step("golden", f"{each.variant}: relative RMS {rms:.2g} ≤ {each.limit:.2g} on {each.samples} "
                         f"samples, runtime {each.runtime_version}{place}")  # fmt: skip
        else:
            console.step("golden", f"{each.variant}: {each.detail}", "failed")
    for missing in report.not_run:
        console.step("not run", f"{missing.variant}: {missing.reason}", "undecided")


def _show_claims(report: VerifyReport) -> None:
    """One line a variant for what was recomputed, and one for each claim that took data or does not hold."""
    for variant in dict.fromkeys(each.variant for each in report.claims):
        claims = [each for each in report.claims if each.variant == variant]
        kept = sum(each.holds for each in claims)
        glyph = "done" if kept == len(claims) else "failed"
        console.step("claims", f"{variant}: {kept} of {len(claims)} hold, recomputed", glyph)
        for each in claims:
            if not each.holds:
                console.step("", f"{each.claim}: {each.detail}", "failed")
            elif "from the data" in each.claim:
                console.step("", each.claim, "note")
    for variant in report.without_certificate:
        console.step("claims", f"{variant}: it carries no certificate", "undecided")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-t", "--target", required=True, help="Target whose files are wanted.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="New or empty folder.")
@click.option(
    "--as",
    "carrier",
    type=click.Choice(["mender", "deb"]),
    help="Write a package that carries the bundle to devices: a Mender artifact, a Debian package.",
)
@console.json_option
def export(bundle: Path, target: str, output: Path, carrier: str | None, as_json: bool) -> None:
    """Copy one target's files out of a bundle; signature and digests are checked on the way.

    For a microcontroller they come with C sources. There, BUNDLE may be a full-int8 .tflite file, too. With --as they
    come as a package of another updater, that hands the bundle to `edgeship-agent install`.
    """
    if carrier is not None:
        digest, files = _export_carrier(bundle, target, carrier, output.absolute())
    elif bundle.suffix.lower() == ".tflite":
        from edgeship.build import target_files
        from edgeship.build.microcontroller.export import export_file

        digest = None
        files = export_file(bundle, target_files.load(target), output.absolute())
    else:
        digest, files = _export_bundle(bundle, target, output.absolute())
    if as_json:
        console.result_json({"schema_version": 1, "bundle": digest, "files": [str(file) for file in files]})
    else:
        for file in files:
            console.result(str(file))
    shown = next((file for file in files if file.suffix in _MODELS), bundle if carrier is None else _layout(bundle))
    console.next_steps(f"edgeship inspect {console.word(shown)}")


def _layout(bundle: Path) -> Path:
    """A build's folder holds its bundle as ``bundle``."""
    from edgeship.bundle.layout import LAYOUT_FILE

    inner = bundle / "bundle"
    return inner if (inner / LAYOUT_FILE).is_file() else bundle


def _export_carrier(bundle: Path, target: str, carrier: str, output: Path) -> tuple[str | None, tuple[Path, ...]]:
    from edgeship.bundle import Bundle, export_carrier

    opened = Bundle.open(_layout(bundle))
    return opened.digest, export_carrier(opened, target, carrier, output)


def _export_bundle(bundle: Path, target: str, output: Path) -> tuple[str, tuple[Path, ...]]:
    from edgeship.bundle import Bundle
    from edgeship.bundle import export as export_files

    opened = Bundle.open(_layout(bundle))
    if not any(each.target == target and each.arch == "cortex-m" for each in opened.manifest.variants):
        return opened.digest, export_files(opened, target, output)
    from edgeship.build.microcontroller.export import models_of, write_beside

    opened.verify_signature()
    sources = models_of(opened, target)
    return opened.digest, (*export_files(opened, target, output), *write_beside(sources, output))


_MODELS = {".onnx", ".tflite", ".xml"}
