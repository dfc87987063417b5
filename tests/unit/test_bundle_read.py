"""Reading bundles that somebody changed: each is refused, by one error, and nothing of them is handed out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from edgeship.bundle import AuthorKey, Bundle, export, export_carrier
from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ConfigError, ContractError, VerificationError
from tests import bundles


def opened_and_verified(directory: Path) -> Bundle:
    bundle = Bundle.open(directory)
    bundle.verify_signature()
    bundle.verify_digests()
    return bundle


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return bundles.written(tmp_path).directory


def blobs(directory: Path) -> list[Path]:
    return sorted((directory / "blobs" / "sha256").iterdir())


def change_index(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "index.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_untouched_bundle_verifies(directory: Path) -> None:
    bundle = opened_and_verified(directory)
    assert len(blobs(directory)) == bundle.verify_digests()
    assert bundle.author_key == AuthorKey.load_or_create(directory.parent / "author.key").public_hex


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_byte_in_any_blob(directory: Path, place: float) -> None:
    for path in blobs(directory):
        good = path.read_bytes()
        bad = bytearray(good)
        bad[round(place * (len(good) - 1))] ^= 0x20
        path.write_bytes(bytes(bad))
        with pytest.raises(VerificationError) as caught:
            opened_and_verified(directory)
        assert caught.value.exit_code == 1
        assert path.name in str(caught.value)
        path.write_bytes(good)
    opened_and_verified(directory)


@pytest.mark.parametrize("change", ["cut", "longer", "gone"])
def test_blobs_of_another_length(directory: Path, change: str) -> None:
    for path in blobs(directory):
        good = path.read_bytes()
        if change == "gone":
            path.unlink()
        else:
            path.write_bytes(good[:-1] if change == "cut" else good + b"\n")
        with pytest.raises(VerificationError):
            opened_and_verified(directory)
        path.write_bytes(good)


def test_index_cut_anywhere(directory: Path) -> None:
    path = directory / "index.json"
    good = path.read_bytes()
    for length in range(0, len(good), 7):
        path.write_bytes(good[:length])
        with pytest.raises(ContractError, match="not a document of a bundle"):
            Bundle.open(directory)


def test_any_flipped_byte_of_the_index_is_refused_or_changes_nothing(directory: Path) -> None:
    path = directory / "index.json"
    good = path.read_bytes()
    genuine = Bundle.open(directory).digest
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 0x01
        path.write_bytes(bytes(bad))
        try:
            bundle = opened_and_verified(directory)
        except (ContractError, VerificationError) as error:
            assert error.exit_code == 1
        else:
            assert bundle.digest == genuine
            assert (bundle.manifest.name, bundle.manifest.version) == ("digits", "1.0")


def test_signature_by_another_key(directory: Path, tmp_path: Path) -> None:
    other = AuthorKey.load_or_create(tmp_path / "other.key")
    bundle = Bundle.open(directory)
    forged = other.sign(oci.INDEX_TYPE, bundle.index_bytes)
    change_index(
        directory, lambda index: index["manifests"][0]["annotations"].update({oci.ANNOTATION_SIGNATURE: forged})
    )
    with pytest.raises(VerificationError, match="does not fit"):
        opened_and_verified(directory)


def test_signature_of_another_payload_type(directory: Path) -> None:
    key = AuthorKey.load_or_create(directory.parent / "author.key")
    other = key.sign("application/vnd.edgeship.goal.v1+msgpack", Bundle.open(directory).index_bytes)
    change_index(
        directory, lambda index: index["manifests"][0]["annotations"].update({oci.ANNOTATION_SIGNATURE: other})
    )
    with pytest.raises(VerificationError, match="does not fit"):
        opened_and_verified(directory)


def test_missing_signature(directory: Path) -> None:
    change_index(directory, lambda index: index["manifests"][0].pop("annotations"))
    with pytest.raises(VerificationError, match="not signed"):
        opened_and_verified(directory)


def test_name_that_the_signed_index_does_not_have(directory: Path) -> None:
    change_index(directory, lambda index: index["manifests"][0]["annotations"].update({oci.ANNOTATION_VERSION: "9"}))
    with pytest.raises(VerificationError, match="contradict"):
        Bundle.open(directory)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda index: index.update(manifests=[]), "expected one nested image index"),
        (lambda index: index.update(manifests=index["manifests"] * 2), "got 2 entries"),
        (lambda index: index["manifests"][0].update(digest="sha256:../../../etc/passwd"), "not a digest"),
        (lambda index: index["manifests"][0].update(size=10**12), "too long"),
        (lambda index: index["manifests"][0].update(size="many"), "Expected `int`"),
    ],
)
def test_index_with_other_content(directory: Path, change: Callable[[dict[str, Any]], None], sentence: str) -> None:
    change_index(directory, change)
    with pytest.raises(ContractError, match=sentence):
        Bundle.open(directory)


def with_layers(directory: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the layers of the first variant and put every digest above them right again, signature included."""

    def add(document: object) -> dict[str, Any]:
        data = json.dumps(document).encode()
        (directory / "blobs" / "sha256" / oci.hex_of(oci.digest_of(data))).write_bytes(data)
        return {"digest": oci.digest_of(data), "size": len(data)}

    def load(descriptor: dict[str, Any]) -> Any:
        return json.loads((directory / "blobs" / "sha256" / oci.hex_of(descriptor["digest"])).read_bytes())

    top = json.loads((directory / "index.json").read_text())
    nested = load(top["manifests"][0])
    image = load(nested["manifests"][0])
    change(image["layers"])
    nested["manifests"][0].update(add(image))
    top["manifests"][0].update(add(nested))
    key = AuthorKey.load_or_create(directory.parent / "author.key")
    top["manifests"][0]["annotations"][oci.ANNOTATION_SIGNATURE] = key.sign(oci.INDEX_TYPE, json.dumps(nested).encode())
    (directory / "index.json").write_text(json.dumps(top))


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/../../../escaped", "..", "", "x\\..\\y"])
def test_layer_names_that_climb_are_refused_even_when_signed(directory: Path, tmp_path: Path, name: str) -> None:
    with_layers(directory, lambda layers: layers[1]["annotations"].update({oci.ANNOTATION_FILE: name}))
    with pytest.raises(ContractError, match="leaves the bundle"):
        export(Bundle.open(directory), "raspberry-pi-5", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def forged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: str) -> Path:
    """A signed bundle of one variant, by a writer that checks no names."""
    monkeypatch.setattr("edgeship.bundle.write._check", lambda _: None)
    first = bundles.draft().variants[0]
    named = {key: value for key, value in changes.items() if key in {"name", "version"}}
    parts = {key: value for key, value in changes.items() if key not in named}
    content = bundles.draft(replace(first, variant=replace(first.variant, **parts)))
    return bundles.written(tmp_path, content=replace(content, **named)).directory


