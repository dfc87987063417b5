"""Slots: staged, activated, kept, verified from the digest down; and the sockets' place."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from edgeship.bundle import VariantDraft
from edgeship_agent.contract.errors import VerificationError
from edgeship_agent.contract.oci import ImageIndex, ImageManifest, hex_of
from edgeship_agent.contract.wire import read_json
from edgeship_agent.supervisor import places as places_module
from edgeship_agent.supervisor.places import Places, find_socket
from edgeship_agent.supervisor.start import slots_to_serve
from edgeship_agent.update.activation import Activator
from edgeship_agent.update.disk import Disk
from edgeship_agent.update.launcher import Launcher
from edgeship_agent.update.slots import Checked, Slot, SlotContent, SlotFile, SlotInfo, Slots, verify_slot
from tests.bundles import draft, files, variant, written
from tests.power_device import Serving


def content(folder: Path, version: str, model: str = "digits") -> SlotContent:
    """What a slot of one small bundle is made from."""
    chosen = VariantDraft(variant=variant("t", "litert", "int8"), files=files("m.tflite", seed=version.encode()))
    bundle = written(folder, name=f"bundle-{model}-{version}", content=draft(chosen, name=model, version=version))
    blobs = bundle.directory / "blobs" / "sha256"
    index = (blobs / hex_of(bundle.digest)).read_bytes()
    entry = read_json(index, ImageIndex, file="index").manifests[0]
    image_bytes = (blobs / hex_of(entry.digest)).read_bytes()
    layers = read_json(image_bytes, ImageManifest, file="variant").layers
    named = {layer.annotations["org.cncf.model.filepath"]: blobs / hex_of(layer.digest) for layer in layers}
    manifest = named.pop("edgeship.json").read_bytes()
    return SlotContent(
        info=SlotInfo(model=model, version=version, digest=bundle.digest, variant="t/litert/int8", arm="main"),
        index=index,
        variant_manifest=image_bytes,
        manifest=manifest,
        files=tuple(SlotFile(path=path, blob=blob) for path, blob in named.items()),
    )


def activate(slots: Slots, folder: Path, version: str) -> Slot:
    made = content(folder, version)
    slots.stage(made)
    slot = slots.install_staged("digits", "main", made.info.digest)
    slots.switch([slot])
    active = slots.active("digits", "main")
    assert active is not None
    return active


def filled(slots: Slots, folder: Path, model: str, version: str) -> Slot:
    """A bundle in the slot that is not the active one."""
    made = content(folder, version, model)
    slots.stage(made)
    return slots.install_staged(model, "main", made.info.digest)


def active_version(slots: Slots, model: str) -> str:
    slot = slots.active(model, "main")
    return "" if slot is None else slot.info.version


def test_several_models_are_switched_in_one_rename(tmp_path: Path) -> None:
    disk = CountingDisk()
    slots = Slots(tmp_path / "slots", disk)
    slots.switch([filled(slots, tmp_path, "ear", "1"), filled(slots, tmp_path, "eye", "1")])
    new = [filled(slots, tmp_path, "ear", "2"), filled(slots, tmp_path, "eye", "2")]
    assert [active_version(slots, model) for model in ("ear", "eye")] == ["1", "1"]
    disk.renamed.clear()
    slots.switch(new)
    assert disk.renamed[0] == tmp_path / "slots" / "pointer.json"
    assert [path.name for path in disk.renamed[1:]] == ["active", "active"], "links follow, and decide nothing"
    assert [active_version(slots, model) for model in ("ear", "eye")] == ["2", "2"]
    assert slots.together("ear", "main") == (("ear", "main"), ("eye", "main"))
    slots.switch([filled(slots, tmp_path, "eye", "3")])
    assert slots.together("ear", "main") == (("ear", "main"),)
    disk.renamed.clear()
    slots.switch([active for active in [slots.active("eye", "main")] if active is not None])
    assert disk.renamed == [], "what is so already costs no write"
    slots.switch([], [("eye", "main")])
    assert (active_version(slots, "ear"), active_version(slots, "eye")) == ("2", "")
    assert not (tmp_path / "slots" / "eye" / "main" / "active").is_symlink()


class CountingDisk(Disk):
    """Notes what was renamed, and may refuse to."""

    def __init__(self) -> None:
        self.renamed: list[Path] = []
        self.is_full = False

    def rename(self, source: Path, destination: Path) -> None:
        if self.is_full:
            raise OSError("full")
        self.renamed.append(destination)
        super().rename(source, destination)


def test_links_of_an_older_agent_become_the_pointer(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots")
    activate(slots, tmp_path, "1")
    activate(slots, tmp_path, "2")
    pointer, link = tmp_path / "slots" / "pointer.json", tmp_path / "slots" / "digits" / "main" / "active"
    pointer.unlink()  # what such an agent leaves
    disk = CountingDisk()
    again = Slots(tmp_path / "slots", disk)
    assert active_version(again, "digits") == "2", "served before anything is written"
    disk.is_full = True
    again.settle(was_older=True)
    assert active_version(again, "digits") == "2"
    assert not pointer.exists()
    disk.is_full = False
    again.settle(was_older=True)
    assert pointer.exists()
    # the older agent goes back to 1 on its own: the pointer says 2 still
    other = "b" if str(link.readlink()) == "a" else "a"
    link.unlink()
    link.symlink_to(other)
    after = Slots(tmp_path / "slots")
    assert active_version(after, "digits") == "2"
    after.settle(was_older=True)
    assert active_version(after, "digits") == "1"
    # a link that a power cut left behind is mended, and decides nothing
    link.unlink()
    after.settle(was_older=False)
    assert str(link.readlink()) == other


def test_a_pointer_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots")
    activate(slots, tmp_path, "1")
    pointer = tmp_path / "slots" / "pointer.json"
    document = json.loads(pointer.read_bytes())
    document["of_tomorrow"], document["arms"][0]["lease"] = 7, "x"
    pointer.write_text(json.dumps(document))
    slots.switch([filled(slots, tmp_path, "eye", "1")])
    after = json.loads(pointer.read_bytes())
    assert (after["of_tomorrow"], after["arms"][0]["lease"], len(after["arms"])) == (7, "x", 2)
    pointer.write_text(json.dumps({**after, "schema_version": 9, "arms": [{"model": 7}]}))
    assert active_version(Slots(tmp_path / "slots"), "digits") == "1", "the links say it"
    pointer.write_text("{")
    assert active_version(Slots(tmp_path / "slots"), "eye") == "1"


class Bare:
    """A device's start without processes: golden checks that held under today's fingerprint are not made again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slots = Slots(folder / "slots")
        workers = Serving(set())
        self.activator = Activator(self.slots, workers, Launcher(), lambda _: {"runtime": "1"}, lambda: 0.0)
        self.said: list[tuple[str, str]] = []

    def switch(self, **versions: str) -> dict[str, Slot]:
        made = {model: filled(self.slots, self.folder, model, version) for model, version in versions.items()}
        for slot in made.values():
            self.slots.remember_check(slot, Checked(fingerprint={"runtime": "1"}, relative_rms=0.0))
        self.slots.switch(made.values())
        return made

    def served(self) -> dict[str, str]:
        def say(event: str, **fields: object) -> None:
            self.said.append((event, str(fields.get("reason", ""))))

        return {slot.info.model: slot.info.version for slot in slots_to_serve(self.slots, self.activator, say)}


