"""Local moves of stitched models: each returns a new genome, None where it cannot move; `space` is a `StitchSpace`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_prune.blueprint import Genome
from hf_prune.methods.partition import pick


@dataclass(frozen=True, slots=True)
class Gene:
    """One kept or removed layer: a merge (index) and steps per parent for every mix (one, or attention and MLP)."""

    kept: bool
    mixes: tuple[tuple[int, ...], ...]


def put(space: Any, genome: Genome, layer: int, gene: Gene) -> Genome:
    """The same with another gene for one layer."""
    genes = list(space.genes(genome))
    genes[layer] = gene
    return space.genome(genes, *genome[-2:])


def remix(
    space: Any, genome: Genome, rng: np.random.Generator, new: Callable[[tuple[int, ...]], tuple[int, ...] | None]
) -> Genome | None:
    """One mix of one kept layer replaced by what `new` makes of it."""
    genes = space.genes(genome)
    layer = pick(rng, [i for i, g in enumerate(genes) if g.kept])
    which = int(rng.integers(1 + space.halves))
    made = new(genes[layer].mixes[which])
    if made is None:
        return None
    mixes = (*genes[layer].mixes[:which], made, *genes[layer].mixes[which + 1 :])
    return put(space, genome, layer, Gene(True, mixes))


def swap(space: Any, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """A removed layer comes back, a kept one goes."""
    genes = space.genes(genome)
    gone, stay = [[i for i, g in enumerate(genes) if g.kept == kept] for kept in (False, True)]
    if not gone or not stay:
        return None
    back, out = pick(rng, gone), pick(rng, stay)
    # What comes back is mixed like a neighbour, which fits better than what it last was.
    near = min(stay, key=lambda i: (abs(i - back), i))
    return put(space, put(space, genome, back, Gene(True, genes[near].mixes)), out, Gene(False, genes[out].mixes))


def flip(space: Any, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """One mix becomes a single parent."""
    parent = int(rng.integers(space.parents))
    return remix(space, genome, rng, lambda mix: (mix[0], *(space.steps * (k == parent) for k in range(space.parents))))


def jitter(space: Any, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """One parent gives another a part of its weight in one mix."""

    def moved(mix: tuple[int, ...]) -> tuple[int, ...] | None:
        steps = list(mix[1:])
        give = pick(rng, [k for k, s in enumerate(steps) if s])
        take = int(rng.integers(space.parents))
        amount = min(steps[give], draw_amount(space, rng))
        steps[give] -= amount
        steps[take] += amount
        return (mix[0], *steps)

    return remix(space, genome, rng, moved)


def copy(space: Any, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """A layer is mixed as its neighbour is."""
    stay = [i for i, g in enumerate(space.genes(genome)) if g.kept]
    if len(stay) < 2:
        return None
    at = int(rng.integers(len(stay)))
    other = at + 1 if at == 0 or (at + 1 < len(stay) and rng.random() < 0.5) else at - 1
    return put(space, genome, stay[at], space.genes(genome)[stay[other]])


def lean(space: Any, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Every mix gives one parent the same part of what another has."""
    if space.parents < 2:
        return None
    give, take = (1 + int(k) for k in rng.permutation(space.parents)[:2])
    amount = draw_amount(space, rng)

    def leaned(mix: tuple[int, ...]) -> tuple[int, ...]:
        steps, moved = list(mix), min(mix[give], amount)
        steps[give] -= moved
        steps[take] += moved
        return tuple(steps)

    genes = (Gene(g.kept, tuple(map(leaned, g.mixes))) for g in space.genes(genome))
    return space.genome(genes, *genome[-2:])


def spread(space: Any, genome: Genome, rng: np.random.Generator) -> Genome:
    """One layer's mixes for all."""
    mixes = pick(rng, [g for g in space.genes(genome) if g.kept]).mixes
    return space.genome((Gene(g.kept, mixes) for g in space.genes(genome)), *genome[-2:])


def draw_amount(space: Any, rng: np.random.Generator) -> int:
    """Steps that a move takes: up to a quarter of a layer, all of it where nothing is blended."""
    return 1 + int(rng.integers(max(space.steps // 4, 1))) if space.blend else space.steps


def remerge(space: Any, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """One mix takes another merge."""
    merge = int(rng.integers(len(space.merges)))
    return remix(space, genome, rng, lambda mix: (merge, *mix[1:]))


def end(space: Any, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Embedding and head of other parents."""
    embed, head = int(rng.integers(len(space.embeds))), int(rng.integers(len(space.heads)))
    return (*genome[:-2], embed, head)


def resize(space: Any, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """One layer more or fewer."""
    genes = space.genes(genome)
    layer = int(rng.integers(space.depth))
    stays = sum(g.kept for g in genes)
    if genes[layer].kept and stays < 2 or not genes[layer].kept and stays + 1 == space.depth:
        return None
    return put(space, genome, layer, Gene(not genes[layer].kept, genes[layer].mixes))
