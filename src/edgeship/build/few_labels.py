"""``few_labels.json``: what a build keeps so that labels of disagreements decide later, without a rebuild.

A file on disk: a JSON map with a version. The rows of ``to_label.csv`` are the disagreements of all undecided variants
in one random order, so that any first part of them is a random sample of the disagreements of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from edgeship.build.metric_gate import FieldEvidence, labels_wanted
from edgeship.build.schema import FieldReport
from edgeship.build.unlabelled import SEED, AnswerSet, Field, labelling_order
from edgeship.statistics import Disagreements, confidence_of_look, disagreement_drop

STATE_VERSION: Final = 1
#: Rows beyond what the rates seen so far would need: the rates of the field may be less telling.
_RESERVE: Final = 1.5
_FEWEST_ROWS: Final = 50
_MOST_ROWS: Final = 2_000
#: What a person writes who cannot tell: neither was right.
UNKNOWN: Final = "?"


class PendingVariant(Struct, frozen=True, kw_only=True):
    """A variant that only its metric keeps from passing, or from failing.

    Attributes:
        label: ``target/runtime/precision``.
        target: of it; variants of one target share the error that is allowed.
        limit: largest drop.
        disagreements: unlabelled samples on which it differs from the source.
        answers: row of to_label.csv (from 0) → what it says there; other rows are not its disagreements.
        rates: who is right where the two differ on the evaluation set, where that is known.
    """

    label: str
    target: str
    limit: float
    disagreements: int
    answers: dict[int, AnswerSet]
    rates: Disagreements | None = None


class Look(Struct, frozen=True, kw_only=True):
    """One reading of the labels.

    Attributes:
        labelled: rows that had one.
        digest: sha256 of the labels in order; the same labels read again are the same look.
    """

    labelled: int
    digest: str


class LabellingState(Struct, frozen=True, kw_only=True):
    """The whole of ``few_labels.json``.

    Attributes:
        metric: that the labels judge, ``top1`` or another top-k.
        unlabelled: where the samples lay; ``digest``: sha256 over their contents in order.
        samples: how many there were.
        seed: of the order in which they are labelled.
        classes: how many the model has; ``class_names``: empty where they have none.
        rows: the unlabelled sample of each row, by position; ``source``: the source's answer there.
        strict: a fallback is a failure.
        fallbacks: label of every variant → what was given up to build it, in the order of preference.
        refused: target → sentences about candidates that could not be built.
        key: author key file, or empty for the user's own.
    """

    schema_version: int = STATE_VERSION
    metric: str
    unlabelled: str
    digest: str
    samples: int
    seed: int
    classes: int
    class_names: tuple[str, ...]
    rows: tuple[int, ...]
    source: tuple[AnswerSet, ...]
    variants: tuple[PendingVariant, ...]
    strict: bool
    fallbacks: dict[str, tuple[str, ...]]
    refused: dict[str, tuple[str, ...]]
    key: str = ""
    looks: tuple[Look, ...] = ()


class Undecided(Struct, frozen=True, kw_only=True):
    """A variant for which labels are wanted.

    Attributes:
        answers: unlabelled sample → what the variant says where the source says something else.
        limit: largest drop.
        rates: see :class:`PendingVariant`.
    """

    label: str
    target: str
    limit: float
    answers: Mapping[int, AnswerSet]
    rates: Disagreements | None = None


def choose_rows(field: Field, undecided: Sequence[Undecided]) -> list[int]:
    """The samples to label, in their random order: as many as the neediest variant is likely to need, and a reserve.

    Args:
        field: the unlabelled samples.
        undecided: at least one variant.
    """
    union = {index for each in undecided for index in each.answers}
    order = [index for index in labelling_order(len(field.samples)) if index in union]
    wanted = _FEWEST_ROWS
    for each in undecided:
        counts = Disagreements(samples=len(field.samples), found=len(each.answers))
        more = labels_wanted(FieldEvidence(counts=counts, metric=field.metric, rates=each.rates), each.limit)
        own = len(each.answers) if more is None else min(len(each.answers), round(_RESERVE * more))
        wanted = max(wanted, _rows_until(order, each.answers, own))
    return order[: min(wanted, _MOST_ROWS)]


def _rows_until(order: Sequence[int], answers: Mapping[int, AnswerSet], count: int) -> int:
    """How many rows hold ``count`` disagreements of one variant."""
    seen = 0
    for position, index in enumerate(order, start=1):
        seen += index in answers
        if seen >= count:
            return position
    return len(order)


def new_state(
    field: Field, undecided: Sequence[Undecided], rows: Sequence[int], known: LabellingState
) -> LabellingState:
    """The state before any label.

    Args:
        field: the unlabelled samples.
        undecided: variants.
        rows: from :func:`choose_rows`.
        known: everything that is not about samples.
    """
    import msgspec

    position = {index: row for row, index in enumerate(rows)}
    variants = tuple(
        PendingVariant(
            label=each.label, target=each.target, limit=each.limit, disagreements=len(each.answers), rates=each.rates,
            answers={position[index]: answer for index, answer in each.answers.items() if index in position},
        )
        for each in undecided
    )  # fmt: skip
    return msgspec.structs.replace(
        known, metric=field.metric, unlabelled=str(field.samples.path.absolute()),
        digest="sha256:" + hashlib.sha256("\n".join(field.digests).encode()).hexdigest(), samples=len(field.samples),
        seed=SEED, rows=tuple(rows), source=tuple(field.source[index] for index in rows), variants=variants,
    )  # fmt: skip


def next_look(state: LabellingState, labels: Sequence[int | None]) -> tuple[Look, ...]:
    """The looks, with this one where its labels were not looked at before.

    Args:
        state: so far.
        labels: class of each labelled row, in order; None where a person could not tell.
    """
    digest = hashlib.sha256(repr(list(labels)).encode()).hexdigest()
    if not labels or (state.looks and state.looks[-1].digest == digest):
        return state.looks
    return (*state.looks, Look(labelled=len(labels), digest=digest))


def evidence(state: LabellingState, variant: PendingVariant, labels: Sequence[int | None]) -> FieldEvidence:
    """What the labels say of one variant.

    Args:
        state: with this look in it.
        variant: one of its variants.
        labels: see :func:`next_look`.
    """
    outcomes = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for row, label in enumerate(labels):
        if row in variant.answers:
            outcomes[label in state.source[row], label in variant.answers[row]] += 1
    counts = Disagreements(
        samples=state.samples, found=variant.disagreements, both=outcomes[True, True],
        only_reference=outcomes[True, False], only_candidate=outcomes[False, True], neither=outcomes[False, False],
    )  # fmt: skip
    claims = sum(each.target == variant.target for each in state.variants)
    return FieldEvidence(
        counts=counts, metric=state.metric, look=max(1, len(state.looks)), claims=claims, rates=variant.rates
    )


def report(field: FieldEvidence) -> FieldReport:
    """For build.json."""
    counts, confidence = field.counts, confidence_of_look(field.look, field.claims)
    found = disagreement_drop(counts, confidence)
    return FieldReport(
        metric=field.metric, samples=round(counts.samples), disagreements=round(counts.found),
        labelled=round(counts.labelled), both=round(counts.both), only_source=round(counts.only_reference),
        only_variant=round(counts.only_candidate), neither=round(counts.neither), drop=found.drop, drop_low=found.low,
        drop_high=found.high, confidence=confidence, look=field.look,
    )  # fmt: skip
