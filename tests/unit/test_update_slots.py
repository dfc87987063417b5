"""Slots: staged, activated, kept, verified from the digest down; and the sockets' place."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from edgeship.bundle import VariantDraft
from edgeship_agent.contract.errors import VerificationError
from edgeship_agent.contract.oci import ImageIndex, ImageManifest, hex_of
from edgeship_agent.contract.wire import read_json
from edgeship_agent.supervisor import places as places_module
from edgeship_agent.supervisor.places import Places, find_socket
from edgeship_agent.update.slots import Slot, SlotContent, SlotFile, SlotInfo, Slots, verify_slot
from tests.bundles import draft, files, variant, written


def content(folder: Path, version: str) -> SlotContent:
    """What a slot of one small bundle is made from."""
    chosen = VariantDraft(variant=variant("t", "litert", "int8"), files=files("m.tflite", seed=version.encode()))
    bundle = written(folder, name=f"bundle-{version}", content=draft(chosen, version=version))
    blobs = bundle.directory / "blobs" / "sha256"
    index = (blobs / hex_of(bundle.digest)).read_bytes()
    entry = read_json(index, ImageIndex, file="index").manifests[0]
    image_bytes = (blobs / hex_of(entry.digest)).read_bytes()
    layers = read_json(image_bytes, ImageManifest, file="variant").layers
    named = {layer.annotations["org.cncf.model.filepath"]: blobs / hex_of(layer.digest) for layer in layers}
    manifest = named.pop("edgeship.json").read_bytes()
    return SlotContent(
        info=SlotInfo(model="digits", version=version, digest=bundle.digest, variant="t/litert/int8", arm="main"),
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
