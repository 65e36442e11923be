"""The sweep: all candidates of a generation go through the layers side by side.

Candidates become a trie of their canonical layer specs. A prefix that candidates share is computed once; a prefix that
is the dense model's own is read from the reference run; all trie edges with the same spec are served in one visit to
that layer, so its weights are touched once a generation. Memory is bounded by taking few sequences at a time.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_prune.bank import LayerBank
from hf_prune.blueprint import GONE, Blueprint, Fidelity, LayerSpec
from hf_prune.errors import InvalidBlueprint
from hf_prune.objectives import Measures
from hf_prune.reference import TOP_K, Dense, compared, cosine

STATE_BYTES = 1 << 30
"""Most bytes of hidden states the sweep keeps alive at once; sequences are chunked to stay below."""


@dataclass(eq=False)
class Node:
    """One trie edge and the state behind it.

    `dense`: the path from the root is the dense model's own. `begin`..`end`: source layers this edge stands for.
    `cosine` sums over the path the mean update cosine of each edge; `halves` the same for attention and MLP outputs.
    """

    spec: LayerSpec | None = None
    parent: "Node | None" = None
    depth: int = 0
    begin: int = 0
    dense: bool = True
    leaves: list[int] = field(default_factory=list)
    children: dict[Any, "Node"] = field(default_factory=dict)
    state: Tensor | None = None
    inner: tuple[Tensor, Tensor] | None = None
    waiting: int = 0
    broken: bool = False
    cosine: Tensor | float = 0.0
    halves: Tensor | float = 0.0

    @property
    def end(self) -> int:
        """One past the last source layer this edge stands for; a repeated layer stands for no more."""
        return 0 if self.spec is None else max(self.begin, max(p.layer for p in self.spec.parts) + 1)


@dataclass
class Totals:
    """Running sums over tokens of one candidate."""

    kl: float = 0.0
    nll: float = 0.0
    cosine: float = 0.0
    gelaco: float = 0.0
    tokens: int = 0
    broken: bool = False
    token_kl: list[Tensor] = field(default_factory=list)
    token_nll: list[Tensor] = field(default_factory=list)


@dataclass
class Cost:
    """Work done so far: layer passes x tokens, head passes x tokens, and the layer passes x tokens of the plain way."""

    layer_tokens: int = 0
    head_tokens: int = 0
    plain_layer_tokens: int = 0


class Evaluator:
    """Scores blueprints against the dense model on fixed windows.

    Args:
        bank: layers of the dense model, resident on its device.
        tokens: [N, T] int64 windows of one length.
        with_modules: measure what `gelaco_v1` needs.
        with_updates: measure what `similarity` needs.
        top_k: tokens kept of each dense distribution (at least 512, or the vocabulary, for figures that are published).
        tile_tokens: tokens per layer call; None chooses for the device.
        share_prefixes: compute a prefix that candidates share once.
        reuse_reference: take prefixes of the dense model from the reference run.

    Raises:
        UnsupportedArchitecture: see `Dense.run`.
    """

    def __init__(
        self,
        bank: LayerBank,
        tokens: Tensor,
        *,
        with_modules: bool = False,
        with_updates: bool = True,
        top_k: int = TOP_K,
        tile_tokens: int | None = None,
        share_prefixes: bool = True,
        reuse_reference: bool = True,
    ) -> None:
        self.bank = bank
        self.dense = Dense(bank.model, bank.parents[0].family, tile_tokens, with_modules)
        self.with_updates, self.share_prefixes, self.reuse_reference = with_updates, share_prefixes, reuse_reference
        self.cost = Cost()
        self.reference = self.dense.run(tokens, top_k)

    def evaluate(self, blueprints: Sequence[Blueprint], fidelity: Fidelity) -> tuple[Measures, ...]:
        """Measures of every blueprint on windows `start .. start + sequences`."""
        totals = self._sweep(blueprints, fidelity, keep_tokens=False)
        return tuple(self._measures(t, b) for t, b in zip(totals, blueprints, strict=True))

    def token_scores(self, blueprints: Sequence[Blueprint], fidelity: Fidelity) -> list[tuple[Tensor, Tensor]]:
        """Per-token (KL, NLL) of every blueprint, each [sequences, T-1] float32 on CPU; +inf for a broken one."""
        totals = self._sweep(blueprints, fidelity, keep_tokens=True)
        broken = torch.full((fidelity.sequences, self.reference.tokens.shape[1] - 1), math.inf)
        return [(broken, broken) if t.broken else (torch.cat(t.token_kl), torch.cat(t.token_nll)) for t in totals]

    @torch.inference_mode()
    def live_scores(self, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        """Per-token (KL, NLL) of any model with this vocabulary on all windows, each [N, T-1] float32 on CPU."""
        found = []
        for rows in self.dense.tiles(self.reference.tokens, self.dense.head_tokens):
            logits = model(input_ids=self.reference.tokens[rows], use_cache=False).logits[:, :-1]
            found.append([x.cpu() for x in compared(self.reference, rows, logits.float())])
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    @torch.inference_mode()
    def logits(self, blueprint: Blueprint, rows: int) -> Tensor:
        """Logits [rows, T, V] of a candidate on the first windows, computed the way candidates are."""
        state = self.reference.hidden[0][:rows]
        for spec in blueprint.canonical().layers:
            state = self.dense.apply(self.bank.module(spec), [state], self.reference.calls[spec.anchor.layer])[0][0]
        return self.dense.logits(state)

    def parameters(self, blueprint: Blueprint) -> int:
        """Live parameters: what contributes to the output, removed halves not counted."""
        parent = self.bank.parents[blueprint.embed]
        sizes = parent.half_parameters
        outside = parent.parameters - sum(sum(s.values()) for s in sizes)
        live = outside
        for spec in blueprint.canonical().layers:
            size = sizes[spec.anchor.layer]
            gone = size["attention"] * (spec.attn_level == GONE) + size["mlp"] * (spec.mlp_level == GONE)
            live += sum(size.values()) - gone
        return live

    # The walk ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _sweep(self, blueprints: Sequence[Blueprint], fidelity: Fidelity, keep_tokens: bool) -> list[Totals]:
        available, length = self.reference.tokens.shape
        stop = fidelity.start + fidelity.sequences
        if not 0 <= fidelity.start < stop <= available:
            raise ValueError(f"fidelity asks for windows {fidelity.start} to {stop}, there are {available}")
        paths = [b.canonical().layers for b in blueprints]
        if not all(paths):
            raise InvalidBlueprint("A blueprint without layers cannot be scored.")
        totals = [Totals() for _ in blueprints]
        chunk = max(1, STATE_BYTES // (_most_alive(paths) * self.reference.hidden[0][0].nbytes))
        for first in range(fidelity.start, stop, chunk):
            window = slice(first, min(stop, first + chunk))
            for node in self._walk(self._trie(paths, totals), window):
                self._score(node, window, totals, keep_tokens)
        self.cost.plain_layer_tokens += sum(map(len, paths)) * fidelity.sequences * length
        return totals

    def _trie(self, paths: Sequence[tuple[LayerSpec, ...]], totals: Sequence[Totals]) -> Node:
        root = Node()
        for number, path in enumerate(paths):
            if totals[number].broken:
                continue
            node = root
            for depth, spec in enumerate(path):
                key = spec if self.share_prefixes else (number, spec)
                if key not in node.children:
                    own = spec.plain and spec.parts[0].source == 0 and spec.parts[0].layer == depth
                    known = self.reuse_reference and node.dense and own
                    node.children[key] = Node(spec, node, depth + 1, node.end, known)
                node = node.children[key]
            node.leaves.append(number)
        return root

    def _walk(self, root: Node, window: slice) -> Iterator[Node]:
        """Compute every edge, layer by layer in source order; yield the nodes where candidates end."""
        pending: dict[LayerSpec, list[Node]] = {}
        root.state = self.reference.hidden[0][window]
        _reach(root, pending)
        while pending:
            spec = min(pending, key=_order)
            nodes = pending.pop(spec)
            self._visit(spec, nodes, window)
            for node in nodes:
                if node.leaves:
                    yield node
                node.inner = None
                _reach(node, pending)

    def _visit(self, spec: LayerSpec, nodes: Sequence[Node], window: slice) -> None:
        for node in nodes:
            node.broken = node.parent.broken
            if node.dense:
                node.state = self.reference.hidden[node.depth][window]
                node.inner = self._dense_inner(node.depth - 1, window)
        fresh = [n for n in nodes if not n.dense and not n.broken]
        self._run(spec, fresh)
        if fresh:
            # One look per visit: asking per node would stop the device each time.
            finite = torch.stack([n.state.sum(dtype=torch.float32) for n in fresh]).isfinite().tolist()
            for node, fine in zip(fresh, finite, strict=True):
                node.broken = not fine
        for node in nodes:
            if not node.broken:
                self._compare(node, window)
            node.parent.waiting -= 1
            if not node.parent.waiting:
                node.parent.state = None

    def _run(self, spec: LayerSpec, nodes: Sequence[Node]) -> None:
        if not nodes:
            return
        layer, call = self.bank.module(spec), self.reference.calls[spec.anchor.layer]
        rows, length = nodes[0].parent.state.shape[:2]
        together = max(1, self.dense.tile_tokens // (rows * length))
        groups = [nodes[i : i + together] for i in range(0, len(nodes), together)]
        batches = [torch.cat([n.parent.state for n in g]) if len(g) > 1 else g[0].parent.state for g in groups]
        for group, (out, inner) in zip(groups, self.dense.apply(layer, batches, call), strict=True):
            for k, node in enumerate(group):
                mine = slice(k * rows, (k + 1) * rows)
                node.state = out[mine]
                node.inner = (inner[0][mine], inner[1][mine]) if inner else None
        self.cost.layer_tokens += len(nodes) * rows * length

    def _dense_inner(self, layer: int, window: slice) -> tuple[Tensor, Tensor] | None:
        if self.reference.modules is None:
            return None
        attention, mlp = self.reference.modules[layer]
        return attention[window], mlp[window]

    # Comparing with the dense model ---------------------------------------------------------------------------------

    def _compare(self, node: Node, window: slice) -> None:
        """Add this edge's update cosine: original update of the source layers it stands for against its own."""
        if node.dense:
            node.cosine = node.parent.cosine + 1.0
        elif self.with_updates:
            # The first position is left out: attention sinks there dwarf every other update.
            hidden = self.reference.hidden
            begin = min(node.begin, node.end - 1)
            update = (node.state - node.parent.state)[:, 1:]
            target = (hidden[node.end][window] - hidden[begin][window])[:, 1:]
            node.cosine = node.parent.cosine + cosine(update, target).mean()
        if node.inner is not None:
            node.halves = node.parent.halves + self._halves(node, range(node.begin, node.end), window)

    def _halves(self, node: Node, layers: range, window: slice) -> Tensor | float:
        """Sum over source layers of the cosines of attention and MLP outputs with those of this node."""
        return sum(
            cosine(ours, theirs[window]).mean()
            for i in layers
            for ours, theirs in zip(node.inner, self.reference.modules[i], strict=True)
        )

    def _score(self, node: Node, window: slice, totals: Sequence[Totals], keep_tokens: bool) -> None:
        if node.broken:
            for number in node.leaves:
                totals[number].broken = True
            return
        kl, nll = self._head(node, window)
        self.cost.head_tokens += kl.numel()
        sums = torch.stack([kl.sum(dtype=torch.float64), nll.sum(dtype=torch.float64)]).tolist()
        similar = float(node.cosine) / node.depth
        gelaco = self._gelaco(node, window) if node.inner is not None else math.nan
        for number in node.leaves:
            t = totals[number]
            t.broken |= not all(map(math.isfinite, sums))
            t.kl += sums[0]
            t.nll += sums[1]
            t.cosine += similar * kl.numel()
            t.gelaco += gelaco * kl.numel()
            t.tokens += kl.numel()
            if keep_tokens:
                t.token_kl.append(kl.cpu())
                t.token_nll.append(nll.cpu())

    def _head(self, node: Node, window: slice) -> tuple[Tensor, Tensor]:
        """KL(dense || candidate) and NLL per token, float32 [n, T-1] each; a set of log-probabilities is never held."""
        ref = self.reference
        if node.dense and node.depth == len(ref.hidden) - 1:
            return torch.zeros_like(ref.nll[window]), ref.nll[window]
        kl, nll = torch.empty_like(ref.nll[window]), torch.empty_like(ref.nll[window])

        def one(tile: slice) -> None:
            part = slice(window.start + tile.start, window.start + tile.stop)
            kl[tile], nll[tile] = compared(ref, part, self.dense.logits(node.state[tile, :-1]).float())

        self.dense.each(one, [(tile,) for tile in self.dense.tiles(node.state, self.dense.head_tokens)])
        return kl, nll

    def _gelaco(self, node: Node, window: slice) -> float:
        """GeLaCo v1 (arXiv 2507.10059): thirds of attention, feed-forward and final-hidden cosine, l against psi(l).

        Source layers behind the last output layer belong to it.
        """
        depth = len(self.reference.hidden) - 1
        halves = node.halves + self._halves(node, range(node.end, depth), window)
        final = cosine(node.state, self.reference.hidden[-1][window]).mean()
        return float(halves / depth + final) / 3

    def _measures(self, totals: Totals, blueprint: Blueprint) -> Measures:
        parameters = self.parameters(blueprint)
        if totals.broken:
            return Measures(math.inf, math.inf, -1.0, -1.0, parameters, finite=False)
        n = totals.tokens
        return Measures(totals.kl / n, totals.nll / n, totals.cosine / n, totals.gelaco / n, parameters)


def _reach(node: Node, pending: dict[LayerSpec, list[Node]]) -> None:
    node.waiting = len(node.children)
    for child in node.children.values():
        pending.setdefault(child.spec, []).append(child)
    if not node.waiting:
        node.state = None


@lru_cache(maxsize=1 << 14)
def _order(spec: LayerSpec) -> tuple[int, int, str]:
    return spec.anchor.layer, max(p.layer for p in spec.parts), repr(spec)


def _most_alive(paths: Sequence[tuple[LayerSpec, ...]]) -> int:
    """Upper bound of states alive at once: distinct prefixes of two neighbouring lengths."""
    lengths = range(1, max(map(len, paths), default=1) + 1)
    distinct = [len({p[:n] for p in paths if len(p) >= n}) for n in lengths]
    return max((a + b for a, b in zip(distinct, distinct[1:], strict=False)), default=2)
