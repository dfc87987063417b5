"""The user's own code: imported and called here, in a process that may fail."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .model import Refused, first_line


def make(factory: Mapping[str, Any], paths: Sequence[str]) -> Any:
    """What the user's factory returns.

    Args:
        factory: ``module`` or ``file``, and the ``attribute`` in it: a function, a class or a model.
        paths: folders that its imports are looked for in, first.

    Raises:
        Refused: it is not there, fails, or makes no model.
    """
    name = factory["file"] or factory["module"]
    sys.path[:0] = paths
    try:
        made = getattr(_imported(factory), factory["attribute"], None)
        if made is not None and not isinstance(made, torch.nn.Module):
            made = made()
    except ModuleNotFoundError as error:
        raise _not_there(error, name, paths) from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if not frame.filename.startswith(("<", str(Path(__file__).parent)))]
        line = f" (line {own[-1].lineno} of {Path(own[-1].filename).name})" if own else ""
        raise Refused(f"{name} fails: {type(error).__name__}: {first_line(error)}{line}",
                      next_step="call the factory in Python and mend it") from error  # fmt: skip
    if not isinstance(made, torch.nn.Module):
        got = "is not defined" if made is None else f"makes a {type(made).__name__}, not a torch.nn.Module"
        raise Refused(f"{name}: {factory['attribute']} {got}", next_step="name a function that returns the model")
    return made


def _not_there(error: ModuleNotFoundError, name: str, paths: Sequence[str]) -> Refused:
    if error.name and (name == error.name or name.startswith(error.name + ".")):
        return Refused(f"there is no Python module {name} in {' or '.join(paths)}",
                       next_step="build in the folder of the code, or name its file: path/file.py:factory")  # fmt: skip
    return Refused(
        f"{name} needs the Python module {error.name}, which is not beside PyTorch here",
        next_step=f"install Edgeship in the environment that trains the model: it then uses the PyTorch and the "
        f"{error.name} there",
    )


def _imported(factory: Mapping[str, Any]) -> Any:
    if not factory["file"]:
        return importlib.import_module(factory["module"])
    path = Path(factory["file"])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def code_files(before: set[str], paths: Sequence[str]) -> list[str]:
    """Source files of the user's own that were imported since: they are part of what the model is."""
    found = set()
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and file.endswith(".py"):
            found.add(str(Path(file).resolve()))
    roots = tuple(str(Path(path).resolve()) + os.sep for path in paths)
    return sorted(file for file in found if file.startswith(roots) and "site-packages" not in Path(file).parts)
