"""PyTorch files told apart by their bytes, without PyTorch."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest

from edgeship.build import sources
from edgeship.build.sources import SourceRequest, torch
from edgeship.build.sources.torch_files import TorchKind, is_formula, recognise
from edgeship_agent.contract.errors import ConfigError, InputError


class Named:
    """Unpickled, it would call this class."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return (Named, ())


def _archive(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return path


@pytest.mark.parametrize(
    ("entries", "kind"),
    [
        ({"models/model.json": b"{}", "archive_format": b"pt2"}, TorchKind.EXPORTED_PROGRAM),
        ({"constants.pkl": b"", "code/__torch__.py": b"", "data.pkl": b""}, TorchKind.TORCHSCRIPT),
        ({"data.pkl": pickle.dumps(OrderedDict(w=1), 2)}, TorchKind.STATE_DICT),
        ({"data.pkl": pickle.dumps({"w": Named()}, 2)}, TorchKind.PICKLED),
        ({"data.pkl": pickle.dumps({"w": Named()}, 5)}, TorchKind.PICKLED),
    ],
)
def test_content_decides_and_not_the_name(tmp_path: Path, entries: dict[str, bytes], kind: TorchKind) -> None:
    for name in ("a.pt2", "b.pth"):
        assert recognise(_archive(tmp_path / name, entries)).kind is kind


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_names_what_it_would_call(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps(["Named", {"a": [1, "b"]}, Named(), Named()], protocol)
    assert recognise(_archive(tmp_path / "m.pth", {"data.pkl": data})).code == (f"{__name__}.Named",)


@pytest.mark.parametrize("content", [b"", b"weights", b"\x80\x04N.", b"PK\x03\x04" + b"\0" * 40])
def test_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        sources.load(path)
    assert refusal.value.next_step


def _safetensors(path: Path, header: bytes) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    return path


def test_safetensors_are_weights_by_their_content(tmp_path: Path) -> None:
    header = b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    for name in ("m.safetensors", "m.pth"):
        assert recognise(_safetensors(tmp_path / name, header)).kind is TorchKind.SAFETENSORS
    with pytest.raises(InputError, match="weights without the model") as refusal:
        sources.toolchain_of(SourceRequest(text=str(tmp_path / "m.pth")))
    assert "package.module:factory --weights" in str(refusal.value.next_step)
    with pytest.raises(InputError, match="unknown model format") as refusal:
        sources.toolchain_of(SourceRequest(text=str(tmp_path / "m.safetensors")))
    assert "package.module:factory --weights" in str(refusal.value.next_step)


@pytest.mark.parametrize(
    "content", [(8).to_bytes(8, "little") + b"[1, 2, 3]", b"\xff" * 8 + b"{}", b'{"a": {}, "b": {}}']
)
def test_what_only_looks_like_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a PyTorch file"):
        recognise(path)


def test_another_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of PyTorch"):
        recognise(_archive(tmp_path / "m.pt", {"config.json": b"{}"}))


def test_a_zip_bomb_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(5):
            archive.writestr(f"m/data/{index}", b"\0" * 64 * 1024**2)
    with pytest.raises(InputError, match="zip bomb"):
        recognise(path)


def test_compiled_code_is_refused(tmp_path: Path) -> None:
    entries = {"models/model.json": b"{}", "data/aotinductor/model/wrapper.so": b"\x7fELF"}
    with pytest.raises(InputError, match="compiled code"):
        recognise(_archive(tmp_path / "m.pt2", entries))


@pytest.mark.parametrize(
    "graph",
    [
        b'{"sizes": [{"as_expr": {"expr_str": "__import__(\'os\').getpid()"}}]}',
        b'{"nodes": [{"target": "torch.os.system", "inputs": []}]}',
        b'{"nodes": [{"target": "torch.ops.load_library", "inputs": []}]}',
        b'{"nodes": [{"target": "torch.load", "inputs": []}]}',
        b'{"nodes": [{"target": "torch.ops.aten.__class__", "inputs": []}]}',
        b'{"nodes": [{"target": "torch.ops.aten.__or__.__globals__", "inputs": []}]}',
        b'{"nodes": [{"target": "torch.ops.aten.add.__class__", "inputs": []}]}',
        b'{"nodes": [{"target": "torch.ops.os.__or__", "inputs": []}]}',
        b'{"inputs": [{"as_tensor": {"name": "x=print(1)"}}]}',
        b'{"signature": {"forward_arg_names": ["x", "y=print(1)"]}}',
    ],
)
def test_code_inside_a_graph_is_refused(tmp_path: Path, graph: bytes) -> None:
    with pytest.raises(InputError, match="code where a graph has none"):
        recognise(_archive(tmp_path / "m.pt2", {"models/model.json": graph}))


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.conv2d.default", "torch.ops.aten._softmax.default", "torch.ops.aten.relu_.default",
        "torch.ops.higher_order.cond", "torch.ops.torchvision.nms", "_operator.getitem", "math.trunc",
        "torch.sym_float", "torch._sym_sqrt", "torch._C._set_grad_enabled",
        *(f"torch.ops.aten.__{name}__.{overload}" for name in ("and", "or", "xor", "ior", "lshift", "irshift")
          for overload in ("Tensor", "Scalar")),
    ],
)  # fmt: skip
def test_what_a_graph_calls_is_no_code(tmp_path: Path, target: str) -> None:
    """``a & b``, ``a | b`` and shifts of tensors are operators with the names of Python's own."""
    graph = f'{{"nodes": [{{"target": "{target}", "inputs": []}}]}}'.encode()
    assert recognise(_archive(tmp_path / "m.pt2", {"models/model.json": graph})).kind == TorchKind.EXPORTED_PROGRAM


@pytest.mark.parametrize("graph", [b"", b"{", b"[" * 100_000])
def test_a_damaged_graph_is_refused(tmp_path: Path, graph: bytes) -> None:
    with pytest.raises(InputError, match="graph is damaged"):
        recognise(_archive(tmp_path / "m.pt2", {"models/model.json": graph}))


@pytest.mark.parametrize(
    "text", ["open('x')", "().__class__", "s0.real", "'a' 'b'(1)", "Symbol('a(1)')", 'Symbol("a")', "[1][0]", "a\\n"]
)
def test_only_formulas_are_sizes(text: str) -> None:
    assert not is_formula(text)


def test_weights_without_a_model_are_told_how_to_go_on(tmp_path: Path) -> None:
    weights = _archive(tmp_path / "w.pth", {"data.pkl": pickle.dumps({}, 2)})
    with pytest.raises(InputError, match="weights without the model") as refusal:
        sources.toolchain_of(SourceRequest(text=str(weights)))
    assert refusal.value.next_step == f"edgeship build package.module:factory --weights {weights}"


def test_a_factory_needs_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without trained weights"):
        torch.check(SourceRequest(text="package.module:factory"))
    with pytest.raises(InputError, match="no such weights file"):
        torch.check(SourceRequest(text="package.module:factory", weights=tmp_path / "none.pth"))
    with pytest.raises(InputError, match="no such model file"):
        sources.toolchain_of(SourceRequest(text="some/odd:path"))


def test_weights_belong_to_a_factory(tmp_path: Path) -> None:
    program = _archive(tmp_path / "m.pt2", {"models/model.json": b"{}"})
    with pytest.raises(ConfigError, match="belongs to a factory"):
        torch.check(SourceRequest(text=str(program), weights=program))
    with pytest.raises(ConfigError, match="is a whole model"):
        torch.check(SourceRequest(text="package.module:factory", weights=program))
