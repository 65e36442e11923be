"""Who proposes candidates: generators over genomes, which never see a model or a file; `drive` is the only loop.

outcomes = yield trials          # in the same order; values are minimised
return finalists                 # distinct genomes, best first, at full evidence
"""

from hf_prune.search.drive import drive, focused, once
from hf_prune.search.evolution import evopress, staged
from hf_prune.search.exhaustive import exhaustive
from hf_prune.search.finals import finals
from hf_prune.search.genetic import genetic
from hf_prune.search.greedy import greedy
from hf_prune.search.nsga2 import nsga2
from hf_prune.search.oneshot import last, shortgpt, window
from hf_prune.search.random import random
from hf_prune.search.schedule import Schedule, Scores, Search
from hf_prune.search.smac import smac
from hf_prune.search.space import Space

SEARCHERS = {
    "staged": staged,
    "evopress": evopress,
    "genetic": genetic,
    "nsga2": nsga2,
    "smac": smac,
    "greedy": greedy,
    "exhaustive": exhaustive,
    "random": random,
    "shortgpt": shortgpt,
    "window": window,
    "last": last,
}

__all__ = ["SEARCHERS", "Schedule", "Scores", "Search", "Space", "drive", "finals", "focused", "once"]
