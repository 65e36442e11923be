"""A search in a process of its own, to be killed: python -m tests.search.killed JOURNAL SEARCHER."""

import sys
import time

import numpy as np

from hf_prune.blueprint import Fidelity
from hf_prune.search import SEARCHERS, Schedule, drive
from hf_prune.session.journal import Journal
from tests.search.toy import FULL, Landscape, Removals

LAND = Landscape.draw(5, depth=10, size=3)


def evaluate(trials):
    """Slow, and in the last bits dependent on the company."""
    company = sum(i * bit for t in trials for i, bit in enumerate(t.genome))
    values = []
    for quality, size in LAND.evaluate(trials):
        time.sleep(0.002)
        values.append((quality * (1 + 1e-15 * (company % 97)), size))
    return values


def main(path, name):
    plan = Schedule((Fidelity(2), FULL), evaluations=110, population=8, offspring=12)
    space = Removals(10, None if name == "nsga2" else 3)
    search = SEARCHERS[name].propose(space, plan, np.random.default_rng(0))
    journal = Journal.open(path, {"recipe": name})
    loop = drive(search, evaluate, journal, lambda t: ("".join(map(str, t.genome)), t.fidelity), batch=5)
    while True:
        try:
            next(loop)
        except StopIteration as end:
            return end.value


if __name__ == "__main__":
    print([(o.trial.genome, *map(repr, o.values)) for o in main(*sys.argv[1:])])
