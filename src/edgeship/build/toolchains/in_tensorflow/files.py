"""What a TensorFlow file is before anything of it is believed: looked at without running a line that it brings."""

import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

#: A file that unpacks to more than this and to more than so many times its size is not unpacked: weights barely shrink.
MOST_UNPACKED_BYTES: Final = 64 * 1024**2
MOST_UNPACKED_RATIO: Final = 100
_MOST_OBJECTS: Final = 200_000
_DEEPEST_GROUP: Final = 64
_ZIP: Final = b"PK\x03\x04"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_AGAIN: Final = "copy or save the file again"
#: Operators that reach for files, the network or Python while a graph runs. Source: TensorFlow, SECURITY.md ("models
#: are programs").
REACHING: Final = frozenset({
    "ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc", "DebugIdentity",
    "DebugIdentityV2", "DebugIdentityV3", "SendTPUEmbeddingGradients", "RpcClient", "RpcCall", "RpcServer",
})  # fmt: skip
#: Those that every SavedModel has for its own variables; none may lie on the way from inputs to outputs.
RESTORING: Final = frozenset({"SaveV2", "RestoreV2", "Save", "Restore", "MergeV2Checkpoints", "ShardedFilename"})


class Refused(Exception):
    """This file, or this way, cannot be used.

    Attributes:
        next_step: what mends it, if anything does.
        kind: ``input`` where the file or an option is at fault, ``conversion`` where another way may do.
    """

    def __init__(self, sentence: str, next_step: str = "", *, kind: str = "input") -> None:
        super().__init__(sentence)
        self.next_step = next_step
        self.kind = kind


def first_line(error: BaseException) -> str:
    """The first sentence that an error says, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].split(". ", maxsplit=1)[0][:300] if lines else type(error).__name__


def check_keras(path: Path, *, allow_code: bool) -> dict[str, Any]:
    """A ``.keras`` file: a zip of config, metadata and weights.

    Returns:
        Its metadata, ``{"keras_version": …}``.

    Raises:
        Refused: something else under this name, damaged, a bomb, or it brings code.
    """
    head = _head(path)
    if head.startswith(_HDF5):
        raise Refused("the file is an HDF5 file under the name .keras", "rename it to .h5")
    if not head.startswith(_ZIP):
        raise Refused("not a .keras file, which is a zip archive", _AGAIN)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path.stat().st_size)
            config = _json(archive.read("config.json"), "config.json")
            metadata = _json(archive.read("metadata.json"), "metadata.json")
            check_config(config, allow_code=allow_code)
            with archive.open("model.weights.h5") as weights:
                _check_weights(weights, archive.getinfo("model.weights.h5").file_size)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:  # RuntimeError: encrypted, or a way unknown
        raise Refused(f"the .keras file is damaged or truncated ({first_line(error)})", _AGAIN) from error
    return dict(metadata) if isinstance(metadata, dict) else {}


def check_h5(path: Path, *, allow_code: bool) -> dict[str, Any]:
    """A whole model in one HDF5 file.

    Returns:
        ``{"keras_version": …}`` as the file says it, or nothing.

    Raises:
        Refused: something else under this name, damaged, weights alone, a bomb, or it brings code.
    """
    import h5py

    head = _head(path)
    if head.startswith(_ZIP):
        raise Refused("the file is a zip archive under the name .h5", "rename it to .keras if Keras 3 saved it")
    if not head.startswith(_HDF5):
        raise Refused("not an HDF5 file", _AGAIN)
    _check_weights(path, path.stat().st_size)
    try:
        with h5py.File(path, "r") as file:
            text, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
    except (OSError, RuntimeError, ValueError) as error:
        raise Refused(f"the HDF5 file is damaged or truncated ({first_line(error)})", _AGAIN) from error
    if text is None:
        raise Refused("the file holds weights alone, no architecture", "save the whole model with model.save(FILE)")
    check_config(_json(text, "model_config"), allow_code=allow_code)
    return {"keras_version": version.decode() if isinstance(version, bytes) else str(version)}


def check_config(config: Any, *, allow_code: bool) -> None:
    """Refuse what would run code of the file's own when it is read.

    Raises:
        Refused: a Lambda layer, a lambda in an option, or a layer that loads another file.
    """
    for entry in _objects(config):
        kind = str(entry.get("class_name", "")).rpartition(">")[2]
        if kind == "TFSMLayer":
            raise Refused("a TFSMLayer loads another model from a path", "build from that SavedModel instead")
        if kind in {"Lambda", "__lambda__"} and not allow_code:
            inner = entry.get("config")
            name = inner.get("name", "") if isinstance(inner, dict) else ""
            where = f"layer {name!r}" if name else "a lambda"
            raise Refused(f"the file holds Python code ({where}), which is not run unless --allow-pickle says so",
                          "replace Lambda layers, or export a SavedModel")  # fmt: skip


def saved_model(folder: Path) -> Any:
    """The SavedModel's description, read and looked through.

    Returns:
        A ``SavedModel`` protocol buffer.

    Raises:
        Refused: files are missing or damaged, or an operator reaches for files, the network or Python.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow.core.protobuf import saved_model_pb2

    file = folder / "saved_model.pb"
    if not file.is_file():
        raise Refused("not a SavedModel folder: it has no saved_model.pb")
    document = saved_model_pb2.SavedModel()
    try:
        document.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise Refused("saved_model.pb is damaged or truncated", _AGAIN) from error
    if not document.meta_graphs:
        raise Refused("saved_model.pb holds no graph", _AGAIN)
    for meta in document.meta_graphs:
        check_operators(nodes_of(meta.graph_def), REACHING)
    _check_variables(folder, document)
    return document


