"""Every form of a PyTorch model: described, run and converted by PyTorch itself, or refused with the true reason."""

from __future__ import annotations

import hashlib
import io
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeship.build import metrics, routes, sources, toolchains
from edgeship.build.sources import InputShape, SourceModel, SourceRequest
from edgeship.build.toolchains import environment, workers
from edgeship_agent.contract.errors import ConversionError, InputError
from tests import models

FACTORIES = Path(__file__).resolve().parents[1] / "factories"
IMAGE = (InputShape(shape=(1, 1, 8, 8)),)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    toolchains.install("torch")
    folder = tmp_path_factory.mktemp("torch")
    command = [str(environment.named("torch").python), "-I", str(FACTORIES / "write_models.py"), str(folder)]
    subprocess.run(command, check=True, timeout=200, capture_output=True, stdin=subprocess.DEVNULL)
    return folder


def _load(source: Path | str, **more: object) -> SourceModel:
    return sources.load(SourceRequest(text=str(source), **more))  # type: ignore[arg-type]


def _factory(name: str, weights: Path) -> SourceModel:
    return _load(f"{FACTORIES / 'small_net.py'}:{name}", weights=weights, input_shapes=IMAGE)


def _onnx(source: SourceModel, folder: Path) -> tuple[Path, routes.Forms]:
    forms = routes.Forms(source, folder, lambda _: None)
    return forms.file(("torch.onnx",)), forms


def _samples(source: SourceModel, count: int = 6) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {spec.name: rng.normal(0, 2, spec.call_shape).astype(spec.dtype) for spec in source.inputs}
        for _ in range(count)
    ]


def _worst(source: SourceModel, file: Path, folder: Path) -> float:
    """Largest relative RMS of any output: the converted file in ONNX Runtime against PyTorch itself."""
    converted = sources.load(file)
    assert [(each.name, each.dtype) for each in converted.inputs] == [(each.name, each.dtype) for each in source.inputs]
    assert [each.name for each in converted.outputs] == [each.name for each in source.outputs]
    samples = _samples(source)
    wanted = models.answers(source, samples, folder / "source")
    found = models.answers(converted, samples, folder / "converted")
    return max(
        metrics.relative_rms(np.stack([each[spec.name] for each in found]), np.stack([w[spec.name] for w in wanted]))
        or 0.0
        for spec in source.outputs
    )


class TestExportedProgram:
    def test_a_constant_made_inside_of_forward_is_exported_again(self, files: Path, tmp_path: Path) -> None:
        source = _load(files / "shifted.pt2")
        converted, forms = _onnx(source, tmp_path)
        assert _worst(source, converted, tmp_path) < 1e-6
        assert forms.fallbacks(("torch.onnx",)) == ()

    @pytest.mark.slow
    def test_a_bag_of_embeddings_needs_no_loop(self, files: Path, tmp_path: Path) -> None:
        source = _load(files / "bag.pt2")
        converted, _ = _onnx(source, tmp_path)
        assert {node.op_type for node in onnx.load(converted).graph.node}.isdisjoint({"Loop", "If", "Scan"})
        assert _worst(source, converted, tmp_path) < 1e-6

    def test_it_is_described_run_and_converted(self, files: Path, tmp_path: Path) -> None:
        source = _load(files / "program.pt2")
        assert [(each.name, each.shape, each.dtype) for each in source.inputs] == [("x", (-1, 1, 8, 8), "float32")]
        assert [(each.name, each.shape) for each in source.outputs] == [("logits", (-1, 6)), ("pooled", (-1, 4))]
        assert (source.format, source.toolchain, source.quantized) == ("torch", "torch", False)
        assert source.parameters == 4 * 9 + 4 + 2 * 4 + 4 * 6 + 6
        assert source.operators > 4
        file, _ = _onnx(source, tmp_path)
        assert _worst(source, file, tmp_path) < 1e-5
        source.check_unchanged()

    @pytest.mark.slow
    def test_a_free_axis_is_named_with_the_way_to_fix_it(self, files: Path) -> None:
        with pytest.raises(InputError, match="axis 2 of the input x is free") as refusal:
            _load(files / "free.pt2")
        assert "--input-shape x=1,1,N,8" in str(refusal.value.next_step)

    @pytest.mark.slow
    def test_a_fixed_batch_of_two_is_refused(self, files: Path) -> None:
        with pytest.raises(InputError, match="first axis has to be the batch"):
            _load(files / "two.pt2")

    def test_pickled_code_inside_never_runs(self, files: Path, tmp_path: Path) -> None:
        bomb = tmp_path / "bomb.pt2"
        with zipfile.ZipFile(files / "program.pt2") as whole, zipfile.ZipFile(bomb, "w") as made:
            for entry in whole.infolist():
                harmful = entry.filename.endswith("sample_inputs/model.pt")
                made.writestr(entry, (files / "bomb_legacy.pth").read_bytes() if harmful else whole.read(entry))
        with pytest.raises(InputError, match="pickled code"):
            _load(bomb)
        assert not (files / "exploded").exists()


