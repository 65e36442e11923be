"""finals: a few candidates, each given more and more evidence or training; half of them go on."""

from collections.abc import Sequence

from hf_prune.blueprint import Fidelity, Genome, Trial
from hf_prune.search.archive import ranked
from hf_prune.search.schedule import Search


def finals(genomes: Sequence[Genome], stages: Sequence[Fidelity]) -> Search:
    """Successive halving without new candidates, as in the training-aware selection of DarwinLM (arXiv 2502.07780).

    Asks for one trial at a time, since each may be long and is journaled by itself.

    Args:
        genomes: who takes part.
        stages: evidence of each round; behind each the better half goes on.

    Returns:
        Outcomes of the last stage, best first.
    """
    survivors, told = list(genomes), []
    for stage in stages:
        told = []
        for genome in survivors:
            told += yield (Trial(genome, stage),)
        told = list(ranked(told))
        survivors = [o.trial.genome for o in told[: -(-len(told) // 2)]]
    return tuple(told)
