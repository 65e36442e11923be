"""What a run would do, from a config and safetensors headers alone: sizes, memory, disk, forward tokens."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hf_prune.blueprint import LOCAL
from hf_prune.data import corpora, task_sources
from hf_prune.hub.contents import candidates as weight_files
from hf_prune.limits import (
    DEFAULT_RATIO,
    EXAM_BYTES,
    GPU_TILE_TOKENS,
    MERGED_LAYERS,
    STATE_BYTES,
    TILE_TOKENS,
    TOP_K,
    WIDTH,
)
from hf_prune.methods import METHODS
from hf_prune.methods.method import EVERY_SIZE, Facts, Sizes, Target
from hf_prune.models.families import Family
from hf_prune.models.feasibility import check_cut, require_halves, require_one_kind, require_widths
from hf_prune.models.headers import BYTES, Weights, number, weigh
from hf_prune.recipe import TASK_OBJECTIVES, Recipe
from hf_prune.search import SEARCHERS

if TYPE_CHECKING:
    from hf_prune.hub import Peek, TensorInfo

TRIALS_PER_MOVE = 5
"""Of the default search, for every single move that a candidate has."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `plan` found; all sizes in bytes, all token counts upper bounds.

    `forward_tokens` counts tokens through whole candidates, `layer_tokens` tokens through single layers without any
    sharing of prefixes; both for the dense model, the baselines and the search on the search windows. `repair_tokens`
    and `train_tokens` are what all repairs and all trainings read. `candidates` counts the models the search can choose
    among. `weight_files` says which of the source's files are read, `notes` what else should be known of them and what
    is done to them before anything else.
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
    weight_files: str = ""
    notes: tuple[str, ...] = ()

    @property
    def search_operations(self) -> float:
        """Floating-point operations of all matrix products of the search, at most: two for a parameter and a token."""
        layers = sum(self.layer_parameters) / self.depth * self.layer_tokens
        return 2.0 * (layers + self.outside_parameters * self.forward_tokens)

    @property
    def training_operations(self) -> float:
        """The same of repairs and trainings: two for the teacher, six for what is trained forwards and backwards."""
        return 8.0 * self.parameters * (self.repair_tokens + self.train_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return asdict(self)


def plan(recipe: Recipe, peek: "Peek", variants: "Sequence[Peek]" = ()) -> Plan:
    """Work out what `compress(recipe)` would do to the model behind `peek` and its variants.

    Reads the text and the tasks that lie on this disk, and writes nothing.

    Raises:
        InvalidRecipe: the target leaves no layer, removes none, or names layers that do not exist.
        SourceError: the repo has no safetensors, so there are no headers to count from.
        UnsupportedArchitecture: no numbered layers among the tensor names, or none of a family that this method cuts.
        HfPruneError: as `check_evidence`.
    """
    check_evidence(recipe)
    weights = weigh(peek)
    stored = weights.beside(weigh(v) for v in variants if not v.adapter)
    depth, method = len(weights.layers), METHODS[recipe.method]
    if weights.family:
        check_layers(recipe, weights.family, weights.kinds)
    target = target_of(recipe, Sizes(weights.layers, weights.total))
    if weights.family and recipe.size.drop:
        check_cut(weights.config, weights.family, [i for i in range(depth) if i not in recipe.size.dropped()])
    facts = facts_of(recipe, depth, target.remove, weights.kinds)
    result = round(weights.total * (1 - target.removed_ratio))
    gone = target.removed_ratio * weights.total / sum(weights.layers) if method.shrinks else 0
    size = math.ceil(stored.written(gone))
    download = sum(_download(peek, p) for p in (peek, *variants))
    trials = evaluations(recipe, facts)
    compared = baseline_evaluations(recipe, facts)
    tokens = recipe.data.sequences * recipe.data.length
    return Plan(
        base=str(peek.source),
        model_type=str(peek.config.get("model_type", "unknown")),
        method=recipe.method,
        search="none" if recipe.size.drop else recipe.search.searcher,
        asked=describe_target(recipe),
        depth=depth,
        parameters=weights.total,
        bytes=weights.bytes,
        layer_parameters=weights.layers,
        outside_parameters=weights.outside,
        target=target,
        result_layers=depth - target.remove if target.whole else depth,
        result_parameters=result,
        result_bytes=size,
        download_bytes=download,
        disk_bytes=download + size + sum(_bytes(p.tensors) for p in (peek, *variants) if p.prepared),
        memory_bytes=peak_memory(recipe, peek, weights),
        evaluations=trials,
        baseline_evaluations=compared,
        candidates=candidates(recipe, facts),
        forward_tokens=(1 + trials + compared) * tokens,
        layer_tokens=layer_passes(recipe, facts) * tokens,
        repair_tokens=repairs(recipe) * recipe.repair.sequences * recipe.data.length,
        train_tokens=trained_tokens(recipe, tokens),
        weight_files=_weight_files(peek),
        notes=tuple(dict.fromkeys((*weights.notes, *(note for p in (peek, *variants) for note in p.notes)))),
    )


def trained_tokens(recipe: Recipe, search_tokens: int) -> int:
    """What the training of the result, of finalists and of mixes reads."""
    # Finalists that are trained: 8, then 4 and 2, each round for twice as long as all before it.
    finalists = 16 * recipe.heal.finalist_tokens
    return recipe.heal.tokens + finalists + tunings(recipe) * recipe.tune.steps * search_tokens


def check_evidence(recipe: Recipe, *, names: bool = False) -> None:
    """Read text and tasks of this disk, and look for those of the Hub, so that what is wrong is told before a model is
    pulled.

    Args:
        recipe: what is asked for.
        names: look for tasks of lm_eval as well, whose list takes seconds to read.

    Raises:
        HfPruneError: as `load_corpora` and `load_tasks`.
    """
    tasks = recipe.tasks
    corpora.check_entries(recipe.data.text, tasks.force_test_split)
    task_sources.check_entries(tasks.search, "search", force=tasks.force_test_split, names=names)
    task_sources.check_entries(tasks.names, names=names)
    for task in recipe.report.lm_eval:
        task_sources.check_harness(task, names=names)


def _weight_files(peek: "Peek") -> str:
    """The files that are read, and those that look like weights and are not."""
    read = peek.weights[:1] if len(peek.weights) < 3 else (f"{len(peek.weights) - 1} shards of {peek.weights[0]}",)
    others = [n for n in weight_files(peek.files) if n not in peek.weights]
    return ", ".join(read) + (f"; not read, as by transformers: {', '.join(others)}" if others else "")


def check_layers(recipe: Recipe, family: Family, kinds: Sequence[int]) -> None:
    """Refuse what cannot be done to the layers of a family.

    Args:
        recipe: what is asked for.
        family: of the base.
        kinds: number of each layer's kind; tensors of layers of one kind have the same names and shapes.

    Raises:
        UnsupportedArchitecture: says what cannot be done, and what can.
    """
    method, objective = METHODS[recipe.method], recipe.search.objective
    if method.libraries(recipe):
        require_widths(family)
    halves = (method.takes_apart(recipe), "--repair" if recipe.repair.enabled else None)
    require_halves(family, [flag for flag in halves if flag])
    if objective == "gelaco_v1":
        require_halves(family, [f"--objective {objective}"], modular=True)
    if method.merges(recipe):
        require_one_kind(family, kinds)


def facts_of(recipe: Recipe, depth: int, remove: int, kinds: tuple[int, ...] = ()) -> Facts:
    """What a plan knows."""
    names = tuple(map(str, range(1 + len(recipe.variants))))
    return Facts(depth, remove, recipe.every_size, len(names), names, kinds=kinds)


def tunings(recipe: Recipe) -> int:
    """What gradient descent learns: the mixes and, where it learns from tasks, how far a repair goes."""
    return 1 + (recipe.repair.enabled and recipe.search.objective in TASK_OBJECTIVES)


def repairs(recipe: Recipe) -> int:
    """Candidates that are repaired; the winner is one of them."""
    if not recipe.repair.enabled:
        return 0
    if recipe.size.drop or recipe.every_size:
        return 1
    return 8 if recipe.heal.finalist_tokens else recipe.repair.finalists


def describe_target(recipe: Recipe) -> str:
    """The target in the user's words: "ratio 0.25", "keep 12", "drop 3,6,7" or "every size"."""
    if recipe.size.drop:
        return "drop " + ",".join(recipe.size.drop)
    if recipe.size.keep_layers is not None:
        return f"keep {recipe.size.keep_layers}"
    if recipe.size.drop_layers is not None:
        return f"drop {recipe.size.drop_layers} layers"
    if recipe.size.latency is not None:
        return f"latency {recipe.size.latency:g}"
    return "every size" if recipe.every_size else f"ratio {recipe.size.ratio or DEFAULT_RATIO:g}"


def target_of(recipe: Recipe, sizes: Sizes) -> Target:
    """Turn the one dial into what is to go.

    Args:
        recipe: at most one way to say a size is set; none means `DEFAULT_RATIO`, or every size for a front.
        sizes: of the source.

    Raises:
        InvalidRecipe: the target would remove nothing, or everything, or a layer that does not exist.
    """
    return EVERY_SIZE if recipe.every_size else METHODS[recipe.method].target(recipe, sizes)


def candidates(recipe: Recipe, facts: Facts) -> int:
    """Models the search can choose among, at most (some merges are deletions in disguise); 1 with `drop`."""
    return 1 if recipe.size.drop else METHODS[recipe.method].space(recipe, facts).count()


def evaluations(recipe: Recipe, facts: Facts) -> int:
    """Trials the search will ask for, at most: 0 with `drop`, 1 for the one-shot scores.

    The default of the evolutionary and random searches is a population plus `TRIALS_PER_MOVE` for each of the single
    moves a candidate has: the number of generations that EvoPress takes (arXiv 2410.14649) grows the same way.
    examples/benchmarks/search_quality.py shows what it buys.
    """
    if recipe.size.drop:
        return 0
    method = METHODS[recipe.method]
    rounds = _rounds(recipe, facts, recipe.search.searcher)
    if rounds is None:
        return recipe.search.evaluations or recipe.search.population + TRIALS_PER_MOVE * method.moves(recipe, facts)
    needed = sum(count for count, _ in rounds)
    return min(needed, recipe.search.evaluations or needed)


def baseline_evaluations(recipe: Recipe, facts: Facts) -> int:
    """Trials of the comparisons; none beside a front."""
    return sum(count for count, _ in _compared(recipe, facts))


def layer_passes(recipe: Recipe, facts: Facts) -> int:
    """Layers that full evidence passes through without any prefix shared: dense model, comparisons and search at
    most."""
    compared = sum(count * (facts.depth - gone) for count, gone in _compared(recipe, facts))
    units = METHODS[recipe.method].units
    rounds = None if recipe.size.drop or units > 1 else _rounds(recipe, facts, recipe.search.searcher)
    if rounds is None:
        # A layer that has lost a part is still passed.
        rounds = [(evaluations(recipe, facts), 0 if units > 1 else facts.remove or 1)]
    return facts.depth + compared + sum(count * (facts.depth - gone) for count, gone in rounds)


def _rounds(recipe: Recipe, facts: Facts, searcher: str) -> list[tuple[int, int]] | None:
    """Candidates of every round and the units they are short of; None for a search that goes on as long as it may."""
    rounds, units = SEARCHERS[searcher].rounds, METHODS[recipe.method].units
    if rounds is None:
        return None
    return list(rounds(units * facts.depth, units * facts.remove, lambda: candidates(recipe, facts)))


def _compared(recipe: Recipe, facts: Facts) -> Iterator[tuple[int, int]]:
    """Candidates of every round of every comparison, and the layers they are short of."""
    if not facts.remove:
        return
    method = METHODS[recipe.method]
    for one in method.comparisons(recipe, facts):
        if one.layers:
            yield 1, facts.remove if method.units == 1 else 0
        elif one.as_result:
            yield evaluations(recipe, facts), facts.remove
        elif rounds := SEARCHERS[one.searcher].rounds:
            yield from rounds(facts.depth, facts.remove, lambda: 0)
        else:
            yield one.trials, facts.remove


def peak_memory(recipe: Recipe, peek: "Peek", weights: Weights) -> int:
    """Bytes the search needs at its peak, on the device it runs on.

    weights:   parameters x b; for stitch as many merged layers besides as `--memory` leaves room for, at most 64
    reference: W x length x (layers + 1) x hidden x b states of the dense model on all W search and selection windows,
               and W x length x k x 12 for its k likeliest tokens (number, log-probability), k = 512 or the vocabulary
    modules:   W x length x 2 layers x hidden x b, what its attention and MLP put out, for `gelaco_v1` only
    tuned:     parameters x 4, a copy in float32, for `tune` only; the frontier is gone by then
    frontier:  2 x offspring x T x hidden x b, all candidates of a generation between two layers, at most 1 GiB,
               with T the tokens of the larger of the two splits
    exam:      items x length x (layers + 1) x hidden x b states on the tasks that are searched and chosen by, as if
               an item had the length of a window, at most 1 GiB
    head:      2 x tile x vocabulary x 4, the float32 logits of one tile of tokens and their log-softmax

    with b the bytes of the search precision (auto: at most four on the CPU, else two).
    """
    cpu = _on_cpu(recipe.machine.device)
    width = WIDTH.get(recipe.machine.dtype) or (4 if cpu else 2)
    hidden, vocabulary = number(peek, "hidden_size", "n_embd", "d_model"), number(peek, "vocab_size")
    layers, tokens = len(weights.layers), (recipe.data.sequences + recipe.data.selection_sequences) * recipe.data.length
    larger = max(recipe.data.sequences, recipe.data.selection_sequences) * recipe.data.length
    state = tokens * hidden * width
    reference = (layers + 1) * state + tokens * min(TOP_K, vocabulary) * 12
    modules = 2 * layers * state if recipe.search.objective == "gelaco_v1" else 0
    frontier = min(2 * recipe.search.offspring * larger * hidden * width, STATE_BYTES)
    tile = max(recipe.data.length, min(tokens, TILE_TOKENS * 2 // width if cpu else GPU_TILE_TOKENS))
    merged = 0
    if METHODS[recipe.method].several:
        room = recipe.machine.memory * 2**30 - weights.total * width if recipe.machine.memory else math.inf
        merged = max(0, min(MERGED_LAYERS * max(weights.layers) * width, room))
    asked = len(recipe.tasks.search) * (recipe.learned_items + recipe.tasks.selection_items) * recipe.data.length
    exam = min((layers + 1) * asked * hidden * width, EXAM_BYTES)
    passing = max(frontier, weights.total * 4 if recipe.tune.steps else 0)
    return round(weights.total * width + merged) + reference + modules + exam + passing + 2 * tile * vocabulary * 4


def _on_cpu(device: str) -> bool:
    # Planning must not load torch to look for an accelerator; CPU is also the larger estimate.
    return device in ("auto", "cpu")


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
