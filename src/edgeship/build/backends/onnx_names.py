"""Names of an ONNX file's tensors, for what adds tensors to it: a name must be new in every graph of the file."""

from __future__ import annotations

from typing import Any


def nodes_of(graph: Any) -> list[Any]:
    """Every node, those of sub-graphs included: they read tensors of the graph around them."""
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                found += nodes_of(inner)
    return found


def names_of(graph: Any) -> set[str]:
    """Names of every tensor that a graph or one of its sub-graphs is given, holds, makes or reads."""
    held = {each.name for values in (graph.initializer, graph.input, graph.output) for each in values}
    return held | {name for node in nodes_of(graph) for name in (*node.input, *node.output)}


def free(name: str, taken: set[str]) -> str:
    """A name that nothing has, which is taken from now on.

    >>> taken = {"x_inside"}
    >>> free("x_inside", taken), sorted(taken)
    ('x_inside_', ['x_inside', 'x_inside_'])
    """
    while name in taken:
        name += "_"
    taken.add(name)
    return name
