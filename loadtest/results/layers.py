"""The time of a prediction by kind of layer, by the names that the runtimes give their operators."""

import re
from collections.abc import Mapping

from medserve.result import Explained

LAYERS = ("convolution", "dense layer", "pooling", "elementwise", "layout", "several layers", "other")
"""The kinds, in the order of a stacked bar."""
NO_OPERATOR = "in no operator"
_PATTERNS = {
    "several layers": r"ynn_fusion|subgraph",
    "layout": r"reorder|transpose|permute|copy|reshape|concat|slice|\bpad|contiguous|empty|resize|expand|stride|view",
    "convolution": r"conv(?!ert)",
    "dense layer": r"gemm|matmul|dot|addmm|linear|fullyconnected|inner_product",
    "pooling": r"pool|reduce|mean|sum",
    "elementwise": (
        r"add|mul|sub|div|relu|clamp|sigmoid|silu|swish|softmax|exp|clip|maximum|fusion|cast|convert|to_copy|eltwise|binary"
    ),
}
_VAGUE = ("fusion",)
"""Kinds that say less than the operator's name."""
_KINDS = {layer: re.compile(pattern, re.IGNORECASE) for layer, pattern in _PATTERNS.items()}


def layer(name: str, kind: str) -> str:
    """One of LAYERS: by the operator's kind, and by its name where the kind says nothing.

    An operator that computes several is of the first in the order of `_PATTERNS`.
    """
    for word in (name, kind) if kind in _VAGUE else (kind, name):
        for found, pattern in _KINDS.items():
            if pattern.search(word):
                return found
    return LAYERS[-1]


def parts(explained: Explained) -> Mapping[str, float]:
    """Milliseconds of a prediction by each of LAYERS, and in NO_OPERATOR. Operators of several threads may overlap."""
    found = dict.fromkeys(LAYERS, 0.0)
    for operator in explained.operators:
        found[layer(operator.name, operator.kind)] += operator.ms
    return found | {NO_OPERATOR: max(0.0, explained.profiled_ms - sum(found.values()))}
