"""Candidates as a trie of their layers: what they share is one edge."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from torch import Tensor

from hf_prune.blueprint import LayerSpec, all_parts

Path = tuple[LayerSpec, ...]


@dataclass(eq=False)
class Node:
    """One trie edge and the states behind it, one per piece of evidence.

    `dense`: the path from the root is the dense model's own. `begin`..`end`: source layers this edge stands for.
    `cosine` sums over the path the mean update cosine of each edge, [windows]; `halves` the same for attention and MLP
    outputs.
    """

    spec: LayerSpec | None = None
    parent: "Node | None" = None
    depth: int = 0
    begin: int = 0
    dense: bool = True
    leaves: list[int] = field(default_factory=list)
    children: dict[Any, "Node"] = field(default_factory=dict)
    states: list[Tensor | None] | None = None
    inner: tuple[Tensor, Tensor] | None = None
    waiting: int = 0
    broken: bool = False
    cosine: Tensor | float = 0.0
    halves: Tensor | float = 0.0

    @property
    def end(self) -> int:
        """One past the last source layer this edge stands for; a repeated layer stands for no more."""
        return 0 if self.spec is None else max(self.begin, max(p.layer for p in self.spec.parts) + 1)


def grown(
    paths: Sequence[Path], roots: Sequence[int], left_out: Sequence[bool], share: bool, reuse: bool
) -> dict[int, Node]:
    """The trie of every root (what enters the first layer may differ).

    Args:
        paths: layers of every candidate.
        roots: the root each begins at; root 0 is the dense model's.
        left_out: candidates that are not wanted any more.
        share: prefixes are shared.
        reuse: mark the edges that are the dense model's own.
    """
    found: dict[int, Node] = {}
    for number, path in enumerate(paths):
        if left_out[number]:
            continue
        node = found.setdefault(roots[number], Node(dense=roots[number] == 0))
        for depth, spec in enumerate(path):
            key = spec if share else (number, spec)
            if key not in node.children:
                own = spec.plain and spec.parts[0].source == 0 and spec.parts[0].layer == depth
                known = reuse and node.dense and own
                node.children[key] = Node(spec, node, depth + 1, node.end, known)
            node = node.children[key]
        node.leaves.append(number)
    return found


def reach(node: Node, pending: dict[LayerSpec, list[Node]]) -> None:
    """What comes behind a node is to be computed next; a node nobody waits for lets its states go."""
    node.waiting = len(node.children)
    for child in node.children.values():
        pending.setdefault(child.spec, []).append(child)
    if not node.waiting:
        node.states = None


@lru_cache(maxsize=1 << 14)
def place(spec: LayerSpec) -> tuple[int, int, str]:
    """Order of visits: that of the source layers."""
    return spec.anchor.layer, max(p.layer for p in all_parts(spec)), repr(spec)


def most_alive(paths: Sequence[Path]) -> int:
    """Upper bound of states alive at once: distinct prefixes of two neighbouring lengths."""
    lengths = range(1, max(map(len, paths), default=1) + 1)
    distinct = [len({p[:n] for p in paths if len(p) >= n}) for n in lengths]
    return max((a + b for a, b in zip(distinct, distinct[1:], strict=False)), default=2)