@pytest.mark.parametrize("key", ["target", "runtime", "precision", "name", "version"])
@pytest.mark.parametrize("value", ["{home}", "..", "../../escaped", "a/b", "", "-o", "1\nX: y"])
def test_names_that_climb_are_refused_even_when_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    value = value.format(home=tmp_path / "home")
    directory = forged(tmp_path, monkeypatch, **{key: value})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ContractError, match="leaves the bundle or cannot be used") as caught:
        bundle = Bundle.open(directory)
        target = bundle.manifest.variants[0].target
        export(bundle, target, tmp_path / "out")
        export_carrier(bundle, target, "deb", tmp_path / "out")
    assert caught.value.key is not None and str(caught.value.key).endswith(key)
    assert caught.value.next_step
    assert sorted(tmp_path.rglob("*")) == before


def test_layers_that_the_manifest_does_not_have(directory: Path) -> None:
    with_layers(directory, lambda layers: layers.pop())
    with pytest.raises(VerificationError, match="contradict"):
        Bundle.open(directory)


def test_two_layers_of_one_name(directory: Path) -> None:
    with_layers(directory, lambda layers: layers.append(layers[-1]))
    with pytest.raises(ContractError, match="layers need names"):
        Bundle.open(directory)


def test_no_bundle_at_that_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a bundle"):
        Bundle.open(tmp_path / "nowhere")


def test_blob_of_another_bundle(directory: Path) -> None:
    with pytest.raises(VerificationError, match="names no such blob"):
        Bundle.open(directory).blob(oci.digest_of(b"other"))


def test_export_writes_one_targets_files(directory: Path, tmp_path: Path) -> None:
    written = export(Bundle.open(directory), "intel-nuc", tmp_path / "out")
    names = {str(path.relative_to(tmp_path / "out")) for path in written}
    assert {"edgeship.json", "openvino/int8/model.xml", "openvino/int8/model.bin"} <= names
    assert all(path.is_file() for path in written)
    assert (tmp_path / "out" / "openvino/int8/model.bin").read_bytes() == b"model.bin" * 40


def test_export_refuses_what_it_cannot_do(directory: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(directory)
    with pytest.raises(ConfigError, match="no variant for this target"):
        export(bundle, "toaster", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(ConfigError, match="in the way"):
        export(bundle, "intel-nuc", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_export_of_an_altered_bundle_leaves_nothing(directory: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(directory)
    model = bundle.variant("intel-nuc/openvino/int8").file("weights")
    assert model is not None
    (directory / "blobs" / "sha256" / oci.hex_of(model.digest)).write_bytes(b"model.bin" * 39 + b"model.bix")
    with pytest.raises(VerificationError, match="altered"):
        export(bundle, "intel-nuc", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["author.key", "bundle"]
