"""Labels and outcomes that come later: which prediction they find, what the window says of them."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest
from onnx import helper

from edgeship_agent.contract.errors import EngineError, InputError
from edgeship_agent.contract.manifest import InputContract, OutputContract
from edgeship_agent.contract.messages import MAX_CONFUSION_CELLS, MAX_OUTCOME
from edgeship_agent.contract.oci import canonical_json
from edgeship_agent.contract.wire import read_json
from edgeship_agent.serving.client import Client
from edgeship_agent.serving.control import (
    MAX_CONTROL_BYTES,
    Drain,
    Drained,
    HandOn,
    Ready,
    Recall,
    WindowClosed,
    encode_control,
)
from edgeship_agent.serving.library import LocalModel
from edgeship_agent.serving.slot import SLOT_FILE, SlotFile
from edgeship_agent.telemetry.noted import NoteSums
from edgeship_agent.telemetry.ring import PredictionRing, Predictions
from edgeship_agent.telemetry.window import WindowLimits
from tests.conformance.engine_template import save_onnx, value
from tests.conformance.slots import classifier_onnx, images, make_slot
from tests.conformance.workers import RunningWorker


@pytest.fixture(scope="module")
def slot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slots")
    return make_slot(folder / "ort", classifier_onnx(folder / "m.onnx"))


@pytest.fixture
def start(tmp_path):
    workers = []

    def start(slot, name="w.sock", **settings) -> RunningWorker:
        worker = RunningWorker(slot, tmp_path / name, **settings)
        workers.append(worker)
        worker.wait_for(Ready)
        return worker

    yield start
    for worker in workers:
        worker.close()


def other_version(slot, directory, version: str):
    """The same model under another version and digest, as the next slot."""
    shutil.copytree(slot, directory)
    info = read_json((directory / SLOT_FILE).read_bytes(), SlotFile, file=SLOT_FILE)
    manifest = (directory / "edgeship.json").read_bytes().replace(b'"version":"1"', f'"version":"{version}"'.encode())
    (directory / "edgeship.json").write_bytes(manifest)
    changed = SlotFile(
        model=info.model, version=version, digest="sha256:" + "9" * 64, variant=info.variant, arm=info.arm
    )
    (directory / SLOT_FILE).write_bytes(canonical_json(changed))
    return directory


def ring(capacity: int = 4, prefix: str = "a-") -> PredictionRing:
    return PredictionRing(prefix, "v1", "main", "sha256:0", capacity)


def add(to: PredictionRing, classes, at_s: float = 0.0) -> None:
    to.add(np.array(classes, np.float64), np.full(len(classes), 0.5), np.full(len(classes), at_s))


def test_a_ring_forgets_the_oldest():
    newest = ring(4)
    add(newest, [0, 1, 2])
    assert [newest.find(number).predicted for number in (1, 2, 3)] == [0, 1, 2]
    assert newest.find(0) is None
    assert newest.find(4) is None
    add(newest, [3, 4, 5], at_s=7.0)
    assert [newest.find(number) is None for number in range(1, 8)] == [True, True, False, False, False, False, True]
    assert (newest.find(6).predicted, newest.find(6).at_s, newest.find(3).at_s) == (5, 7.0, 0.0)
    add(newest, list(range(10, 20)))
    assert [newest.find(number).predicted for number in range(13, 17)] == [16, 17, 18, 19]


def test_a_ring_keeps_confidences_that_can_be_summed():
    newest = ring(8)
    said = [0.25, 1.5, -3.0, np.inf, -np.inf, np.nan, 1e300]
    newest.add(np.zeros(7), np.array(said), np.zeros(7))
    assert [newest.find(number).confidence for number in range(1, 8)] == [0.25, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0]


def test_a_ring_forgets_labels_with_their_predictions():
    newest = ring(2)
    add(newest, [0, 1])
    assert newest.take_label(1)
    assert not newest.take_label(1)
    assert newest.take_outcome(1, "minutes")
    assert not newest.take_outcome(1, "minutes")
    assert newest.take_outcome(1, "euros")
    add(newest, [2])
    assert newest.take_label(3), "the place was taken by another prediction"


def test_a_ring_is_handed_on_whole():
    first = ring(5)
    add(first, [0, 1, np.nan, 3, 4, 5])
    first.take_label(3)
    first.take_outcome(4, "minutes")
    own = ring(5, prefix="b-")
    after = Predictions(own, 5)
    after.take_over(first.hand_on(5))
    found, _ = after.locate("a-3")
    assert (found.find(3).predicted, found.find(1), found.take_label(3), found.take_label(4)) == (-1, None, False, True)
    assert not found.take_outcome(4, "minutes")
    assert after.locate("c-3") is None
    assert after.locate("a-03 ") is None
    add(first, [6])
    after.take_over(first.hand_on(5))
    again, _ = after.locate("a-7")
    assert again.find(7).predicted == 6
    assert not again.take_label(4), "what was counted with the first copy is not counted with the second"
    for index in range(4):
        another = ring(5, prefix=f"x{index}-")
        add(another, [1, 2, 3])
        after.take_over(another.hand_on(5))
    assert after.locate("a-3") is None, "the oldest ring went first"
    assert after.locate("x3-1") is not None
    assert len(after.hand_on()) == 1, "what is empty is not handed on"


@pytest.mark.parametrize("name", ["", "minutes", "Ausschuss in € " * 4])
def test_no_ring_is_too_long_for_the_way_to_the_next_worker(name):
    after, count = Predictions(ring(100, prefix="own-"), 10**6), 150_000
    for prefix in ("a-", "b-"):
        another = ring(count, prefix=prefix)
        another.add(np.ones(count), np.ones(count), np.ones(count))
        for number in range(1, count + 1) if name else ():
            another.take_outcome(number, name)
        after.take_over(another.hand_on(count, 2**30))
    after.own.add(np.arange(100.0), np.ones(100), np.ones(100))
    handed = after.hand_on()
    assert len(encode_control(HandOn(predictions=tuple(handed), lost=("boot-1f3-",) * 32))) <= MAX_CONTROL_BYTES
    assert sum(map(len, handed)) > MAX_CONTROL_BYTES * 3 // 4, "and no more is left behind than must be"
    new = Predictions(ring(1, prefix="new-"), 10**6)
    for data in handed:
        new.take_over(data)
    found, _ = new.locate("own-1")
    assert [found.find(number).predicted for number in (1, 100)] == [0, 99]
    newest, _ = new.locate("b-1")
    assert newest.find(count) is not None
    assert newest.take_outcome(count, name or "minutes") is not bool(name), "outcomes go with their predictions"
    assert (newest.find(newest.oldest) is None, newest.find(newest.oldest - 1)) == (False, None)
    assert not new.is_lost("a-1"), "too old, not lost with a worker"
    oldest = new.locate("a-1")
    assert oldest is None or oldest[0].find(1) is None, "the oldest went first"


def test_confusion_tables_have_a_size_limit_and_their_totals_none():
    sums = NoteSums()
    source = ("v1", "main", "sha256:0")
    for index in range(2 * MAX_CONFUSION_CELLS):
        sums.label(source, predicted=index, label=index, confidence=1.0, predicted_at_s=float(index))
    (tally,) = sums.take().labels
    assert (len(tally.confusion), tally.labelled, tally.correct) == (256, 512, 512)
    assert (tally.predicted_from_s, tally.predicted_until_s) == (0.0, 511.0)


def test_the_library_counts_labels_exactly(slot):
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 10, 150)
    expected: dict[tuple[int, int], int] = {}
    with LocalModel.open(slot, limits=WindowLimits(inferences=150)) as model:
        predictions = [model.predict(sample) for sample in images(150)]
        for label, prediction in zip(truth, predictions, strict=True):
            cell = (int(prediction.outputs["scores"].argmax()), int(label))
            expected[cell] = expected.get(cell, 0) + 1
            assert model.label(prediction.prediction_id, int(label))
            assert model.label(prediction.prediction_id, 0), "known, and not counted twice"
        assert model.outcome("rework_minutes", 2.5, predictions[0].prediction_id)
        assert model.outcome("rework_minutes", 9.0, predictions[0].prediction_id), "a name counts once"
        assert model.outcome("rework_minutes", 1.0, predictions[1].prediction_id)
        assert not model.label("elsewhere-1", 3)
        window = model.take_window()
    (tally,) = window.labels
    assert {(predicted, label): count for predicted, label, count in tally.confusion} == expected
    assert (tally.labelled, tally.correct) == (150, sum(n for (p, t), n in expected.items() if p == t))
    assert (tally.version, tally.arm) == ("1", "main")
    (outcome,) = window.outcomes
    assert (outcome.name, outcome.count, outcome.total, outcome.square_total) == ("rework_minutes", 2, 3.5, 7.25)
    assert window.label_unknown == 1
    assert 0 < tally.confidence_sum_millionths <= 150_000_000


def test_labels_travel_alone_when_no_calls_come(slot):
    with LocalModel.open(slot, limits=WindowLimits(duration_s=0.0)) as model:
        prediction = model.predict(images(1)[0])
        assert model.take_window() is None, "one call is never sent alone"
        model.label(prediction.prediction_id, 4)
        window = model.take_window()
        assert (window.inferences, window.labels[0].labelled, window.signals) == (0, 1, {})
        assert model.take_window() is None


def test_what_is_no_label(slot, tmp_path):
    with LocalModel.open(slot) as model:
        known = model.predict(images(1)[0]).prediction_id
        for label in (-1, 10, "eleven", 2**40):
            with pytest.raises(InputError):
                model.label(known, label)
        beyond = float(np.nextafter(MAX_OUTCOME, np.inf))
        for name, figure in (("", 1.0), ("x" * 65, 1.0), ("m", float("nan")), ("m", 1.8e308), ("m", -beyond)):
            with pytest.raises(InputError):
                model.outcome(name, figure, known)
        for index in range(32):
            model.outcome(f"figure-{index}", 1.0, known)
        with pytest.raises(InputError, match="too many"):
            model.outcome("one-more", 1.0, known)
    raw = make_slot(tmp_path / "raw", classifier_onnx(tmp_path / "m.onnx"), output=OutputContract(kind="raw"))
    with LocalModel.open(raw) as model:
        known = model.predict(images(1)[0]).prediction_id
        with pytest.raises(InputError, match="no class"):
            model.label(known, 1)
        assert model.outcome("minutes", 3.0, known)


def test_the_largest_outcomes_leave_sums_that_the_server_takes(slot):
    with LocalModel.open(slot, limits=WindowLimits(duration_s=0.0)) as model:
        for sample in images(3):
            model.outcome("grams", -MAX_OUTCOME, model.predict(sample).prediction_id)
        window = model.take_window()
    (outcome,) = window.outcomes
    assert (outcome.count, outcome.total, outcome.square_total) == (3, -3 * MAX_OUTCOME, 3 * MAX_OUTCOME**2)
    assert 2.0**53 * MAX_OUTCOME**2 < 1e300, "of as many figures as a window can count"


def test_a_label_for_a_confidence_that_overflowed_is_counted(start, tmp_path):
    file = save_onnx(
        tmp_path / "m.onnx",
        [helper.make_node("Exp", ["image"], ["scores"])],
        [value("image", [1, 4])],
        [value("scores", [1, 4])],
    )
    contracts = (InputContract(tensor="image", dtype="float32", shape=(4,)),)
    output = OutputContract(activation="none")
    worker = start(make_slot(tmp_path / "slot", file, input_contracts=contracts, input_schema={}, output=output))
    with Client(worker.socket_path, timeout_s=10.0) as client:
        prediction = client.infer({"image": np.array([0, 1, 1000, 2], np.float32)})
        assert np.isposinf(prediction.outputs["scores"]).any()
        assert client.label(prediction.prediction_id, 2)
    worker.tell(Drain())
    (tally,) = worker.wait_for(WindowClosed).window.labels
    assert (tally.labelled, tally.correct, tally.confidence_sum_millionths) == (1, 1, 1_000_000)


def test_the_client_labels_over_the_socket_and_across_a_switch(slot, start, tmp_path):
    first = start(slot, "one.sock", window_inferences=20, remembered_predictions=30)
    with Client(first.socket_path) as client:
        predictions = [client.infer(sample) for sample in images(40)]
        assert client.label(predictions[39].prediction_id, int(predictions[39].outputs["scores"].argmax()))
        assert not client.label(predictions[5].prediction_id, 1), "40 predictions, 30 are remembered"
        with pytest.raises(EngineError, match="no class of this index"):
            client.label(predictions[39].prediction_id, 99)
        assert client.outcome("rework_minutes", 4.0, predictions[38].prediction_id)
    first.tell(Drain())
    rings = first.wait_for(HandOn)
    first.wait_for(Drained)
    windows = [message.window for message in first.messages if isinstance(message, WindowClosed)]
    assert sum(tally.labelled for window in windows for tally in window.labels) == 1
    assert sum(window.label_unknown for window in windows) == 1
    assert sum(tally.total for window in windows for tally in window.outcomes) == 4.0
    second = start(other_version(slot, tmp_path / "second", "2"), "two.sock", window_s=0.2)
    second.tell(rings)
    with Client(second.socket_path) as client:
        client.infer(images(1)[0])  # the worker has read what was handed on when it answers the second call
        assert client.label(predictions[37].prediction_id, 3)
        assert client.label(predictions[39].prediction_id, 3), "known, and labelled before"
    (tally,) = second.wait_for(WindowClosed).window.labels
    assert (tally.version, tally.labelled, tally.digest == predictions[37].release_digest) == ("1", 1, True)


def test_a_worker_that_remembers_much_is_understood(slot, start):
    worker, count = start(slot, remembered_predictions=10**6), 200_000
    for prefix in ("a-", "b-"):
        another = ring(count, prefix=prefix)
        another.add(np.ones(count), np.ones(count), np.ones(count))
        worker.tell(HandOn(predictions=(another.hand_on(count),)))
    worker.tell(Recall())
    older, newer = worker.wait_for(HandOn).predictions
    assert PredictionRing.taken_over(newer).oldest == 1
    assert PredictionRing.taken_over(older).find(count) is not None


def _asked_until(client, version):
    """The first answer of a version: a worker that was told to drain answers what reaches it before it hears so."""
    deadline = time.monotonic() + 20
    while (answer := client.infer(images(1)[0])).version != version:
        assert time.monotonic() < deadline, f"version {version} never answered"
    return answer


def test_the_client_tells_of_another_release(slot, start, tmp_path):
    first = start(slot, "one.sock")
    second = start(other_version(slot, tmp_path / "second", "2"), "two.sock")
    pointer, seen = tmp_path / "infer.sock", []
    pointer.symlink_to("one.sock")
    with Client(pointer, on_release_change=seen.append) as client:
        for sample in images(3):
            assert client.infer(sample).version == "1"
        assert seen == [], "the first release is no change"
        pointer.unlink()
        pointer.symlink_to("two.sock")
        first.tell(Drain())
        changed = _asked_until(client, "2")
        client.infer(images(1)[0])
        assert [prediction.prediction_id for prediction in seen] == [changed.prediction_id]
        assert (changed.version, changed.arm) == ("2", "main")
        # and back, to a release that the client has seen before: the application must know
        third = start(slot, "three.sock")
        pointer.unlink()
        pointer.symlink_to("three.sock")
        second.tell(Drain())
        _asked_until(client, "1")
        assert [prediction.version for prediction in seen] == ["2", "1"]
        third.tell(Drain())


def test_the_library_tells_of_another_release(slot, tmp_path):
    second = other_version(slot, tmp_path / "b", "2")
    pointer = tmp_path / "active"
    pointer.symlink_to(slot)
    seen = []
    limits = WindowLimits(inferences=20)
    with LocalModel.open(pointer, limits=limits, on_release_change=seen.append) as model:
        before = [model.predict(sample) for sample in images(25)]
        assert model.refresh() is False
        pointer.unlink()
        assert model.refresh() is False, "no pointer: the model that is open answers on"
        pointer.symlink_to(second)
        assert model.predict(images(1)[0]).version == "1", "nothing changes behind the application's back"
        assert model.refresh() is True
        assert seen == []
        after = model.predict(images(1)[0])
        assert [prediction.prediction_id for prediction in seen] == [after.prediction_id]
        model.predict(images(1)[0])
        assert len(seen) == 1
        assert (after.version, before[0].version) == ("2", "1")
        assert model.label(before[3].prediction_id, 1), "labels for the version before still count"
        window = model.take_window()
        assert (window.version, window.inferences) == ("1", 26)


def test_the_library_keeps_its_model_where_the_next_fails_its_golden_inputs(slot, tmp_path):
    good = classifier_onnx(tmp_path / "good.onnx")
    wrong = make_slot(tmp_path / "wrong", classifier_onnx(tmp_path / "wrong.onnx", scale=1.5), golden_from=good)
    info = read_json((wrong / SLOT_FILE).read_bytes(), SlotFile, file=SLOT_FILE)
    changed = SlotFile(
        model=info.model, version=info.version, digest="sha256:" + "8" * 64, variant=info.variant, arm=info.arm
    )
    (wrong / SLOT_FILE).write_bytes(canonical_json(changed))
    pointer = tmp_path / "active"
    pointer.symlink_to(slot)
    with LocalModel.open(pointer) as model:
        expected = model.predict(images(1)[0])
        pointer.unlink()
        pointer.symlink_to(wrong)
        with pytest.raises(Exception, match="golden outputs"):
            model.refresh()
        again = model.predict(images(1)[0])
        np.testing.assert_array_equal(expected.outputs["scores"], again.outputs["scores"])
        assert again.release_digest == expected.release_digest
