"""MLflow model folders: which file is the model, and what is refused. No tracker, no framework, no pickle is opened."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml

from edgeship.build import sources
from edgeship.build.sources import SourceRequest, mlflow, mlflow_folder
from edgeship_agent.contract.errors import ConfigError, InputError
from tests import models


class Armed:
    """Unpickled, it would end the process."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        import os

        return (os._exit, (99,))


def folder(path: Path, flavors: dict[str, Any], **facts: Any) -> Path:
    """A model folder as MLflow writes it, without its files."""
    path.mkdir(parents=True, exist_ok=True)
    flavors = {**flavors, "python_function": {"loader_module": "mlflow.any"}}
    (path / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors, **facts}), encoding="utf-8")
    return path


def file(path: Path, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def torch_file(path: Path, entries: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return path


LAYOUTS = [
    ({"onnx": {"data": "model.onnx"}}, "model.onnx", b"", "onnx"),
    ({"tensorflow": {"data": "data", "model_type": "keras"}}, "data/model.keras", b"", "tensorflow"),
    ({"tensorflow": {"data": "data", "save_format": "h5"}}, "data/model.h5", b"", "tensorflow"),
    ({"tensorflow": {"data": "data", "save_format": "tf"}}, "data/model/saved_model.pb", b"", "tensorflow"),
    ({"tensorflow": {"saved_model_dir": "tf2model"}}, "tf2model/saved_model.pb", b"", "tensorflow"),
    ({"keras": {"data": "data", "keras_version": "3"}}, "data/model.keras", b"", "tensorflow"),
    ({"xgboost": {"data": "model.ubj"}}, "model.ubj", b"{L learner", "classical"),
    ({"xgboost": {"data": "model.xgb"}}, "model.xgb", b'{"learner"', "classical"),
    ({"xgboost": {"data": "model.xgb"}}, "model.xgb", b"{L learner", "classical"),
    ({"lightgbm": {"data": "model.lgb"}}, "model.lgb", b"tree\n", "classical"),
]


@pytest.mark.parametrize(("flavors", "name", "data", "toolchain"), LAYOUTS)
def test_each_flavour_leads_to_its_file_and_toolchain(
    tmp_path: Path, flavors: dict[str, Any], name: str, data: bytes, toolchain: str
) -> None:
    root = folder(tmp_path / "m", flavors)
    wanted = file(root / name, data)
    request = SourceRequest(text=str(root))
    inner = sources.resolved(request)
    at = inner.path / "saved_model.pb" if inner.path.is_dir() else inner.path
    assert at.read_bytes() == data
    if wanted.suffix not in {".xgb", ".lgb"}:
        assert at == wanted
    assert sources.reader_of(request) == "mlflow"
    assert sources.toolchain_of(request) == ("" if toolchain == "onnx" else toolchain)


def test_a_file_under_another_name_gets_the_suffix_that_its_content_has(tmp_path: Path) -> None:
    for data, suffix in ((b'{"learner"', ".json"), (b"{L learner", ".ubj")):
        root = folder(tmp_path / suffix, {"xgboost": {"data": "model.xgb"}})
        file(root / "model.xgb", data)
        assert mlflow.resolved(SourceRequest(text=str(root))).path.suffix == suffix
    file(root / "model.xgb", b"binf old")
    with pytest.raises(InputError, match="old binary form"):
        mlflow.resolved(SourceRequest(text=str(root)))


def test_onnx_with_weights_beside_it_is_read_with_the_facts_of_its_run(tmp_path: Path) -> None:
    root = folder(tmp_path / "m", {"onnx": {"data": "model.onnx"}}, run_id="0f3a", artifact_path="nets/small",
                  model_uuid="77", mlflow_version="3.17.2")  # fmt: skip
    path = models.classifier(root / "model.onnx")
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="model.data", size_threshold=0)
    source = sources.load(root)
    assert (source.format, source.address) == ("onnx", "")
    assert [each.name for each in source.files] == ["model.onnx", "model.data"]
    assert source.facts == {
        "mlflow.run_id": "0f3a", "mlflow.artifact_path": "nets/small", "mlflow.model_uuid": "77",
        "mlflow.mlflow_version": "3.17.2", "mlflow.flavor": "onnx",
    }  # fmt: skip
    source.check_unchanged()
    assert sources.load(path).digest == source.digest


PICKLED = [
    ({"sklearn": {"pickled_model": "model.pkl"}}, "model.pkl", "skops"),
    ({"lightgbm": {"data": "model.pkl"}}, "model.pkl", "booster_"),
    ({"pytorch": {"model_data": "data"}}, "data/model.pth", "pt2"),
]


def _pickle(path: Path) -> None:
    data = pickle.dumps(Armed(), 2)
    if path.suffix == ".pth":
        torch_file(path, {"data.pkl": data})
    else:
        file(path, data)


@pytest.mark.parametrize(("flavors", "name", "instead"), PICKLED)
def test_a_pickle_is_refused_unless_allowed_and_never_opened(
    tmp_path: Path, flavors: dict[str, Any], name: str, instead: str
) -> None:
    root = folder(tmp_path / "m", flavors)
    _pickle(root / name)
    with pytest.raises(InputError, match="pickle") as refusal:
        sources.toolchain_of(SourceRequest(text=str(root)))
    assert refusal.value.exit_code == 2
    assert instead in str(refusal.value.next_step)
    assert "--allow-pickle" in str(refusal.value.next_step)
    allowed = sources.resolved(SourceRequest(text=str(root), allow_pickle=True))
    assert allowed.path == root / name
    assert allowed.allow_pickle


def test_files_without_code_need_no_permission(tmp_path: Path) -> None:
    skops = folder(tmp_path / "s", {"sklearn": {"pickled_model": "model.skops", "serialization_format": "skops"}})
    torch_file(skops / "model.skops", {"schema.json": b"{}"})
    assert sources.toolchain_of(SourceRequest(text=str(skops))) == "classical"
    script = folder(tmp_path / "t", {"pytorch": {"model_data": "data"}})
    torch_file(script / "data" / "model.pth", {"constants.pkl": b"", "code/a.py": b"", "data.pkl": b""})
    assert sources.toolchain_of(SourceRequest(text=str(script))) == "torch"
    program = folder(tmp_path / "p", {"pytorch": {"model_data": "data"}})
    torch_file(program / "data" / "model.pt2", {"models/model.json": b"{}"})
    assert sources.resolved(SourceRequest(text=str(program))).path.name == "model.pt2"


def test_onnx_comes_before_what_needs_a_framework_or_a_pickle(tmp_path: Path) -> None:
    root = folder(tmp_path / "m", {"sklearn": {"pickled_model": "model.pkl"}, "onnx": {"data": "model.onnx"}})
    file(root / "model.onnx")
    assert sources.resolved(SourceRequest(text=str(root))).path.name == "model.onnx"


def test_a_flavour_that_cannot_be_built_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "m", {"spark": {"model_data": "sparkml"}})
    with pytest.raises(InputError, match="python_function, spark") as refusal:
        sources.load(root)
    assert "mlflow.onnx.log_model" in str(refusal.value.next_step)


