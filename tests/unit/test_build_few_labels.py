"""Which rows are labelled, how the table is read back, and what the labels say of each variant."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeship.build import few_labels, labelling
from edgeship.build.few_labels import LabellingState, PendingVariant, Undecided
from edgeship.build.unlabelled import Field, UnlabelledSamples, labelling_order, open_samples
from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import InputContract

CONTRACTS = (InputContract(tensor="x", dtype="uint8", shape=(8, 8)),)
N = 1_000


def _samples(folder: Path) -> UnlabelledSamples:
    pixels = np.random.default_rng(0).integers(0, 255, (N, 8, 8), np.uint8)
    np.savez(folder / "unlabelled.npz", x=pixels)
    return open_samples(folder / "unlabelled.npz", CONTRACTS)


def _field(folder: Path) -> Field:
    return Field(samples=_samples(folder), k=1, source=tuple((index % 3,) for index in range(N)), digests=("d",) * N)


def _state(**changes: object) -> LabellingState:
    known = LabellingState(
        metric="top1", unlabelled="", digest="", samples=0, seed=0, classes=3, class_names=("a", "b", "c"), rows=(),
        source=(), variants=(), strict=False, fallbacks={}, refused={},
    )  # fmt: skip
    return msgspec.structs.replace(known, **changes)


def _written(folder: Path) -> LabellingState:
    """Two variants that disagree on some samples each, some of them the same."""
    field = _field(folder)
    undecided = [
        Undecided(label="t/r/int8", target="t", limit=0.01, answers={index: ((index + 1) % 3,) for index in range(80)}),
        Undecided(
            label="u/r/int8", target="u", limit=0.01, answers={index: ((index + 2) % 3,) for index in range(60, 90)}
        ),
    ]
    state = few_labels.new_state(field, undecided, few_labels.choose_rows(field, undecided), _state())
    labelling.write(folder, field.samples, state)
    return state


def _fill(folder: Path, labels: list[str]) -> Path:
    path = folder / labelling.LABELS_FILE
    lines = path.read_text(encoding="utf-8").splitlines()
    filled = [line + label for line, label in zip(lines[1:], labels + [""] * len(lines), strict=False)]
    path.write_text("\n".join([lines[0], *filled]) + "\n", encoding="utf-8")
    return path


def _fill_anew(folder: Path, labels: list[str]) -> Path:
    path = folder / labelling.LABELS_FILE
    empty = [line.rsplit(",", 1)[0] + "," for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    path.write_text("\n".join(["row,sample,picture,label", *empty]) + "\n", encoding="utf-8")
    return _fill(folder, labels)


def test_rows_are_in_one_random_order_and_hold_each_variants_disagreements(tmp_path: Path) -> None:
    state = _written(tmp_path)
    order = labelling_order(N)
    assert [order.index(row) for row in state.rows] == sorted(order.index(row) for row in state.rows)
    assert set(state.rows) <= set(range(90))
    first, second = state.variants
    assert {state.rows[row] for row in first.answers} == {row for row in state.rows if row < 80}
    assert {state.rows[row] for row in second.answers} == {row for row in state.rows if row >= 60}
    assert (first.disagreements, second.disagreements) == (80, 30)


def test_the_table_does_not_say_what_was_answered_and_shows_pictures(tmp_path: Path) -> None:
    state = _written(tmp_path)
    lines = (tmp_path / labelling.LABELS_FILE).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "row,sample,picture,label"
    assert lines[1] == f"1,{state.rows[0]},to_label/0001.png,"
    assert len(list((tmp_path / "to_label").glob("*.png"))) == len(state.rows)


def test_labels_are_read_by_name_or_number_and_a_spreadsheets_semicolons_too(tmp_path: Path) -> None:
    state = _written(tmp_path)
    path = _fill(tmp_path, ["a", "2", " b ", "?"])
    assert labelling.read(path, state) == [0, 2, 1, None]
    path.write_text("\ufeff" + path.read_text(encoding="utf-8").replace(",", ";"), encoding="utf-8")
    assert labelling.read(path, state) == [0, 2, 1, None]


def test_a_number_is_a_class_of_that_name_before_it_is_a_position(tmp_path: Path) -> None:
    state = _written(tmp_path)
    path = _fill(tmp_path, ["1", "1.0", "3.0", "2"])
    for names in (("1", "2", "3"), ("1.0", "2.0", "3.0")):
        assert labelling.read(path, msgspec.structs.replace(state, class_names=names)) == [0, 0, 2, 1]
    assert labelling.read(_fill_anew(tmp_path, ["2.0", "1"]), state) == [2, 1]
    with pytest.raises(InputError, match="not a class"):
        labelling.read(_fill_anew(tmp_path, ["0"]), msgspec.structs.replace(state, class_names=("1", "2", "3")))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a", "", "b"], "a label below a row without one"),
        (["a", "dog"], "not a class of the model"),
        (["3"], "not a class"),
    ],
)
def test_a_gap_or_an_unknown_class_is_refused(tmp_path: Path, labels: list[str], words: str) -> None:
    state = _written(tmp_path)
    with pytest.raises(InputError, match=words) as refusal:
        labelling.read(_fill(tmp_path, labels), state)
    assert "row" in str(refusal.value.key)


def test_other_rows_than_were_written_are_refused(tmp_path: Path) -> None:
    state = _written(tmp_path)
    path = tmp_path / labelling.LABELS_FILE
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]), encoding="utf-8")
    with pytest.raises(InputError, match="not the rows that the build wrote"):
        labelling.read(path, state)


def test_who_was_right_is_counted_among_a_variants_own_disagreements() -> None:
    answers = {0: (1,), 1: (1,), 3: (1,)}
    variant = PendingVariant(label="t/r/int8", target="t", limit=0.01, disagreements=40, answers=answers)
    state = _state(samples=500, rows=(7, 8, 9, 10), source=((0,), (0,), (0,), (0,)), variants=(variant,))
    found = few_labels.evidence(state, variant, [0, 1, 1, None])
    assert (found.counts.only_reference, found.counts.only_candidate, found.counts.neither) == (1, 1, 1)
    assert (found.counts.samples, found.counts.found, found.counts.labelled) == (500, 40, 3)
    report = few_labels.report(found)
    assert (report.labelled, report.only_source, report.look, report.confidence) == (3, 1, 1, 0.95)


def test_a_look_is_spent_by_new_labels_and_not_by_reading_the_same_again() -> None:
    state = _state()
    assert few_labels.next_look(state, []) == ()
    state = msgspec.structs.replace(state, looks=few_labels.next_look(state, [0, 1]))
    assert len(few_labels.next_look(state, [0, 1])) == 1
    state = msgspec.structs.replace(state, looks=few_labels.next_look(state, [0, 1, 2]))
    assert [each.labelled for each in state.looks] == [2, 3]


def test_a_folder_of_pictures_is_read_at_any_depth_and_one_that_is_broken_is_named(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "u" / "deep").mkdir(parents=True)
    for name in ("b.png", "deep/a.png"):
        Image.new("L", (8, 8), 100).save(tmp_path / "u" / name)
    samples = open_samples(tmp_path / "u", CONTRACTS)
    assert [samples.name(index) for index in range(len(samples))] == ["b.png", "deep/a.png"]
    assert samples.raw(0)["x"].shape == (8, 8)
    (tmp_path / "u" / "c.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="not a readable image"):
        list(open_samples(tmp_path / "u", CONTRACTS).batches())
    with pytest.raises(InputError, match="no unlabelled samples"):
        open_samples(tmp_path / "nowhere", CONTRACTS)
