"""Project files: what they may say, what is refused and how, and the one that ``edgeship init`` writes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeship.build import preprocess, project, project_template, sources, target_files
from edgeship.build.options import BuildOptions
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.manifest import TensorSpec
from edgeship_agent.runtime import isa
from tests import models

LEAST = '[model]\nsource = "net.onnx"\n[data]\ncalibration = "c.npz"\nevaluation = "e.npz"\n'
#: What a project file does not say: it holds for a person, a machine or one run.
ELSEWHERE = {"key", "ssh_config", "base", "install_toolchains"}


def _file(folder: Path, text: str) -> Path:
    path = folder / "edgeship.toml"
    path.write_text(text, encoding="utf-8")
    return path


def _options(folder: Path, text: str) -> BuildOptions:
    path = _file(folder, text)
    return project.options_of(project.read(path), path)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("")
    options = _options(tmp_path, 'targets = ["own.toml", "intel-nuc"]\noutput = "out"\n' + LEAST)
    assert options.source == tmp_path / "net.onnx"
    assert (options.calibration, options.evaluation) == (tmp_path / "c.npz", tmp_path / "e.npz")
    assert options.output == tmp_path / "out"
    assert options.targets == (str(tmp_path / "own.toml"), "intel-nuc")


@pytest.mark.parametrize("address", ["package.module:factory", "models:/digits@champion"])
def test_an_address_stays_what_it_is(tmp_path: Path, address: str) -> None:
    assert str(_options(tmp_path, LEAST.replace("net.onnx", address)).source) == str(Path(address))


def test_a_factorys_file_lies_beside_the_project_file(tmp_path: Path) -> None:
    said = _options(tmp_path, LEAST.replace("net.onnx", "nets/small.py:make"))
    assert str(said.source) == str(tmp_path / "nets/small.py:make")


def test_what_is_left_out_has_the_command_lines_default(tmp_path: Path) -> None:
    said = _options(tmp_path, LEAST)
    bare = BuildOptions(source=said.source, targets=(), calibration=said.calibration, evaluation=said.evaluation,
                        output=tmp_path / "build")  # fmt: skip
    assert said == bare


def test_every_option_of_a_build_has_a_key(tmp_path: Path) -> None:
    everything = (
        'targets = ["t"]\noutput = "o"\nstrict = true\neffort = "quick"\nprecisions = ["fp16"]\nkeep_float = ["k"]\n'
        'measure = "ssh://h"\n'
        "log_mlflow = true\nfold_normalisation = false\nfp32_fallback = false\ncache = false\njobs = 2\n"
        '[model]\nsource = "s"\nname = "n"\nversion = "2"\ntask = "raw"\nlabels = ["a"]\ninput_shapes = ["1,2"]\n'
        'input_values = ["z=3"]\n'
        'weights = "w"\nallow_pickle = true\ninput_tensors = ["i"]\noutput_tensors = ["o"]\nsignature = "g"\n'
        'license = "l"\nlineage = ["k=v"]\ncard = "d"\n'
        '[data]\ncalibration = "c"\nevaluation = "e"\nunlabelled = "u"\n'
        '[preprocessing]\nfile = "p"\n[input_schema]\nfile = "f"\n'
        '[metric]\nname = "map"\nmax_drop = 0.5\ncost_matrix = "m"\npostprocess = "q"\nground_truth = "g"\n'
        "[budgets]\nlatency_p99_ms = 5\nsize_bytes = 5\nmax_relative_rms = 0.5\naccept_proxy_latency = true\n"
    )
    said = _options(tmp_path, everything)
    blank = BuildOptions(source=Path(), targets=(), calibration=Path(), evaluation=Path())
    same = {name for name in BuildOptions.__struct_fields__ if getattr(said, name) == getattr(blank, name)}
    assert same == ELSEWHERE


@pytest.mark.parametrize(
    ("text", "key", "expected", "got"),
    [
        ("[metric]\nmax_drp = 0.1\n", "metric.max_drp", "name | max_drop", "max_drp"),
        ("[metric]\nmax_drop = 'x'\n", "metric.max_drop", "a number or nothing", "text"),
        ("[budgets]\nsize_bytes = 1.5\n", "budgets.size_bytes", "a whole number or nothing", "a number"),
        ("[budgets]\nlatency_p99_ms = 0\n", "budgets.latency_p99_ms", "more than 0", "0.0"),
        ("[budgets]\nlatency_p99_ms = nan\n", "budgets.latency_p99_ms", "more than 0", "nan"),
        ("[budgets]\nlatency_p99_ms = inf\n", "budgets.latency_p99_ms", "finite", "inf"),
        ("[metric]\nmax_drop = inf\n", "metric.max_drop", "finite", "inf"),
        ("[metric]\nmax_drop = -0.1\n", "metric.max_drop", "0 or more", "-0.1"),
        ("[preprocessing]\nfile = 'a'\n[[preprocessing.input]]\n", "preprocessing", "file or", "both"),
        ("[model.x]\ny = 1\n", "model.x", "source | name", "x"),
        ("[[metric]]\nname = 'top1'\n", "metric", "a table", "a list"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_key_expected_and_got(
    tmp_path: Path, text: str, key: str, expected: str, got: str
) -> None:
    path = _file(tmp_path, LEAST + text)
    with pytest.raises(ConfigError) as refusal:
        project.read(path)
    error = refusal.value
    assert (error.file, error.key, error.got) == (str(path), key, got)
    assert expected in str(error.expected)
    assert error.next_step
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[data]\ncalibration = 'c'\nevaluation = 'e'\n", "model: missing key"),
        ("[model]\nsource = 's'\n[data]\ncalibration = 'c'\n", r"data\.evaluation: missing key"),
        ("schema_version = 2\n" + LEAST, "schema_version: unknown version"),
        (LEAST.replace("net.onnx", ""), r"model\.source: is empty"),
        (LEAST + "[metric\n", "as TOML"),
        ("task = 'raw'\n" + LEAST, "task: unknown key"),
    ],
)
def test_other_mistakes(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        project.read(_file(tmp_path, text))


def test_the_nearest_key_is_offered(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        project.read(_file(tmp_path, LEAST + "[budget]\nsize_bytes = 1\n"))
    assert refusal.value.next_step == "did you mean budgets?"


def test_preprocessing_and_features_may_stand_in_the_file(tmp_path: Path) -> None:
    text = LEAST + (
        "[[preprocessing.input]]\ndtype = 'uint8'\nshape = [8, 8]\nsteps = [{ op = 'scale', factor = 0.5 }]\n"
        "[[input_schema.feature]]\nname = 'ink'\nunit = '%'\n"
    )
    options = _options(tmp_path, text)
    assert options.preprocess == options.input_schema == tmp_path / "edgeship.toml"
    (contract,) = preprocess.read_contracts(options.preprocess, [TensorSpec(name="x", dtype="float32", shape=(1, 8))])
    assert (contract.dtype, contract.shape, len(contract.steps)) == ("uint8", (8, 8), 1)
    features = preprocess.read_features(options.input_schema, (contract,))
    assert features["x"][0].unit == "%"


@pytest.mark.parametrize("line", ["dtipe = 'uint8'", "steps = [{ op = 'scale', factr = 1 }]"])
def test_a_mistake_in_the_inline_contract_is_named_too(tmp_path: Path, line: str) -> None:
    options = _options(tmp_path, LEAST + f"[[preprocessing.input]]\ndtype = 'uint8'\nshape = [8]\n{line}\n")
    assert options.preprocess is not None
    with pytest.raises(ConfigError, match="unknown key") as refusal:
        preprocess.read_contracts(options.preprocess, [TensorSpec(name="x", dtype="float32", shape=(1, 8))])
    assert refusal.value.file == str(tmp_path / "edgeship.toml")


def _template(folder: Path, **values: object) -> str:
    given = {"schema_version": 1, "targets": ["intel-nuc"], "model.source": "net.onnx", "data.calibration": "c.npz",
             "data.evaluation": "e.npz", **values}  # fmt: skip
    source = sources.load(models.classifier(folder / "net.onnx"))
    return project_template.render(source, project_template.Answers(values=given))


def test_a_new_file_is_read_back_and_shows_the_models_signature(tmp_path: Path) -> None:
    text = _template(tmp_path, **{"model.input_shapes": ["x=1,1,8,8"]})
    said = project.read(_file(tmp_path, text))
    assert (said.targets, said.model.source, said.model.input_shapes) == (("intel-nuc",), "net.onnx", ("x=1,1,8,8",))
    assert "# input x: float32 [-1, 1, 8, 8]" in text
    assert "# output scores: float32 [-1, 6]" in text


def test_every_key_of_a_new_file_is_explained_and_shows_its_default(tmp_path: Path) -> None:
    lines = _template(tmp_path).splitlines()
    names = {line.removeprefix("# ").split(" = ")[0] for line in lines if " = " in line}
    for section in (project.Project, project.Model, project.Data, project.Metric, project.Budgets):
        keys = {field.name for field in msgspec.structs.fields(section)
                if not (isinstance(field.type, type) and issubclass(field.type, msgspec.Struct))}  # fmt: skip
        assert keys <= names, section
    whole = "\n".join(re.sub(r"^# (?=(\w+ = [^…]+|\[\[.*\]\])$)", "", line) for line in lines)
    wanted = project.read(_file(tmp_path, "\n".join(lines)))
    said = project.read(_file(tmp_path, whole))
    assert tomllib.loads(whole)["budgets"]["max_relative_rms"] == wanted.budgets.max_relative_rms
    assert len(said.preprocessing.input) == len(said.input_schema.feature) == 1
    plain = msgspec.structs.replace(said, preprocessing=wanted.preprocessing, input_schema=wanted.input_schema)
    assert plain == wanted


def _edgeship(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edgeship", *arguments], cwd=folder, capture_output=True, text=True,
                          check=False, stdin=subprocess.DEVNULL, timeout=120)  # fmt: skip


def test_init_looks_at_the_only_model_and_finds_the_data(tmp_path: Path) -> None:
    models.classifier(tmp_path / "net.onnx")
    for name in ("calibration.npz", "evaluation.npz"):
        np.savez(tmp_path / name, x=np.zeros(1))
    done = _edgeship(tmp_path, "init", "-t", "x86-64-litert")
    assert (done.returncode, done.stdout) == (0, "edgeship.toml\n"), done.stderr
    said = project.read(tmp_path / "edgeship.toml")
    assert (said.model.source, said.targets) == ("net.onnx", ("x86-64-litert",))
    assert (said.data.calibration, said.data.evaluation) == ("calibration.npz", "evaluation.npz")
    assert {path.name for path in tmp_path.iterdir()} == {"net.onnx", "calibration.npz", "evaluation.npz",
                                                         "edgeship.toml"}  # fmt: skip


def test_init_chooses_a_target_whose_kernels_this_machine_has(tmp_path: Path) -> None:
    models.classifier(tmp_path / "net.onnx")
    done = _edgeship(tmp_path, "init")
    assert done.returncode == 0, done.stderr
    (name,) = project.read(tmp_path / "edgeship.toml").targets
    assert set(target_files.load(name).isa) <= set(isa.isa_features())


@pytest.mark.parametrize(
    ("isa_class", "target"),
    [("x86_64", "x86-64-v2"), ("x86_64+vnni", "x86-64-server"), ("aarch64", "raspberry-pi-4"),
     ("aarch64+dotprod", "raspberry-pi-5"), ("riscv64", "raspberry-pi-5")],
)  # fmt: skip
def test_the_first_target_is_like_the_machine(isa_class: str, target: str) -> None:
    assert project_template.first_target(isa_class) == target


def test_init_overwrites_nothing_and_asks_nothing(tmp_path: Path) -> None:
    models.classifier(tmp_path / "net.onnx")
    _file(tmp_path, "mine")
    done = _edgeship(tmp_path, "init")
    assert done.returncode == 2
    assert "--force" in done.stderr
    assert (tmp_path / "edgeship.toml").read_text() == "mine"
    assert _edgeship(tmp_path, "init", "--force").returncode == 0
    models.classifier(tmp_path / "other.onnx")
    done = _edgeship(tmp_path, "init", "--force")
    assert done.returncode == 2
    assert "net.onnx, other.onnx" in done.stderr


def test_init_names_pytorchs_files_and_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"x")
    done = _edgeship(tmp_path, "init")
    assert done.returncode == 2
    assert "got net.pt" in done.stderr
    assert "next: edgeship init net.pt;" in done.stderr and "--weights net.pt" in done.stderr


@pytest.mark.parametrize("arguments", [["-t", "no-such-board"], ["--input-shape", "odd"]])
def test_init_writes_nothing_where_it_cannot_be_right(tmp_path: Path, arguments: list[str]) -> None:
    models.classifier(tmp_path / "net.onnx")
    done = _edgeship(tmp_path, "init", "net.onnx", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "edgeship.toml").exists()


def test_init_in_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        target = tmp_path / "file"
        target.write_text("")
        output = str(target / "edgeship.toml")
    else:
        tmp_path.chmod(0o500)
        output = "edgeship.toml"
    model = models.classifier(tmp_path.parent / "net.onnx")
    done = _edgeship(tmp_path, "init", str(model), "-o", output)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr


def test_a_build_without_source_needs_a_project_file(tmp_path: Path) -> None:
    done = _edgeship(tmp_path, "build")
    assert done.returncode == 2
    assert "edgeship init MODEL" in done.stderr


def test_options_win_over_the_file(tmp_path: Path) -> None:
    models.classifier(tmp_path / "net.onnx")
    _file(tmp_path, 'targets = ["no-such-board"]\n' + LEAST)
    assert "no-such-board" in _edgeship(tmp_path, "build").stderr
    done = _edgeship(tmp_path, "build", "-t", "x86-64-server", "--calibration", "gone.npz")
    assert done.returncode == 2
    assert "gone.npz" in done.stderr
    elsewhere = _edgeship(tmp_path.parent, "build", "--project", str(tmp_path / "edgeship.toml"), "-t", "intel-nuc")
    assert str(tmp_path / "c.npz") in elsewhere.stderr


@pytest.mark.parametrize("jobs", [0, -1, 65])
def test_a_number_of_jobs_that_cannot_be_is_named(tmp_path: Path, jobs: int) -> None:
    with pytest.raises(ConfigError, match=r"jobs.*1 to 64"):
        project.read(_file(tmp_path, f"jobs = {jobs}\n{LEAST}"))