class TestTorchScript:
    def test_the_memory_of_a_model_becomes_inputs_and_outputs(self, files: Path, tmp_path: Path) -> None:
        shapes = (InputShape(name="x", shape=(1, 3)), InputShape(name="gain", shape=(2,)))
        source = _load(files / "counting.jit", input_shapes=shapes)
        assert [(each.name, each.shape) for each in source.inputs] == [("x", (1, 3)), ("state", (2, 3))]
        assert [(each.name, each.shape) for each in source.outputs] == [("output", (1, 3)), ("state_out", (2, 3))]
        assert any("memory _state" in note for note in source.notes)
        samples = _samples(source, 2)
        first = models.answers(source, samples, tmp_path / "memory")[0]
        assert np.allclose(first["state_out"].sum(0, keepdims=True), first["output"])
        file, forms = _onnx(source, tmp_path)
        assert _worst(source, file, tmp_path) < 1e-5
        assert forms.fallbacks(("torch.onnx",)) == ()

    def test_a_missing_shape_is_asked_for(self, files: Path) -> None:
        with pytest.raises(InputError, match="shape of its input x") as refusal:
            _load(files / "traced.pt")
        assert "--input-shape x=" in str(refusal.value.next_step)

    @pytest.mark.slow
    def test_a_branch_goes_by_the_older_exporter_and_is_told(self, files: Path, tmp_path: Path) -> None:
        source = _load(files / "branching.pt", input_shapes=(InputShape(shape=(1, 3)),))
        file, forms = _onnx(source, tmp_path)
        (told,) = forms.fallbacks(("torch.onnx",))
        assert "older exporter" in told
        assert _worst(source, file, tmp_path) < 1e-5, "both branches are in the samples"

    @pytest.mark.slow
    def test_a_traced_model_is_converted(self, files: Path, tmp_path: Path) -> None:
        source = _load(files / "traced.pt", input_shapes=IMAGE)
        file, _ = _onnx(source, tmp_path)
        assert _worst(source, file, tmp_path) < 1e-5


