"""What a run would do, from a config and safetensors headers alone: sizes, memory, disk, forward tokens."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hf_prune.blueprint import LOCAL
from hf_prune.errors import InvalidRecipe
from hf_prune.hub.contents import candidates as weight_files
from hf_prune.methods import METHODS
from hf_prune.methods.method import Sizes, Target
from hf_prune.models.feasibility import check_cut
from hf_prune.models.headers import BYTES, Weights, setting, weigh
from hf_prune.planning.advice import Advice, Need, advise
from hf_prune.planning.budget import budget_of
from hf_prune.planning.checks import check_evidence, check_gguf, check_layers
from hf_prune.planning.counts import (
    baseline_evaluations,
    candidates,
    describe_target,
    evaluations,
    facts_of,
    layer_passes,
    own_tokens,
    repairs,
    target_beside,
    trained_tokens,
)
from hf_prune.planning.memory import Demand, Room, check_streamed, demand, number_bytes, restoring_memory
from hf_prune.planning.page import plan_html
from hf_prune.planning.rates import Rates, Shape
from hf_prune.planning.streaming import Streaming, reading_rates, streaming
from hf_prune.planning.tokens import Trim, is_counted, trimmed
from hf_prune.recipe import DEFAULT_DATA, DEFAULT_TASKS, Recipe

if TYPE_CHECKING:
    from hf_prune.hub import Peek, TensorInfo


LARGE = 0.2
"""Share of the parameters from which on a vocabulary is worth trimming before anything else."""
GGUF_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32}
"""Per number, of types that are written without a llama.cpp; others take less than one."""
SPARE = 1.2
"""Memory that weights take on their way to a device, as a multiple of theirs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `plan` found; all sizes in bytes, all token counts upper bounds.

    `forward_tokens` counts tokens through whole candidates, `layer_tokens` tokens through single layers without any
    sharing of prefixes; both for the dense model, the baselines and the search on the search windows. `repair_tokens`
    and `train_tokens` are what all repairs and all trainings read, `own_tokens` about what the base says itself. `text`
    is what of the entries of data was not named but is taken. `candidates` counts the models the search can choose
    among. `tasks` says what the report asks where none is named. `seconds` says how long each stage takes, `time` how
    long all may take, where that was asked for, `left_out` what is not done therefore; all of it empty where nothing
    was measured. `memory_bytes` are what the search needs on its device, `restoring_bytes` what repair or healing do,
    `host_bytes` what the machine around it holds meanwhile, `room` what there is, where somebody looked, and `advice`
    what would make it fit where it does not; `streaming` how a base that is larger than `--memory` is read. Of
    `tokens`, whose rows hold `token_parameters`, `kept_tokens` stay as far as is known; `target` is of what has these
    alone. They are `counted` where text says how many; `trim` is what text of this disk says, and `trimmed_layers`
    would be left if it were asked for. `weight_files` says which of the source's files are read, `notes` what else
    should be known of them and what is done to them before anything else.
    """

    base: str
    model_type: str
    method: str
    search: str
    asked: str
    depth: int
    parameters: int
    bytes: int
    layer_parameters: tuple[int, ...]
    outside_parameters: int
    target: Target
    result_layers: int
    result_parameters: int
    result_bytes: int
    download_bytes: int
    disk_bytes: int
    memory_bytes: int
    evaluations: int
    baseline_evaluations: int
    candidates: int
    forward_tokens: int
    layer_tokens: int
    repair_tokens: int
    train_tokens: int
    own_tokens: int = 0
    text: tuple[str, ...] = ()
    tasks: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    time: float | None = None
    left_out: tuple[str, ...] = ()
    restoring_bytes: int = 0
    host_bytes: int = 0
    room: Room | None = None
    streaming: Streaming | None = None
    advice: Advice | None = None
    tokens: int = 0
    kept_tokens: int = 0
    trim: Trim | None = None
    trimmed_layers: int | None = None
    counted: bool = False
    token_parameters: int = 0
    weight_files: str = ""
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool | None:
        """Whether this machine has the memory; None where nobody looked."""
        if self.room is None:
            return None
        return self.room.fits(self.device_bytes, self.host_bytes)

    @property
    def device_bytes(self) -> int:
        """What the run needs at its peak, on its device."""
        return max(self.memory_bytes, self.restoring_bytes)

    def _repr_html_(self) -> str:
        return plan_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        read = self.streaming and self.streaming.to_dict()
        return {**asdict(self), "fits": self.fits, "streaming": read}


Measure = Callable[[Shape, int, str, str], Rates]
"""How fast a machine is with a model, from its shape, tokens of a window, device and precision."""


def plan(
    recipe: Recipe,
    peek: "Peek",
    variants: "Sequence[Peek]" = (),
    measure: Measure | None = None,
    room: Room | None = None,
) -> Plan:
    """Work out what `compress(recipe)` would do to the model behind `peek` and its variants.

    Reads the text and the tasks that lie on this disk, and writes nothing. With `measure`, such as `rates_here`, it
    says how long that takes and what of it is left out for want of time; without, all of it is counted. With `room`,
    such as `room_here`, whether it fits.

    Raises:
        InvalidRecipe: the target leaves no layer, removes none, or names layers that do not exist.
        SourceError: the repo has no safetensors, so there are no headers to count from.
        UnsupportedArchitecture: no numbered layers among the tensor names, or none of a family that this method cuts.
        HfPruneError: as `check_evidence`.
    """
    check_evidence(recipe)
    weights = weigh(peek)
    stored = weights.beside(weigh(v) for v in variants if not v.adapter)
    depth, method, dense = len(weights.layers), METHODS[recipe.method], weights
    rows = setting(peek.config, "vocab_size") or 0
    trim = _trim(recipe, peek, dense, rows)
    if kept := _kept(recipe, rows, trim):
        weights, stored = weights.with_tokens(rows, kept), stored.with_tokens(rows, kept)
    if weights.family:
        check_layers(recipe, weights.family, weights.kinds)
    told = check_gguf(recipe, weights.config)
    target = target_beside(recipe, Sizes(weights.layers, weights.total, weights.mixture), dense.total)
    if weights.family and recipe.size.drop:
        check_cut(weights.config, weights.family, [i for i in range(depth) if i not in recipe.size.dropped()])
    facts = facts_of(recipe, depth, target.remove, weights.kinds, weights.mixture)
    shape = Shape.of(peek.config, depth, sum(weights.layers) // depth, weights.outside, weights.bytes)
    memory = _Memory(peek, weights, shape, room)
    rates = reading_rates(recipe, memory.demand(recipe), shape, _rates(recipe, shape, measure)) if measure else None
    budget = budget_of(recipe, facts, shape, rates) if rates else None
    recipe = budget.recipe if budget else recipe
    result = round(weights.total * (1 - target.removed_ratio))
    gone = target.removed_ratio * weights.total / sum(weights.layers) if method.shrinks else 0
    size = math.ceil(stored.written(gone))
    download = sum(_download(peek, p) for p in (peek, *variants))
    trials = evaluations(recipe, facts)
    compared = baseline_evaluations(recipe, facts)
    tokens = recipe.data.sequences * recipe.data.length
    beside = sum(_bytes(p.tensors) for p in (peek, *variants) if p.prepared)
    return Plan(
        base=str(peek.source),
        model_type=str(peek.config.get("model_type", "unknown")),
        method=recipe.method,
        search="none" if recipe.size.drop else recipe.search.searcher,
        asked=describe_target(recipe),
        depth=depth,
        parameters=dense.total,
        bytes=dense.bytes,
        layer_parameters=weights.layers,
        outside_parameters=weights.outside,
        target=target,
        result_layers=depth - target.remove if target.whole else depth,
        result_parameters=result,
        result_bytes=size,
        download_bytes=download,
        disk_bytes=download + size + beside + _gguf_bytes(recipe, result),
        memory_bytes=memory.search(recipe),
        evaluations=trials,
        baseline_evaluations=compared,
        candidates=candidates(recipe, facts),
        forward_tokens=(1 + trials + compared) * tokens,
        layer_tokens=layer_passes(recipe, facts) * tokens,
        repair_tokens=repairs(recipe) * recipe.repair.sequences * recipe.data.length,
        train_tokens=trained_tokens(recipe, tokens),
        own_tokens=own_tokens(recipe),
        text=() if recipe.data.text else DEFAULT_DATA,
        tasks="" if recipe.tasks.names else f"{', '.join(DEFAULT_TASKS)}; left out where the Hub cannot be reached",
        tokens=rows,
        kept_tokens=kept or rows,
        trim=trim,
        counted=is_counted(recipe),
        trimmed_layers=_layers_beside(recipe, dense, rows, trim.kept) if trim and not kept else None,
        token_parameters=dense.tokens(rows) if rows else 0,
        weight_files=_weight_files(peek),
        seconds=budget.forecast.seconds if budget else {},
        time=budget.seconds if budget else None,
        left_out=budget.left_out if budget else (),
        restoring_bytes=max(memory.restoring(recipe)),
        host_bytes=memory.host(recipe),
        streaming=streaming(recipe, memory.demand(recipe), facts, shape, rates),
        room=room,
        advice=advise(recipe, memory.need, room) if room else None,
        notes=tuple(dict.fromkeys((*_workers(recipe), *weights.notes, *_notes(peek, *variants), *told))),
    )


@dataclass(frozen=True, slots=True)
class _Memory:
    """What recipes take of memory, with this model on this machine."""

    peek: "Peek"
    weights: Weights
    shape: Shape
    room: Room | None

    def search(self, recipe: Recipe) -> int:
        """Bytes of the device at the peak of the search; of a processor those of all workers."""
        accelerated = self.room and self.room.accelerated or recipe.machine.kind not in ("auto", "cpu")
        return (1 if accelerated else recipe.machine.places) * self.demand(recipe).peak(recipe.machine.memory)

    def restoring(self, recipe: Recipe) -> tuple[int, int]:
        """Bytes of the device that repair and healing take."""
        there = self.demand(recipe).there(recipe.machine.memory)
        return restoring_memory(recipe, self.shape, number_bytes(recipe, self.peek, self.room), there)

    def host(self, recipe: Recipe) -> int:
        """Bytes of the machine around the device: all where that is the processor, else the weights on
        their way, or the next layer on its way beside what is set aside."""
        if self.room and self.room.accelerated:
            need = self.demand(recipe)
            streams = need.share(recipe.machine.memory).layers is not None
            alone = need.aside + 2 * need.layer if streams else round(SPARE * self.weights.bytes)
            return recipe.machine.places * alone
        return max(self.search(recipe), *self.restoring(recipe))

    def need(self, recipe: Recipe) -> Need:
        """All of it."""
        return Need((self.search(recipe), *self.restoring(recipe)), self.host(recipe))

    def demand(self, recipe: Recipe) -> Demand:
        """Of the search; a recipe that asks for what cannot be had in its memory is refused."""
        found = demand(recipe, self.peek, self.weights, number_bytes(recipe, self.peek, self.room))
        check_streamed(recipe, found)
        return found


def _gguf_bytes(recipe: Recipe, parameters: int) -> int:
    """About what all GGUF files of a result take, and the plain one that llama.cpp quantizes the coarser from."""
    sizes = [GGUF_BYTES.get(kind, 1) * parameters for kind in recipe.publish.gguf]
    return math.ceil(sum(sizes) + (4 * parameters if not {*recipe.publish.gguf} <= {*GGUF_BYTES} else 0))


def _notes(*peeks: "Peek") -> Iterator[str]:
    for peek in peeks:
        yield from peek.notes


def _workers(recipe: Recipe) -> Iterator[str]:
    """What several workers change."""
    machine = recipe.machine
    if machine.places > 1 and machine.kind in ("auto", "cpu"):
        yield (
            f"{machine.places} workers open a model each; those on one processor share its cores, so the search takes "
            "about as long"
        )
    elif machine.places > 1:
        yield f"{machine.places} workers, a device each, divide the search; repair and training stay on the first"


def _trim(recipe: Recipe, peek: "Peek", dense: Weights, rows: int) -> Trim | None:
    """Where text is to decide, or the vocabulary is so large that it should."""
    each = dense.tokens(rows) // rows if rows else 0
    worth = is_counted(recipe) or recipe.vocabulary == "none" and dense.tokens(rows) > LARGE * dense.total
    found = trimmed(recipe, peek, rows, dense.total, each) if each and worth else None
    return found if found and found.kept < rows else None


def _layers_beside(recipe: Recipe, dense: Weights, rows: int, kept: int) -> int:
    less, depth = dense.with_tokens(rows, kept), len(dense.layers)
    target = target_beside(recipe, Sizes(less.layers, less.total, less.mixture), dense.total)
    return depth - target.remove if target.whole else depth


def _kept(recipe: Recipe, rows: int, trim: Trim | None) -> int | None:
    """Tokens that stay, where the recipe says how many or text of this disk does."""
    if is_counted(recipe):
        return trim and trim.kept
    if recipe.vocabulary == "none":
        return None
    if rows <= (kept := int(recipe.vocabulary)):
        raise InvalidRecipe(
            f"The base has {rows} tokens, so --vocabulary {kept} keeps all of them; ask for fewer, or leave it out."
        )
    return kept


def _rates(recipe: Recipe, shape: Shape, measure: Measure) -> Rates:
    # A checkpoint of float32 is searched in float32.
    wide = recipe.machine.dtype == "auto" and shape.bytes >= 4 * shape.parameters
    dtype = "float32" if wide else recipe.machine.dtype
    return measure(shape, recipe.data.length, recipe.machine.device, dtype)


def _weight_files(peek: "Peek") -> str:
    """The files that are read, and those that look like weights and are not."""
    read = peek.weights[:1] if len(peek.weights) < 3 else (f"{len(peek.weights) - 1} shards of {peek.weights[0]}",)
    others = [n for n in weight_files(peek.files) if n not in peek.weights]
    return ", ".join(read) + (f"; not read, as by transformers: {', '.join(others)}" if others else "")


def _download(base: "Peek", peek: "Peek") -> int:
    """Bytes to fetch for one parent: of an adapter its tensors alone, since the base is there."""
    if peek.adapter and peek is not base:
        local = LOCAL in (peek.source.adapter or "")
        return 0 if local else _bytes(peek.adapter)
    return 0 if peek.source.is_local else _needed_files(peek)


def _needed_files(peek: "Peek") -> int:
    shards = {t.file for t in peek.tensors.values()}
    small = (".json", ".txt", ".model", ".jinja")
    return sum(size for name, size in peek.files.items() if name in shards or name.endswith(small))


def _bytes(tensors: "Mapping[str, TensorInfo]") -> int:
    return sum(math.prod(t.shape) * BYTES.get(t.dtype, 1) for t in tensors.values())
