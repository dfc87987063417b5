"""Recomputing a certificate's figures from the data: the artifact as it lies in the bundle, on the evaluation set.

Without the source only what the artifact alone says can be recomputed: how many labels it gets right. With the source
everything can: relative RMS, cosine, agreement, and the paired drop.
"""

from __future__ import annotations

import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct, structs

from edgeship.build import data, folding, metrics, oracle, sources, verify
from edgeship.build.assemble import GIVEN_VALUE
from edgeship.build.data import Dataset
from edgeship.build.metrics.average_precision import THRESHOLDS
from edgeship.build.progress import Progress
from edgeship.build.sources import InputShape, InputValue, SourceModel, SourceRequest
from edgeship.build.verify import Comparison, Truth
from edgeship.bundle import Bundle, Certificate, ClaimCheck
from edgeship.bundle.claims import read_certificate
from edgeship_agent.contract.errors import ConfigError, EdgeshipError, InputError
from edgeship_agent.contract.manifest import BundleManifest, Variant
from edgeship_agent.processing.detection import Decoding
from edgeship_agent.runtime import EngineOptions, open_engine
from edgeship_agent.runtime.bound import BoundModel
from edgeship_agent.runtime.engine import Array
from edgeship_agent.runtime.isa import isa_class
from edgeship_agent.runtime.predictor import MICROCONTROLLER

_MODEL_ROLES = frozenset({"model", "weights"})
#: Metrics that say how near an artifact is to its source, and nothing without it.
_AGAINST_SOURCE = frozenset({"agreement", "closeness"})
_OF_CLASS = frozenset({"recall", "f1", "auc"})


class Skipped(Struct, frozen=True, kw_only=True):
    """A variant, or a figure of it, that could not be recomputed, and why."""

    variant: str
    reason: str


class Recomputed(Struct, frozen=True, kw_only=True):
    """What came out."""

    checks: tuple[ClaimCheck, ...]
    skipped: tuple[Skipped, ...]


class _Evidence(Struct, frozen=True, kw_only=True):
    """Prepared samples, and the source's answers to them where the source was given.

    Attributes:
        samples: as the source takes them.
        fed: as the files take them.
        one_score: how one score is read as two classes, where the build read it so.
    """

    dataset: Dataset
    samples: tuple[dict[str, Array], ...]
    fed: tuple[dict[str, Array], ...]
    outputs: Mapping[str, Array] | None
    ground_truth: Path | None = None
    one_score: metrics.OneScore | None = None


def recompute(
    bundle: Bundle,
    sound: Container[str],
    evaluation: Path,
    source: Path | None,
    progress: Progress,
    *,
    ground_truth: Path | None = None,
) -> Recomputed:
    """Run every sound variant on the evaluation data and compare with its certificate.

    Args:
        bundle: whose signature and digests hold.
        sound: labels of the variants that reached their golden outputs in a process of their own: a file that kills its
            runtime must not kill this one.
        evaluation: the very data that the certificates name.
        source: the very model that the bundle was built from, or None.
        progress: told how far it is.
        ground_truth: what is in the images of a detector's evaluation data, or None.

    Raises:
        InputError: other data, or another source, than the certificates name.
    """
    manifest = bundle.manifest
    dataset = _evaluation_data(manifest, evaluation)
    _check_digest("evaluation data", evaluation, manifest.lineage.evaluation_digest, dataset.digest)
    one_score = metrics.OneScore.from_notes(manifest.lineage.notes)
    dataset = data.renumbered(dataset, one_score.names if one_score else manifest.output.labels)
    evidence = structs.replace(_evidence(dataset, manifest, source, progress), ground_truth=ground_truth,
                               one_score=one_score)  # fmt: skip
    checks: list[ClaimCheck] = []
    skipped: list[Skipped] = []
    for variant in manifest.variants:
        certificate = read_certificate(bundle.documents(variant.label), variant.label)
        if certificate is None:
            skipped.append(Skipped(variant=variant.label, reason="it carries no certificate"))
        elif variant.label not in sound:
            skipped.append(Skipped(variant=variant.label, reason="its golden outputs were not reached here"))
        else:
            found, reasons = _variant(bundle, variant, certificate, evidence, progress)
            checks += found
            skipped += [Skipped(variant=variant.label, reason=reason) for reason in reasons]
    return Recomputed(checks=tuple(checks), skipped=tuple(skipped))