class TestFactory:
    def test_a_checkpoint_of_a_parallel_model_is_understood(self, files: Path, tmp_path: Path) -> None:
        source = _factory("SmallNet", files / "checkpoint.th")
        assert [each.name for each in source.files] == ["checkpoint.th", "small_net.py"]
        assert source.tools["torch"].split(".")[0].isdigit()
        assert [each.name for each in source.outputs] == ["logits", "pooled"]
        file, _ = _onnx(source, tmp_path)
        assert _worst(source, file, tmp_path) < 1e-5
        assert str(FACTORIES).encode() not in file.read_bytes(), "what tells of the machine is left out"

    def test_what_stands_before_every_name_of_a_checkpoint_is_taken_off(self, files: Path, tmp_path: Path) -> None:
        """As Lightning saves a net that its module holds; the weights are the same, and so are the answers."""
        plain, wrapped = (_factory("SmallNet", files / name) for name in ("plain.pth", "lightning.ckpt"))
        samples = _samples(plain)
        wanted, found = (models.answers(each, samples, tmp_path / each.path.stem) for each in (plain, wrapped))
        for one, other in zip(wanted, found, strict=True):
            assert all(np.array_equal(one[name], other[name]) for name in ("logits", "pooled"))

    @pytest.mark.slow
    def test_every_way_of_saving_weights_is_the_same_model(self, files: Path, tmp_path: Path) -> None:
        digests: list[str] = []
        for name in ("plain.pth", "legacy.pth", "traced.pt", "plain.pth"):
            file, _ = _onnx(_factory("SmallNet", files / name), tmp_path / str(len(digests)) / name)
            digests.append(hashlib.sha256(file.read_bytes()).hexdigest())
        assert len(set(digests)) == 1, "and the same source gives the same bytes"

    @pytest.mark.parametrize(
        ("name", "weights", "told"),
        [
            ("SmallNet", "other.pth", "weights do not fit"),
            ("SmallNet", "with_loss.ckpt", "weights do not fit .*missing conv.bias.*; unknown model.loss.weight"),
            pytest.param(
                "broken",
                "plain.pth",
                r"ValueError: no such dataset \(line \d+ of small_net.py\)",
                marks=pytest.mark.slow,
            ),
            pytest.param("Restless", "plain.pth", "weights do not fit .*unknown conv.bias", marks=pytest.mark.slow),
        ],
        ids=["misfit", "more than the net", "error", "another"],
    )
    def test_a_mistake_in_it_is_told(self, files: Path, name: str, weights: str, told: str) -> None:
        with pytest.raises(InputError, match=told) as refusal:
            _factory(name, files / weights)
        assert refusal.value.exit_code == 2
        assert refusal.value.next_step

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("text", "told"),
        [
            (f"{FACTORIES / 'small_net.py'}:number", "makes a int, not a torch.nn.Module"),
            (f"{FACTORIES / 'small_net.py'}:absent", "absent is not defined"),
            ("no.such.package:net", "no Python module no.such.package"),
        ],
        ids=["no model", "no factory", "no module"],
    )
    def test_what_is_no_factory_is_refused(self, files: Path, text: str, told: str) -> None:
        with pytest.raises(InputError, match=told):
            _load(text, weights=files / "plain.pth", input_shapes=IMAGE)


def test_what_changes_from_call_to_call_is_refused(files: Path, tmp_path: Path) -> None:
    weights = tmp_path / "none.pth"
    code = "import sys, torch; torch.save({'p': torch.zeros(1)}, sys.argv[1])"
    python = str(environment.named("torch").python)
    subprocess.run([python, "-I", "-c", code, str(weights)], check=True, timeout=100, stdin=subprocess.DEVNULL)
    restless = tmp_path / "restless.py"
    restless.write_text(
        "import torch\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.p = torch.nn.Parameter(torch.zeros(1))\n    def forward(self, x):\n"
        "        return x + torch.rand_like(x) * (1 + self.p)\n"
    )
    with pytest.raises(InputError, match="different outputs in two calls"):
        _load(f"{restless}:Net", weights=weights, input_shapes=IMAGE)


