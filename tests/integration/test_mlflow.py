"""MLflow for real: a tracking store in a folder, models that are fetched from it, and builds that are logged to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from msgspec import structs

from edgeship.build import pipeline, sources, tracker, tracking
from edgeship.build.options import BuildOptions
from edgeship.build.quiet import quiet
from edgeship.build.sources import SourceRequest
from edgeship.cli.main import edgeship
from edgeship_agent.contract.errors import ConfigError, InputError, TransferError
from tests import builds, models

pytest.importorskip("mlflow")
TARGET = "x86-64-server"


class Listener:
    """Keeps what a build says."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str]] = []

    def step(self, label: str, text: str, glyph: str = "done") -> None:
        self.lines.append((label, text, glyph))

    def count(self, label: str, done: int, total: int) -> None:
        pass


class Store:
    """A tracking store with one run, whose model folder is registered as ``net`` version 1, alias ``champion``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"sqlite:///{folder}/mlflow.db"
        os.environ["MLFLOW_TRACKING_URI"] = self.address
        self.model = _model_folder(folder / "made")
        with tracker.opened("the store") as client:
            self.experiment = client.create_experiment("nets", artifact_location=str(folder / "artifacts"))
            run = client.create_run(self.experiment, tags={"team": "vision", "note": "two\nlines"})
            self.run_id = run.info.run_id
            client.log_artifacts(self.run_id, str(self.model), "nets/small")
            client.log_artifact(self.run_id, str(self.model / "model.onnx"))
            client.set_terminated(self.run_id)
            client.create_registered_model("net")
            client.create_model_version("net", source=f"{run.info.artifact_uri}/nets/small", run_id=self.run_id,
                                        tags={"stage": "trial"})  # fmt: skip
            client.set_registered_model_alias("net", "champion", "1")

    def run(self, run_id: str) -> Any:
        with tracker.opened(run_id) as client:
            return client.get_run(run_id)

    def artifacts(self, run_id: str) -> list[str]:
        with tracker.opened(run_id) as client:
            return [each.path for each in client.list_artifacts(run_id, tracking.ARTIFACT_FOLDER)]

    def new_runs(self) -> list[Any]:
        with tracker.opened("runs") as client:
            return [run for run in client.search_runs([self.experiment]) if run.info.run_id != self.run_id]


def _model_folder(folder: Path) -> Path:
    """As MLflow's own classes write it, with the weights in a file beside the graph."""
    tracker.check()
    folder.mkdir()
    path = models.classifier(folder / "model.onnx")
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    with quiet():
        from mlflow.models import Model

        described = Model(artifact_path="nets/small", run_id="0" * 32)
        described.add_flavor("onnx", data="model.onnx", onnx_version=onnx.__version__)
        described.add_flavor("python_function", loader_module="mlflow.onnx")
        described.save(str(folder / "MLmodel"))
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    before = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        yield Store(tmp_path_factory.mktemp("tracker"))
    finally:
        if before is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture
def store(kept: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", kept.address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "nets")
    return kept


def _options(folder: Path, source: str, **more: Any) -> BuildOptions:
    np.savez(folder / "calibration.npz", x=models.inputs(40, seed=1)[:, 0:1])
    np.savez(folder / "evaluation.npz", x=models.inputs(60, seed=2)[:, 0:1])
    return BuildOptions(
        source=Path(source), targets=(TARGET,), calibration=folder / "calibration.npz",
        evaluation=folder / "evaluation.npz", output=folder / "build", key=folder / "author.key", effort="quick",
        **more,
    )  # fmt: skip


@pytest.mark.parametrize("address", ["models:/net/1", "models:/net@champion", "runs:/{run}/nets/small"])
def test_an_address_is_read_as_the_model_that_it_names(store: Store, address: str) -> None:
    text = address.format(run=store.run_id)
    source = sources.load(SourceRequest(text=text))
    assert source.digest == sources.load(store.model).digest
    assert (source.format, source.address) == ("onnx", text)
    assert [each.name for each in source.files] == ["model.onnx", "model.onnx.data"]
    facts = source.facts
    assert (facts["mlflow.run_id"], facts["mlflow.artifact_path"]) == (store.run_id, "nets/small")
    assert (facts["mlflow.tag.team"], facts["mlflow.tag.note"]) == ("vision", "two lines")
    assert not [name for name in facts if name.startswith("mlflow.tag.mlflow")]
    if address.startswith("models:/"):
        assert (facts["mlflow.model"], facts["mlflow.version"], facts["mlflow.tag.stage"]) == ("net", "1", "trial")
    assert facts.get("mlflow.alias", "") == ("champion" if "@" in address else "")
    source.check_unchanged()


def test_an_artifact_that_is_a_file_is_read_as_that_file(store: Store, tmp_path: Path) -> None:
    with tracker.opened("a run") as client:
        client.log_artifact(store.run_id, str(models.two_outputs(tmp_path / "raw.onnx")), "files")
    source = sources.load(SourceRequest(text=f"runs:/{store.run_id}/files/raw.onnx"))
    assert [each.name for each in source.outputs] == ["map", "mean"]
    assert source.facts["mlflow.artifact_path"] == "files/raw.onnx"


def test_a_store_of_files_is_opened(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older versions of MLflow made one by default, as ``mlruns``; newer ones refuse it unless they are told."""
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    with tracker.opened("the store") as client:
        run = client.create_run(client.create_experiment("nets"), tags={"team": "vision"})
        client.log_artifacts(run.info.run_id, str(store.model), "nets/small")
    source = sources.load(SourceRequest(text=f"runs:/{run.info.run_id}/nets/small"))
    assert (source.format, source.facts["mlflow.run_id"]) == ("onnx", run.info.run_id)
    assert source.facts["mlflow.tag.team"] == "vision"


def test_what_an_alias_names_is_looked_up_anew_for_each_build(store: Store, tmp_path: Path) -> None:
    request = SourceRequest(text="models:/moving@now")
    with tracker.opened("a model") as client:
        client.create_registered_model("moving")
        for number, make in enumerate((models.classifier, models.two_outputs)):
            version = tmp_path / str(number)
            version.mkdir()
            make(version / "model.onnx")
            (version / "MLmodel").write_text("flavors: {onnx: {data: model.onnx}}", encoding="utf-8")
            client.create_model_version("moving", source=str(version))
        client.set_registered_model_alias("moving", "now", "1")
    assert sources.toolchain_of(request) == ""
    assert len(sources.load(request).outputs) == 1
    with tracker.opened("a model") as client:
        client.set_registered_model_alias("moving", "now", "2")
    source = sources.load(request)
    assert (len(source.outputs), source.facts["mlflow.version"]) == (2, "2")


def test_a_version_without_files_is_unusable_input(store: Store, tmp_path: Path) -> None:
    with tracker.opened("a model") as client:
        client.create_registered_model("file")
        client.create_model_version("file", source=str(models.classifier(tmp_path / "net.onnx")))
    with pytest.raises(InputError, match="no files of this version") as refusal:
        sources.load(SourceRequest(text="models:/file/1"))
    assert "runs:/ID/path" in str(refusal.value.next_step)


@pytest.mark.parametrize(
    "address", ["models:/net/9", "models:/none/1", "models:/net@nobody", "runs:/" + "f" * 32 + "/m", "runs:/{run}/none"]
)
def test_what_the_tracker_does_not_know_is_unusable_input(store: Store, address: str) -> None:
    with pytest.raises(InputError, match="MLflow: ") as refusal:
        sources.load(SourceRequest(text=address.format(run=store.run_id)))
    assert refusal.value.exit_code == 2
    assert "MLFLOW_TRACKING_URI" in str(refusal.value.next_step)


def test_a_tracker_that_is_not_there_is_an_error_of_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TransferError, match=r"127\.0\.0\.1") as refusal:
        sources.load(SourceRequest(text="models:/net/1"))
    assert refusal.value.exit_code == 1


def test_without_an_address_nothing_is_made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="which tracker"):
        sources.load(SourceRequest(text="models:/net/1"))
    assert not list(tmp_path.iterdir())


WITHOUT = """
import sys
sys.modules["mlflow"] = None
from edgeship.cli.main import main
sys.argv = ["edgeship", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("given", [["models:/net/1"], ["{onnx}", "--log-mlflow"]])
def test_a_missing_client_names_the_line_that_installs_it(store: Store, tmp_path: Path, given: list[str]) -> None:
    words = [each.format(onnx=models.classifier(tmp_path / "m.onnx")) for each in given]
    data = ["--calibration", "c.npz", "--evaluation", "e.npz", "-o", str(tmp_path / "out"), "-t", TARGET]
    ended = subprocess.run([sys.executable, "-c", WITHOUT, "build", *words, *data], capture_output=True, text=True,
                           timeout=120, check=False)  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert "pip install 'edgeship[mlflow]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_build_says_where_it_comes_from_and_is_logged_to_its_run(store: Store, tmp_path: Path) -> None:
    heard = Listener()
    result = pipeline.build(_options(tmp_path, "models:/net@champion", log_mlflow=True), heard)
    assert result.document.verdict == "pass"
    assert result.document.name == "net"
    assert result.document.source is not None
    assert result.document.source.file == "models:/net@champion"
    assert result.document.lineage is not None
    assert result.document.lineage.given["mlflow.run_id"] == store.run_id
    assert ("mlflow", f"logged to run {store.run_id}", "done") in heard.lines
    run = store.run(store.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["edgeship.verdict"] == "pass"
    assert run.data.tags["edgeship.bundle_digest"] == result.document.bundle_digest
    assert run.data.tags[f"edgeship.chosen.{TARGET}"] == result.document.targets[0].chosen
    assert run.data.tags["team"] == "vision"
    for variant in result.document.variants:
        start = f"edgeship/{TARGET}/{variant.runtime}/{variant.precision}"
        name = variant.metric.name
        logged = {key.removeprefix(f"{start}/"): value for key, value in run.data.metrics.items() if start in key}
        assert logged[name] == variant.metric.value
        assert logged[f"{name}_drop_low"] == variant.metric.drop_low
        assert logged[f"{name}_drop_high"] == variant.metric.drop_high
        assert logged["size_bytes"] == variant.size_bytes
    assert sorted(store.artifacts(store.run_id)) == ["edgeship/build.json", "edgeship/report.html"]
    with tracker.opened("a run") as client:
        copy = Path(client.download_artifacts(store.run_id, "edgeship/build.json", str(tmp_path)))
    assert json.loads(copy.read_bytes()) == json.loads((tmp_path / "build" / "build.json").read_bytes())


def _built(folder: Path) -> Path:
    folder.mkdir()
    for name in tracking.LOGGED_FILES:
        (folder / name).write_text("{}", encoding="utf-8")
    return folder


def test_a_source_without_a_run_gets_a_new_one(store: Store, tmp_path: Path) -> None:
    before = {run.info.run_id for run in store.new_runs()}
    heard = Listener()
    document = builds.document(verdict="fail")
    run_id = tracking.log(document, "", _built(tmp_path / "b"), heard)
    assert [line[2] for line in heard.lines] == ["done"]
    (run,) = [each for each in store.new_runs() if each.info.run_id not in before]
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert run.data.tags["edgeship.verdict"] == "fail"
    assert len(run.data.metrics) == len(tracking.record_of(document).metrics)


@pytest.mark.parametrize("broken", ["unknown run", "no file", "no server"])
def test_what_cannot_be_logged_is_said_and_takes_nothing_from_the_build(
    store: Store, tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _built(tmp_path / "b")
    if broken == "no file":
        (folder / "report.html").unlink()
    if broken == "no server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    heard = Listener()
    assert tracking.log(builds.document(), "f" * 32 if broken == "unknown run" else "", folder, heard) == ""
    ((label, text, glyph),) = heard.lines
    assert (label, glyph) == ("mlflow", "failed")
    assert text.startswith("not logged: ")
    if broken == "no file":
        assert "FAILED" in {run.info.status for run in store.new_runs()}


def test_a_failure_to_log_leaves_the_exit_code(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = _options(tmp_path, str(store.model))  # its MLmodel names a run that this store does not have
    argv = ["edgeship", "build", str(options.source), "-t", TARGET, "--calibration", str(options.calibration),
            "--evaluation", str(options.evaluation), "--key", str(options.key), "-o", str(options.output),
            "--effort", "quick", "--log-mlflow", "--json"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", argv)
    said = CliRunner().invoke(edgeship, argv[1:])
    assert said.exit_code == 0, said.output
    assert "not logged" in said.stderr
    assert json.loads(said.stdout)["verdict"] == "pass"
    assert (options.output / "bundle").is_dir()


def test_names_of_figures_are_what_mlflow_takes(store: Store) -> None:
    document = builds.document()
    odd = structs.replace(document.variants[0], metric=structs.replace(document.variants[0].metric, name="recall:ä?=b"))
    endless = structs.replace(document.variants[1], relative_rms=float("nan"), sqnr_db=float("inf"))
    metrics = tracking.record_of(structs.replace(document, variants=(odd, endless))).metrics
    with quiet():
        from mlflow.utils.validation import _validate_metric_name
    for name in metrics:
        _validate_metric_name(name)
    assert any("recall_ä" in name for name in metrics)
    assert not any(name.endswith("sqnr_db") and f"/{endless.precision}/" in name for name in metrics)
