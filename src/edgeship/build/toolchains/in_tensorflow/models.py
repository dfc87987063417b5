"""TensorFlow models of four formats, opened into one shape: a function of tensors with named ends."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import tensorflow as tf

from . import graphs
from .files import Refused, check_h5, check_keras, first_line, nodes_of, saved_model
from .states import stateful_layers, with_states

#: State that a graph keeps from one call to the next.
_WRITES: Final = frozenset({"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "Assign", "AssignAdd"})


@dataclass(frozen=True, kw_only=True)
class End:
    """One input: its shape has -1 where the source leaves an axis free, and is None where the source says nothing."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class Model:
    """An opened model.

    Attributes:
        call: the inputs' tensors in order to the outputs' in order.
        holder: the loaded SavedModel, whose functions the TFLite converter knows how to read; else None.
        notes: what a reader should know, such as another loader's being used.
        frames: it loops by TensorFlow 1's frames. A ``tf.function`` orders stateful operators by control edges, also
            across frames, which the executor then refuses.
    """

    inputs: tuple[End, ...]
    outputs: tuple[str, ...]
    call: Callable[[Sequence[Any]], Sequence[Any]]
    holder: Any = None
    notes: tuple[str, ...] = field(default=())
    frames: bool = False

    def trace(self, batch: int | None) -> Any:
        """The model as one graph.

        Args:
            batch: the size of a free first axis; None leaves it free.

        Raises:
            Refused: the graph cannot be made with these shapes.
        """
        signature = []
        for index, end in enumerate(self.inputs):
            assert end.shape is not None, "loading refuses inputs of unknown shape"
            shape = [batch if axis == 0 and size == -1 else size for axis, size in enumerate(end.shape)]
            signature.append(tf.TensorSpec(shape, tf.as_dtype(end.dtype), name=f"i{index:02d}"))

        def model(*tensors: Any) -> Any:
            results = self.call(tensors)
            return {f"o{index:02d}": tf.identity(each) for index, each in enumerate(results)}

        try:
            if self.frames:
                return tf.compat.v1.wrap_function(model, signature)
            return tf.function(model, autograph=False).get_concrete_function(*signature)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise Refused(f"the model does not run on inputs of these shapes: {first_line(error)}") from error


def load(path: Path, kind: str, options: dict[str, Any]) -> Model:
    """Open a model.

    Args:
        path: a private copy, file or folder.
        kind: ``keras``, ``saved_model`` or ``frozen_graph``.
        options: ``input_shapes`` [{name, shape, dtype}] for axes that the source leaves free, ``signature`` of a
            SavedModel, ``input_tensors`` and ``output_tensors`` of a graph, ``allow_pickle``.

    Raises:
        Refused: it cannot be used, with the reason.
    """
    loaders = {"keras": _keras, "saved_model": _saved_model, "frozen_graph": _frozen_graph}
    if kind not in loaders:
        raise Refused(f"the tensorflow toolchain does not open models of the format {kind}", kind="conversion")
    model = loaders[kind](path, options)
    return _pinned(model, options.get("input_shapes") or [])


def _pinned(model: Model, given: list[dict[str, Any]]) -> Model:
    """Give free axes the sizes that the user names, and refuse those that are left but the first."""
    names = [end.name for end in model.inputs]
    shapes: dict[str, dict[str, Any]] = {}
    for position, one in enumerate(given):
        name = one.get("name") or (names[position] if position < len(names) else "")
        if name not in names:
            raise Refused(f"--input-shape names {name or 'one shape more than there are inputs'}",
                          f"name one of {', '.join(names)}")  # fmt: skip
        shapes[name] = one
    inputs = tuple(_with_shape(end, shapes[end.name]) if end.name in shapes else end for end in model.inputs)
    for end in inputs:
        _check_axes(end)
    return replace(model, inputs=inputs)


def _with_shape(end: End, given: dict[str, Any]) -> End:
    wanted = tuple(int(size) for size in given["shape"])
    if end.shape is not None and not _fits(end.shape, wanted):
        raise Refused(
            f"input {end.name} is {_shown(end.shape)}, so {_shown(wanted)} does not fit it",
            "give sizes for the free axes only",
        )
    if given.get("dtype") not in {None, "", end.dtype}:
        raise Refused(f"input {end.name} is {end.dtype}, not {given['dtype']}", "leave the dtype out of --input-shape")
    free_batch = end.shape is not None and end.shape[:1] == (-1,) and wanted[:1] == (1,)
    return replace(end, shape=(-1, *wanted[1:]) if free_batch else wanted)


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(wanted) == len(shape) and all(old in {-1, new} for old, new in zip(shape, wanted, strict=True))