def _evaluation_data(manifest: BundleManifest, path: Path) -> Dataset:
    """Read as the build read it: columns of a table by the names of the features, else in their order.

    Whether the model takes NaN is not asked again: the digest says that the build took these very samples.
    """
    contracts = manifest.input_contracts
    names = tuple(each.name for each in manifest.input_schema.get(contracts[0].tensor, ()))
    found = data.load(path, contracts, "evaluation", gaps=True, names=names)
    if found.digest == manifest.lineage.evaluation_digest:
        return found
    return data.load(path, contracts, "evaluation", gaps=True)


def _check_digest(what: str, file: Path, expected: str, got: str) -> None:
    if expected != got:
        raise InputError(f"not the {what} that the bundle names", file=file, expected=expected, got=got,
                         next_step="give the file that the bundle was built with")  # fmt: skip


def _evidence(dataset: Dataset, manifest: BundleManifest, source: Path | None, progress: Progress) -> _Evidence:
    samples = tuple(dataset.prepared([folding.whole(each) for each in manifest.input_contracts]))
    fed = tuple(dataset.prepared(manifest.input_contracts))
    if source is None:
        return _Evidence(dataset=dataset, samples=samples, fed=fed, outputs=None)
    model = _load(source, manifest)
    _check_digest("source", source, manifest.lineage.source.digest, model.digest)
    with tempfile.TemporaryDirectory(prefix="edgeship-verify-") as folder:
        opened = oracle.open_oracle(model, Path(folder) / "source")
        try:
            outputs = oracle.stacked(opened.run(samples, "source", progress), "source")
        finally:
            opened.close()
    return _Evidence(dataset=dataset, samples=samples, fed=fed, outputs=outputs)


def _load(source: Path, manifest: BundleManifest) -> SourceModel:
    """The source; where it leaves its shapes or values open, with those that the bundle was built for."""
    values = tuple(
        InputValue(name=key.removeprefix(GIVEN_VALUE), value=float(text))
        for key, text in manifest.lineage.notes.items()
        if key.startswith(GIVEN_VALUE)
    )
    try:
        if not values:
            return sources.load(source)
    except (InputError, ConfigError):
        if not source.exists():
            raise
    shapes = tuple(InputShape(name=each.name, shape=each.call_shape, dtype=each.dtype) for each in manifest.inputs)
    return sources.load(SourceRequest(text=str(source), input_shapes=shapes, input_values=values))


def _variant(
    bundle: Bundle, variant: Variant, certificate: Certificate, evidence: _Evidence, progress: Progress
) -> tuple[list[ClaimCheck], list[str]]:
    try:
        with _opened(bundle, variant) as model:
            outputs = verify.run_all(model.run, evidence.fed, f"verify {variant.label}", progress)
    except EdgeshipError as error:
        wrong = [ClaimCheck(variant=variant.label, claim="it runs on the evaluation data", holds=False,
                            detail=error.sentence())]  # fmt: skip
        return wrong, []
    manifest = bundle.manifest
    if evidence.outputs is None and certificate.metric.name in _AGAINST_SOURCE:
        return [], [f"{certificate.metric.name} compares with the source, which was not given (--source MODEL)"]
    # what a metric reads of the artifact alone is the same, whatever stands in for the source
    reference = evidence.outputs or outputs
    try:
        task = _task(certificate, evidence, reference, manifest)
    except EdgeshipError as error:
        return [], [error.sentence()]
    truth = Truth(outputs=reference, labels=evidence.dataset.labels, classes=certificate.agreement is not None,
                  metric=certificate.metric.name, closeness_limit=0.0, task=task,
                  one_score=evidence.one_score)  # fmt: skip
    here = verify.compare(truth, outputs)
    if evidence.outputs is None:
        return [_metric_check(certificate, here.metric.value, variant.label)], []
    return _with_source(certificate, here, variant), []


