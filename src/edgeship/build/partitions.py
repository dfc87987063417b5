"""How a runtime splits a model between its delegate and its own kernels, asked of the runtime itself.

The runtime is asked in a throw-away process, since a file may kill it: ``python -m edgeship.build.partitions RUNTIME
PROVIDER MODEL``. Nothing is computed: the model is only loaded.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from edgeship.targets import Partitions

_TIMEOUT_S: Final = 120
_DELEGATE: Final = "DELEGATE"


class Node(Struct, frozen=True, kw_only=True):
    """One node of a loaded graph.

    Attributes:
        inputs, outputs: indices of tensors.
    """

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def of_model(runtime: str, provider: str, model: Path) -> Partitions:
    """How an installed runtime splits a file of its own format.

    Args:
        runtime: ``litert`` or ``onnxruntime``.
        provider: delegate or execution provider, as the target names it.
        model: ``.tflite`` for LiteRT, ``.onnx`` for ONNX Runtime.

    Returns:
        Its answer; ``refused`` says in one sentence why it did not load the file.
    """
    command = [sys.executable, "-m", "edgeship.build.partitions", runtime, provider, str(model)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Partitions(provider=provider, refused=f"{runtime} did not load it within {_TIMEOUT_S} s")
    if done.returncode < 0:
        return Partitions(provider=provider, refused=f"the file kills {runtime} (signal {-done.returncode})")
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        reasons = done.stderr.decode(errors="replace").strip().splitlines()
        return Partitions(provider=provider, refused=reasons[-1] if reasons else "no reason given")
    return msgspec.json.decode(lines[-1], type=Partitions)


def of_nodes(provider: str, nodes: Sequence[Node]) -> Partitions:
    """Count what a delegate took, from the nodes that LiteRT lists after it was applied.

    LiteRT keeps the nodes that it replaced and appends one ``DELEGATE`` node a partition, with the tensors that go in
    and come out. What lies between them is inside.

    >>> graph = [Node(op="CONV_2D", inputs=(0,), outputs=(1,)), Node(op="SOFTMAX", inputs=(1,), outputs=(2,)),
    ...          Node(op="DELEGATE", inputs=(0,), outputs=(1,))]
    >>> of_nodes("XNNPACK", graph).outside
    {'SOFTMAX': 1}
    """
    own = [node for node in nodes if node.op != _DELEGATE]
    pieces = [node for node in nodes if node.op == _DELEGATE]
    makers = {tensor: index for index, node in enumerate(own) for tensor in node.outputs}
    inside: set[int] = set()
    for piece in pieces:
        inside |= _between(own, makers, piece)
    outside = Counter(node.op for index, node in enumerate(own) if index not in inside)
    return Partitions(provider=provider, count=len(pieces), inside=len(inside), outside=dict(outside.most_common()))


def _between(own: Sequence[Node], makers: Mapping[int, int], piece: Node) -> set[int]:
    """Nodes from the piece's outputs back to its inputs."""
    entries = set(piece.inputs)
    found: set[int] = set()
    waiting = list(piece.outputs)
    while waiting:
        tensor = waiting.pop()
        maker = makers.get(tensor)
        if maker is None or maker in found or tensor in entries:
            continue
        found.add(maker)
        waiting += own[maker].inputs
    return found


def of_assignment(provider: str, assigned: Iterable[tuple[str, str]]) -> Partitions:
    """Count what an execution provider took, from (provider, operator) in the order of the graph.

    >>> of_assignment("A", [("A", "Conv"), ("A", "Relu"), ("B", "Loop"), ("A", "Conv")])
    Partitions(provider='A', count=2, inside=3, outside={'Loop': 1}, refused='')
    """
    count, inside, outside, former = 0, 0, Counter[str](), ""
    for name, op in assigned:
        if name == provider:
            inside += 1
            count += name != former
        else:
            outside[op] += 1
        former = name
    return Partitions(provider=provider, count=count, inside=inside, outside=dict(outside.most_common()))


def _ask_litert(provider: str, model: str) -> Partitions:
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_path=model, num_threads=1)
    interpreter.allocate_tensors()
    nodes = [
        Node(op=str(each["op_name"]), inputs=tuple(map(int, each["inputs"])), outputs=tuple(map(int, each["outputs"])))
        for each in interpreter._get_ops_details()
    ]
    return of_nodes(provider, nodes)


def _ask_onnxruntime(provider: str, model: str) -> Partitions:
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        return Partitions(provider=provider, refused=f"the ONNX Runtime installed here has no {provider}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(model, options, providers=[provider])
    assigned = [
        (str(piece.ep_name), str(node.op_type))
        for piece in session.get_provider_graph_assignment_info()
        for node in piece.get_nodes()
    ]
    return of_assignment(provider, assigned)


def main() -> int:
    """Exit code: 0 and the answer as JSON on stdout, or 1 and the reason as the last line of stderr."""
    runtime, provider, model = sys.argv[1:]
    ask = {"litert": _ask_litert, "onnxruntime": _ask_onnxruntime}[runtime]
    try:
        answer = ask(provider, model)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        sys.stderr.write(f"\n{str(error).strip().splitlines()[0]}\n")
        return 1
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(answer) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