def _check_axes(end: End) -> None:
    if end.shape is None:
        raise Refused(f"input {end.name} has no shape in the file", f"give it: --input-shape {end.name}=1,SIZE,…")
    free = [str(axis) for axis, size in enumerate(end.shape) if size == -1 and axis > 0]
    if free:
        sizes = ("1" if axis == 0 and size == -1 else "SIZE" if size == -1 else str(size)
                 for axis, size in enumerate(end.shape))  # fmt: skip
        raise Refused(f"input {end.name} is {_shown(end.shape)}: axis {' and '.join(free)} is free and needs a size",
                      f"give its sizes: --input-shape {end.name}={','.join(sizes)}")  # fmt: skip


def _shown(shape: Sequence[int]) -> str:
    return "[" + ", ".join("?" if size == -1 else str(size) for size in shape) + "]"


def _keras(path: Path, options: dict[str, Any]) -> Model:
    allow_code = bool(options.get("allow_pickle"))
    zipped = path.suffix.lower() == ".keras"
    metadata = (check_keras if zipped else check_h5)(path, allow_code=allow_code)
    version = str(metadata.get("keras_version", ""))
    notes: tuple[str, ...] = ()
    try:
        import keras

        model = keras.models.load_model(str(path), compile=False, safe_mode=not allow_code)
    except Exception as error:  # Keras raises anything that a layer's constructor raises
        if version.startswith("3"):
            raise _unreadable(error) from error
        model = _keras2(path, allow_code=allow_code, first=error)
        written = f"Keras {version}" if version else "an older Keras"
        notes = (f"a file of {written}, read by tf_keras since Keras 3 refuses it: {first_line(error)}",)
    return _keras_model(model, notes)


def _keras2(path: Path, *, allow_code: bool, first: Exception) -> Any:
    import tf_keras

    try:
        return tf_keras.models.load_model(str(path), compile=False, safe_mode=not allow_code)
    except Exception as error:
        raise _unreadable(first) from error


def _unreadable(error: Exception) -> Refused:
    """Keras's own reason; where a class is missing, what helps."""
    said = " ".join(str(error).split())
    missing = re.search(r"Could not locate class '([^']+)'|Unknown layer: '?([\w>]+)'?", said)
    if missing:
        name = missing.group(1) or missing.group(2)
        return Refused(f"the file names a class of its own, {name}, whose code is not in it",
                       "where that code is, run model.export(FOLDER), and build from that folder")  # fmt: skip
    return Refused(f"Keras cannot read the file: {first_line(error)}")


def _keras_model(model: Any, notes: tuple[str, ...]) -> Model:
    if hidden := stateful_layers(model):
        model, note = _opened(model, hidden)
        notes = (*notes, note)
    structure, results = _ends(model)
    tensors = tf.nest.flatten(structure)
    inputs = tuple(
        _end(name, tf.as_dtype(each.dtype), tf.TensorShape(each.shape))
        for name, each in zip(_input_names(structure, tensors), tensors, strict=True)
    )

    def call(values: Sequence[Any]) -> Sequence[Any]:
        given = tf.nest.pack_sequence_as(structure, list(values))
        return list(tf.nest.flatten(model(given, training=False)))

    return Model(inputs=inputs, outputs=_output_names(model, results), call=call, notes=notes)


def _opened(model: Any, hidden: list[Any]) -> tuple[Any, str]:
    """The model with its hidden states as inputs and outputs.

    Raises:
        Refused: they cannot be opened.
    """
    import keras

    if not isinstance(model, keras.Model):
        raise Refused(f"layer {hidden[0].name} is stateful: its state stays hidden from one call to the next",
                      "save the model with Keras 3, or make the states inputs and outputs of the model")  # fmt: skip
    return with_states(model, hidden)


def _ends(model: Any) -> tuple[Any, Any]:
    """Symbolic inputs and outputs in the structure in which the model takes and gives them.

    Raises:
        Refused: the model does not know them.
    """
    try:
        return model.input, model.output
    except (AttributeError, ValueError):
        pass  # a Sequential of Keras 3 has the plural alone, of one tensor each
    try:
        (given,), (result,) = model.inputs, model.outputs
    except (AttributeError, ValueError, TypeError) as error:
        raise Refused("the Keras model was saved before it saw its inputs, so that their shapes are unknown",
                      "call it once, or give it an Input layer, and save it again") from error  # fmt: skip
    return given, result


def _input_names(structure: Any, tensors: Sequence[Any]) -> list[str]:
    if isinstance(structure, dict):
        return [str(key) for key in sorted(structure)]
    return _distinct([str(each.name).partition(":")[0] for each in tensors])


def _output_names(model: Any, results: Any) -> tuple[str, ...]:
    if isinstance(results, dict):
        return tuple(str(key) for key in sorted(results))
    flat = tf.nest.flatten(results)
    names = [str(name) for name in getattr(model, "output_names", None) or []]
    if len(names) != len(flat):
        names = [str(each.name).partition(":")[0] for each in flat]
    return tuple(_distinct(names))


