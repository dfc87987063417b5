"""Several models on one device: who answers for whom, what an absence costs, and doors that are held."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeship_agent.contract.errors import EngineError, TransferError
from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.oci import canonical_json
from edgeship_agent.contract.wire import read_json
from edgeship_agent.serving.client import Client
from edgeship_agent.serving.control import Neighbour, Open, Ready, Split
from edgeship_agent.serving.slot import SLOT_FILE, SlotFile
from edgeship_agent.supervisor.table import Entry, Table, is_nobody
from edgeship_agent.supervisor.worker_process import WorkerProcess
from edgeship_agent.update.slots import Slot, SlotInfo
from edgeship_agent.update.traffic import Traffic
from tests.agents import until
from tests.c_programs import COMPILER, compiled
from tests.conformance.slots import classifier_onnx, images, make_slot
from tests.conformance.workers import RunningWorker


def slot_of(folder: Path, model: str) -> Path:
    slot = make_slot(folder / model, classifier_onnx(folder / f"{model}.onnx"))
    manifest = slot / "edgeship.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"name":"digits"', f'"name":"{model}"'.encode()))
    info = read_json((slot / SLOT_FILE).read_bytes(), SlotFile, file=SLOT_FILE)
    changed = SlotFile(model=model, version="1", digest=f"sha256:{model:0>64}", variant=info.variant, arm=info.arm)
    (slot / SLOT_FILE).write_bytes(canonical_json(changed))
    return slot


class Two:
    """Workers of two models; the front is told of the other."""

    def __init__(self, folder: Path) -> None:
        self.ear = RunningWorker(slot_of(folder, "ear"), folder / "ear.sock")
        self.eye = RunningWorker(slot_of(folder, "eye"), folder / "eye.sock", held=True)
        for worker in (self.ear, self.eye):
            worker.wait_for(Ready)

    def tell(self, path: str, *, is_sibling: bool = False) -> None:
        digest, prefixes = f"sha256:{'eye':0>64}", (f"boot-{self.eye.process.pid:x}-",)
        eye = Neighbour(model="eye", socket=path, digest=digest, prefixes=prefixes, is_sibling=is_sibling)
        self.ear.tell(Split(salt="", order=("main",), others=(), neighbours=(eye,), first="ear"))

    def close(self) -> None:
        self.ear.close()
        self.eye.close()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    two = Two(tmp_path_factory.mktemp("two"))
    yield two
    two.close()


def _is_left_alone(client: Client) -> bool:
    """Whether nobody answers for ``eye``, instead of that it is not served."""
    try:
        client.infer(images(1)[0], model="eye")
    except TransferError:
        return True
    except EngineError:
        return False
    raise AssertionError("somebody answers")


def test_one_socket_leads_to_every_model(two: Two) -> None:
    sample = images(1)[0]
    with Client(two.ear.socket_path, timeout_s=0.3) as client:
        with pytest.raises(EngineError, match="not served here"):
            client.infer(sample, model="eye")
        # it is meant to be here, and is not: asked again until it is, as where a worker has died
        two.tell("")
        until(lambda: _is_left_alone(client), 20.0, "the front to have heard")
        assert client.infer(sample).model == "ear"
        # it is here, and its door is held
        two.tell(str(two.eye.socket_path))
        with pytest.raises(TransferError):
            client.infer(sample, model="eye")
    answers = []
    with Client(two.ear.socket_path, timeout_s=30.0) as client:
        asking = threading.Thread(target=lambda: answers.append(client.infer(sample, model="eye")))
        asking.start()
        two.eye.tell(Open())
        asking.join(30.0)
    assert [answer.model for answer in answers] == ["eye"]
    with Client(two.ear.socket_path) as client:
        assert [client.infer(sample, model=model).model for model in ("eye", "ear", "", "eye")] == [
            "eye",
            "ear",
            "ear",
            "eye",
        ]
        with pytest.raises(EngineError, match="wrong"):
            client.infer({"image": np.zeros((300, 300), np.uint8)}, model="eye")  # by shared memory, passed on inside
        with pytest.raises(EngineError, match="'nose' is not served"):
            client.infer(sample, model="nose")
        assert client.status(model="eye").model == "eye"
        prediction = client.infer(sample, model="eye")
        assert client.label(prediction.prediction_id, 3)
        assert client.outcome("rework_minutes", 1.0, prediction.prediction_id)
        assert not client.label("boot-0-1", 3)


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_one_client_in_c_asks_every_model(two: Two, tmp_path: Path) -> None:
    two.tell(str(two.eye.socket_path))
    two.eye.tell(Open())
    program = compiled(Path(__file__).with_name("many_models.c"), tmp_path / "many")
    command = [str(program), str(two.ear.socket_path), "eye", "ear", "", "eye", "nose"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    *answered, refused = done.stdout.splitlines()
    assert answered == ["eye 0 1", "ear 0 1", "ear 0 1", "eye 0 1"]
    assert "'nose' is not served here" in refused


def test_siblings_are_told_with_the_status(two: Two) -> None:
    two.tell(str(two.eye.socket_path), is_sibling=True)
    with Client(two.ear.socket_path) as client:
        assert client.status().siblings == (("eye", f"sha256:{'eye':0>64}"),)


class Nobody:
    """Hears of nothing."""

    def worker_ready(self, worker: WorkerProcess) -> None: ...

    def window_closed(self, worker: WorkerProcess, window: Window) -> None: ...

    def worker_died(self, worker: WorkerProcess) -> None: ...


def entry(model: str, arm: str = "main", *, switched: int = 0, ready: bool = True, share: float = 1.0) -> Entry:
    info = SlotInfo(model=model, version="1", digest=f"{model}/{arm}", variant="v", arm=arm)
    slot = Slot(directory=Path(model), info=info, switched=switched, traffic=Traffic(share=share))
    worker = WorkerProcess(slot, Path(f"{model}-{arm}.sock"), "boot", Nobody())
    worker.is_ready = ready
    return Entry(slot=slot, worker=worker, prefixes=("earlier-",))


def table(*entries: Entry) -> Table:
    return Table({(each.slot.info.model, each.slot.info.arm): each for each in entries})


def test_the_table_says_the_same_to_everybody() -> None:
    of_all = table(
        entry("ear", switched=3), entry("eye", switched=3), entry("nose", switched=2), entry("nose", "b", share=0.25)
    )
    split = of_all.split_for(("nose", "main"))
    assert [(share.arm, share.share) for share in split.others] == [("b", 0.25)]
    assert [(each.model, each.socket, each.is_sibling) for each in split.neighbours] == [
        ("ear", "ear-main.sock", False),
        ("eye", "eye-main.sock", False),
    ]
    assert split.first == "ear"
    (eye, nose) = of_all.split_for(("ear", "main")).neighbours
    assert (eye.model, eye.is_sibling, eye.digest) == ("eye", True, "eye/main")
    assert (nose.model, nose.is_sibling) == ("nose", False)
    assert nose.prefixes == ("earlier-", "boot-0-", "earlier-", "boot-0-"), "of both arms"


def test_what_is_away_is_still_named() -> None:
    one = table(entry("ear", ready=False), entry("eye"))
    assert one.front() is one.ready["eye", "main"]
    (ear,) = one.split_for(("eye", "main")).neighbours
    assert (ear.model, ear.socket) == ("ear", "")
    assert one.split_for(("eye", "main")).first == "ear", "who names no model still means the same one"
    assert is_nobody(table(entry("eye")).split_for(("eye", "main")))
    assert table(entry("eye", ready=False)).front() is None


def test_a_socket_that_nobody_listens_at_is_no_answer(two: Two, tmp_path: Path) -> None:
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    two.tell(str(path))
    with Client(two.ear.socket_path, timeout_s=0.2) as client, pytest.raises(TransferError):
        client.infer(images(1)[0], model="eye")
