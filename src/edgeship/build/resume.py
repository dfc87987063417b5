"""``edgeship gate resume``: labels of disagreements are read back and the verdict is decided again; no rebuild."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct, structs

from edgeship.build import ci, few_labels, labelling, output, pending, pipeline, select
from edgeship.build.fallback import SHIPS
from edgeship.build.few_labels import LabellingState, PendingVariant
from edgeship.build.gate import verdict_of
from edgeship.build.metric_gate import Answer, FieldEvidence, judge_field
from edgeship.build.pending import PendingBundle
from edgeship.build.report import write_report
from edgeship.build.schema import BuildDocument, GateReport, TargetVerdict, VariantReport
from edgeship.build.select import Judged
from edgeship.bundle import AuthorKey, write_bundle
from edgeship_agent.contract.errors import ConfigError, ContractError
from edgeship_agent.contract.wire import read_json

T = TypeVar("T")
_REBUILD: Final = "build again with --unlabelled DIR"


class Resumed(Struct, frozen=True, kw_only=True):
    """A verdict that was decided again.

    Attributes:
        document: the new build.json.
        labelled: in words, how many rows had a label.
        sentences: what the labels say of each variant, with what would decide.
    """

    document: BuildDocument
    labelled: str
    sentences: tuple[str, ...]


def resume(folder: Path) -> Resumed:
    """Read the labels in a build's folder, decide again, and write bundle, report and build.json.

    Args:
        folder: of the build.

    Raises:
        ConfigError: the folder holds no build that waits for labels.
        InputError: the table was not filled in as it asks.
        VerificationError: a variant's file is not the one that was judged.
    """
    state = _json(folder / pending.STATE_FILE, LabellingState)
    if state.schema_version != few_labels.STATE_VERSION:
        raise ConfigError("unknown version", file=folder / pending.STATE_FILE, key="schema_version",
                          expected=few_labels.STATE_VERSION, got=state.schema_version, next_step=_REBUILD)  # fmt: skip
    document = _json(folder / "build.json", BuildDocument)
    waiting = _pending_bundle(folder / pending.DRAFT_FILE)
    labels = labelling.read(folder / labelling.LABELS_FILE, state)
    state = structs.replace(state, looks=few_labels.next_look(state, labels))
    # a look is spent when it is taken, whatever happens next
    output.replace_synced(folder / pending.STATE_FILE, pending.encode_state(state))
    found = {each.label: few_labels.evidence(state, each, labels) for each in state.variants}
    answers = {each.label: judge_field(found[each.label], each.limit) for each in state.variants}
    document = _decide(document, state, found, answers)
    document = _write(folder, document, state, waiting, answers)
    sentences = tuple(_sentence(each, answers[each.label]) for each in state.variants)
    return Resumed(document=document, labelled=labelling.labelled_rows(labels), sentences=sentences)


def _sentence(variant: PendingVariant, answer: Answer) -> str:
    return f"{variant.label}: {answer.sentence}" + (f"; {answer.hint}" if answer.hint else "")


def _decide(
    document: BuildDocument, state: LabellingState, found: dict[str, FieldEvidence], answers: dict[str, Answer]
) -> BuildDocument:
    """The document with new gates, verdicts and choices."""
    gates = tuple(_gate(each, state.metric, answers.get(_label(each))) for each in document.gates)
    judged = {}
    for label, fallbacks in state.fallbacks.items():
        own = tuple(each for each in gates if _label(each) == label)
        judged[label] = Judged(label=label, fallbacks=fallbacks, gates=own, verdict=verdict_of(own))
    targets = []
    for target in dict.fromkeys(each.target for each in document.targets):
        candidates = [each for label, each in judged.items() if label.startswith(f"{target}/")]
        choice = select.choose(candidates, strict=state.strict, refused=state.refused.get(target, ()))
        targets.append(TargetVerdict(target=target, verdict=choice.verdict, chosen=choice.chosen, reason=choice.reason))
    chosen = {each.chosen for each in targets}
    variants = tuple(
        _variant(each, judged[_label(each)], chosen, found.get(_label(each))) for each in document.variants
    )
    verdict = select.overall([each.verdict for each in targets])
    return structs.replace(document, verdict=verdict, gates=gates, targets=tuple(targets), variants=variants)


def _gate(gate: GateReport, metric: str, answer: Answer | None) -> GateReport:
    if gate.id != metric or answer is None:
        return gate
    drop = answer.difference
    return structs.replace(
        gate, value=drop.drop, low=drop.low, high=drop.high, n=answer.n, holds=answer.holds, sentence=answer.sentence,
        next=answer.hint, evidence=answer.evidence,
    )  # fmt: skip


def _variant(variant: VariantReport, judged: Judged, chosen: set[str], field: FieldEvidence | None) -> VariantReport:
    broken = select.broken(judged.gates)
    ships = judged.label in chosen
    return structs.replace(
        variant, verdict=judged.verdict, chosen=ships,
        reason=broken[0] if broken else "holds to every rule" if ships else "holds to every rule, not needed",
        field=few_labels.report(field) if field else variant.field,
    )  # fmt: skip


def _write(
    folder: Path, document: BuildDocument, state: LabellingState, waiting: PendingBundle, answers: dict[str, Answer]
) -> BuildDocument:
    """Bundle first, so that build.json never names one that is not there; without a pass, its removal last."""
    chosen = [each.chosen for each in document.targets]
    if not any(each.id == state.metric and each.holds is None for each in document.gates):
        document = structs.replace(document, to_label="")
    if document.verdict == "pass":
        notes = {f"{state.metric} of {label}": answer.sentence for label, answer in answers.items() if label in chosen}
        key = AuthorKey.load_or_create(Path(state.key) if state.key else None)
        written = write_bundle(
            folder / "bundle", pending.bundle_of(waiting, folder, chosen, notes, document.gates), key
        )
        spares = {waiting.fallbacks.get(label) for label in chosen}
        variants = tuple(
            structs.replace(each, reason=SHIPS) if _label(each) in spares else each for each in document.variants
        )
        document = structs.replace(
            document, bundle=str((folder / "bundle").absolute()), bundle_digest=written.digest, variants=variants
        )
    else:
        document = structs.replace(document, bundle=None, bundle_digest="")
    output.replace_synced(folder / "report.md", ci.comment(document, waiting.base).encode())
    write_report(document, folder / "report.html", latencies_ms=waiting.latencies_ms)
    output.replace_synced(folder / "build.json", pipeline.encode(document))
    if document.bundle is None:
        shutil.rmtree(folder / "bundle", ignore_errors=True)
    return document


def _label(one: GateReport | VariantReport) -> str:
    return f"{one.target}/{one.runtime}/{one.precision}"


def _json(path: Path, kind: type[T]) -> T:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"no build here waits for labels: {error.strerror}", file=path, next_step=_REBUILD) from error
    return read_json(data, kind, file=path)


def _pending_bundle(path: Path) -> PendingBundle:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=PendingBundle)
    except OSError as error:
        raise ConfigError(f"no build here waits for labels: {error.strerror}", file=path, next_step=_REBUILD) from error
    except msgspec.DecodeError as error:
        raise ContractError(f"not what a build left: {error}", file=path, next_step=_REBUILD) from error
