"""What may not enter the database although it decodes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import structs

from edgeship.server.admission import admit, refused_windows
from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.messages import Death, OutboxCounters, OutcomeTally
from edgeship_agent.contract.sketch import BinnedSketch, CategorySketch
from tests.device_link import batch, birth, heartbeat, running_arm, window

OUTCOME = OutcomeTally(version="v1", arm="main", digest="", name="minutes", count=1, total=2.0, square_total=4.0)


def test_ordinary_messages_pass() -> None:
    classes = CategorySketch(counts=dict.fromkeys(range(1024), 1))
    sent = batch("d", window(1, outcomes=(OUTCOME,), signals={"output/class": classes}))
    admit("d", sent)
    assert refused_windows(sent) == {}
    admit("d", birth("d", running=(running_arm(),)))
    admit("d", heartbeat("d"))
    admit("d", Death(protocol_version=1, device_id="d", session=0))


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("inferences", {"inferences": -1}),
        ("crashes", {"crashes": 2**64 - 1}),
        ("model", {"model": "m" * 257}),
        ("profile_hash", {"profile_hash": "0" * 10_000}),
        ("started_at_s", {"started_at_s": float("inf")}),
        ("ended_at_s", {"ended_at_s": float("nan")}),
        ("x", {"signals": {"x": BinnedSketch(counts=(1, -1))}}),
        ("x", {"signals": {"x": BinnedSketch(counts=(2**53,))}}),
        ("x", {"signals": {"x": BinnedSketch(counts=(1,), sum_square_fixed=-1)}}),
        ("x", {"signals": {"x": CategorySketch(counts={2**40: 1})}}),
        ("x", {"signals": {"x": BinnedSketch(counts=(0,) * 2000)}}),
        ("x", {"signals": {"x": CategorySketch(counts=dict.fromkeys(range(1025), 1))}}),
        ("outcomes.square_total", {"outcomes": (structs.replace(OUTCOME, square_total=float("inf")),)}),
        ("signals", {"signals": {str(index): BinnedSketch(counts=()) for index in range(2000)}}),
        ("hard_stops", {"hard_stops": ("x" * 300,)}),
    ],
)
def test_a_window_that_breaks_a_bound_is_refused_and_no_other(key: str, changes: dict[str, Any]) -> None:
    sent = batch("d", window(1), window(2, **changes), window(3))
    admit("d", sent)
    assert {seq: error.key for seq, error in refused_windows(sent).items()} == {2: key}


@pytest.mark.parametrize("seq", [0, 2**53, 2**63])
def test_a_window_without_a_possible_number_spoils_its_batch(seq: int) -> None:
    with pytest.raises(ContractError) as caught:
        admit("d", batch("d", window(1), window(seq)))
    assert caught.value.key == "seq"


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("session", {"session": -1}),
        ("goal_generation", {"goal_generation": 2**63}),
        ("outbox.created", {"outbox": OutboxCounters(created=-5)}),
        ("tags", {"tags": {"a": "b" * 300}}),
        ("runtimes", {"runtimes": {str(index): "1" for index in range(2000)}}),
        ("target", {"target": "t" * 300}),
        ("sent_at_s", {"sent_at_s": float("nan")}),
        ("running", {"running": (msgspec.structs.replace(running_arm(), model="m" * 300),)}),
    ],
)
def test_a_birth_that_breaks_a_bound_is_refused(key: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ContractError) as caught:
        admit("d", birth("d", **changes))
    assert caught.value.key == key


def test_nobody_speaks_for_another_device() -> None:
    with pytest.raises(ContractError, match="speaks for another device"):
        admit("e", birth("d"))


def test_windows_of_another_start_do_not_hide_in_a_batch() -> None:
    with pytest.raises(ContractError, match="another start"):
        admit("d", batch("d", window(1, boot_id="boot-2")))
