"""What comes next for the models of one release: pure, from where the attempt of each of them stands.

Each is obtained, verified and staged by itself. From then on there is one step for all: one pointer is swapped, they
are on probation together, and they are committed or taken back together. A model alone is a release of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

from msgspec import structs

from edgeship_agent.contract.goal import ModelGoal
from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.contract.pointer import ArmKey
from edgeship_agent.update.attempt import Attempt, Member, new_attempt
from edgeship_agent.update.machine import Event, can_cancel
from edgeship_agent.update.traffic import MAIN_ARM, arms_of

#: Reason of what another model of the same release has caused.
RELEASE_MEMBER: Final = "release_member"

_S = UpdateState


class Work(str, Enum):
    """What is to be done next for a release."""

    PREPARE = "prepare"  # one of them is not staged yet
    END = "end"  # one of them ended before anything was switched: so do the others
    BEGIN = "begin"  # all are staged
    SWITCH = "switch"
    PROVE = "prove"
    COMMIT = "commit"  # all had passed, and not all records of it were written
    TURN_BACK = "turn_back"  # one of them is taken back: so are the others
    RESTORE = "restore"
    DONE = "done"


#: What the least advanced of them is ready for, once all are staged.
_FIRST_WORK: Final = {_S.STAGED: Work.BEGIN, _S.ACTIVATING: Work.SWITCH, _S.PROBATION: Work.PROVE}


def next_work(release: Sequence[Attempt]) -> Work:
    """What is to be done next; a restart in the middle of writing a step finds the same.

    Args:
        release: the newest snapshot of each of its attempts.

    >>> from msgspec.structs import replace
    >>> eye = Attempt(deployment="d", attempt=1, model="eye", arm="main", version="1", digest="x", size_bytes=1)
    >>> staged, late = replace(eye, state=UpdateState.STAGED), replace(eye, state=UpdateState.DOWNLOADING)
    >>> next_work([staged, late]).value, next_work([staged, staged]).value
    ('prepare', 'begin')
    >>> next_work([staged, replace(eye, state=UpdateState.REJECTED)]).value
    'end'
    """
    under_way = [attempt for attempt in release if not attempt.state.is_terminal]
    states = {attempt.state for attempt in under_way}
    ends = {attempt.state for attempt in release if attempt.state.is_terminal} - {_S.COMMITTED}
    if not states:
        return Work.DONE
    if _S.ROLLING_BACK in states or ends:
        return _work_of_return(states, ends)
    if not states <= _FIRST_WORK.keys():
        return Work.PREPARE
    first = next(work for state, work in _FIRST_WORK.items() if state in states)
    return Work.COMMIT if first is Work.PROVE and _all_passed(release, under_way) else first


def _work_of_return(states: set[UpdateState], ends: set[UpdateState]) -> Work:
    if states == {_S.ROLLING_BACK}:
        return Work.RESTORE
    nothing_was_switched = all(map(can_cancel, states)) and not ends & {_S.ROLLED_BACK, _S.INCONSISTENT}
    return Work.END if nothing_was_switched else Work.TURN_BACK


def _all_passed(release: Sequence[Attempt], under_way: Sequence[Attempt]) -> bool:
    """Whether one was committed after the others went on probation: all had passed, and power failed in writing it."""
    newest = max((attempt.seq for attempt in release if attempt.state is _S.COMMITTED), default=0)
    return newest > max(attempt.seq for attempt in under_way)


def cause_of(release: Sequence[Attempt]) -> Attempt | None:
    """The attempt whose end or fault the others share: the first that has a reason of its own."""
    faulty = [a for a in release if a.state is not _S.COMMITTED and a.reason and a.reason != RELEASE_MEMBER]
    at_fault = [a for a in faulty if a.state.is_terminal or a.state is _S.ROLLING_BACK]
    return at_fault[0] if at_fault else None


def shared_reason(cause: Attempt | None) -> dict[str, str]:
    """Reason and detail of an attempt that ends because another one of its release did."""
    if cause is None:
        return {"reason": RELEASE_MEMBER, "detail": "another model of the release could not go on"}
    what = f"{cause.model} {cause.version} of the same release: {cause.reason}"
    return {"reason": RELEASE_MEMBER, "detail": f"{what}: {cause.detail}" if cause.detail else what}


def ending_of(cause: Attempt | None) -> Event:
    """How the others end where one ended before anything was switched."""
    taken_back = {_S.CANCELED: Event.CANCEL, _S.SUPERSEDED: Event.SUPERSEDE}
    return Event.FAIL if cause is None else taken_back.get(cause.state, Event.FAIL)


def can_be_taken_back(release: Sequence[Attempt]) -> bool:
    """Whether a newer goal may still end a release: none of it is over the line, and none has ended by a fault.

    A record of a switch that was torn between two models leaves one over the line and one before it; the switch was
    decided then.
    """
    under_way = [attempt.state for attempt in release if not attempt.state.is_terminal]
    return all(map(can_cancel, under_way)) and next_work(release) is not Work.END


def wanted_by(models: Sequence[ModelGoal], model: str) -> list[Attempt]:
    """The attempts that a goal asks for one model, the main arm's first; none where it cannot be followed.

    >>> from edgeship_agent.contract.goal import ArmGoal
    >>> arm = ArmGoal(version="2", digest="x", size_bytes=1)
    >>> eye = ModelGoal(model="eye", arms=(arm,), deployment="d", release="line@2")
    >>> [start.members[0].model for start in wanted_by([eye], "eye")], wanted_by([eye], "ear")
    (['eye'], [])
    """
    own = next((goal for goal in models if goal.model == model and goal.arms), None)
    if own is None:
        return []
    if not own.release:
        return [new_attempt(own, arm, arm_name=name) for name, arm in arms_of(own)]
    release = [goal for goal in models if goal.arms and goal.release == own.release]
    return [] if refusal_of(release)[0] else [start for start in starts_of(release) if start.model == model]


def is_wanted(attempt: Attempt, models: Sequence[ModelGoal]) -> bool:
    """Whether a goal asks for an attempt, with the very versions beside it that its release has."""
    starts = [start for start in wanted_by(models, attempt.model) if start.key == attempt.key]
    return any(set(start.members) == set(attempt.members) for start in starts)


def begins_anew(known: Attempt, start: Attempt) -> bool:
    """Whether an attempt that has ended is made again.

    It ended for the sake of a goal or of a sibling, and what is asked for now stands beside others.
    """
    for_others = known.reason == RELEASE_MEMBER or known.state in (_S.CANCELED, _S.SUPERSEDED)
    return known.state.is_terminal and for_others and set(known.members) != set(start.members)


def digests_of(release: Sequence[Attempt]) -> dict[ArmKey, str]:
    """What a release asks for: model and arm → digest, of members that are under way and of all others."""
    members = {(member.model, MAIN_ARM): member.digest for attempt in release for member in attempt.members}
    return members | {(attempt.model, attempt.arm): attempt.digest for attempt in release}


def waits_for(release: Iterable[Attempt], attempt: Attempt) -> str:
    """What a staged model waits for, as a sentence; empty where it is the last one."""
    late = sorted(a.model for a in release if a.key != attempt.key and a.state is not _S.STAGED and can_cancel(a.state))
    return f"waits for {', '.join(late)} of the release {attempt.release}" if late and attempt.release else ""


def releases_of(models: Sequence[ModelGoal]) -> tuple[tuple[ModelGoal, ...], ...]:
    """The models of a goal by what is switched together, each release where its first model stands.

    >>> models = [ModelGoal(model=name, arms=(), deployment="d", release=release)
    ...     for name, release in (("eye", "line@2"), ("nose", ""), ("ear", "line@2"))]
    >>> [[goal.model for goal in release] for release in releases_of(models)]
    [['eye', 'ear'], ['nose']]
    """
    found: dict[str, list[ModelGoal]] = {}
    for number, goal in enumerate(models):
        found.setdefault(f"r{goal.release}" if goal.release else f"m{number}", []).append(goal)
    return tuple(map(tuple, found.values()))


def refusal_of(release: Sequence[ModelGoal]) -> tuple[str, str]:
    """Why this agent cannot follow a goal for a release, as a code and a sentence; empty where it can.

    >>> refusal_of([ModelGoal(model="eye", arms=(), deployment="d", release="line@2")])[0]
    'arms_unsupported'
    """
    if not release[0].release:
        return "", ""
    for goal in release:
        if len(goal.arms) != 1 or not arms_of(goal):
            return (
                "arms_unsupported",
                f"{goal.model}: models of one release have one version each, with all of the traffic",
            )
    if len({goal.model for goal in release}) < len(release):
        return "bad_release", "a model is in the release twice"
    if len({(goal.deployment, goal.attempt) for goal in release}) > 1:
        return "bad_release", "models of one release carry different attempts"
    return "", ""


def starts_of(release: Sequence[ModelGoal]) -> list[Attempt]:
    """The attempts that a goal for a release of several models asks for."""
    members = tuple(
        Member(model=goal.model, version=arm.version, digest=arm.digest, size_bytes=arm.size_bytes)
        for goal in release
        for arm in goal.arms
    )
    return [structs.replace(new_attempt(goal, goal.arms[0]), members=members) for goal in release]


def missing_from(release: Sequence[Attempt]) -> list[Attempt]:
    """Attempts of members that are not among those of the release: the agent ended before it had accepted them."""
    first, known = release[0], {attempt.model for attempt in release}
    return [
        structs.replace(
            first,
            **structs.asdict(member),
            state=_S.IDLE,
            **dict.fromkeys(("reason", "detail", "loaded_digest", "previous_digest", "previous_version"), ""),
            **dict.fromkeys(("seq", "transitions", "crashes"), 0),
            figures={},
            without_field_traffic=False,
        )
        for member in first.members
        if member.model not in known
    ]
