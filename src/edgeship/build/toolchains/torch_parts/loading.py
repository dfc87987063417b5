"""Reading a model: exported program, TorchScript, weights for a factory, or (where allowed) a pickled module."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch.utils import _pytree as pytree

from . import factories, safe_tensors
from .calling import lift_states
from .inputs import by_name, pin, shaped
from .model import Arguments, Model, Parameter, Refused, dtype_name, unreadable

#: Keys under which checkpoints keep the weights; the first that is there is taken.
_WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "net", "weights")
#: What DataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 3
#: Audit events that reading numbers never causes. Source: Python, "Audit events table".
_FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "subprocess.Popen", "socket.")
_NUMBERS = ("int", "float", "bool")
_guarded = False


def load(request: Mapping[str, Any]) -> Model:
    """Read what the request names.

    Raises:
        Refused: it cannot be read, or an option does not fit it.
    """
    loaders: dict[str, Callable[[Mapping[str, Any]], Model]] = {
        "exported-program": _exported,
        "torchscript": _script,
        "state-dict": _from_factory,
        "pickled-module": _pickled_module,
    }
    return loaders[request["options"]["kind"]](request)


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: while a file is read, nothing is called that it names.

    ``torch.export.load`` and others fall back to plain pickle where their safe reader fails.
    """
    if _guarded and event.startswith(_FORBIDDEN):
        raise _holds_code(".".join(str(part) for part in arguments[:2]) if event == "pickle.find_class" else event)


@contextmanager
def _guard(allow_pickle: object) -> Iterator[None]:
    global _guarded  # noqa: PLW0603 (an audit hook cannot be taken off again, only switched)
    _guarded = not allow_pickle
    try:
        yield
    finally:
        _guarded = False


def _holds_code(what: str) -> Refused:
    return Refused(
        f"the file holds pickled code ({what}), which could do anything when it is loaded",
        next_step="save weights, torch.save(model.state_dict(), FILE); or --allow-pickle for a file that you trust",
    )


def _exported(request: Mapping[str, Any]) -> Model:
    options = request["options"]
    with _guard(options.get("allow_pickle")):
        try:
            program = torch.export.load(request["model"])
        except Refused:
            raise
        except Exception as error:
            raise unreadable(error, "an exported program") from error
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            held = nodes[spec.arg.name].meta.get("val") if not hasattr(spec.arg, "value") else spec.arg.value
            found.append(_program_parameter(spec.arg.name, held, constant=hasattr(spec.arg, "value")))
    layout = program.call_spec.in_spec

    def arrange(values: list[Any]) -> Arguments:
        arguments, keywords = pytree.tree_unflatten(values, layout)
        return arguments, keywords

    parameters = pin(found, options.get("input_shapes", []))
    # without the guards, which are source code in the file
    module = program.module(check_guards=False)
    _without_detaching(module)
    return Model(module=module, parameters=parameters, arrange=arrange)


def _without_detaching(module: Any) -> None:
    """Take out ``detach_``, which ``torch.tensor([…])`` inside ``forward`` leaves: exporting again cannot detach views.

    Nothing is trained here, so that it says nothing.
    """
    detaching = torch.ops.aten.detach_.default
    for part in module.modules():
        if not isinstance(part, torch.fx.GraphModule):
            continue
        for node in list(part.graph.nodes):
            if node.target is detaching:
                node.replace_all_uses_with(node.args[0])
                part.graph.erase_node(node)
        part.recompile()


def _program_parameter(name: str, held: Any, *, constant: bool) -> Parameter:
    if constant:
        return Parameter(name=name, value=held)
    if not isinstance(held, torch.Tensor):
        raise Refused(f"the input {name} is not a tensor", next_step="export it with tensors as inputs")
    shape = tuple(axis if isinstance(axis, int) else -1 for axis in held.shape)
    return Parameter(name=name, shape=shape, dtype=dtype_name(held.dtype))


def _script(request: Mapping[str, Any]) -> Model:
    try:
        module = torch.jit.load(request["model"], map_location="cpu")
    except Exception as error:
        raise unreadable(error, "TorchScript") from error
    if not hasattr(module, "forward"):
        raise Refused("the TorchScript module has no forward method", next_step="save a module with one")
    module.eval()
    names: list[str] = []
    constants: dict[str, Any] = {}
    for argument in module.forward.schema.arguments[1:]:
        kind, default = str(argument.type), argument.default_value
        if kind in _NUMBERS:
            constants[argument.name] = default
        elif kind == "Tensor":
            names.append(argument.name)
        elif not argument.has_default_value():
            raise Refused(f"the input {argument.name} is of the type {kind}",
                          next_step="wrap it in a module whose inputs are tensors")  # fmt: skip
    parameters = shaped(names, constants, request["options"].get("input_shapes", []))
    model = Model(module=module, parameters=parameters, arrange=by_name(parameters), is_script=True)
    _to_float32(model)
    lift_states(model)
    return model


def _from_factory(request: Mapping[str, Any]) -> Model:
    options = request["options"]
    before = set(sys.modules)
    module = factories.make(options["factory"], options.get("paths", []))
    weights = _unwrapped(_state_dict(_read_weights(Path(request["model"]), options)), set(module.state_dict()))
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise _misfit(set(weights), set(module.state_dict()), error) from error
    return _eager(module, options, before)