def damage(slot: Slot) -> None:
    path = slot.directory / "files" / "m.tflite"
    path.unlink()
    path.write_bytes(b"x")


def test_a_start_takes_a_whole_release_back(tmp_path: Path) -> None:
    device = Bare(tmp_path)
    device.switch(ear="1", eye="1", nose="1")
    new = device.switch(ear="2", eye="2")
    assert device.served() == {"ear": "2", "eye": "2", "nose": "1"}
    damage(new["eye"])
    assert device.served() == {"ear": "1", "eye": "1", "nose": "1"}
    assert ("fallback", "damaged") in device.said
    assert ("fallback", "release_member") in device.said
    assert [active_version(device.slots, model) for model in ("ear", "eye", "nose")] == ["1", "1", "1"]


def test_a_start_with_nothing_whole_serves_what_it_can(tmp_path: Path) -> None:
    device = Bare(tmp_path)
    device.switch(ear="1")
    new = device.switch(ear="2", eye="1")  # the eye is new with this release
    damage(new["ear"])
    assert device.served() == {"ear": "1"}, "as before the release"
    device = Bare(tmp_path / "other")
    both = device.switch(ear="1", eye="1")
    damage(both["ear"])
    assert device.served() == {"eye": "1"}
    assert not device.slots.is_wanted("ear", "main")


