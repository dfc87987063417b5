"""What a device takes: variants, versions, room, contracts, files."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.manifest import BundleFile, BundleManifest, OutputContract, Variant, output_contract_hash
from edgeship_agent.contract.oci import MODEL_CONFIG_TYPE, WEIGHT_TYPE, Descriptor, ImageManifest, digest_of
from edgeship_agent.update.offer import (
    DeviceFacts,
    Promised,
    Refusal,
    check_files,
    choose_variant,
    disk_bytes_of,
    fallback_of,
    has_room,
    in_range,
    precheck,
)
from tests.bundles import draft, variant


def manifest(*variants: Variant, output: OutputContract | None = None) -> BundleManifest:
    content = draft()
    return BundleManifest(
        name="digits",
        version="1.0",
        inputs=content.inputs,
        outputs=content.outputs,
        input_contracts=content.input_contracts,
        input_schema=content.input_schema,
        output=output or content.output,
        variants=variants,
        lineage=content.lineage,
    )


def facts(**changes: Any) -> DeviceFacts:
    values: dict[str, Any] = {
        "target": "t",
        "arch": "x86_64",
        "runtimes": {"litert": "1.5", "openvino": "1.1"},
        "memory_bytes": 10**9,
        "disk_free_bytes": 10**9,
        "accepts": {},
    }
    return DeviceFacts(**{**values, **changes})


def refused(chosen: Variant, retained: str | None = None, **changes: Any) -> str | None:
    answer = precheck(manifest(chosen), chosen, facts(**changes), model="digits", version="1.0", retained=retained)
    return None if answer is None else answer.reason


def test_the_first_variant_whose_runtime_is_there() -> None:
    offered = manifest(
        variant("other", "litert", "int8"),
        variant("t", "onnxruntime", "int8"),
        variant("t", "openvino", "int8"),
        variant("t", "litert", "int8"),
    )
    chosen = choose_variant(offered, facts())
    assert isinstance(chosen, Variant) and chosen.label == "t/openvino/int8"


def test_what_stands_in_is_full_precision_of_the_same_runtime() -> None:
    chosen, spare = variant("t", "litert", "int8"), variant("t", "litert", "fp32")
    others = (variant("t", "openvino", "fp32"), variant("other", "litert", "fp32"), variant("t", "litert", "fp16"))
    assert fallback_of(manifest(chosen, *others, spare), chosen) == spare
    assert fallback_of(manifest(chosen, *others), chosen) is None
    assert fallback_of(manifest(spare), spare) is None


def test_there_is_a_fallback_where_there_is_room_for_it() -> None:
    def sized(precision: str, *files: tuple[str, int]) -> Variant:
        made = (BundleFile(path=d, role="model", digest=d, size_bytes=size) for d, size in files)
        return msgspec.structs.replace(variant("t", "litert", precision), files=tuple(made))

    chosen, spare = sized("int8", ("a", 10), ("golden", 5)), sized("fp32", ("b", 40), ("golden", 5))

    def fits(free_bytes: int, *present: str, **changes: Any) -> bool:
        return has_room(chosen, spare, facts(disk_free_bytes=free_bytes, **changes), present)

    assert fits(110)
    assert not fits(109)
    # the answer stays the same while files arrive, since each takes its size from what is free
    assert fits(100, "a")
    assert not fits(99, "a")
    assert fits(60, "a", "b")
    assert not fits(110, keeps_fallback=False)
    assert not fits(110, memory_bytes=spare.min_memory_bytes - 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"target": "unknown"}, "no_variant"), ({"runtimes": {"openvino": "1"}}, "runtime_missing")],
)
def test_no_variant(changes: dict[str, Any], reason: str) -> None:
    answer = choose_variant(manifest(variant("t", "litert", "int8")), facts(**changes))
    assert isinstance(answer, Refusal) and answer.reason == reason


def test_platform_and_room() -> None:
    good = variant("t", "litert", "int8")
    assert refused(good) is None
    assert refused(good, arch="aarch64") == "arch"
    assert refused(good, runtimes={"litert": "2.0"}) == "runtime_version"
    assert refused(good, memory_bytes=1000) == "memory"
    assert refused(good, memory_bytes=0) is None
    heavy = msgspec.structs.replace(
        good, files=(BundleFile(path="m", role="model", digest=digest_of(b""), size_bytes=6 * 10**8),)
    )
    assert refused(heavy) == "disk"


def test_room_is_asked_for_all_models_of_a_release() -> None:
    one = variant("t", "litert", "int8")
    beside = Promised(models=("ear",), memory_bytes=600, disk_bytes=70) + Promised(models=("nose",), memory_bytes=50)
    asked_bytes = one.min_memory_bytes + 650
    assert refused(one, memory_bytes=asked_bytes, promised=beside) is None
    assert refused(one, memory_bytes=0, promised=beside) is None, "unknown"
    short = facts(memory_bytes=asked_bytes - 1, promised=beside)
    answer = precheck(manifest(one), one, short, model="digits", version="1.0", retained=None)
    assert answer is not None
    assert answer.detail == (
        f"the models of the release start side by side and need {asked_bytes} bytes of memory, "
        f"{one.min_memory_bytes} for this one and 650 for ear, nose, {asked_bytes - 1} are available"
    )
    disk_bytes = disk_bytes_of((one,))
    assert refused(one, disk_free_bytes=disk_bytes + 70, promised=beside) is None
    short = facts(disk_free_bytes=disk_bytes + 69, promised=beside)
    answer = precheck(manifest(one), one, short, model="digits", version="1.0", retained=None)
    assert answer is not None
    assert (answer.reason, f"needs {disk_bytes + 70} bytes on disk, 70 of them for ear, nose" in answer.detail) == (
        "disk",
        True,
    )


def test_what_stands_in_leaves_room_for_the_others() -> None:
    chosen, spare = variant("t", "litert", "int8"), variant("t", "litert", "fp32")
    others = Promised(models=("ear",), memory_bytes=7, disk_bytes=9)
    needed_bytes = disk_bytes_of((chosen, spare))
    for memory_bytes, disk_bytes, fits in ((7, 9, True), (6, 9, False), (7, 8, False)):
        room = facts(
            memory_bytes=spare.min_memory_bytes + memory_bytes,
            disk_free_bytes=needed_bytes + disk_bytes,
            promised=others,
        )
        assert has_room(chosen, spare, room, ()) is fits


def test_the_bundle_is_the_one_that_the_goal_names() -> None:
    good = variant("t", "litert", "int8")
    answer = precheck(manifest(good), good, facts(), model="digits", version="9", retained=None)
    assert answer is not None and answer.reason == "wrong_bundle"


def test_output_contract_of_update_and_retained_bundle() -> None:
    good = variant("t", "litert", "int8")
    own = output_contract_hash(draft().output)
    assert refused(good, accepts={"digits": (own,)}) is None
    assert refused(good, accepts={"digits": ("other",)}) == "output_contract"
    assert refused(good, retained="older", accepts={"digits": (own,)}) == "retained_contract"
    assert refused(good, retained="older", accepts={"digits": (own, "older")}) is None
    assert refused(good, retained="older") is None


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("1.32.0", ">=1.20,<2", True),
        ("2.0.0", ">=1.20,<2", False),
        ("1.9", ">=1.20", False),
        ("2026.4.1", ">=2026.0", True),
        ("2.3.0rc1", ">=2.3", True),
        ("1.2.3+cpu", "==1.2.3", True),
        ("1.4.2", "~=1.4.1", True),
        ("1.5.0", "~=1.4.1", False),
        ("1", "!=1", False),
        ("1", "", True),
        ("1", "newest", False),
    ],
)
def test_version_ranges(version: str, wanted: str, fits: bool) -> None:
    assert in_range(version, wanted) is fits


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "", "a\\b", "a\0b"])
def test_files_stay_in_their_folder(path: str) -> None:
    file = BundleFile(path=path, role="model", digest=digest_of(b"m"), size_bytes=1)
    with pytest.raises(ContractError, match="leaves its folder"):
        check_files(*_with(file, size_bytes=1))


def test_files_are_layers_of_the_declared_length() -> None:
    file = BundleFile(path="m.onnx", role="model", digest=digest_of(b"m"), size_bytes=1)
    check_files(*_with(file, size_bytes=1))
    with pytest.raises(ContractError, match="not a layer"):
        check_files(*_with(file, size_bytes=2))
    with pytest.raises(ContractError, match="no model file"):
        check_files(*_with(msgspec.structs.replace(file, role="profile"), size_bytes=1))


def _with(file: BundleFile, *, size_bytes: int) -> tuple[Variant, ImageManifest]:
    layer = Descriptor(media_type=WEIGHT_TYPE, digest=file.digest, size=size_bytes)
    config = Descriptor(media_type=MODEL_CONFIG_TYPE, digest=digest_of(b"{}"), size=2)
    chosen = msgspec.structs.replace(variant("t", "litert", "int8"), files=(file,))
    return chosen, ImageManifest(config=config, layers=(layer,))
