"""Model card, bill of materials and lineage: what they say, and that nobody's name breaks them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from msgspec.structs import replace

from edgeship.build.documents.bom import bill_of_materials
from edgeship.build.documents.card import CardAddition, model_card, read_card
from edgeship.build.documents.origin import check_license, parse_lineage, read_code
from edgeship.build.documents.statement import read_statement
from edgeship.build.options import BuildOptions
from edgeship.bundle import BundleDraft, manifest_of
from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.manifest import BundleManifest, Feature, OutputContract
from tests import certificates

HOSTILE = "a|b`c\n# <script>alert(1)</script> [x](y) _z_"


def _parts(content: BundleDraft | None = None) -> tuple:
    manifest = manifest_of(content or certificates.draft())
    return manifest, certificates.lineage(manifest), [certificates.certificate(v, manifest) for v in manifest.variants]


def test_bill_of_materials_follows_the_schema() -> None:
    bom = bill_of_materials(*_parts())
    errors = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom))
    assert errors is None, errors
    variant = next(each for each in bom["components"] if each["bom-ref"] == "variant:x86-64-server/onnxruntime/int8")
    metric = variant["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]
    assert metric["type"] == "top1"
    low, high = (float(metric["confidenceInterval"][name]) for name in ("lowerBound", "upperBound"))
    assert low < float(metric["value"]) < high
    assert {each["name"]: each["purl"] for each in bom["components"] if each["type"] == "library"} == {
        "edgeship": "pkg:pypi/edgeship@0.1.0"
    }


def test_schema_check_can_fail() -> None:
    bom = bill_of_materials(*_parts())
    bom["components"][0]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]["value"] = 0.5
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom)) is not None


def test_serial_number_follows_from_the_content() -> None:
    manifest, lineage, found = _parts()
    one = bill_of_materials(manifest, lineage, found)
    assert one == bill_of_materials(manifest, lineage, found)
    other = bill_of_materials(manifest, replace(lineage, license="MIT"), found)
    assert one["serialNumber"] != other["serialNumber"]
    assert "timestamp" not in json.dumps(one)


def _card(addition: CardAddition | None = None, *, manifest: BundleManifest | None = None) -> tuple[dict, str]:
    default, lineage, found = _parts()
    text = model_card(manifest or default, lineage, found, addition or CardAddition())
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_card_states_figures_with_intervals_and_says_what_was_not_said() -> None:
    front, body = _card()
    assert front["base_model_relation"] == "quantized"
    assert front["license"] == "apache-2.0"
    assert [each["metrics"][0]["type"] for each in front["model-index"][0]["results"]] == ["accuracy"] * 3
    assert "96.89 % (95 %: 95.54 to 97.84)" in body
    assert "+0.22 points (95 %: " in body
    assert "## Intended use\n\nNot stated." in body
    assert "base_model" not in front


def test_float_variants_alone_are_not_called_quantized() -> None:
    manifest, lineage, found = _parts()
    text = model_card(manifest, lineage, found[2:], CardAddition())
    assert "base_model_relation" not in text


def test_what_the_user_says_is_kept_as_it_is() -> None:
    addition = CardAddition(front={"language": "en", "tags": ["digits", "edgeship"]}, text="## Intended use\n\nClocks.")
    front, body = _card(addition)
    assert front["language"] == "en"
    assert front["tags"] == ["digits", "edgeship", "litert", "onnxruntime", "openvino"]
    assert body.endswith("## Intended use\n\nClocks.\n")
    assert "Not stated" not in body


def test_hostile_names_stay_in_their_cell() -> None:
    manifest = _parts()[0]
    manifest = replace(
        manifest,
        output=OutputContract(labels=(HOSTILE,)),
        input_schema={"x": (Feature(name=HOSTILE, unit=HOSTILE, meaning=HOSTILE, documented=True),)},
    )
    _, body = _card(manifest=manifest)
    assert "<script" not in body.replace("\\<script", "")
    assert "\n# \\<" not in body
    row = next(line for line in body.splitlines() if "alert" in line and line.startswith("| x"))
    assert row.replace("\\|", "").count("|") == 6


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("---\nbase_model_relation: merge\n---\n", "states this itself"),
        ("---\nmodel-index: []\n---\n", "states this itself"),
        ("---\nlanguage: en\n", "does not end"),
        ("---\n[1\n---\n", "not YAML"),
        ("---\n- a\n---\n", "not a mapping"),
        ("---\n!!python/object/apply:os.system [id]\n---\n", "not YAML"),
        ("x" * 200_001, "too long"),
    ],
)
def test_cards_that_cannot_be_used(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "card.md"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_card(path)
    assert caught.value.next_step


def test_card_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing.md", tmp_path / "card.md", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_card(path)


def test_card_without_front_matter(tmp_path: Path) -> None:
    path = tmp_path / "card.md"
    path.write_bytes(b"## Use\r\n\r\n--- not a fence\r\n")
    assert read_card(path) == CardAddition(text="## Use\n\n--- not a fence")


def _options(**changes: object) -> BuildOptions:
    return replace(BuildOptions(source=Path("m"), targets=(), calibration=Path("c"), evaluation=Path("e")), **changes)


def test_two_licences_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "card.md"
    path.write_text("---\nlicense: mit\n---\n")
    with pytest.raises(ConfigError, match="two different licences"):
        read_statement(_options(license="Apache-2.0", card=path))
    assert read_statement(_options(license="MIT", card=path)).license == "MIT"


@pytest.mark.parametrize("pair", ["run", "=7", "1run=7", "run=", "run=a\nb", "a b=c", "run=" + "x" * 1001, "ü=1"])
def test_lineage_that_is_none(pair: str) -> None:
    with pytest.raises(ConfigError):
        parse_lineage([pair])


def test_lineage_given_twice() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        parse_lineage(["run=1", "run=2"])


def test_licences() -> None:
    assert check_license("LicenseRef-Proprietary") == "LicenseRef-Proprietary"
    for text in ("nonsense", "MIT AND", "MIT MIT", "<b>"):
        with pytest.raises(ConfigError, match="not a licence"):
            check_license(text)


def test_card_of_a_licence_that_hubs_do_not_know() -> None:
    manifest, lineage, found = _parts()
    text = model_card(manifest, replace(lineage, license="MIT OR GPL-2.0-only"), found, CardAddition())
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["license_name"]) == ("other", "MIT OR GPL-2.0-only")


def _git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_commit_of_the_working_folder(tmp_path: Path) -> None:
    assert read_code(tmp_path) is None
    _git(tmp_path, "init", "-q")
    assert read_code(tmp_path) is None, "no commit yet"
    (tmp_path / "a").write_text("1")
    _git(tmp_path, "add", "a")
    _git(tmp_path, "commit", "-q", "-m", "first")
    code = read_code(tmp_path)
    assert code is not None
    assert len(code.commit) == 40
    assert code.dirty is False
    (tmp_path / "b").write_text("an untracked file is no change of the code")
    assert read_code(tmp_path) == code
    (tmp_path / "a").write_text("2")
    assert read_code(tmp_path) == replace(code, dirty=True)


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_code(Path.cwd()) is None


def test_documents_are_the_same_bytes_every_time() -> None:
    one, two = certificates.draft(), certificates.draft()
    assert [file.data for file in one.documents] == [file.data for file in two.documents]
    assert oci.digest_of(one.variants[0].documents[0].data) == oci.digest_of(two.variants[0].documents[0].data)
