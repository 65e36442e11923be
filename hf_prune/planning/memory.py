"""How much memory a run takes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_prune.data.own_samples import is_own
from hf_prune.errors import InvalidRecipe
from hf_prune.limits import EXAM_BYTES, GPU_HEAD_FLOATS, HEAD_FLOATS, MERGED_LAYERS, STATE_BYTES, TOP_K, WIDTH
from hf_prune.methods import METHODS
from hf_prune.models.headers import Weights, number
from hf_prune.planning.rates import Shape
from hf_prune.recipe import Recipe

if TYPE_CHECKING:
    from hf_prune.hub import Peek


SHARE = 0.8
"""Of a machine's memory that a run can have; the system and other programs take the rest."""


def number_bytes(recipe: Recipe, peek: "Peek", room: "Room | None") -> int:
    """Bytes of a number in the search: as asked, or as they are stored where the device computes in that.

    Where nobody looked at the machine, four on what may be a processor, which is also the larger estimate.
    """
    if asked := WIDTH.get(recipe.machine.dtype):
        return asked
    if room is None:
        return 4 if recipe.machine.kind in ("auto", "cpu") else 2
    stored = {t.dtype for t in peek.tensors.values()}
    return 2 if "F32" not in stored and (room.accelerated or room.bfloat16 and "F16" not in stored) else 4


@dataclass(frozen=True, slots=True)
class LayerShare:
    """Of the memory: bytes for the dense model's layers, None where all of them stay there; and how many layers that
    are made are kept."""

    layers: int | None
    made: int