def _task(
    certificate: Certificate, evidence: _Evidence, reference: Mapping[str, Array], manifest: BundleManifest
) -> metrics.Metric:
    """The certificate's metric.

    Raises:
        InputError: it is made by a function of the author's, which is not run on a bundle's word.
        ConfigError: it needs a file that a bundle does not hold.
    """
    name = certificate.metric.name
    if ":" in name and name.partition(":")[0] not in _OF_CLASS:
        raise InputError("a function of the author's is not run on a bundle's word", key=name)
    limit = next((rule.limit for rule in certificate.rules if rule.id == "relative_rms"), None)
    output = manifest.output
    dataset = evidence.dataset
    if name in metrics.ERRORS:
        dataset = data.as_numbers(dataset)
    elif metrics.of_classes(name):
        dataset = data.as_classes(dataset, next(iter(reference.values())))
    decoding = Decoding.from_steps(output.postprocessing) if name in THRESHOLDS else None
    one_score = evidence.one_score
    return metrics.choose(
        metrics.MetricRequest(
            name=name, labels=dataset.labels, targets=dataset.targets, inputs=evidence.samples,
            outputs=one_score.read(reference) if one_score else reference,
            class_names=one_score.names if one_score else output.labels,
            softmax=output.activation == "softmax", closeness_limit=limit or 0.1,
            evaluation=dataset.path, files=dataset.files, ground_truth=evidence.ground_truth, decoding=decoding,
        )
    )  # fmt: skip


@contextmanager
def _opened(bundle: Bundle, variant: Variant) -> Iterator[BoundModel]:
    """The variant's model as a device runs it."""
    with tempfile.TemporaryDirectory(prefix="edgeship-verify-") as name:
        for file in variant.files:
            if file.role in _MODEL_ROLES:
                path = Path(name) / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(bundle.blob(file.digest))
        model = variant.file("model")
        assert model is not None, "the bundle was read"
        options = EngineOptions(threads=1, reference=variant.arch == MICROCONTROLLER)
        bound = BoundModel(open_engine(variant.runtime, Path(name) / model.path, options), variant)
        try:
            yield bound
        finally:
            bound.close()


def _with_source(certificate: Certificate, here: Comparison, variant: Variant) -> list[ClaimCheck]:
    # ‖q′ − f‖ and ‖q − f‖ differ by ‖q′ − q‖ at most, which is what the golden tolerance allows
    golden = variant.golden
    same = certificate.ran.isa == isa_class() and not certificate.ran.on_device
    allowed = golden.relative_rms if same else golden.other_isa_relative_rms
    checks = [_metric_check(certificate, here.metric.value, variant.label)]
    checks.append(_near(variant.label, "relative_rms", certificate.relative_rms, here.relative_rms, allowed))
    checks.append(_near(variant.label, "cosine", certificate.cosine, here.cosine, allowed))
    if certificate.agreement is not None and here.agreement is not None:
        share, value = certificate.agreement, here.agreement / here.samples
        checks.append(_within(variant.label, "agreement", (share.low, share.value, share.high), value))
    metric = certificate.metric
    checks.append(_within(variant.label, f"drop of {metric.name}", (metric.drop_low, metric.drop, metric.drop_high),
                          here.metric.drop))  # fmt: skip
    return checks


def _metric_check(certificate: Certificate, value: float, label: str) -> ClaimCheck:
    metric = certificate.metric
    return _within(label, metric.name, (metric.low, metric.value, metric.high), value)


def _within(label: str, name: str, claimed: Sequence[float], here: float) -> ClaimCheck:
    """Whether a figure lies within the claimed interval; equal figures are said to be equal."""
    low, value, high = claimed
    holds = low <= here <= high
    same = "the same" if here == value else f"claimed {value:.6g} ({low:.6g} to {high:.6g})"
    return ClaimCheck(variant=label, claim=f"{name} recomputed from the data: {here:.6g}, {same}", holds=holds,
                      detail="" if holds else f"outside {low:.6g} to {high:.6g}")  # fmt: skip


def _near(label: str, name: str, claimed: float | None, here: float | None, allowed: float) -> ClaimCheck:
    if claimed is None or here is None:
        return ClaimCheck(variant=label, claim=f"{name} recomputed from the data", holds=claimed is here,
                          detail="" if claimed is here else f"claimed {claimed}, got {here}")  # fmt: skip
    holds = abs(here - claimed) <= allowed
    same = "the same" if here == claimed else f"claimed {claimed:.6g}"
    return ClaimCheck(variant=label, claim=f"{name} recomputed from the data: {here:.6g}, {same}", holds=holds,
                      detail="" if holds else f"more than {allowed:.3g} away from {claimed:.6g}")  # fmt: skip
