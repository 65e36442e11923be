"""Who proposes candidates: generators over genomes, which never see a model or a file; `drive` is the only loop.

outcomes = yield trials          # in the same order; values are minimised
return finalists                 # distinct genomes, best first, at full evidence
"""

from hf_prune.search.drive import drive, focus, once
from hf_prune.search.evolution import evopress, staged
from hf_prune.search.exhaustive import exhaustive
from hf_prune.search.finals import finals
from hf_prune.search.genetic import genetic
from hf_prune.search.greedy import greedy
from hf_prune.search.nsga2 import nsga2
from hf_prune.search.oneshot import last, shortgpt, window
from hf_prune.search.random import random
from hf_prune.search.schedule import Schedule, Scores, Search
from hf_prune.search.searcher import Searcher, all_of_them, one_by_one, screened, single, thirds
from hf_prune.search.smac import smac
from hf_prune.search.space import Space

LAYERS = frozenset({"layers"})
SEARCHERS = {
    "staged": Searcher(staged, stages=screened),
    "smac": Searcher(smac, frozenset({"coded"}), stages=thirds),
    "genetic": Searcher(genetic),
    "nsga2": Searcher(nsga2, every_size=True),
    "evopress": Searcher(evopress, stages=screened),
    "greedy": Searcher(greedy, rounds=one_by_one, anytime=False),
    "exhaustive": Searcher(exhaustive, frozenset({"listed"}), rounds=all_of_them),
    "random": Searcher(random),
    "shortgpt": Searcher(shortgpt, LAYERS, rounds=single),
    "window": Searcher(window, LAYERS, rounds=single),
    "last": Searcher(last, LAYERS, rounds=single),
}

__all__ = ["SEARCHERS", "Schedule", "Scores", "Search", "Searcher", "Space", "drive", "finals", "focus", "once"]
