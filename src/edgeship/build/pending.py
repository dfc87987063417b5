"""What an undecided build leaves in its folder, so that a bundle can be written later from the same artifacts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, structs

from edgeship.build import assemble, ci, documents, few_labels, labelling, output
from edgeship.build.decide import Assessed, Decision, rates_of
from edgeship.build.fallback import fallback_of
from edgeship.build.inputs import Inputs
from edgeship.build.metrics.paired import first_of
from edgeship.build.options import BuildOptions
from edgeship.build.progress import Progress
from edgeship.build.proof import make_proof
from edgeship.build.schema import BuildDocument, GateReport
from edgeship.build.unlabelled import Field
from edgeship.bundle import BundleDraft, LineageDocument, VariantDraft
from edgeship_agent.contract.errors import VerificationError
from edgeship_agent.contract.manifest import FULL_PRECISION

STATE_FILE: Final = "few_labels.json"
DRAFT_FILE: Final = "pending.msgpack"
_MODEL_ROLES: Final = frozenset({"model", "weights"})


class PendingBundle(Struct, frozen=True, kw_only=True):
    """A bundle that may be, without the model files, which lie in ``variants/``.

    Attributes:
        draft: with every variant that may ship; the data of its model files is empty.
        digests: label → file name → sha256 of each model file.
        latencies_ms: label → measured times, for the report.
        lineage, addition: for the documents that its variants will share.
        base: the build that the report compares with, as it was then.
        fallbacks: label → label of the full precision that ships beside it.
    """

    draft: BundleDraft
    digests: dict[str, dict[str, str]]
    latencies_ms: dict[str, tuple[float, ...]]
    lineage: LineageDocument
    addition: documents.CardAddition
    base: BuildDocument | None = None
    fallbacks: dict[str, str] = {}


def undecided_of(decisions: Sequence[Decision], metric: str) -> list[Assessed]:
    """Variants that labels alone keep from passing."""
    return [
        each
        for decision in decisions
        for each in decision.assessed
        if each.judged.verdict == "inconclusive"
        and all(gate.holds or (gate.holds is None and gate.id == metric) for gate in each.judged.gates)
    ]


def leave(
    read: Inputs,
    decisions: Sequence[Decision],
    options: BuildOptions,
    statement: documents.Statement,
    draft: Path,
    progress: Progress,
) -> bool:
    """Write the table to label, its pictures, the state and the pending bundle; nothing where all is decided.

    Args:
        read: what the build works from.
        decisions: what was decided without labels.
        options: of the build, with the model's name.
        statement: what the user states.
        draft: the output folder in the making.
        progress: told what is to be labelled.

    Returns:
        Whether labels are wanted.
    """
    field = read.field
    open_ = undecided_of(decisions, field.metric) if field is not None else []
    if field is None or not open_:
        return False
    state = _state(field, open_, decisions, read, options)
    labelling.write(draft, field.samples, state)
    output.write_synced(draft / STATE_FILE, encode_state(state))
    likely = [(decision, each) for decision in decisions for each in decision.assessed
              if each in open_ or each is decision.shipped]  # fmt: skip
    spares = {each.judged.label: fallback_of(decision, each, options) for decision, each in likely}
    ships = {each.judged.label: each for each in (*(each for _, each in likely), *spares.values()) if each is not None}
    waiting = structs.replace(
        _pending(read, list(ships.values()), options, statement, progress),
        fallbacks={label: spare.judged.label for label, spare in spares.items() if spare is not None},
    )
    output.write_synced(draft / DRAFT_FILE, msgspec.msgpack.encode(waiting))
    progress.step("label", f"{len(state.rows)} disagreements are in {labelling.LABELS_FILE}: label from the top, "
                           "as many as you like", "undecided")  # fmt: skip
    return True


def encode_state(state: few_labels.LabellingState) -> bytes:
    """few_labels.json."""
    return msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n"


def bundle_of(
    pending: PendingBundle,
    folder: Path,
    chosen: Sequence[str],
    notes: Mapping[str, str],
    gates: Sequence[GateReport],
) -> BundleDraft:
    """The bundle of what was chosen at last, with its documents.

    Args:
        pending: from the build.
        folder: the build's, with the model files.
        chosen: labels, one a target.
        notes: lineage to add: what the labels said.
        gates: every rule, as it was decided at last.

    Raises:
        VerificationError: a model file is not the one that was judged.
    """
    by_label = {each.variant.label: each for each in pending.draft.variants}
    spares = (pending.fallbacks.get(label) for label in chosen)
    chosen = [each for pair in zip(chosen, spares, strict=True) for each in pair if each]
    quantized = {label.rsplit("/", 1)[0] for label in chosen if not label.endswith(f"/{FULL_PRECISION}")}
    kept = {key: value for key, value in pending.draft.lineage.notes.items() if "/" not in key or key in quantized}
    lineage = structs.replace(pending.draft.lineage, notes={**kept, **notes})
    variants = tuple(_with_models(by_label[label], folder, pending.digests[label]) for label in chosen)
    draft = documents.judged_again(structs.replace(pending.draft, variants=variants, lineage=lineage), gates)
    return documents.share(draft, pending.lineage, pending.addition)


def _with_models(variant: VariantDraft, folder: Path, digests: Mapping[str, str]) -> VariantDraft:
    files = []
    for file in variant.files:
        data = file.data
        if file.role in _MODEL_ROLES:
            path = folder / "variants" / variant.variant.label / file.path
            try:
                data = path.read_bytes()
            except OSError as error:
                raise VerificationError(f"the variant is gone: {error.strerror}", file=path,
                                        next_step="build again") from error  # fmt: skip
            if (found := hashlib.sha256(data).hexdigest()) != digests[file.path]:
                raise VerificationError("not the file that was judged", file=path, expected=digests[file.path],
                                        got=found, next_step="build again")  # fmt: skip
        files.append(structs.replace(file, data=data))
    return structs.replace(variant, files=tuple(files))


def _state(
    field: Field, open_: Sequence[Assessed], decisions: Sequence[Decision], read: Inputs, options: BuildOptions
) -> few_labels.LabellingState:
    undecided = [
        few_labels.Undecided(
            label=each.judged.label, target=each.target.id, answers=each.built.disagreements or {},
            limit=next(gate.limit or 0.0 for gate in each.judged.gates if gate.id == field.metric),
            rates=rates_of(each.built.comparison),
        )
        for each in open_
    ]  # fmt: skip
    known = few_labels.LabellingState(
        metric=field.metric, unlabelled="", digest="", samples=0, seed=0, rows=(), source=(), variants=(),
        classes=int(first_of(read.truth.judged(read.truth.outputs))[0].size), class_names=read.truth.class_names,
        strict=options.strict, key=str(options.key.absolute()) if options.key else "",
        fallbacks={each.judged.label: each.judged.fallbacks for one in decisions for each in one.assessed},
        refused={one.target.id: one.refused for one in decisions},
    )  # fmt: skip
    return few_labels.new_state(field, undecided, few_labels.choose_rows(field, undecided), known)


def _pending(
    read: Inputs,
    ships: Sequence[Assessed],
    options: BuildOptions,
    statement: documents.Statement,
    progress: Progress,
) -> PendingBundle:
    shipped = [
        assemble.Shipped(target=each.target, entry=each.entry, built=each.built,
                         proof=make_proof(read, each.built, each.judged.label, progress),
                         place=each.place, gates=each.judged.gates)
        for each in ships
    ]  # fmt: skip
    draft = documents.certify_all(assemble.draft(options.name, options.version, read, shipped), read, shipped)
    digests: dict[str, dict[str, str]] = {}
    variants = []
    for each in draft.variants:
        models = [file for file in each.files if file.role in _MODEL_ROLES]
        digests[each.variant.label] = {file.path: hashlib.sha256(file.data).hexdigest() for file in models}
        files = tuple(structs.replace(file, data=b"") if file in models else file for file in each.files)
        variants.append(structs.replace(each, files=files))
    latencies = {each.judged.label: tuple(each.latency.times_ms) for each in ships}
    return PendingBundle(
        draft=structs.replace(draft, variants=tuple(variants)),
        digests=digests,
        latencies_ms=latencies,
        lineage=documents.lineage_of(draft, read, statement),
        addition=statement.addition,
        base=ci.read_base(options.base),
    )
