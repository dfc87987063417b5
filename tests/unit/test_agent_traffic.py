"""Two arms of one model, and a shadow: who answers which request, what a death costs, what is compared."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgeship_agent.contract.goal import ArmGoal, ModelGoal
from edgeship_agent.contract.messages import ShadowTally
from edgeship_agent.contract.oci import canonical_json
from edgeship_agent.contract.wire import read_json
from edgeship_agent.serving.client import Client
from edgeship_agent.serving.control import ArmShare, Drain, Drained, Ready, Split, WindowClosed
from edgeship_agent.serving.dividing import arm_of, place_of
from edgeship_agent.serving.slot import SLOT_FILE, SlotFile
from edgeship_agent.update.slots import Slots
from edgeship_agent.update.traffic import Traffic, arms_of
from tests.conformance.slots import classifier_onnx, images, make_slot
from tests.conformance.workers import RunningWorker

MAIN, CHALLENGER, SHADOW = "main", "b", "shadow"


def arm_slot(folder: Path, version: str, arm: str, *, scale: float = 1.0) -> Path:
    """A slot of another version and arm; ``scale`` -1 turns every answer over."""
    slot = make_slot(folder / f"slot-{arm}", classifier_onnx(folder / f"{arm}.onnx", scale=scale))
    manifest = slot / "edgeship.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"version":"1"', f'"version":"{version}"'.encode()))
    info = read_json((slot / SLOT_FILE).read_bytes(), SlotFile, file=SLOT_FILE)
    changed = SlotFile(model=info.model, version=version, digest=f"sha256:{arm:0>64}", variant=info.variant, arm=arm)
    (slot / SLOT_FILE).write_bytes(canonical_json(changed))
    return slot


@pytest.fixture(scope="module")
def slots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arms")
    return {
        MAIN: arm_slot(folder, "1", MAIN),
        CHALLENGER: arm_slot(folder, "2", CHALLENGER),
        SHADOW: arm_slot(folder, "3", SHADOW, scale=-1.0),
    }


class Pair:
    """Two workers that know of each other, as the supervisor tells them."""

    def __init__(self, slots, folder: Path, share: float) -> None:
        self.main = RunningWorker(slots[MAIN], folder / "main.sock", arm=MAIN)
        self.challenger = RunningWorker(slots[CHALLENGER], folder / "b.sock", arm=CHALLENGER)
        for worker in (self.main, self.challenger):
            worker.wait_for(Ready)
        self.divide(share)

    def divide(self, share: float) -> None:
        for worker, other, arm, part in (
            (self.main, self.challenger, CHALLENGER, share),
            (self.challenger, self.main, MAIN, 1.0 - share),
        ):
            other_arm = ArmShare(arm=arm, version="", digest=arm, share=part, socket=str(other.socket_path))
            worker.tell(Split(salt="s", order=(MAIN, CHALLENGER), others=(other_arm,)))

    def close(self) -> None:
        self.main.close()
        self.challenger.close()


@pytest.fixture
def pair(slots, tmp_path):
    pair = Pair(slots, tmp_path, 0.3)
    yield pair
    pair.close()


def windows_of(worker: RunningWorker):
    worker.tell(Drain())
    worker.wait_for(Drained)
    return [message.window for message in worker.messages if isinstance(message, WindowClosed)]


def test_keys_are_spread_as_declared_and_growing_shares_keep_their_keys():
    places = [place_of("sha256:a,sha256:b", f"user-{index}") for index in range(20_000)]
    small = {index for index, place in enumerate(places) if arm_of(place, [(CHALLENGER, 0.1)]) == CHALLENGER}
    large = {index for index, place in enumerate(places) if arm_of(place, [(CHALLENGER, 0.5)]) == CHALLENGER}
    # five standard deviations of a binomial share
    assert abs(len(small) / 20_000 - 0.1) < 5 * (0.1 * 0.9 / 20_000) ** 0.5
    assert abs(len(large) / 20_000 - 0.5) < 5 * (0.5 * 0.5 / 20_000) ** 0.5
    assert small < large
    other = [place_of("sha256:a,sha256:c", f"user-{index}") for index in range(20_000)]
    both = sum(place >= 0.9 and again >= 0.9 for place, again in zip(places, other, strict=True))
    assert both < 300, "another experiment draws anew: some 200 of 20,000 are in both"
    assert arm_of(1.0 - 1e-12, [(CHALLENGER, 0.0)]) is None


def test_the_same_key_gets_the_same_version_on_every_way_in(pair):
    keys = [f"user-{index}" for index in range(60)]
    with Client(pair.main.socket_path) as front, Client(pair.challenger.socket_path) as back:
        first = {key: front.infer(images(1)[0], split_key=key).version for key in keys}
        assert {key: front.infer(images(1)[0], split_key=key).version for key in keys} == first
        assert {key: back.infer(images(1)[0], split_key=key).version for key in keys} == first
    expected = {key: "2" if arm_of(place_of("s", key), [(CHALLENGER, 0.3)]) else "1" for key in keys}
    assert first == expected
    assert set(first.values()) == {"1", "2"}


def test_two_arms_are_told_of_once_and_not_at_every_turn(pair):
    seen = []
    with Client(pair.main.socket_path, on_release_change=seen.append) as client:
        versions = [client.infer(images(1)[0], split_key=f"user-{index}").version for index in range(40)]
    assert set(versions) == {"1", "2"}
    assert len(seen) == 1
    assert seen[0].version != versions[0]


def test_requests_without_a_key_are_shared_and_counted_by_their_own_arm(pair):
    with Client(pair.main.socket_path) as client:
        versions = [client.infer(sample).version for sample in images(400)]
    assert 80 <= versions.count("2") <= 160  # 120 ± 4.4 standard deviations
    for worker, version, arm in ((pair.main, "1", MAIN), (pair.challenger, "2", CHALLENGER)):
        (window,) = windows_of(worker)
        assert (window.version, window.arm, window.inferences) == (version, arm, versions.count(version))


def test_answers_that_were_passed_on_are_the_other_arms_answers(pair):
    large = np.zeros((8, 8), np.uint8)
    with Client(pair.main.socket_path) as front, Client(pair.challenger.socket_path) as direct:
        pair.divide(1.0 - 1e-9)
        front.infer({"image": large})
        over = front.infer(images(1, seed=5)[0])
        pair.challenger.tell(Split(salt="", order=(CHALLENGER,), others=()))
        direct.infer({"image": large})
        own = direct.infer(images(1, seed=5)[0])
        assert (over.version, over.release_digest) == (own.version, own.release_digest)
        np.testing.assert_array_equal(over.outputs["scores"], own.outputs["scores"])
        with pytest.raises(Exception, match="wrong input"):
            front.infer({"image": np.zeros((8, 9), np.uint8)})


def test_the_death_of_one_arm_leaves_the_other_answering(pair):
    keys = [f"user-{index}" for index in range(40)]
    with Client(pair.main.socket_path) as client:
        before = {key: client.infer(images(1)[0], split_key=key).version for key in keys}
        os.kill(pair.challenger.process.pid, signal.SIGKILL)
        pair.challenger.process.wait(30)
        after = [client.infer(images(1)[0], split_key=key).version for key in keys]
        assert "2" in before.values()
        assert set(after) == {"1"}


def test_an_arm_that_dies_with_a_request_in_hand_loses_none(pair):
    with Client(pair.main.socket_path, timeout_s=20.0) as client:
        key = next(f"k{index}" for index in range(100) if arm_of(place_of("s", f"k{index}"), [(CHALLENGER, 0.3)]))
        assert client.infer(images(1)[0], split_key=key).version == "2"
        os.kill(pair.challenger.process.pid, signal.SIGSTOP)  # it takes the request and says nothing
        timer = threading.Timer(0.3, lambda: os.kill(pair.challenger.process.pid, signal.SIGKILL))
        timer.start()
        assert client.infer(images(1)[0], split_key=key).version == "1"
        timer.join()


def test_labels_find_the_arm_that_predicted(pair):
    with Client(pair.main.socket_path) as client:
        predictions = [client.infer(sample) for sample in images(60)]
        assert all(client.label(each.prediction_id, int(each.outputs["scores"].argmax())) for each in predictions)
        assert all(client.outcome("minutes", 1.0, each.prediction_id) for each in predictions)
        assert not client.label("nobody-1", 3)
    for worker, version in ((pair.main, "1"), (pair.challenger, "2")):
        mine = sum(each.version == version for each in predictions)
        windows = windows_of(worker)
        labels = [tally for window in windows for tally in window.labels]
        assert sum(tally.labelled for tally in labels) == mine > 0
        assert {tally.version for tally in labels} == {version}
        assert sum(tally.total for window in windows for tally in window.outcomes) == mine


@pytest.fixture
def shadowed(slots, tmp_path):
    main = RunningWorker(slots[MAIN], tmp_path / "main.sock", arm=MAIN)
    shadow = RunningWorker(slots[SHADOW], tmp_path / "shadow.sock", arm=SHADOW)
    for worker in (main, shadow):
        worker.wait_for(Ready)
    yield main, shadow
    main.close()
    shadow.close()


def mirror(main: RunningWorker, shadow: RunningWorker, *, share: float, cpu_ratio: float = 1.0) -> None:
    arm = ArmShare(
        arm=SHADOW,
        version="3",
        digest="sha256:3",
        share=0.0,
        socket=str(shadow.socket_path),
        mirror=share,
        cpu_ratio=cpu_ratio,
    )
    main.tell(Split(salt="", order=(MAIN,), others=(arm,)))


def shadow_sums(main: RunningWorker) -> ShadowTally:
    tallies = [tally for window in windows_of(main) for tally in window.shadow]
    names = [name for name in ShadowTally.__struct_fields__ if name not in ("version", "digest")]
    sums = {name: sum(getattr(tally, name) for tally in tallies) for name in names}
    return ShadowTally(version="3", digest="sha256:3", **sums)


def test_a_shadow_is_compared_and_never_heard(shadowed):
    main, shadow = shadowed
    with Client(main.socket_path) as client:
        mirror(main, shadow, share=1.0)
        for sample in images(120):
            assert client.infer(sample).version == "1"
            time.sleep(0.004)
        time.sleep(0.3)
    seen = shadow_sums(main)
    assert seen.compared + seen.dropped + seen.failed == 120
    assert seen.compared > 60
    # the shadow's scores are the champion's with the sign turned: every class differs, the error is twice the answer
    assert seen.disagreed == seen.compared
    assert np.sqrt(seen.error_square_sum / seen.champion_square_sum) == pytest.approx(2.0, rel=1e-5)
    (window,) = windows_of(shadow)
    assert (window.arm, window.inferences) == (SHADOW, seen.compared)


def test_a_shadow_keeps_to_its_part_of_inputs_and_time(shadowed):
    main, shadow = shadowed
    with Client(main.socket_path) as client:
        mirror(main, shadow, share=0.25)
        for sample in images(200):
            client.infer(sample)
        mirror(main, shadow, share=1.0, cpu_ratio=0.0)
        for sample in images(50):
            client.infer(sample)
    seen = shadow_sums(main)
    drawn = seen.compared + seen.failed + seen.dropped - 50
    assert 20 <= drawn <= 85
    assert seen.dropped >= 50, "no time at all: every input that was drawn is dropped, and counted"


def test_a_dying_shadow_disturbs_nobody(shadowed):
    main, shadow = shadowed
    with Client(main.socket_path) as client:
        mirror(main, shadow, share=1.0)
        client.infer(images(1)[0])
        os.kill(shadow.process.pid, signal.SIGSTOP)
        for sample in images(10):
            client.infer(sample)
        os.kill(shadow.process.pid, signal.SIGKILL)
        shadow.process.wait(30)
        for sample in images(40):
            assert client.infer(sample).version == "1"
    seen = shadow_sums(main)
    assert seen.failed >= 1
    assert seen.compared + seen.failed + seen.dropped == 51


def test_what_goals_ask_of_arms():
    def arm(version: str, share: float, **fields: float) -> ArmGoal:
        return ArmGoal(version=version, digest=version, size_bytes=1, share=share, **fields)

    def names(*arms: ArmGoal) -> list[str]:
        return [name for name, _ in arms_of(ModelGoal(model="m", arms=arms, deployment="r1"))]

    assert names(arm("1", 1.0)) == [MAIN]
    assert names(arm("1", 0.8), arm("2", 0.2)) == [MAIN, CHALLENGER]
    assert names(arm("1", 0.8), arm("2", 0.2), arm("3", 0.0, mirror=0.1)) == [MAIN, CHALLENGER, SHADOW]
    assert names(arm("1", 0.8), arm("2", 0.1), arm("3", 0.1)) == []
    assert names(arm("1", 0.8), arm("2", 0.1)) == []
    assert names(arm("1", 0.0), arm("2", 1.0)) == []
    assert names(arm("1", 1.5), arm("2", -0.5)) == []
    assert names(arm("1", 1.0), arm("1", 0.0, mirror=0.5)) == []


def test_what_an_arm_gets_is_kept_beside_its_pointer(slots, tmp_path):
    kept = Slots(tmp_path / "slots")
    for arm in (MAIN, CHALLENGER):
        folder = tmp_path / "slots" / "digits" / arm
        folder.mkdir(parents=True)
        shutil.copytree(slots[arm], folder / "a")
        (folder / "active").symlink_to("a")
    assert kept.active("digits", MAIN).traffic == Traffic()
    assert kept.active("digits", CHALLENGER).traffic.share == 0.0, "nothing was said: nothing is given"
    wanted = Traffic(share=0.25)
    kept.set_traffic("digits", CHALLENGER, wanted)
    assert Slots(tmp_path / "slots").active("digits", CHALLENGER).traffic == wanted
    (tmp_path / "slots" / "digits" / CHALLENGER / "traffic.json").write_text("{")
    assert kept.active("digits", CHALLENGER).traffic.share == 0.0
