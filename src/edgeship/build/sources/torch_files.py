"""What a PyTorch file is, told from its bytes: nothing in it is run, and PyTorch is not needed."""

from __future__ import annotations

import io
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Final

from msgspec import Struct

from edgeship_agent.contract.errors import InputError

_ZIP: Final = b"PK\x03\x04"
#: How ``torch.save`` began its files before they were zip archives: a magic number. Source: torch.serialization.
_LEGACY: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
#: Where the header of a safetensors file begins, behind its length, and the longest that its own library reads.
#: Source: github.com/safetensors/safetensors, README, "Format".
_SAFETENSORS_LENGTH_BYTES: Final = 8
_SAFETENSORS_HEADER_BYTES: Final = 100_000_000
#: Such a file is five pickles and then the numbers: magic, version, system, object, keys.
_LEGACY_PICKLES: Final = 5
#: PyTorch stores weights as they are, and weights hardly shrink: what unpacks to more than this is no model.
_MOST_GROWTH: Final = 20
_SMALL_BYTES: Final = 256 * 1024**2
#: Largest description (graph or pickled structure, without the weights) that is looked through.
_LARGEST_TEXT_BYTES: Final = 256 * 1024**2
#: Whatever else a pickle names is code of somebody. Source: torch.serialization, what ``weights_only`` lets through.
_PLAIN_MODULES: Final = frozenset({"torch._utils", "torch.storage", "torch.nn.parameter", "torch._tensor",
                                   "torch.serialization", "numpy", "numpy.core.multiarray", "numpy._core.multiarray",
                                   "numpy.dtypes"})  # fmt: skip
_PLAIN_NAMES: Final = frozenset({"collections.OrderedDict", "collections.Counter", "collections.defaultdict",
                                 "_codecs.encode", "torch.Size", "torch.device", "torch.Tensor", "builtins.set",
                                 "builtins.bytearray", "builtins.complex", "builtins.slice", "__builtin__.set",
                                 "__builtin__.bytearray"})  # fmt: skip
_PLAIN_TORCH: Final = re.compile(
    r"torch\.(\w+Storage|(q?u?int|b?float|complex|bits)\d*\w*|bool|half|double|long|short)"
)
#: The characters and calls of a size expression: PyTorch hands it to ``eval``. Source: torch._export.serde, sympify.
_EXPRESSION: Final = re.compile(r"[\w\s+\-*/%(),.<>=&|~']*")
_CALLED_OR_ATTRIBUTE: Final = re.compile(r"__|\.\s*[A-Za-z_]|(?<![\w'])[a-z_]\w*\s*\(|[)']\s*\(")
_QUOTED: Final = re.compile(r"'[A-Za-z0-9_.+\-]*'")
#: Names go into Python source as they are. Source: torch.fx.graph, CodeGen.
_NAME: Final = re.compile(r"[\w.]*")
_NAME_KEYS: Final = frozenset({"name", "as_name", "forward_arg_names"})
#: What a node may call; PyTorch looks it up as an attribute of itself, and has ``os`` among them.
_CALLED: Final = re.compile(
    r"torch\.ops\.((?!_)\w+\.(?!__)\w+|aten\.__i?(and|or|xor|lshift|rshift)__)(\.(?!__)\w+)?"
    r"|(_operator|math)\.(?!__)\w+|torch\._?sym_\w+"
    r"|torch\._C\._set_grad_enabled|torch\.amp\.autocast_mode\._(enter|exit)_autocast"
)


class TorchKind(StrEnum):
    """What can be in a file, by the names that the torch worker knows."""

    EXPORTED_PROGRAM = "exported-program"
    TORCHSCRIPT = "torchscript"
    STATE_DICT = "state-dict"
    SAFETENSORS = "safetensors"
    PICKLED = "pickled-module"


class TorchFile(Struct, frozen=True, kw_only=True):
    """What a file is.

    Attributes:
        code: what its pickle would call besides plain containers and tensors, such as ``posix.system``.
    """

    kind: TorchKind
    code: tuple[str, ...] = ()


