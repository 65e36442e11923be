"""stitch: layers of a base and its fine-tuned variants, removed, selected and merged (GPTailor, arXiv 2506.20480).

Exactly `budget` layers go, as a set, and the order of the others stays. A kept layer is a mix of the parents: convex
weights in steps, of the base and any of its variants, merged by one of the given merges; with `halves` its MLP has one
of its own. Which parent gives the embeddings and which the final norm and head are genes as well.

    genome: per layer kept, then per mix its merge and the weight of every parent in steps; embedding, head
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from math import comb
from typing import Any, NamedTuple

import numpy as np

from hf_prune.blueprint import Genome, LayerSpec, Mix, Part
from hf_prune.methods import stitch_moves
from hf_prune.methods.deletions import WholeLayers, deletions, influence_lost
from hf_prune.methods.method import Comparison, Facts
from hf_prune.methods.partition import checked, kept_of, mixed, pick, sizes, subset
from hf_prune.methods.stitch_comparisons import ABLATIONS, CUT_BY, ablations, alone, cuts_of_parents
from hf_prune.methods.stitch_moves import Gene

STEPS = 12
"""Weights are multiples of 1 / STEPS, as halves, thirds and quarters are."""
MERGES = ("linear", "task-arithmetic:2")
TRIES = 20
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the variants in the blends that a search begins with; the paper's starts come in several scales, too."""


class Stack(NamedTuple):
    """What a genome means: layers, and the numbers of the parents that give embedding and head."""

    layers: tuple[LayerSpec, ...]
    embed: int
    head: int


