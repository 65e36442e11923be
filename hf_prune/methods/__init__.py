"""What an integer of a genome means. A new method is one file and one entry here; method.py is the contract."""

from hf_prune.methods.blocks import Blocks
from hf_prune.methods.collapse import Collapse
from hf_prune.methods.experts import Experts
from hf_prune.methods.halves import Halves
from hf_prune.methods.intervals import Intervals
from hf_prune.methods.method import Method
from hf_prune.methods.stitch import Stitch
from hf_prune.methods.width import Width

METHODS: dict[str, Method] = {
    "collapse": Collapse(),
    "halves": Halves(),
    "intervals": Intervals(),
    "stitch": Stitch(),
    "width": Width(),
    "width+depth": Width(depth_too=True),
    "blocks": Blocks(),
    "experts": Experts(),
}
