"""The arena plan: no two live buffers share a byte, and nothing needs more than it must."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship.build.microcontroller.planner import ALIGNMENT_BYTES, Buffer, least_bytes, plan


@st.composite
def buffers(draw: st.DrawFn) -> list[Buffer]:
    spans = draw(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 20), st.integers(0, 6)), max_size=25))
    return [Buffer(size_bytes=size, first_use=first, last_use=first + more) for size, first, more in spans]


@settings(derandomize=True, deadline=None, max_examples=300)
@given(buffers())
def test_no_two_live_buffers_overlap_and_every_offset_is_aligned(wanted: list[Buffer]) -> None:
    found = plan(wanted)
    spans = [(offset, offset + each.size_bytes) for offset, each in zip(found.offsets_bytes, wanted, strict=True)]
    for index, one in enumerate(wanted):
        assert spans[index][0] % ALIGNMENT_BYTES == 0
        assert spans[index][1] <= found.size_bytes
        for other in range(index):
            if one.meets(wanted[other]):
                assert spans[index][1] <= spans[other][0] or spans[other][1] <= spans[index][0]


@settings(derandomize=True, deadline=None, max_examples=300)
@given(buffers())
def test_arena_lies_between_what_is_live_and_the_sum_of_all(wanted: list[Buffer]) -> None:
    size = plan(wanted).size_bytes
    assert size >= least_bytes(wanted, alignment_bytes=ALIGNMENT_BYTES) >= least_bytes(wanted)
    assert size <= sum(-(-each.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for each in wanted)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(buffers(), st.integers(0, 30))
def test_live_bytes_are_counted_step_by_step(wanted: list[Buffer], step: int) -> None:
    alive = sum(each.size_bytes for each in wanted if each.first_use <= step <= each.last_use)
    assert least_bytes(wanted) >= alive
    most = max((sum(e.size_bytes for e in wanted if e.first_use <= s <= e.last_use) for s in range(30)), default=0)
    assert least_bytes(wanted) == most


def test_chain_of_two_lives_in_two_places() -> None:
    chain = [Buffer(size_bytes=100, first_use=step, last_use=step + 1) for step in range(10)]
    assert plan(chain).size_bytes == 2 * 112


def test_gap_between_two_is_used() -> None:
    wanted = [
        Buffer(name="large", size_bytes=96, first_use=0, last_use=9),
        Buffer(name="early", size_bytes=64, first_use=0, last_use=1),
        Buffer(name="whole", size_bytes=48, first_use=0, last_use=9),
        Buffer(name="late", size_bytes=32, first_use=2, last_use=3),
    ]
    offsets = dict(zip([each.name for each in wanted], plan(wanted).offsets_bytes, strict=True))
    assert offsets == {"large": 0, "early": 96, "whole": 160, "late": 96}


def test_nothing_needs_nothing() -> None:
    assert plan([]).size_bytes == 0
    assert least_bytes([]) == 0
