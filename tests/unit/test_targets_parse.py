"""Target files: what is right is read, what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeship.build import target_files
from edgeship.build.target_reference import reference
from edgeship.targets import Target, parse
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.runtime.isa import isa_class_of

BASE = 'id = "a"\ntitle = "A"\narch = "aarch64"\nmemory_bytes = 1\nstorage_bytes = 1\n'
RUNTIMES = "one of litert, onnxruntime, openvino"
RUNTIME = '[[runtime]]\nname = "litert"\n'


def test_smallest_file() -> None:
    target = parse(BASE + RUNTIME)
    assert (target.id, target.arch, target.isa, target.agent) == ("a", "aarch64", (), True)
    assert [(entry.name, entry.int8, entry.threads) for entry in target.runtimes] == [("litert", "s8s8", 1)]
    assert target.defaults.max_drop == 0.01


@pytest.mark.parametrize(
    ("text", "key", "expected", "got"),
    [
        (BASE, "runtime", "a value", "nothing"),
        (BASE + 'colour = "red"\n' + RUNTIME, "colour", None, None),
        (BASE + 'memory_byte = 3\n' + RUNTIME, "memory_byte", "memory_bytes", None),
        (BASE + RUNTIME + "thread = 2\n", "runtime[0].thread", "threads", None),
        (BASE + '[[runtime]]\nname = "tensorrt"\n', "runtime[0].name", RUNTIMES, "'tensorrt'"),
        (BASE + RUNTIME + 'int8 = "u4"\n', "runtime[0].int8", "one of s8s8, u8s8", "'u4'"),
        (BASE + RUNTIME + "threads = 0\n", "runtime[0].threads", "int >= 1", "0"),
        (BASE.replace("memory_bytes = 1", "memory_bytes = 1.5") + RUNTIME, "memory_bytes", "int", "1.5"),
        (BASE.replace('"A"', "7") + RUNTIME, "title", "str", "7"),
        (BASE + RUNTIME + "[defaults.metric]\nmax_drop = 2.0\n", "defaults.metric.max_drop", "float <= 1.0", "2.0"),
        (BASE + "runtime = []\n", "runtime", "array of length >= 1", "[]"),
        ("schema_version = 2\n" + BASE + RUNTIME, "schema_version", "int <= 1", "2"),
    ],
)  # fmt: skip
def test_mistakes_name_file_key_expected_and_got(text: str, key: str, expected: str | None, got: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, file="mine.toml")
    error = caught.value
    assert (error.file, error.key, error.expected, error.got) == ("mine.toml", key, expected, got)
    assert error.next_step
    assert error.exit_code == 2


def test_text_that_is_not_toml() -> None:
    with pytest.raises(ConfigError, match=r"mine\.toml: not TOML"):
        parse("id = ", file="mine.toml")


def test_extends_merges_tables_and_replaces_lists() -> None:
    files = {
        "base": BASE.replace('"a"', '"base"')
        + 'isa = ["dotprod"]\n'
        + RUNTIME
        + "[defaults.metric]\nmax_drop = 0.02\n",
        "middle": 'id = "middle"\nextends = "base"\nmemory_bytes = 5\n[defaults.metric]\nconfidence = 0.9\n',
    }
    target = parse('id = "leaf"\nextends = "middle"\n[[runtime]]\nname = "onnxruntime"\n', parent=files.__getitem__)
    assert (target.id, target.memory_bytes, target.isa, target.extends) == ("leaf", 5, ("dotprod",), "middle")
    assert [entry.name for entry in target.runtimes] == ["onnxruntime"]
    assert (target.defaults.metric.max_drop, target.defaults.metric.confidence) == (0.02, 0.9)


def test_extends_in_a_circle() -> None:
    files = {"a": 'id = "a"\nextends = "b"\n', "b": 'id = "b"\nextends = "a"\n'}
    with pytest.raises(ConfigError, match="circle") as caught:
        parse(files["a"], parent=files.__getitem__)
    assert caught.value.got == "a → b → a"


def test_shipped_targets() -> None:
    shipped = {each.id: each for each in target_files.list_all()}
    assert {name: [entry.name for entry in each.runtimes] for name, each in shipped.items()} == {
        "android-arm64": ["litert"],
        "cortex-m": ["litert"],
        "intel-nuc": ["openvino"],
        "ios-arm64": ["litert"],
        "jetson-orin-nano": ["onnxruntime"],
        "raspberry-pi-4": ["litert", "onnxruntime"],
        "raspberry-pi-5": ["litert", "onnxruntime"],
        "raspberry-pi-zero-2w": ["litert", "onnxruntime"],
        "x86-64-litert": ["litert"],
        "x86-64-server": ["onnxruntime"],
        "x86-64-v2": ["onnxruntime"],
    }
    assert {name for name, each in shipped.items() if not each.agent} == {"android-arm64", "cortex-m", "ios-arm64"}
    classes = {name: isa_class_of(each.arch, each.isa) for name, each in shipped.items()}
    assert classes["raspberry-pi-5"] == classes["jetson-orin-nano"] == "aarch64+dotprod"
    assert classes["raspberry-pi-4"] == classes["raspberry-pi-zero-2w"] == classes["android-arm64"] == "aarch64"
    assert (classes["x86-64-v2"], classes["x86-64-server"]) == ("x86_64", "x86_64+vnni")
    # nobody has tried one of them on its hardware
    assert not any(each.verified_on for each in shipped.values())
    assert all(each.defaults.max_drop == 0.01 for each in shipped.values())


def test_shipped_base_file_shows_every_key_that_has_a_default_of_its_own() -> None:
    text = (target_files.folder() / "x86-64-server.toml").read_text()
    rare = {"extends", "compile", "format", "python"}
    names = set(Target.__struct_encode_fields__) - rare
    assert [name for name in sorted(names) if f"{name} =" not in text and f"[{name}" not in text] == []


def test_unknown_target_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean raspberry-pi-5") as caught:
        target_files.load("raspberrypi5")
    assert caught.value.next_step == "edgeship targets list"


def test_file_by_path_extends_a_shipped_target(tmp_path: Path) -> None:
    path = tmp_path / "my-pi.toml"
    path.write_text('id = "my-pi"\nextends = "raspberry-pi-5"\nmemory_bytes = 100\n')
    target = target_files.load(path)
    assert (target.memory_bytes, target.arch, target.runtimes[0].name) == (100, "aarch64", "litert")


def test_id_must_be_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text('id = "my-pi"\nextends = "raspberry-pi-5"\n')
    with pytest.raises(ConfigError, match="must be the name of the file"):
        target_files.load(path)
    with pytest.raises(ConfigError, match="no such target file"):
        target_files.load(tmp_path / "missing.toml")


def test_reference_page_is_fresh() -> None:
    page = target_files.folder().parent / "docs" / "reference" / "targets.md"
    assert page.read_text() == reference(target_files.list_all()), (
        "python -m edgeship.build.target_reference > docs/reference/targets.md"
    )


def test_boards_share_a_base_that_is_no_target() -> None:
    assert target_files.base_names() == ["mobile", "raspberry-pi"]
    assert not set(target_files.base_names()) & set(target_files.names())
    boards = [target_files.load(name) for name in target_files.names() if name.startswith("raspberry-pi-")]
    assert {each.extends for each in boards} == {"raspberry-pi"}
    assert {(each.glibc, each.python) for each in boards} == {("2.36", "3.11")}
    with pytest.raises(ConfigError, match="unknown target 'raspberry-pi'"):
        target_files.load("raspberry-pi")


@pytest.mark.parametrize("name", ["raspbery-pi", "../targets/raspberry-pi-5", "/etc/passwd", "."])
def test_extends_of_something_that_is_no_target_names_file_and_key(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'id = "mine"\nextends = "{name}"\n')
    with pytest.raises(ConfigError, match="extends a target that does not exist") as caught:
        target_files.load(path)
    error = caught.value
    assert (error.file, error.key, error.got) == (str(path), "extends", repr(name))
    if name == "raspbery-pi":
        assert "did you mean raspberry-pi?" in error.message


def test_a_base_of_ones_own_lies_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "ours.toml").write_text('extends = "raspberry-pi"\nstorage_bytes = 7\n')
    (tmp_path / "kiosk.toml").write_text('id = "kiosk"\ntitle = "K"\nextends = "ours"\nmemory_bytes = 5\n')
    target = target_files.load(tmp_path / "kiosk.toml")
    assert (target.memory_bytes, target.storage_bytes, target.glibc) == (5, 7, "2.36")


def test_circle_between_files(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('id = "a"\nextends = "b"\n')
    (tmp_path / "b.toml").write_text('id = "b"\nextends = "a"\n')
    with pytest.raises(ConfigError, match="circle"):
        target_files.load(tmp_path / "a.toml")