@pytest.mark.slow
def test_a_pickled_model_is_read_where_that_is_allowed(files: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    whole.write_bytes((files / "whole.pth").read_bytes())
    (tmp_path / "small_net.py").write_text((FACTORIES / "small_net.py").read_text())
    source = _load(whole, allow_pickle=True, input_shapes=IMAGE)
    assert [each.name for each in source.outputs] == ["logits", "pooled"]


def test_a_pickled_class_of_a_script_is_told_what_to_save_instead(files: Path, tmp_path: Path) -> None:
    """``torch.save(model)`` there: the class stood in __main__, and nothing is wrong with the file."""
    with pytest.raises(InputError, match="class Shifted of the script or notebook") as refusal:
        _load(files / "of_a_script.pth", allow_pickle=True, input_shapes=(InputShape(shape=(1, 4)),))
    step = str(refusal.value.next_step)
    assert "torch.save(model.state_dict(), FILE)" in step
    assert "edgeship build path/file.py:Shifted --weights FILE" in step
    whole = tmp_path / "whole.pth"
    whole.write_bytes((files / "whole.pth").read_bytes())
    (tmp_path / "small_net.py").write_text("")
    with pytest.raises(InputError, match="needs SmallNet, which the Python module small_net does not define"):
        _load(whole, allow_pickle=True, input_shapes=IMAGE)


def test_a_worker_that_dies_is_an_error_of_the_conversion(files: Path, tmp_path: Path) -> None:
    deadly = tmp_path / "deadly.py"
    deadly.write_text("import os\n\ndef net():\n    os.abort()\n")
    with pytest.raises(ConversionError, match="killed by signal 6"):
        _load(f"{deadly}:net", weights=files / "plain.pth", input_shapes=IMAGE)


def test_its_memory_has_a_limit(files: Path) -> None:
    request = {"command": "describe", "model": str(files / "program.pt2"), "options": {"kind": "exported-program"},
               "memory_bytes": 64 * 1024**2}  # fmt: skip
    with pytest.raises(ConversionError):
        workers.call("torch", request)


class TestRefusedWithoutPyTorch:
    def test_weights_alone_are_no_model(self, files: Path) -> None:
        for name in ("plain.pth", "checkpoint.th", "legacy.pth"):
            with pytest.raises(InputError, match="weights without the model") as refusal:
                _load(files / name)
            assert "module:factory --weights" in str(refusal.value.next_step)

    def test_pickled_code_is_named(self, files: Path) -> None:
        with pytest.raises(InputError, match=r"posix\.system"):
            _factory("SmallNet", files / "bomb.pth")
        with pytest.raises(InputError, match=r"posix\.system"):
            _load(files / "bomb_legacy.pth")
        with pytest.raises(InputError, match=r"small_net\.SmallNet"):
            _load(files / "whole.pth")
        assert not (files / "exploded").exists()

    @pytest.mark.parametrize("name", ["program.pt2", "traced.pt"])
    def test_a_truncated_archive_is_damaged(self, files: Path, tmp_path: Path, name: str) -> None:
        whole = (files / name).read_bytes()
        short = tmp_path / name
        short.write_bytes(whole[: len(whole) * 2 // 3])
        with pytest.raises(InputError, match="damaged or truncated"):
            _load(short)


@pytest.mark.slow
def test_truncated_numbers_of_an_old_file_are_found(files: Path, tmp_path: Path) -> None:
    whole = (files / "legacy.pth").read_bytes()
    short = tmp_path / "legacy.pth"
    short.write_bytes(whole[:-40])
    with pytest.raises(InputError, match="cannot read it as weights"):
        _factory("SmallNet", short)


@pytest.mark.slow
def test_an_archive_with_a_changed_byte_is_no_model(files: Path, tmp_path: Path) -> None:
    """A stored entry's checksum is PyTorch's to see."""
    changed = bytearray((files / "traced.pt").read_bytes())
    with zipfile.ZipFile(io.BytesIO(bytes(changed))) as archive:
        entry = next(each for each in archive.infolist() if each.filename.endswith("data.pkl"))
    changed[entry.header_offset + 120] ^= 0xFF
    file = tmp_path / "changed.pt"
    file.write_bytes(bytes(changed))
    with pytest.raises(InputError):
        _load(file, input_shapes=IMAGE)
