"""What an integer of a genome means. A new method is one file and one entry here.

Every method is a frozen dataclass over `depth` and `budget` with the operators a searcher calls (random, mutate,
crossover, removals, enumerate ...) and `decode`, which turns a genome into output layers.
"""

from hf_prune.methods.collapse import CollapseSpace
from hf_prune.methods.halves import HalvesSpace
from hf_prune.methods.intervals import IntervalSpace
from hf_prune.methods.stitch import StitchSpace
from hf_prune.methods.width import WidthSpace

METHODS = {
    "collapse": CollapseSpace,
    "halves": HalvesSpace,
    "intervals": IntervalSpace,
    "stitch": StitchSpace,
    "width": WidthSpace,
    "width+depth": WidthSpace,
}