@dataclass(frozen=True)
class StitchSpace:
    """All stitched models of `parents` equal in shape, parent 0 the base, with `budget` of `depth` layers removed.

    Args:
        depth: source layers.
        budget: layers to remove; None leaves the size free.
        parents: base and variants.
        merges: what a mix may be merged by: linear, task-arithmetic:SCALE (the blend's distance to the base, scaled),
            slerp, ties:DENSITY, dare:DENSITY[:SEED], dare-ties:DENSITY[:SEED], passthrough:SCALE.
        halves: attention and MLP have mixes of their own.
        blend: False allows single parents only.
        embed_of, head_of: for every parent the first that has its embedding, or its final norm and head; empty where
            there is no choice.
    """

    depth: int
    budget: int | None = None
    parents: int = 2
    merges: tuple[str, ...] = MERGES
    halves: bool = False
    blend: bool = True
    embed_of: tuple[int, ...] = ()
    head_of: tuple[int, ...] = ()
    steps: int = STEPS

    def __post_init__(self) -> None:
        checked(self.depth, self.budget, self.depth - 1)

    # Genomes and what they mean ------------------------------------------------------------------------------------

    @cached_property
    def embeds(self) -> tuple[int, ...]:
        """Parents whose embeddings differ."""
        return tuple(dict.fromkeys(self.embed_of)) or (0,)

    @cached_property
    def heads(self) -> tuple[int, ...]:
        """Parents whose final norms and heads differ."""
        return tuple(dict.fromkeys(self.head_of)) or (0,)

    @cached_property
    def cardinalities(self) -> tuple[int, ...]:
        """Values of every number of a code: which layers go one by one (or, with a free size, a bit for each), then the
        mixes of all layers, then the ends."""
        gone = (2,) * self.depth if self.budget is None else (self.depth,) * self.budget
        mix = (len(self.merges), *[self.steps + 1] * self.parents)
        return (*gone, *mix * (1 + self.halves) * self.depth, len(self.embeds), len(self.heads))

    def coded(self, genome: Genome) -> tuple[int, ...]:
        """A genome for a search that proposes any numbers below `cardinalities`."""
        genes = self.genes(genome)
        bits = [int(not g.kept) for g in genes]
        gone = bits if self.budget is None else [i for i, bit in enumerate(bits) if bit]
        return (*gone, *(v for g in genes for mix in g.mixes for v in mix), *genome[-2:])

    def read(self, code: Sequence[int]) -> Genome:
        """The genome a code stands for: a layer named twice gives way to the next one that stays, weights add up."""
        width, named = self._width - 1, len(code) - 2 - (self._width - 1) * self.depth
        gone: set[int] = set()
        for layer in code[:named] if self.budget is not None else np.flatnonzero(code[:named])[: self.depth - 1]:
            gone.add(next(i for k in range(self.depth) if (i := (int(layer) + k) % self.depth) not in gone))
        genes = []
        for i in range(self.depth):
            row = code[named + i * width : named + (i + 1) * width]
            mixes = [self._whole(row[k : k + 1 + self.parents]) for k in range(0, width, 1 + self.parents)]
            genes.append(Gene(i not in gone, tuple(mixes)))
        return self.genome(genes, *code[-2:])

    def genes(self, genome: Genome) -> tuple[Gene, ...]:
        """Layer by layer."""
        width, mix = self._width, 1 + self.parents
        rows = [genome[i * width : (i + 1) * width] for i in range(self.depth)]
        return tuple(Gene(bool(r[0]), tuple(tuple(r[k : k + mix]) for k in range(1, width, mix))) for r in rows)

    def genome(self, genes: Iterable[Gene], embed: int = 0, head: int = 0) -> Genome:
        """The other way round; `embed` and `head` index `embeds` and `heads`."""
        rows = [v for g in genes for v in (int(g.kept), *(x for mix in g.mixes for x in mix))]
        return (*rows, embed, head)

    def decode(self, genome: Genome) -> Stack:
        """The model."""
        layers = [self._layer(i, g) for i, g in enumerate(self.genes(genome)) if g.kept]
        return Stack(tuple(layers), self.embeds[genome[-2]], self.heads[genome[-1]])

    def removed(self, genome: Genome) -> int:
        """Layers removed."""
        return sum(not g.kept for g in self.genes(genome))

    def features(self, genome: Genome) -> np.ndarray:
        """float64: per layer whether it is gone, and the share of every parent (0 where it is); then the ends."""
        rows = []
        for g in self.genes(genome):
            shares = [s / self.steps * g.kept for mix in g.mixes for s in mix[1:]]
            merges = [float(g.kept and mix[0] == m) for mix in g.mixes for m in range(1, len(self.merges))]
            rows += [float(not g.kept), *shares, *merges]
        return np.array([*rows, float(genome[-2]), float(genome[-1])])

    def of(self, removed: Iterable[int], shares: Sequence[float]) -> Genome:
        """These layers gone, and one mix everywhere, its shares rounded to steps, by the first of the merges; embedding
        and head are those of the first parent that has a share."""
        mix = (0, *self._stepped(shares))
        kept, first = set(kept_of(self.depth, removed)), next(k for k, share in enumerate(shares) if share)
        genes = (Gene(i in kept, (mix,) * (1 + self.halves)) for i in range(self.depth))
        embed = self.embeds.index(self.embed_of[first]) if self.embed_of else 0
        return self.genome(genes, embed, self.heads.index(self.head_of[first]) if self.head_of else 0)

    def dense(self) -> Genome:
        """The base, whole."""
        return self.from_removed(())

    def from_removed(self, layers: Iterable[int]) -> Genome:
        """The base without these layers."""
        return self.of(layers, [1.0] + [0.0] * (self.parents - 1))

    # Moves ---------------------------------------------------------------------------------------------------------

    def random(self, rng: np.random.Generator) -> Genome:
        """Any layers gone, any mix in each of the others."""
        total = self.budget if self.budget is not None else int(rng.integers(1, self.depth))
        gone = subset(rng, range(self.depth), total)
        genes = [Gene(i not in gone, tuple(self._mix(rng) for _ in range(1 + self.halves))) for i in range(self.depth)]
        return self.genome(genes, int(rng.integers(len(self.embeds))), int(rng.integers(len(self.heads))))

    def mutate(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """One move. Of a layer: swap a removal, flip a parent, jitter a weight, copy a neighbour, another merge. Of the
        model: lean towards a parent, one layer's mix for all, another end."""
        moves = [stitch_moves.swap, stitch_moves.flip, stitch_moves.jitter]
        moves += [stitch_moves.copy, stitch_moves.lean, stitch_moves.spread]
        moves += [stitch_moves.remerge] * (len(self.merges) > 1)
        moves += [stitch_moves.end] * (len(self.embeds) + len(self.heads) > 2)
        moves += [stitch_moves.resize] * (self.budget is None)
        for _ in range(TRIES):
            new = pick(rng, moves)(self, genome, rng)
            if new is not None and self.decode(new) != self.decode(genome):
                return new
        return genome

    def crossover(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        """Every layer as in one of the two, which are removed repaired to the budget."""
        both = [self.genes(a), self.genes(b)]
        gone = [{i for i, g in enumerate(genes) if not g.kept} for genes in both]
        out, from_a = mixed(*gone, self.budget, self.depth, rng)
        out = out if len(out) < self.depth else gone[0]
        chosen = [both[0 if asked else 1][i] for i, asked in enumerate(from_a)]
        ends = [a[k] if rng.random() < 0.5 else b[k] for k in (-2, -1)]
        return self.genome((Gene(i not in out, g.mixes) for i, g in enumerate(chosen)), *ends)

    def removals(self, genome: Genome) -> list[Genome]:
        """Every genome with one layer fewer; [] when the budget is met."""
        genes = self.genes(genome)
        if self.removed(genome) >= (self.depth - 1 if self.budget is None else self.budget):
            return []
        return [
            self.genome((Gene(h.kept and j != i, h.mixes) for j, h in enumerate(genes)), *genome[-2:])
            for i, g in enumerate(genes)
            if g.kept
        ]

    # Counting ------------------------------------------------------------------------------------------------------

    def enumerate(self) -> Iterator[Genome]:
        """Every genome once, by the layers that go; different ones may mean one model."""
        mixes = [(m, *s) for m in range(len(self.merges)) for s in self._compositions()]
        idle = (mixes[0],) * (1 + self.halves)
        for total in sizes(self.depth, self.budget, self.depth - 1):
            for gone in combinations(range(self.depth), total):
                for chosen in product(product(mixes, repeat=1 + self.halves), repeat=self.depth - total):
                    left = iter(chosen)
                    genes = [Gene(False, idle) if i in gone else Gene(True, next(left)) for i in range(self.depth)]
                    for ends in product(range(len(self.embeds)), range(len(self.heads))):
                        yield self.genome(genes, *ends)

    def count(self) -> int:
        """Number of genomes `enumerate` yields."""
        shares = comb(self.steps + self.parents - 1, self.steps) if self.blend else self.parents
        mixes = (len(self.merges) * shares) ** (1 + self.halves)
        ends = len(self.embeds) * len(self.heads)
        return ends * sum(
            comb(self.depth, n) * mixes ** (self.depth - n) for n in sizes(self.depth, self.budget, self.depth - 1)
        )

    # Parts ---------------------------------------------------------------------------------------------------------

    @property
    def _width(self) -> int:
        return 1 + (1 + self.parents) * (1 + self.halves)

    def _layer(self, layer: int, gene: Gene) -> LayerSpec:
        first, *rest = [self._mixed(layer, mix) for mix in gene.mixes]
        return LayerSpec(first.parts, first.merge, mlp=rest[0] if rest else None).canonical()

    def _mixed(self, layer: int, mix: Sequence[int]) -> Mix:
        name, _, option = self.merges[mix[0]].partition(":")
        shares = {k: s / self.steps for k, s in enumerate(mix[1:]) if s}
        if name == "passthrough" and len(shares) == 1:
            return Mix((Part(next(iter(shares)), layer, float(option)),), name)
        if len(shares) == 1:
            return Mix((Part(next(iter(shares)), layer),))
        if name == "task-arithmetic":
            shares = {k: float(option) * share for k, share in shares.items() if k}
            shares[0] = 1.0 - sum(shares.values())
        elif name in ("ties", "dare", "dare-ties"):
            parts = [Part(0, layer), *(Part(k, layer, s) for k, s in shares.items() if k)]
            return Mix(tuple(parts), self.merges[mix[0]])
        merge = name if name == "slerp" and len(shares) == 2 else "linear"
        return Mix(tuple(Part(k, layer, s) for k, s in sorted(shares.items())), merge)

    def _mix(self, rng: np.random.Generator) -> tuple[int, ...]:
        """Any merge, any convex weights: a single parent as often as a blend."""
        if not self.blend or rng.random() < 0.5:
            steps = [0] * self.parents
            steps[int(rng.integers(self.parents))] = self.steps
        else:
            steps = np.bincount(rng.integers(self.parents, size=self.steps), minlength=self.parents).tolist()
        return (int(rng.integers(len(self.merges))), *steps)

    def _whole(self, mix: Sequence[int]) -> tuple[int, ...]:
        return (mix[0], *self._stepped(mix[1:]))

    def _stepped(self, shares: Sequence[float]) -> tuple[int, ...]:
        """Steps nearest to these proportions: largest remainders get what rounding down leaves."""
        total = sum(shares)
        exact = [s / total * self.steps if total else self.steps / len(shares) for s in shares]
        if not self.blend:
            best = max(range(len(exact)), key=lambda k: (exact[k], -k))
            return tuple(self.steps * (k == best) for k in range(len(exact)))
        steps = [int(e + 1e-9) for e in exact]
        order = sorted(range(len(exact)), key=lambda k: (steps[k] - exact[k], k))
        for k in order[: self.steps - sum(steps)]:
            steps[k] += 1
        return tuple(steps)

    def _compositions(self) -> list[tuple[int, ...]]:
        if not self.blend:
            return [tuple(self.steps * (k == j) for k in range(self.parents)) for j in range(self.parents)]
        bars = combinations(range(self.steps + self.parents - 1), self.parents - 1)
        edges = [(-1, *b, self.steps + self.parents - 1) for b in bars]
        return [tuple(y - x - 1 for x, y in zip(e, e[1:], strict=False)) for e in edges]


class Stitch(WholeLayers):
    """Layers of several models."""

    title = "Layers of several models (stitch)"
    genes = frozenset({"layers", "listed", "coded"})
    several = True
    trials = 5
    baselines = (*CUT_BY, *ABLATIONS)

    def check(self, recipe: Any) -> None:
        """One teacher's training, and layers by number, have no meaning for several models."""
        super().check(recipe)
        if recipe.heal.finalist_tokens:
            raise ValueError("search_heal has one teacher and stitch several; leave it out and train with --heal")
        if recipe.size.drop:
            raise ValueError("drop names layers of one model; with variants say how many go with --drop-layers")

    def takes_apart(self, recipe: Any) -> str | None:
        """Where the halves have mixes of their own."""
        return "--mix-halves" if recipe.stitch.mix_halves else None

    def moves(self, recipe: Any, facts: Facts) -> int:
        """A kept layer may take any of the variants, too, or more or less of it."""
        gone = facts.remove or facts.depth // 2
        return (gone + 4 * (facts.parents - 1)) * (facts.depth - gone)

    def space(self, recipe: Any, facts: Facts, blend: bool = True) -> StitchSpace:
        """Mixes of base and variants by the recipe's merges; without `blend` one parent a layer."""
        merges = recipe.stitch.merges if blend else ("linear",)
        return StitchSpace(
            facts.depth,
            facts.remove or None,
            facts.parents,
            merges,
            recipe.stitch.mix_halves,
            blend,
            facts.embed_of,
            facts.head_of,
        )

    def comparisons(self, recipe: Any, facts: Facts) -> tuple[Comparison, ...]:
        """Cuts of the parents and of their mean, and searches that lack a part; beside a front, cuts of the base."""
        if facts.front:
            return deletions(recipe.search.baselines)
        cuts = cuts_of_parents(recipe.search.baselines, facts)
        return (*cuts, *ablations(recipe.search.baselines, facts, self.space(recipe, facts, blend=False)))

    def starts(self, space: StitchSpace, facts: Facts, cuts: Sequence[tuple[int, ...]]) -> tuple[Genome, ...]:
        """The comparisons' cuts and late and middle ones, of every parent, of their mean, and of blends that lean on
        the base."""
        count, depth, remove = facts.parents, facts.depth, facts.remove
        mean = (1 / count,) * count
        if not remove:
            mixes = (mean, _leaning(count, 1.0))
            return tuple(dict.fromkeys(space.of(range(depth - n, depth), m) for n in range(1, depth) for m in mixes))
        mixes = [mean, *(_leaning(count, share) for share in SHARES), *alone(count)]
        middle = (depth - remove) // 2
        fixed = [range(depth - 1 - remove, depth - 1), range(middle, middle + remove)]
        tried = list(dict.fromkeys(tuple(sorted(c)) for c in (*cuts, *fixed) if len(c) == remove))
        # A search of few trials does not get to the end: every mix comes before a mix comes again, with another cut.
        turns = [(k % len(tried), mix) for start in range(len(tried)) for k, mix in enumerate(mixes, start)]
        return tuple(dict.fromkeys(space.of(tried[k], mix) for k, mix in turns))

    def guess(self, space: StitchSpace, facts: Facts) -> Callable[[Genome], float] | None:
        """The influence of the layers that go, of whichever parent."""
        if not facts.influence:
            return None
        return lambda genome: influence_lost(space.decode(genome).layers, facts.influence)


def _leaning(count: int, share: float) -> tuple[float, ...]:
    """Weights of the base and the mean of its variants, which has that share."""
    return (1 - share,) + (share / (count - 1),) * (count - 1)