def _unwrapped(weights: dict[str, Any], wanted: set[str]) -> dict[str, Any]:
    """Weights by the factory's names, where these are theirs but for what stands before every one of them.

    A LightningModule that holds the net as ``self.model`` saves ``model.conv.weight`` for ``conv.weight``.
    """
    parts = next(iter(weights)).split(".")
    for count in range(1, len(parts)):
        prefix = ".".join(parts[:count]) + "."
        if {prefix + name for name in wanted} == set(weights):
            return {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _misfit(have: set[str], wanted: set[str], error: Exception) -> Refused:
    told = "; ".join(
        f"{word} {', '.join(sorted(names)[:_SHOWN])}{' …' if len(names) > _SHOWN else ''}"
        for word, names in (("missing", wanted - have), ("unknown", have - wanted))
        if names
    )
    lines = str(error).strip().splitlines()
    return Refused(f"the weights do not fit what the factory makes: {told or lines[-1].strip()}",
                   next_step="name the factory that these weights were trained with")  # fmt: skip


def _pickled_module(request: Mapping[str, Any]) -> Model:
    options = request["options"]
    if not options.get("allow_pickle"):
        raise _holds_code("a whole model")
    before = set(sys.modules)
    sys.path[:0] = options.get("paths", [])
    try:
        module = torch.load(request["model"], map_location="cpu", weights_only=False)
    except ModuleNotFoundError as error:
        raise Refused(f"the pickled model needs the Python module {error.name}, which is not there",
                      next_step="build in the folder of the training code") from error  # fmt: skip
    except Exception as error:
        raise unreadable(error, "a pickled model") from error
    if not isinstance(module, torch.nn.Module):
        raise Refused(f"the file holds no model, but {type(module).__name__}",
                      next_step="edgeship build package.module:factory --weights FILE")  # fmt: skip
    return _eager(module, options, before)


def _eager(module: Any, options: Mapping[str, Any], before: set[str]) -> Model:
    """A model of Python code: the signature of its ``forward`` names the inputs."""
    module.eval()
    names: list[str] = []
    constants: dict[str, Any] = {}
    for name, each in inspect.signature(module.forward).parameters.items():
        kind = getattr(each.annotation, "__name__", each.annotation)
        if each.kind in {each.POSITIONAL_ONLY, each.VAR_POSITIONAL}:
            raise Refused(f"forward takes {name} by its position only", next_step="give the input a name")
        if kind in _NUMBERS or isinstance(each.default, int | float):
            constants[name] = None if each.default is each.empty else each.default
        elif each.default is each.empty and each.kind != each.VAR_KEYWORD:
            names.append(name)
    parameters = shaped(names, constants, options.get("input_shapes", []))
    code = factories.code_files(before, options.get("paths", []))
    model = Model(module=module, parameters=parameters, arrange=by_name(parameters), code=code)
    _to_float32(model)
    return model


def _to_float32(model: Model) -> None:
    weights = [*model.module.parameters(), *model.module.buffers()]
    other = {each.dtype for each in weights if each.is_floating_point() and each.dtype != torch.float32}
    if other:
        model.module.float()
        model.notes.append(f"weights of {', '.join(sorted(map(dtype_name, other)))} are computed in float32")


def _read_weights(path: Path, options: Mapping[str, Any]) -> Any:
    if options.get("weights_kind") == "safetensors":
        return safe_tensors.read(path)
    allow_pickle = options.get("allow_pickle")
    with _guard(allow_pickle), torch.serialization.safe_globals(_numpy_scalars()):
        try:
            if options.get("weights_kind") == "torchscript":
                return torch.jit.load(str(path), map_location="cpu")
            return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
        except Refused:
            raise
        except Exception as error:
            name = str(error).partition("GLOBAL ")[2].split()[:1]
            if name:
                raise _holds_code(name[0].strip("`")) from error
            raise unreadable(error, f"weights ({type(error).__name__})") from error


def _numpy_scalars() -> list[Any]:
    """What a number of NumPy in a checkpoint is made of, such as the best accuracy so far."""
    names = ("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, *{type(np.dtype(kind)) for kind in "fdeilqIQbBhH?"}]


def _state_dict(held: Any) -> dict[str, Any]:
    """The weights inside a checkpoint, without what wrappers put before their names."""
    if isinstance(held, Mapping):
        inner = [held[key] for key in _WEIGHT_KEYS if isinstance(held.get(key), Mapping | torch.nn.Module)]
        held = inner[0] if inner else held
    if isinstance(held, torch.nn.Module):
        held = held.state_dict()
    weights = held if isinstance(held, Mapping) else {}
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        got = ", ".join(str(key) for key in list(weights)[: 2 * _SHOWN]) or type(held).__name__
        raise Refused(f"no state dict is in the weights file, which holds {got}",
                      next_step="save it with torch.save(model.state_dict(), FILE)")  # fmt: skip
    plain = {str(key): value for key, value in weights.items()}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in plain):
            plain = {key.removeprefix(prefix): value for key, value in plain.items()}
    return plain