def _distinct(names: Sequence[str]) -> list[str]:
    """Names as they are, with a number where one comes again."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result


def _saved_model(path: Path, options: dict[str, Any]) -> Model:
    document = saved_model(path)
    meta = next((one for one in document.meta_graphs if "serve" in one.meta_info_def.tags), document.meta_graphs[0])
    key = _signature_key(meta, options.get("signature"))
    try:
        return _restored(path, meta, key)
    except Refused:
        raise
    except Exception as error:  # noqa: BLE001 (the loader raises what rebuilding any object raises)
        return _session_model(path, meta, key, first=error)


def _signature_key(meta: Any, wanted: str | None) -> str:
    names = sorted(key for key, one in meta.signature_def.items() if one.inputs and one.outputs)
    if wanted and wanted not in names:
        raise Refused(
            f"the SavedModel has no signature {wanted!r}; it has {', '.join(names) or 'none'}", "choose one of them"
        )
    if wanted:
        return str(wanted)
    if "serving_default" in names:
        return "serving_default"
    if len(names) == 1:
        return str(names[0])
    if not names:
        raise Refused("the SavedModel has no signature",
                      "save it with tf.saved_model.save(model, FOLDER, signatures=…) "
                      "or model.export(FOLDER)")  # fmt: skip
    raise Refused(f"the SavedModel has several signatures, {', '.join(names)}", "choose one with --signature NAME")


def _restored(path: Path, meta: Any, key: str) -> Model:
    """As TensorFlow 2 loads it."""
    loaded = tf.saved_model.load(str(path), tags=list(meta.meta_info_def.tags))
    signature = loaded.signatures[key]
    arguments = signature.structured_input_signature[1]
    names = sorted(arguments, key=_natural)
    results = sorted(signature.structured_outputs, key=_natural)
    inputs = tuple(_end(name, arguments[name].dtype, arguments[name].shape) for name in names)

    def call(values: Sequence[Any]) -> Sequence[Any]:
        answer = signature(**dict(zip(names, values, strict=True)))
        return [answer[name] for name in results]

    return Model(inputs=inputs, outputs=tuple(results), call=call, holder=loaded)


def _session_model(path: Path, meta: Any, key: str, *, first: Exception) -> Model:
    """As TensorFlow 1 served it: the graph alone, none of the Python objects beside it."""
    signature = meta.signature_def[key]
    names = sorted(signature.inputs, key=_natural)
    results = sorted(signature.outputs, key=_natural)
    ends = [signature.outputs[name].name for name in results]
    try:
        with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
            tf.compat.v1.saved_model.loader.load(session, list(meta.meta_info_def.tags), str(path))
            frozen = tf.compat.v1.graph_util.convert_variables_to_constants(
                session, graph.as_graph_def(), [graphs.node_name(end) for end in ends]
            )
    except Exception as error:  # the same: whatever the file makes of it
        raise Refused(f"TensorFlow cannot load the SavedModel: {first_line(first)}; as a graph alone: "
                      f"{first_line(error)}") from error  # fmt: skip
    starts = [signature.inputs[name].name for name in names]
    inputs = tuple(_end(name, tf.as_dtype(signature.inputs[name].dtype),
                        tf.TensorShape(signature.inputs[name].tensor_shape)) for name in names)  # fmt: skip
    note = f"loaded as a graph, since TensorFlow 2 cannot rebuild its objects: {first_line(first)}"
    call = graphs.caller(frozen, starts, ends)
    return Model(inputs=inputs, outputs=tuple(results), call=call, notes=(note,), frames=graphs.has_frames(frozen))


def _frozen_graph(path: Path, options: dict[str, Any]) -> Model:
    cut = graphs.open_graph(path, options.get("input_tensors") or [], options.get("output_tensors") or [])
    inputs = tuple(_end(name, dtype, shape) for name, dtype, shape in cut.inputs)
    return Model(inputs=inputs, outputs=cut.outputs, call=cut.call, notes=cut.notes, frames=cut.frames)


def _end(name: str, dtype: Any, shape: Any) -> End:
    if dtype in {tf.string, tf.resource, tf.variant}:
        raise Refused(f"input {name} holds {dtype.name}, not numbers", "export the model with numeric inputs")
    sizes = None if shape.rank is None else tuple(-1 if size is None else int(size) for size in shape.as_list())
    return End(name=name, dtype=tf.as_dtype(dtype).name, shape=sizes)


def _natural(name: str) -> list[tuple[int, str]]:
    """output_2 before output_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def check_stateless(concrete: Any) -> None:
    """Refuse a graph that changes its own variables.

    Raises:
        Refused: it does.
    """
    writing = next((node for node in nodes_of(concrete.graph.as_graph_def()) if node.op in _WRITES), None)
    if writing is not None:
        raise Refused(f"the model hides state from one call to the next ({writing.op} {writing.name})",
                      "make the state an input and an output of the model")  # fmt: skip