@pytest.mark.parametrize("name", ["../other.onnx", "/etc/hostname", "link.onnx", 7, ["a"], "a\0b"])
def test_nothing_outside_of_the_folder_is_read(tmp_path: Path, name: Any) -> None:
    models.classifier(tmp_path / "other.onnx")
    root = folder(tmp_path / "m", {"onnx": {"data": name}})
    (root / "link.onnx").symlink_to(tmp_path / "other.onnx")
    with pytest.raises(InputError, match=r"leads out of|names no file") as refusal:
        sources.load(root)
    assert refusal.value.key == "flavors.onnx.data"


def _descriptions() -> Iterator[bytes]:
    yield from (
        b"",
        b"[]",
        b"flavors: 3",
        b"flavors: [onnx]",
        b"a: b: c",
        b"\xff\xfe",
        b"\0",
        b"!!python/object:os.x {}",
    )
    yield b"[" * 20_000
    yield b"a: " + b"x" * mlflow_folder._LARGEST_BYTES


@pytest.mark.parametrize("data", list(_descriptions()), ids=range(10))
def test_a_description_that_is_none_is_unusable_input(tmp_path: Path, data: bytes) -> None:
    file(tmp_path / "m" / "MLmodel", data)
    with pytest.raises(InputError) as refusal:
        sources.load(tmp_path / "m")
    assert refusal.value.file == str(tmp_path / "m" / "MLmodel")
    assert refusal.value.next_step


@pytest.mark.parametrize(
    ("flavors", "message"),
    [
        ({"onnx": {}}, "is missing"),
        ({"onnx": None}, "is missing"),
        ({"onnx": {"data": "MLmodel"}}, "not what this flavour holds"),
        ({"sklearn": {"pickled_model": "MLmodel"}}, "not what this flavour holds"),
        ({"tensorflow": {"data": "."}}, "not what this flavour holds"),
        ({"pytorch": {"model_data": "."}}, "not what this flavour holds"),
        ({"lightgbm": {"data": "."}}, "is a folder"),
    ],
)
def test_a_folder_that_is_not_whole_is_unusable_input(tmp_path: Path, flavors: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sources.load(folder(tmp_path / "m", flavors))


@pytest.mark.parametrize(
    ("text", "reader"),
    [
        ("models:/fraud/3", "mlflow"), ("models:/fraud@best", "mlflow"), ("runs:/0f/m", "mlflow"),
        ("models:factory", "torch"), ("runs:factory", "torch"), ("my.models:net", "torch"), ("nets.py:net", "torch"),
    ],
)  # fmt: skip
def test_addresses_and_factories_are_told_apart(text: str, reader: str) -> None:
    assert sources.reader_of(SourceRequest(text=text)) == reader


def test_a_factory_in_a_module_named_models_reaches_its_reader() -> None:
    with pytest.raises(ConfigError, match="without trained weights"):
        sources.toolchain_of(SourceRequest(text="models:factory"))


@pytest.mark.parametrize(
    "text", ["models:/", "models:/a", "models:/a/latest", "models:/a/Production", "models:/a/1/b", "models:/a@",
             "runs:/x", "models://a/1", "models:/a/1@b", "runs:/../x"],
)  # fmt: skip
def test_another_address_is_refused_before_any_tracker_is_asked(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match="not an address of MLflow") as refusal:
        sources.toolchain_of(SourceRequest(text=text))
    assert "models:/NAME@ALIAS" in str(refusal.value.expected)


@pytest.mark.parametrize(
    ("text", "stem"),
    [("models:/fraud/3", "fraud"), ("models:/fraud@best", "fraud"), ("runs:/0f/nets/small.onnx", "small"),
     ("a/net.onnx", "net"), ("models:factory", "models:factory")],
)  # fmt: skip
def test_a_model_is_called_by_its_registered_name(text: str, stem: str) -> None:
    assert sources.stem_of(SourceRequest(text=text)) == stem
