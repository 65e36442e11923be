"""One generation's way through the layers, side by side.

Candidates become a trie of their canonical layer specs. A prefix that candidates share is computed once; a prefix that
is the dense model's own is read from the reference run; all trie edges with the same spec are served in one visit to
that layer, so its weights are touched once a generation. Memory is bounded by taking few sequences at a time.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import Blueprint, LayerSpec, all_parts
from hf_prune.evaluation.batches import Piece
from hf_prune.evaluation.bridges import Bridges
from hf_prune.evaluation.comparison import Reference, add_update, compare, gelaco, halves_cosine
from hf_prune.evaluation.dense import Batch, Dense
from hf_prune.evaluation.packed_tasks import answered
from hf_prune.evaluation.prefix_trie import Node, grown, place, reach
from hf_prune.evaluation.sums import OnWindow, Sums

Reached = Callable[[int, int], None]
"""Told layers that all evidence has passed, part by part, and layers in all parts."""


@dataclass
class Cost:
    """Work done so far: layer passes x tokens, head passes x tokens, and the layer passes x tokens of the plain way."""

    layer_tokens: int = 0
    head_tokens: int = 0
    plain_layer_tokens: int = 0

    def add(self, other: "Cost") -> None:
        """Work of somebody else."""
        self.layer_tokens += other.layer_tokens
        self.head_tokens += other.head_tokens
        self.plain_layer_tokens += other.plain_layer_tokens

    def since(self, before: "Cost") -> "Cost":
        """Work done after that."""
        return Cost(*(getattr(self, name) - getattr(before, name) for name in self.__dict__))


class Sweep:
    """Takes candidates over pieces of evidence; see `Evaluator` for what is not said here.

    Args:
        bank: layers.
        dense: the dense model they are of.
        own: its run on the windows.
        bridges: maps over gaps, made when they are first asked for.
    """

    def __init__(
        self,
        bank: LayerBank,
        dense: Dense,
        own: Reference,
        bridges: Callable[[], Bridges],
        *,
        with_updates: bool,
        share_prefixes: bool,
        reuse_reference: bool,
    ) -> None:
        self.bank, self.dense, self.own, self.reference, self.bridges = bank, dense, own, own, bridges
        self.with_updates, self.share_prefixes, self.reuse_reference = with_updates, share_prefixes, reuse_reference
        self.cost = Cost()

    @torch.inference_mode()
    def sums(
        self, numbered: Sequence[Blueprint], parts: Sequence[Sequence[Piece]], keep_tokens: bool, progress: Reached
    ) -> list[Sums]:
        """Of every blueprint, numbered by the sources of the bank, over all the pieces."""
        found = [Sums() for _ in numbered]
        paths, ends = [b.layers for b in numbered], [(b.embed, b.head) for b in numbered]
        depth = len(self.dense.layers)
        total = len(parts) * depth
        for done, pieces in enumerate(parts):
            broken = [s.broken for s in found]
            roots = grown(paths, [e for e, _ in ends], broken, self.share_prefixes, self.reuse_reference)
            for node in self._walk(roots, pieces, lambda layer, done=done: progress(done * depth + layer, total)):
                self._score(node, pieces, found, ends, keep_tokens)
        progress(total, total)
        windows = sum(p.window.stop - p.window.start for pieces in parts for p in pieces if p.window)
        self.cost.plain_layer_tokens += sum(map(len, paths)) * windows * self.own.tokens.shape[1]
        return found

    def entered(self, embed: int, tokens: Tensor, **given: Tensor) -> Tensor:
        """What enters the first layer, [N, T, d], by the embedding of a parent."""
        others = self._outside(embed, embed)
        if given:
            return self.dense.embed(tokens, others, **given)
        tiles = self.dense.tiles(tokens, self.dense.tile_tokens)
        return torch.cat([self.dense.embed(tokens[rows], others) for rows in tiles])

    @lru_cache(maxsize=4)  # noqa: B019
    def ending(self, embed: int, head: int) -> Dense:
        """Final norm and head of a parent."""
        return self.dense.ending(self._outside(embed, head))

    @lru_cache(maxsize=4)  # noqa: B019 - a sweep lives as long as its run
    def _outside(self, embed: int, head: int) -> Mapping[str, Tensor]:
        return self.bank.outside(embed, head)

    # The walk ------------------------------------------------------------------------------------------------------

    def _walk(
        self, roots: Mapping[int, Node], pieces: Sequence[Piece], reached: Callable[[int], None]
    ) -> Iterator[Node]:
        """Compute every edge, layer by layer in source order; yield the nodes where candidates end.

        reached: told the source layer that comes next.
        """
        pending: dict[LayerSpec, list[Node]] = {}
        for embed, root in roots.items():
            root.states = [self._first(embed, p) for p in pieces]
            reach(root, pending)
        while pending:
            spec = min(pending, key=place)
            nodes = pending.pop(spec)
            reached(spec.anchor.layer)
            self._visit(spec, nodes, pieces)
            for node in nodes:
                if node.leaves:
                    yield node
                node.inner = None
                reach(node, pending)

    def _first(self, embed: int, piece: Piece) -> Tensor:
        """What enters the first layer."""
        if not embed:
            return piece.hidden(0)
        if piece.sheet:
            return self.entered(embed, piece.sheet.tokens, **piece.sheet.given)
        return self.entered(embed, self.own.tokens[piece.window])

    def _visit(self, spec: LayerSpec, nodes: Sequence[Node], pieces: Sequence[Piece]) -> None:
        text = next((p for p in pieces if p.window), None)
        for node in nodes:
            node.broken = node.parent.broken
            node.states = [p.hidden(node.depth) if node.dense else None for p in pieces]
            if node.dense:
                node.inner = self._dense_inner(node.depth - 1, text.window) if text else None
        fresh = [n for n in nodes if not n.broken and any(s is None for s in n.states)]
        self._run(spec, fresh, pieces)
        if fresh:
            # What overflows stays so: one piece warns early, the end looks at all of them. One look per visit,
            # because asking per node would stop the device each time.
            looked = [n.states if n.leaves else n.states[:1] for n in fresh]
            sums = [torch.stack([s.sum(dtype=torch.float32) for s in states]).sum() for states in looked]
            finite = torch.stack(sums).isfinite().tolist()
            for node, fine in zip(fresh, finite, strict=True):
                node.broken = not fine
        for node in nodes:
            if text and not node.broken:
                self._compare(node, text.window)
            node.parent.waiting -= 1
            if not node.parent.waiting:
                node.parent.states = None

    def _run(self, spec: LayerSpec, nodes: Sequence[Node], pieces: Sequence[Piece]) -> None:
        """States that nodes lack."""
        if not nodes:
            return
        layer, begin = self.bank.module(spec), min(part.layer for part in all_parts(spec))
        jobs, owners = [], []
        for p, piece in enumerate(pieces):
            lacking = [n for n in nodes if n.states[p] is None]
            call, (rows, length) = piece.calls[spec.anchor.layer], nodes[0].parent.states[p].shape[:2]
            self.cost.layer_tokens += len(lacking) * rows * length
            entering = dict(zip(lacking, self._entering([n.parent for n in lacking], piece, p, begin), strict=True))
            for block in piece.blocks:
                # Masks of a sheet fit its own rows; text of several candidates shares calls of one size.
                together = 1 if piece.sheet else self.dense.together((block.stop - block.start) * length)
                for first in range(0, len(lacking), together):
                    group = lacking[first : first + together]
                    states = [entering[n][block] for n in group]
                    asked = piece.sheet.asked if piece.sheet and not group[0].children else None
                    joined = torch.cat(states) if len(group) > 1 else states[0]
                    jobs.append(Batch(joined, call, piece.sheet is not None, asked))
                    owners.append((p, len(states[0]), group))
        parts: dict[tuple[Node, int], list[Any]] = {}
        for (p, rows, group), (out, inner) in zip(owners, self.dense.apply_each(layer, jobs, True), strict=True):
            for k, node in enumerate(group):
                mine = slice(k * rows, (k + 1) * rows)
                halves = (inner[0][mine], inner[1][mine]) if inner else None
                parts.setdefault((node, p), []).append((out[mine], halves))
        for (node, p), blocks in parts.items():
            node.states[p] = _joined([out for out, _ in blocks])
            if pieces[p].window and blocks[0][1]:
                node.inner = tuple(_joined([halves[k] for _, halves in blocks]) for k in (0, 1))

    def _entering(self, nodes: Sequence[Node], piece: Piece, number: int, layer: int) -> list[Tensor]:
        """The states of a piece behind nodes as they enter a source layer, over the gap between where there is one."""
        states = [n.states[number] for n in nodes]
        gaps = [k for k, n in enumerate(nodes) if piece.bridged and layer > n.end]
        if not gaps:
            return states
        bridges = self.bridges()
        for k in gaps:
            # Made here, once: what follows is done by several threads.
            bridges.over(nodes[k].end, layer)
            states[k] = torch.empty_like(states[k])

        def cross(k: int, block: slice) -> None:
            states[k][block] = bridges.cross(nodes[k].states[number][block], nodes[k].end, layer)

        self.dense.each(cross, [(k, block) for k in gaps for block in piece.blocks], True)
        return states

    def _dense_inner(self, layer: int, window: slice) -> tuple[Tensor, Tensor] | None:
        if self.reference.modules is None:
            return None
        attention, mlp = self.reference.modules[layer]
        return attention[window], mlp[window]

    # Comparing with the dense model ---------------------------------------------------------------------------------

    def _compare(self, node: Node, window: slice) -> None:
        if node.dense or self.with_updates:
            add_update(node, self.reference, window)
        if node.inner is not None:
            layers = range(node.begin, node.end)
            node.halves = node.parent.halves + halves_cosine(node, self.reference, layers, window)

    def _score(
        self,
        node: Node,
        pieces: Sequence[Piece],
        found: Sequence[Sums],
        ends: Sequence[tuple[int, int]],
        keep_tokens: bool,
    ) -> None:
        if node.broken:
            for number in node.leaves:
                found[number].broken = True
            return
        depth = len(self.dense.layers)
        states = [self._entering([node], piece, p, depth)[0] for p, piece in enumerate(pieces)]
        for embed, head in dict.fromkeys(ends[number] for number in node.leaves):
            mine = [found[n] for n in node.leaves if ends[n] == (embed, head)]
            dense = self.ending(embed, head)
            if pieces[0].window:
                self._text(node, states[0], dense, pieces[0], mine, keep_tokens)
            sheets = [(p.sheet, state) for p, state in zip(pieces, states, strict=True) if p.sheet]
            self.cost.head_tokens += sum(len(sheet.at) for sheet, _ in sheets)
            answers = zip((p.number for p in pieces if p.sheet), answered(dense, sheets), strict=True)
            for number, answer in answers:
                for sums in mine:
                    sums.answers[number] = answer

    def _text(
        self, node: Node, state: Tensor, dense: Dense, piece: Piece, mine: Sequence[Sums], keep_tokens: bool
    ) -> None:
        kl, nll = self._head(node, state, dense, piece)
        self.cost.head_tokens += kl.numel()
        columns = [kl.sum(1, dtype=torch.float64), nll.sum(1, dtype=torch.float64)]
        thirds = gelaco(node, self.reference, piece.window) if node.inner is not None else math.nan
        columns += [torch.as_tensor(c).to(columns[0]).expand(len(kl)) for c in (node.cosine / node.depth, thirds)]
        rows = torch.stack(columns, 1).tolist()
        for sums in mine:
            sums.broken |= not all(math.isfinite(x) for kl_nll in rows for x in kl_nll[:2])
            sums.windows |= {piece.window.start + n: OnWindow(*row) for n, row in enumerate(rows)}
            if keep_tokens:
                sums.tokens.append((kl.cpu(), nll.cpu()))

    def _head(self, node: Node, state: Tensor, dense: Dense, piece: Piece) -> tuple[Tensor, Tensor]:
        """KL(dense || candidate) and NLL per token, float32 [n, T-1] each; a set of log-probabilities is never held."""
        ref, window = self.reference, piece.window
        if node.dense and node.depth == len(ref.hidden) - 1 and ref is self.own and dense is self.dense:
            return torch.zeros_like(ref.nll[window]), ref.nll[window]
        kl, nll = torch.empty_like(ref.nll[window]), torch.empty_like(ref.nll[window])

        def one(tile: slice) -> None:
            part = slice(window.start + tile.start, window.start + tile.stop)
            kl[tile], nll[tile] = compare(ref, part, dense.logits(state[tile, :-1]).float())

        tiles = [
            slice(block.start + tile.start, block.start + tile.stop)
            for block in piece.blocks
            for tile in self.dense.tiles(state[block], self.dense.head_tokens)
        ]
        self.dense.each(one, [(tile,) for tile in tiles], True)
        return kl, nll


def _joined(blocks: Sequence[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(list(blocks))