def recognise(path: Path) -> TorchFile:
    """Tell exported programs, TorchScript, weights and pickled models apart by content.

    Raises:
        InputError: something else, damaged, or made to do harm.
    """
    with path.open("rb") as file:
        head = file.read(len(_LEGACY))
        file.seek(0)
        if head.startswith(_ZIP):
            return _archive(path)
        if head == _LEGACY:
            return _pickled(_named(file, _LEGACY_PICKLES, path))
        if is_safetensors(head):
            return TorchFile(kind=TorchKind.SAFETENSORS)
    raise InputError("not a PyTorch file", file=path,
                     expected="an exported program, TorchScript, safetensors, or what torch.save writes",
                     got="an empty file" if not head else f"bytes that begin with {head[:8]!r}",
                     next_step="check the path, or save the model again")  # fmt: skip


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins so holds weights as safetensors writes them: the header's length, and its JSON.

    >>> is_safetensors((80).to_bytes(8, "little") + b'{"w": {'), is_safetensors(b'{"a": 1}{"b": 2}')
    (True, False)
    """
    length = int.from_bytes(head[:_SAFETENSORS_LENGTH_BYTES], "little")
    return head[_SAFETENSORS_LENGTH_BYTES:].startswith(b"{") and length <= _SAFETENSORS_HEADER_BYTES


def _archive(path: Path) -> TorchFile:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, path)
            return _archived(archive, path)
    except (zipfile.BadZipFile, EOFError, RuntimeError, OSError) as error:
        raise InputError("damaged or truncated", file=path, expected="a whole archive of PyTorch", got=str(error),
                         next_step="copy or save the file again") from error  # fmt: skip


def _check_sizes(archive: zipfile.ZipFile, path: Path) -> None:
    total_bytes = sum(entry.file_size for entry in archive.infolist())
    if total_bytes > max(_SMALL_BYTES, _MOST_GROWTH * path.stat().st_size):
        raise InputError("a zip bomb: it unpacks to far more than a model", file=path,
                         expected=f"at most {_MOST_GROWTH} times its size", got=f"{total_bytes:,} bytes",
                         next_step="take the model from a source that you trust")  # fmt: skip


def _archived(archive: zipfile.ZipFile, path: Path) -> TorchFile:
    """By the names of its entries, which lie under one folder named after the file."""
    names = {name.partition("/")[2] or name: name for name in archive.namelist()}
    graphs = [whole for short, whole in names.items()
              if re.fullmatch(r"models/[^/]+\.json|serialized_exported_program\.json", short)]  # fmt: skip
    if any(short.startswith("data/aotinductor/") for short in names):
        raise InputError("holds compiled code, which is never run", file=path, expected="an exported program",
                         next_step="save the program itself: torch.export.save(program, FILE)")  # fmt: skip
    if graphs:
        for graph in graphs:
            _check_graph(_text(archive, graph, path), path)
        return TorchFile(kind=TorchKind.EXPORTED_PROGRAM)
    if "constants.pkl" in names and any(short.startswith("code/") for short in names):
        return TorchFile(kind=TorchKind.TORCHSCRIPT)
    if "data.pkl" in names:
        return _pickled(_named(io.BytesIO(_text(archive, names["data.pkl"], path)), 1, path))
    raise InputError("an archive, but none of PyTorch", file=path, got=", ".join(sorted(names)[:3]),
                     next_step="check the path: other formats have other suffixes")  # fmt: skip


def _text(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    if archive.getinfo(name).file_size > _LARGEST_TEXT_BYTES:
        raise InputError("its description is too large to be one of a model", file=path, key=name,
                         expected=f"at most {_LARGEST_TEXT_BYTES:,} bytes",
                         next_step="save the file again")  # fmt: skip
    return archive.read(name)


def _check_graph(graph: bytes, path: Path) -> None:
    """A graph is data, and PyTorch makes Python of parts of it: only what cannot be code may pass.

    Raises:
        InputError: damaged, or code where none belongs.
    """
    try:
        waiting: list[tuple[str, Any]] = [("", json.loads(graph))]
    except (ValueError, RecursionError) as error:
        raise InputError("its graph is damaged", file=path, next_step="export the model again") from error
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, each) for each in value]
        elif isinstance(value, str) and not _is_data(key, value):
            raise InputError("holds code where a graph has none", file=path, key=key, got=repr(value[:80]),
                             next_step="take the model from a source that you trust")  # fmt: skip


def _is_data(key: str, value: str) -> bool:
    if key == "expr_str":
        return is_formula(value)
    if key == "target":
        return _CALLED.fullmatch(value) is not None
    return key not in _NAME_KEYS or _NAME.fullmatch(value) is not None


def is_formula(text: str) -> bool:
    """Whether a size expression is arithmetic on symbols and nothing else.

    >>> is_formula("Mul(Integer(2), Symbol('s77', positive=True, integer=True))"), is_formula("2*s0 + 1")
    (True, True)
    >>> is_formula("exec('1')"), is_formula("Symbol('a').__class__"), is_formula("Add('open(1)', 2)")
    (False, False, False)
    """
    plain = _QUOTED.sub("''", text)
    return bool(_EXPRESSION.fullmatch(plain)) and not _CALLED_OR_ATTRIBUTE.search(plain) and plain.count("'") == (
        2 * len(_QUOTED.findall(text))
    )  # fmt: skip


def _pickled(named: list[str]) -> TorchFile:
    code = tuple(dict.fromkeys(name for name in named if not _is_plain(name)))
    return TorchFile(kind=TorchKind.PICKLED if code else TorchKind.STATE_DICT, code=code)


def _is_plain(name: str) -> bool:
    module = name.rpartition(".")[0]
    return module in _PLAIN_MODULES or name in _PLAIN_NAMES or _PLAIN_TORCH.fullmatch(name) is not None


def _named(file: IO[bytes], pickles: int, path: Path) -> list[str]:
    """Every class and function that the pickles name, read without calling any.

    Raises:
        InputError: not a pickle to its end.
    """
    names: list[str] = []
    try:
        for _ in range(pickles):
            names += _globals(pickletools.genops(file))
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError("damaged or truncated", file=path, expected="what torch.save writes", got=reason,
                         next_step="copy or save the file again") from error  # fmt: skip
    return names


def _globals(operations: Iterator[tuple[Any, Any, Any]]) -> Iterator[str]:
    """Names behind GLOBAL, and behind STACK_GLOBAL, which takes the two strings pushed last."""
    memo: dict[int, Any] = {}
    pushed: list[Any] = []
    for operation, argument, _ in operations:
        name = operation.name
        if name in {"GLOBAL", "INST"}:
            yield str(argument).replace(" ", ".")
        elif name == "STACK_GLOBAL":
            yield ".".join(str(part) for part in pushed[-2:])
        elif name == "MEMOIZE":
            memo[len(memo)] = pushed[-1] if pushed else None
        elif name in {"PUT", "BINPUT", "LONG_BINPUT"}:
            memo[int(argument)] = pushed[-1] if pushed else None
        elif name in {"GET", "BINGET", "LONG_BINGET"}:
            pushed.append(memo.get(int(argument)))
        elif name.startswith("EXT"):
            yield f"extension {argument}"
        elif "UNICODE" in name or "STRING" in name:
            pushed.append(argument)
            del pushed[:-2]
        elif name not in {"PROTO", "FRAME", "MARK", "STOP"}:
            pushed.append(None)
            del pushed[:-2]
