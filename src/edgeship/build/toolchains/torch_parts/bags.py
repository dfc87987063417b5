"""Bags of embeddings as a lookup and a reduction: PyTorch's exporter writes a loop, which few runtimes have."""

from __future__ import annotations

from typing import Any

import torch

_ATEN = torch.ops.aten
#: Operators of ``torch.nn.EmbeddingBag``, with the same arguments and results.
_BAGS = frozenset({
    _ATEN.embedding_bag.default, _ATEN.embedding_bag.padding_idx, _ATEN._embedding_bag.default,
    _ATEN._embedding_bag_forward_only.default,
})  # fmt: skip
_SUM, _MEAN, _MAX = 0, 1, 2
_NAMES = ("weight", "indices", "offsets", "scale_grad_by_freq", "mode", "sparse", "per_sample_weights",
          "include_last_offset", "padding_idx")  # fmt: skip


def write_out(program: Any) -> None:
    """Replace every bag that holds all indices, as a batch of one has it, in place; others stay as they are."""
    graph = program.graph_module.graph
    changed = False
    for node in list(graph.nodes):
        if node.target not in _BAGS:
            continue
        given = {**dict(zip(_NAMES, node.args, strict=False)), **node.kwargs}
        if _is_alone(given) and set(_users(node)) <= {0}:
            with graph.inserting_before(node):
                made = _reduced(graph, given)
            for user in list(node.users):
                user.replace_all_uses_with(made)
                graph.erase_node(user)
            graph.erase_node(node)
            changed = True
    if changed:
        program.graph_module.recompile()


def _users(node: Any) -> list[int]:
    """Which of its results are used."""
    return [int(user.args[1]) for user in node.users if user.users]


def _is_alone(given: dict[str, Any]) -> bool:
    """Whether there is one bag; a maximum that leaves a padding out is no plain reduction."""
    bags = int(given["offsets"].meta["val"].shape[0]) - bool(given.get("include_last_offset"))
    return bags == 1 and not (_has_padding(given) and given.get("mode", _SUM) == _MAX)


def _has_padding(given: dict[str, Any]) -> bool:
    return given.get("padding_idx") is not None and int(given["padding_idx"]) >= 0


def _reduced(graph: Any, given: dict[str, Any]) -> Any:
    """[1, width]: sum, mean or maximum of the rows; a padding's row counts in none of them."""

    def call(operator: Any, *arguments: Any) -> Any:
        return graph.call_function(operator, arguments)

    mode = given.get("mode", _SUM)
    rows = call(_ATEN.embedding.default, given["weight"], given["indices"])
    if given.get("per_sample_weights") is not None:
        rows = call(_ATEN.mul.Tensor, rows, call(_ATEN.unsqueeze.default, given["per_sample_weights"], 1))
    if mode == _MAX:
        return call(_ATEN.amax.default, rows, [0], True)
    if not _has_padding(given):
        return call(_ATEN.mean.dim if mode == _MEAN else _ATEN.sum.dim_IntList, rows, [0], True)
    kept = call(_ATEN.ne.Scalar, given["indices"], int(given["padding_idx"]))
    kept = call(_ATEN.mul.Scalar, call(_ATEN.unsqueeze.default, kept, 1), 1.0)
    total = call(_ATEN.sum.dim_IntList, call(_ATEN.mul.Tensor, rows, kept), [0], True)
    if mode == _SUM:
        return total
    count = call(_ATEN.clamp_min.default, call(_ATEN.sum.dim_IntList, kept, [0], True), 1.0)
    return call(_ATEN.div.Tensor, total, count)
