"""Which kind of layer an operator of a runtime computes, by the names that the runtimes give their operators."""

import re

LAYERS = ("convolution", "dense layer", "pooling", "elementwise", "layout", "several layers", "other")
"""The kinds, in the order of a stacked bar."""
_PATTERNS = {
    "several layers": r"ynn_fusion|subgraph",
    "layout": r"reorder|transpose|permute|copy|reshape|concat|slice|\bpad|contiguous|empty|resize|expand|stride|view",
    "convolution": r"conv(?!ert)",
    "dense layer": r"gemm|matmul|dot|addmm|linear|fullyconnected",
    "pooling": r"pool|reduce|mean|sum",
    "elementwise": (
        r"add|mul|sub|div|relu|clamp|sigmoid|silu|swish|softmax|exp|clip|maximum|fusion|cast|convert|to_copy|eltwise"
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