@dataclass(frozen=True, slots=True)
class Demand:
    """Bytes that a search needs on its device with all weights there.

    weights: of the dense model. outside: of these what is around the layers. layer: of the largest. several: layers of
    several models are merged. beside: of all that is no weight. aside: of that what is set aside where layers are
    read, on the host of a GPU, or of a processor in files.
    """

    weights: int
    outside: int
    layer: int
    several: bool
    beside: int
    aside: int = 0

    @property
    def least(self) -> int:
        """With layers read as the search reaches them: one computes, one is read, and two are made of others."""
        return self.outside + self.beside - self.aside + 4 * self.layer

    def share(self, memory: float | None) -> LayerShare:
        """What of so many GiB layers may take; None is no limit.

        Raises:
            InvalidRecipe: less than the least.
        """
        if memory is None:
            return LayerShare(None, MERGED_LAYERS)
        given = int(memory * 2**30)
        room = given - self.beside - self.weights
        if room >= (self.layer if self.several else 0):
            return LayerShare(None, max(1, min(MERGED_LAYERS, room // self.layer)))
        if given < self.least:
            raise InvalidRecipe(
                f"memory {memory:g} GiB is too little: what is around the layers, the states of the search and a few "
                f"layers need {self.least / 2**30:.2f}; raise --memory, or lower --sequences or --length."
            )
        room = given - self.beside + self.aside - self.outside
        return LayerShare(room, max(2, min(MERGED_LAYERS, room // (2 * self.layer))) if self.several else 2)

    def peak(self, memory: float | None) -> int:
        """What it needs where so many GiB may be taken."""
        share = self.share(memory)
        made = share.made * self.layer if self.several and share.layers is None else 0
        return self.there(memory) + made + self.beside - (self.aside if share.layers is not None else 0)

    def there(self, memory: float | None) -> int:
        """Of the dense model's weights what is there at a time."""
        share = self.share(memory)
        return self.weights if share.layers is None else self.outside + share.layers


RESIDENT = {
    "--heal": lambda r: r.heal.tokens,
    "--search-heal": lambda r: r.heal.finalist_tokens,
    "--tune": lambda r: r.tune.steps,
    "--latency": lambda r: r.size.latency is not None,
    "--lm-eval": lambda r: r.report.lm_eval,
    "--vocabulary": lambda r: r.vocabulary != "none",
}
"""What needs a whole model in memory, and whether a recipe asks for it."""


def check_streamed(recipe: Recipe, need: Demand) -> None:
    """Refuse what cannot be done where layers are read as they are reached.

    Raises:
        InvalidRecipe: names it; or there is less memory than the least.
    """
    share = need.share(recipe.machine.memory)
    if share.layers is None:
        return
    asked = [flag for flag, asks in RESIDENT.items() if asks(recipe)]
    asked += [f"--data {entry}" for entry in filter(is_own, recipe.data.text)]
    if not recipe.data.text:
        raise InvalidRecipe(
            f"With --memory {recipe.machine.memory:g} the layers of the base are read as the search reaches them, so "
            "it cannot say text of its own; name other text with --data, or raise --memory."
        )
    if asked:
        raise InvalidRecipe(
            f"{asked[0]} needs the whole model in memory, and with --memory {recipe.machine.memory:g} its layers are "
            f"read as the search reaches them; raise --memory, or leave {asked[0]} out."
        )


def demand_of(
    recipe: Recipe, hidden: int, vocabulary: int, layers: Sequence[int], total: int, width: int, cpu: bool
) -> Demand:
    """What the search of a recipe needs.

    weights:   parameters x b; for stitch as many merged layers besides as `--memory` leaves room for, at most 64
    reference: W x length x (layers + 1) x hidden x b states of the dense model on all W search and selection windows,
               and W x length x k x 12 for its k likeliest tokens (number, log-probability), k = 512 or the vocabulary
    modules:   W x length x 2 layers x hidden x b, what its attention and MLP put out, for `gelaco_v1` only
    tuned:     parameters x 4, a copy in float32, for `tune` only; the frontier is gone by then
    frontier:  2 x offspring x T x hidden x b, all candidates of a generation between two layers, at most 1 GiB,
               with T the tokens of the larger of the two splits
    exam:      items x length x (layers + 1) x hidden x b states on the tasks that are searched and chosen by, as if
               an item had the length of a window, at most 1 GiB
    head:      2 x tile x vocabulary x 4, the float32 logits of one call of the head and their log-softmax, of a window
               at least

    with b = `width`, the bytes of a number in the search's precision.

    Args:
        recipe: says how much evidence there is.
        hidden: width of the residual stream.
        vocabulary: tokens of it.
        layers: parameters of each.
        total: parameters of the model.
        width: as above.
        cpu: whether the device is the processor.
    """
    tokens = (recipe.data.sequences + recipe.data.selection_sequences) * recipe.data.length
    larger = max(recipe.data.sequences, recipe.data.selection_sequences) * recipe.data.length
    state = tokens * hidden * width
    reference = (len(layers) + 1) * state + tokens * min(TOP_K, vocabulary) * 12
    modules = 2 * len(layers) * state if recipe.search.objective == "gelaco_v1" else 0
    frontier = min(2 * recipe.search.offspring * larger * hidden * width, STATE_BYTES)
    tile = max(recipe.data.length, min(tokens, (HEAD_FLOATS if cpu else GPU_HEAD_FLOATS) // vocabulary))
    asked = len(recipe.tasks.search) * (recipe.learned_items + recipe.tasks.selection_items) * recipe.data.length
    exam = min((len(layers) + 1) * asked * hidden * width, EXAM_BYTES)
    passing = max(frontier, total * 4 if recipe.tune.steps else 0)
    beside = reference + modules + exam + passing + 2 * tile * vocabulary * 4
    several = METHODS[recipe.method].several
    aside = (len(layers) + 1) * state + exam
    return Demand(total * width, (total - sum(layers)) * width, max(layers) * width, several, beside, aside)


def demand(recipe: Recipe, peek: "Peek", weights: Weights, width: int) -> Demand:
    """The same from headers."""
    hidden, vocabulary = number(peek, "hidden_size", "n_embd", "d_model"), number(peek, "vocab_size")
    cpu = recipe.machine.kind in ("auto", "cpu")
    return demand_of(recipe, hidden, vocabulary, weights.layers, weights.total, width, cpu)


def restoring_memory(recipe: Recipe, shape: Shape, width: int, there: int) -> tuple[int, int]:
    """Bytes that repair and healing need at their peaks, one after the other; 0 for what is not asked for.

    repair:  the weights that are `there`, the normal equations in float64 of one map for fitted and held-out windows
             (k x (k + d), twice), and four states of all windows
    heal:    both models (all of `full` in float32, with gradients and two moments), what one batch leaves for the way
             back in every layer (14 x d + 4 x k numbers a token), and three sets of float32 logits of the batch
    """
    weights, length = shape.parameters * width, recipe.data.length
    repair = heal = 0
    if recipe.repair.enabled:
        tokens = (recipe.repair.sequences + recipe.data.selection_sequences) * length
        repair = there + 32 * shape.inner * (shape.inner + shape.hidden) + 4 * tokens * shape.hidden * width
    if recipe.heal.tokens:
        full, batch = recipe.heal.method == "full", recipe.heal.batch * length
        kept = shape.hidden if recipe.heal.gradient_checkpointing else 14 * shape.hidden + 4 * shape.inner
        models = weights + (16 * shape.parameters if full else weights)
        heal = models + batch * (shape.depth * kept * (4 if full else width) + 12 * shape.rows)
    return repair, heal


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that this machine has: of its accelerator (the same as `host` without one), and of its memory.

    bfloat16: whether its processor multiplies in it.
    """

    device: int
    host: int
    bfloat16: bool = False

    @property
    def accelerated(self) -> bool:
        """Whether there is an accelerator with memory of its own."""
        return self.device != self.host

    def fits(self, device: int, host: int) -> bool:
        """Whether a run that needs so many bytes of both has them."""
        return device <= SHARE * self.device and host <= SHARE * self.host


def host_memory() -> int:
    """Bytes of memory: the machine's, or what its container may take."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            return min(machine, int(file.read()))
    except (OSError, ValueError):
        return machine


def room_here(device: str) -> Room:
    """What a run on a device, as a recipe says it, may take; loads torch.

    Raises:
        InvalidRecipe: this machine has no such device.
    """
    import torch

    from hf_prune.evaluation.speed import computes_bfloat16
    from hf_prune.models.devices import device_of

    host, where = host_memory(), device_of(device)
    return Room(torch.cuda.mem_get_info(where)[1] if where.type == "cuda" else host, host, computes_bfloat16())