def graph_def(path: Path) -> Any:
    """A frozen graph, read and looked through.

    Returns:
        A ``GraphDef`` protocol buffer.

    Raises:
        Refused: not a graph, not frozen, or an operator reaches for files, the network or Python.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    head = _head(path)
    if head.startswith((_ZIP, _HDF5)):
        raise Refused("not a TensorFlow graph: a zip or HDF5 file under the name .pb", _AGAIN)
    graph = tf.compat.v1.GraphDef()
    try:
        graph.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise Refused(f"the graph is damaged, truncated or no GraphDef ({first_line(error)})", _AGAIN) from error
    if not graph.node or any(not node.op for node in graph.node):
        raise Refused("the file holds no TensorFlow graph", "if it is a saved_model.pb, give its folder")
    check_operators(nodes_of(graph), REACHING)
    held = sorted({node.op for node in graph.node if node.op in {"VariableV2", "Variable", "VarHandleOp"}})
    if held:
        raise Refused(f"the graph is not frozen, its weights lie in a checkpoint ({', '.join(held)} operators)",
                      "freeze it with tf.compat.v1.graph_util.convert_variables_to_constants")  # fmt: skip
    return graph


def check_operators(nodes: Iterator[Any], refused: frozenset[str]) -> None:
    """Refuse graphs that do more than compute.

    Raises:
        Refused: one of the operators is there.
    """
    for node in nodes:
        if node.op in refused:
            raise Refused(f"operator {node.op} ({node.name}) reaches out of the graph, to files, network or Python",
                          "export the model without it")  # fmt: skip


def nodes_of(graph: Any) -> Iterator[Any]:
    """Every node of a ``GraphDef``, those of its functions included."""
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def _check_variables(folder: Path, document: Any) -> None:
    holds = any(node.op in {"VarHandleOp", "VariableV2"} for meta in document.meta_graphs
                for node in nodes_of(meta.graph_def))  # fmt: skip
    if not holds:
        return
    index = folder / "variables" / "variables.index"
    if not index.is_file() or not list(index.parent.glob("variables.data-*")):
        raise Refused("the SavedModel's weights are missing",
                      "put variables/variables.index and variables/variables.data-… beside it")  # fmt: skip


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(8)


def _json(text: Any, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused(f"its {where} is damaged", _AGAIN) from error


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in it, without recursion: the nesting is the file's."""
    waiting = [config]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, dict):
            yield entry
            waiting.extend(entry.values())
        elif isinstance(entry, list):
            waiting.extend(entry)


def _check_members(archive: zipfile.ZipFile, size_bytes: int) -> None:
    entries = archive.infolist()
    names = {entry.filename for entry in entries}
    missing = sorted({"config.json", "metadata.json", "model.weights.h5"} - names)
    if missing:
        raise Refused(f"not a .keras file: the archive has no {', '.join(missing)}",
                      "save the whole model with model.save(FILE)")  # fmt: skip
    for name in names:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name:
            raise Refused(f"the archive names a file outside of itself: {name!r}", _AGAIN)
    _check_unpacked(sum(entry.file_size for entry in entries), size_bytes)


def _check_unpacked(unpacked_bytes: int, size_bytes: int) -> None:
    if unpacked_bytes > MOST_UNPACKED_BYTES and unpacked_bytes > MOST_UNPACKED_RATIO * size_bytes:
        raise Refused(f"the file of {size_bytes:,} bytes would unpack to {unpacked_bytes:,}: a bomb, not unpacked",
                      "save the model again, uncompressed as Keras does")  # fmt: skip


def _check_weights(source: Any, size_bytes: int) -> None:
    """Weights must lie in the file itself and be about as large as they say."""
    import h5py

    try:
        with h5py.File(source, "r") as file:
            total = sum(math.prod(item.shape or (1,)) * item.dtype.itemsize for item in _datasets(file))
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise Refused(f"the HDF5 weights are damaged or truncated ({first_line(error)})", _AGAIN) from error
    _check_unpacked(total, size_bytes)


def _datasets(file: Any) -> Iterator[Any]:
    import h5py

    waiting, seen = [(file, 0)], 0
    while waiting:
        group, depth = waiting.pop()
        for name in group:
            seen += 1
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise Refused(f"the HDF5 file's {name!r} points to another file or place", _AGAIN)
            item = group[name]
            if isinstance(item, h5py.Group):
                waiting.append((item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                if item.is_virtual or item.external:
                    raise Refused(f"the HDF5 file's {name!r} lies in another file", _AGAIN)
                yield item
            if seen > _MOST_OBJECTS or depth > _DEEPEST_GROUP:
                raise Refused("the HDF5 file has more groups than a model has", _AGAIN)
