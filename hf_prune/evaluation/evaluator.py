"""The sweep: all candidates of a generation go through the layers side by side.

Candidates become a trie of their canonical layer specs. A prefix that candidates share is computed once; a prefix that
is the dense model's own is read from the reference run; all trie edges with the same spec are served in one visit to
that layer, so its weights are touched once a generation. Memory is bounded by taking few sequences at a time.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import GONE, Blueprint, Fidelity, LayerSpec, all_parts
from hf_prune.errors import InvalidBlueprint
from hf_prune.evaluation.batches import Piece, batches
from hf_prune.evaluation.bridges import Bridges
from hf_prune.evaluation.comparison import Totals, add_update, compare, gelaco, halves_cosine
from hf_prune.evaluation.dense import Batch, Dense
from hf_prune.evaluation.objectives import Measures
from hf_prune.evaluation.packed_tasks import Exam, answered
from hf_prune.evaluation.prefix_trie import Node, grown, most_alive, place, reach
from hf_prune.evaluation.teachers import Teachers
from hf_prune.limits import TOP_K

TokenScores = tuple[Tensor, Tensor]
"""KL to the reference and negative log-likelihood of every token, nats."""


@dataclass
class Cost:
    """Work done so far: layer passes x tokens, head passes x tokens, and the layer passes x tokens of the plain way."""

    layer_tokens: int = 0
    head_tokens: int = 0
    plain_layer_tokens: int = 0


class Evaluator:
    """Scores blueprints against the dense model on fixed windows, and on tasks.

    Args:
        bank: layers of the dense model, resident on its device.
        tokens: [N, T] int64 windows of one length.
        with_modules: measure what `gelaco_v1` needs.
        with_updates: measure what `similarity` needs.
        top_k: tokens kept of each dense distribution (at least 512, or the vocabulary, for figures that are published).
        tile_tokens: tokens per layer call; None chooses for the device.
        share_prefixes: compute a prefix that candidates share once.
        reuse_reference: take prefixes of the dense model from the reference run.
        corpora: number of the corpus of each window, [N]; measures tell the text of each apart.
        exam: makes the tasks ready, once the dense model stands.
        bridges: windows to fit maps over gaps on, int64 [M, T]; asked for where a fidelity is bridged.

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
        corpora: Sequence[int] | None = None,
        exam: Callable[[Dense], Exam] | None = None,
        bridges: Callable[[], Tensor] | None = None,
    ) -> None:
        self.bank = bank
        aside = {"aside": bank.stream.aside} if bank.stream else {}
        self.dense = Dense(bank.model, bank.parents[0].family, tile_tokens, with_modules, **aside)
        self.with_updates, self.share_prefixes, self.reuse_reference = with_updates, share_prefixes, reuse_reference
        self.cost = Cost()
        self.own = self.dense.run(tokens, top_k)
        self.reference, self.top_k = self.own, top_k
        self.corpora = torch.tensor(list(corpora) if corpora is not None else [0] * len(tokens))
        self.exam = exam(self.dense) if exam else None
        self._to_bridge = bridges

    def teach(self, whose: Sequence[int]) -> None:
        """From now on compare each window with another parent than the first: its number, [N]."""
        self.reference = Teachers.of(self.bank, self.dense, len(whose), whose).reference(self.own, self.top_k)

    def evaluate(
        self,
        blueprints: Sequence[Blueprint],
        fidelity: Fidelity,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[Measures, ...]:
        """Measures of every blueprint on windows `start .. start + sequences` and on its items of the tasks.

        progress: told layers that all evidence has passed, part by part, and layers in all parts.
        """
        totals = self._sweep(blueprints, fidelity, keep_tokens=False, progress=progress)
        return tuple(self._measures(t, b, fidelity) for t, b in zip(totals, blueprints, strict=True))

    def examine(
        self,
        blueprints: Sequence[Blueprint],
        fidelity: Fidelity,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[tuple[Measures, TokenScores], ...]:
        """What `evaluate` and `token_scores` say, by one sweep."""
        totals = self._sweep(blueprints, fidelity, keep_tokens=True, progress=progress)
        return tuple(
            (self._measures(t, b, fidelity), self._by_token(t, fidelity))
            for t, b in zip(totals, blueprints, strict=True)
        )

    def token_scores(self, blueprints: Sequence[Blueprint], fidelity: Fidelity) -> list[TokenScores]:
        """Per-token (KL, NLL) of every blueprint, each [sequences, T-1] float32 on CPU; +inf for a broken one."""
        return [scores for _, scores in self.examine(blueprints, fidelity)]

    def _by_token(self, totals: Totals, fidelity: Fidelity) -> TokenScores:
        broken = torch.full((fidelity.sequences, self.reference.tokens.shape[1] - 1), math.inf)
        return (broken, broken) if totals.broken else (torch.cat(totals.token_kl), torch.cat(totals.token_nll))

    @torch.inference_mode()
    def live_scores(self, model: PreTrainedModel) -> TokenScores:
        """Per-token (KL, NLL) of any model with this vocabulary on all windows, each [N, T-1] float32 on CPU."""
        found = []
        for rows in self.dense.tiles(self.reference.tokens, self.dense.head_tokens):
            logits = model(input_ids=self.reference.tokens[rows], use_cache=False).logits[:, :-1]
            found.append([x.cpu() for x in compare(self.reference, rows, logits.float())])
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    @torch.inference_mode()
    def states(self, blueprint: Blueprint, rows: int) -> list[Tensor]:
        """Hidden states [rows, T, d] of a candidate at every layer boundary, on the first windows."""
        blueprint = blueprint.over(self.bank.sources)
        states = [self._entered(blueprint.embed, self.own.tokens[:rows])]
        for spec in blueprint.layers:
            call = self.own.calls[spec.anchor.layer]
            states.append(self.dense.apply(self.bank.module(spec), states[-1:], call)[0][0])
        return states

    @torch.inference_mode()
    def logits(self, blueprint: Blueprint, rows: int) -> Tensor:
        """Logits [rows, T, V] of a candidate on the first windows, computed the way candidates are."""
        numbered = blueprint.over(self.bank.sources)
        return self._ending(numbered.embed, numbered.head).logits(self.states(blueprint, rows)[-1])

    def parameters(self, blueprint: Blueprint) -> int:
        """Live parameters: what contributes to the output, removed halves not counted."""
        parent = self.bank.parents[0]
        sizes = parent.half_parameters
        outside = parent.parameters - sum(sum(s.values()) for s in sizes)
        live = outside
        for spec in blueprint.canonical_layers():
            if spec.library:
                live += parent.levels[spec.library].parameters(parent, spec)
                continue
            size = sizes[spec.anchor.layer]
            gone = size["attention"] * (spec.attn_level == GONE) + size["mlp"] * (spec.mlp_level == GONE)
            live += sum(size.values()) - gone
            if spec.blends and spec.mlp_level != GONE:
                live -= (parent.mixture.experts - len(spec.blends)) * parent.mixture.parameters
        return live

    @cached_property
    def bridges(self) -> Bridges:
        """Maps over gaps."""
        if self._to_bridge is None:
            raise ValueError("a bridged fidelity needs windows to fit bridges on")
        return Bridges(self.dense, self._to_bridge())

    # The walk ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _sweep(
        self,
        blueprints: Sequence[Blueprint],
        fidelity: Fidelity,
        keep_tokens: bool,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Totals]:
        available, length = self.reference.tokens.shape
        stop = fidelity.start + fidelity.sequences
        if not 0 <= fidelity.start < stop <= available:
            raise ValueError(f"fidelity asks for windows {fidelity.start} to {stop}, there are {available}")
        numbered = [b.over(self.bank.sources) for b in blueprints]
        paths = [b.layers for b in numbered]
        if not all(paths):
            raise InvalidBlueprint("A blueprint without layers cannot be scored.")
        totals = [Totals() for _ in blueprints]
        ends = [(b.embed, b.head) for b in numbered]
        parts = list(self._batches(fidelity, most_alive(paths)))
        depth = len(self.dense.layers)
        total = len(parts) * depth
        for done, pieces in enumerate(parts):
            broken = [t.broken for t in totals]
            roots = grown(paths, [e for e, _ in ends], broken, self.share_prefixes, self.reuse_reference)
            for node in self._walk(roots, pieces, lambda layer, done=done: progress(done * depth + layer, total)):
                self._score(node, pieces, totals, ends, keep_tokens)
        progress(total, total)
        self.cost.plain_layer_tokens += sum(map(len, paths)) * fidelity.sequences * length
        return totals

    def _batches(self, fidelity: Fidelity, alive: int) -> Iterator[list[Piece]]:
        sheets = self.exam.sheets(fidelity.first_item, fidelity.items) if self.exam and fidelity.items else ()
        return batches(self.own, sheets, fidelity, alive)

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
            return self._entered(embed, piece.sheet.tokens, **piece.sheet.given)
        return self._entered(embed, self.own.tokens[piece.window])

    def _entered(self, embed: int, tokens: Tensor, **given: Tensor) -> Tensor:
        others = self._outside(embed, embed)
        if given:
            return self.dense.embed(tokens, others, **given)
        tiles = self.dense.tiles(tokens, self.dense.tile_tokens)
        return torch.cat([self.dense.embed(tokens[rows], others) for rows in tiles])

    @lru_cache(maxsize=4)  # noqa: B019 - an evaluator lives as long as its run
    def _outside(self, embed: int, head: int) -> Mapping[str, Tensor]:
        return self.bank.outside(embed, head)

    @lru_cache(maxsize=4)  # noqa: B019
    def _ending(self, embed: int, head: int) -> Dense:
        return self.dense.ending(self._outside(embed, head))

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
        layer = self.bank.module(spec)
        jobs, owners = [], []
        begin = min(part.layer for part in all_parts(spec))
        for p, piece in enumerate(pieces):
            lacking = [n for n in nodes if n.states[p] is None]
            call, (rows, length) = piece.calls[spec.anchor.layer], nodes[0].parent.states[p].shape[:2]
            # Masks of a sheet fit its own rows; text of several candidates shares calls of one size.
            together = 1 if piece.sheet else max(1, self.dense.tile_tokens // (rows * length))
            for first in range(0, len(lacking), together):
                group = lacking[first : first + together]
                states = [self._entering(n.parent, piece, p, begin) for n in group]
                joined = torch.cat(states) if len(group) > 1 else states[0]
                asked = piece.sheet.asked if piece.sheet and not group[0].children else None
                jobs.append(Batch(joined, call, piece.sheet is not None, asked))
                owners.append((p, rows, group))
            self.cost.layer_tokens += len(lacking) * rows * length
        for (p, rows, group), (out, inner) in zip(owners, self.dense.apply_each(layer, jobs), strict=True):
            for k, node in enumerate(group):
                mine = slice(k * rows, (k + 1) * rows)
                node.states[p] = out[mine]
                if pieces[p].window:
                    node.inner = (inner[0][mine], inner[1][mine]) if inner else None

    def _entering(self, node: Node, piece: Piece, number: int, layer: int) -> Tensor:
        """The state of a piece behind a node as it enters a source layer, over the gap between where there is one."""
        if not piece.bridged or layer <= node.end:
            return node.states[number]
        return self.bridges.cross(node.states[number], node.end, layer)

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
        totals: Sequence[Totals],
        ends: Sequence[tuple[int, int]],
        keep_tokens: bool,
    ) -> None:
        if node.broken:
            for number in node.leaves:
                totals[number].broken = True
            return
        depth = len(self.dense.layers)
        states = [self._entering(node, piece, p, depth) for p, piece in enumerate(pieces)]
        for embed, head in dict.fromkeys(ends[number] for number in node.leaves):
            mine = [totals[n] for n in node.leaves if ends[n] == (embed, head)]
            dense = self._ending(embed, head)
            if window := pieces[0].window:
                self._text(node, states[0], dense, window, mine, keep_tokens)
            sheets = [(p.sheet, state) for p, state in zip(pieces, states, strict=True) if p.sheet]
            self.cost.head_tokens += sum(len(sheet.at) for sheet, _ in sheets)
            answers = answered(dense, sheets)
            for t in mine:
                t.answers += answers

    def _text(
        self, node: Node, state: Tensor, dense: Dense, window: slice, totals: Sequence[Totals], keep_tokens: bool
    ) -> None:
        kl, nll = self._head(node, state, dense, window)
        self.cost.head_tokens += kl.numel()
        by_corpus = torch.zeros(int(self.corpora.max()) + 1, 2, dtype=torch.float64)
        rows = torch.stack([nll.double().sum(1), torch.full_like(nll[:, 0], nll.shape[1]).double()], 1).cpu()
        by_corpus.index_add_(0, self.corpora[window], rows)
        sums = torch.stack([kl.sum(dtype=torch.float64), nll.sum(dtype=torch.float64)]).tolist()
        similar = float(node.cosine) / node.depth
        thirds = gelaco(node, self.reference, window) if node.inner is not None else math.nan
        for t in totals:
            t.broken |= not all(map(math.isfinite, sums))
            t.kl += sums[0]
            t.nll += sums[1]
            t.cosine += similar * kl.numel()
            t.gelaco += thirds * kl.numel()
            t.tokens += kl.numel()
            t.corpora = by_corpus if t.corpora is None else t.corpora + by_corpus
            if keep_tokens:
                t.token_kl.append(kl.cpu())
                t.token_nll.append(nll.cpu())

    def _head(self, node: Node, state: Tensor, dense: Dense, window: slice) -> tuple[Tensor, Tensor]:
        """KL(dense || candidate) and NLL per token, float32 [n, T-1] each; a set of log-probabilities is never held."""
        ref = self.reference
        if node.dense and node.depth == len(ref.hidden) - 1 and ref is self.own and dense is self.dense:
            return torch.zeros_like(ref.nll[window]), ref.nll[window]
        kl, nll = torch.empty_like(ref.nll[window]), torch.empty_like(ref.nll[window])

        def one(tile: slice) -> None:
            part = slice(window.start + tile.start, window.start + tile.stop)
            kl[tile], nll[tile] = compare(ref, part, dense.logits(state[tile, :-1]).float())

        self.dense.each(one, [(tile,) for tile in self.dense.tiles(state, self.dense.head_tokens)])
        return kl, nll

    def _measures(self, totals: Totals, blueprint: Blueprint, fidelity: Fidelity) -> Measures:
        parameters = self.parameters(blueprint)
        if totals.broken:
            return Measures(math.inf, math.inf, -1.0, -1.0, parameters, finite=False)
        n = totals.tokens
        texts = tuple((totals.corpora[:, 0] / totals.corpora[:, 1].clamp_min(1)).tolist())
        tasks = self.exam.judged(fidelity.first_item, fidelity.items, totals.answers) if totals.answers else ()
        return Measures(totals.kl / n, totals.nll / n, totals.cosine / n, totals.gelaco / n, parameters,
                        texts=texts, tasks=tasks)  # fmt: skip