def kept(slots: Slots) -> SlotInfo:
    """What a rollback would go to."""
    slot = slots.retained("digits", "main")
    assert slot is not None
    return slot.info


def test_two_bundles_are_kept_and_the_pointer_moves(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots")
    assert slots.active("digits", "main") is None
    first = activate(slots, tmp_path, "1")
    assert slots.retained("digits", "main") is None
    second = activate(slots, tmp_path, "2")
    assert slots.active("digits", "main") == second
    assert kept(slots) == first.info
    third = activate(slots, tmp_path, "3")
    assert kept(slots) == second.info
    assert slots.find("digits", "main", first.info.digest) is None
    assert {slot.info.version for slot in slots.all()} == {"2", "3"}
    slots.switch([second])
    assert kept(slots) == third.info
    for slot in slots.all():
        verify_slot(slot)


def test_installing_twice_is_harmless(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots")
    slot = activate(slots, tmp_path, "1")
    assert slots.install_staged("digits", "main", slot.info.digest).info == slot.info
    with pytest.raises(VerificationError, match="nothing is staged"):
        slots.install_staged("digits", "main", "sha256:" + "0" * 64)


@pytest.mark.parametrize(
    "name", ["index.json", "variant.json", "edgeship.json", "files/m.tflite", "files/profile.msgpack"]
)
def test_every_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    slots = Slots(tmp_path / "slots")
    slot = activate(slots, tmp_path, "1")
    path = slot.directory / name
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(VerificationError):
        verify_slot(slot)
    path.unlink()
    with pytest.raises(VerificationError):
        verify_slot(slot)


def test_half_a_slot_is_none(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots")
    slot = activate(slots, tmp_path, "1")
    (slot.directory / "slot.json").write_bytes(b"{")
    assert slots.active("digits", "main") is None


@pytest.mark.parametrize("model", ["a/b", "..", ".", "ä ö", "x" * 60])
def test_any_name_is_a_folder_inside(tmp_path: Path, model: str) -> None:
    slots = Slots(tmp_path / "slots")
    made = content(tmp_path, "1")
    info = SlotInfo(**{**{f: getattr(made.info, f) for f in made.info.__struct_fields__}, "model": model})
    values = {name: getattr(made, name) for name in made.__struct_fields__}
    slot = slots.stage(SlotContent(**{**values, "info": info}))
    assert slot.directory.resolve().is_relative_to((tmp_path / "slots").resolve())
    assert slots.arms() == ((model, "main"),)


def test_long_state_directories_get_short_sockets(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="edgeship-") as near:  # pytest's own folders may be too deep already
        _check_sockets(Places(Path(near) / "s"), Places(tmp_path / ("d" * 100) / "state"))


def test_what_another_user_made_in_memory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places_module, "_MEMORY", tmp_path)
    with tempfile.TemporaryDirectory(prefix="edgeship-") as near:
        places = Places(Path(near) / "s")
        places.make()
        places.publish()
        ours = places.volatile
        assert (ours.parent, places.status.readlink()) == (tmp_path, ours / "status.json")
        (ours / "read-only").touch()
        assert find_socket(places.root).parent == ours
        ours.chmod(0o777)  # whoever may write there could be the one that answers
        again = Places(places.root)
        again.make()
        again.publish()
        assert again.volatile == again.run
        assert find_socket(places.root) == again.run / "infer.sock"
        assert not again.status.is_symlink()


def _check_sockets(short: Places, long: Places) -> None:
    for places in (short, long):
        places.make()
        places.publish()
        assert len(str(places.socket)) < 100
        assert find_socket(places.root) == places.socket
    assert short.sockets == short.run
    assert long.sockets != long.run
    long.sockets.rmdir()
