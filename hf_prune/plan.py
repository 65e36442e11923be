"""What a run would do, from a config and safetensors headers alone: sizes, memory, disk, forward tokens."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hf_prune.blueprint import LOCAL
from hf_prune.errors import InvalidRecipe
from hf_prune.methods import METHODS
from hf_prune.models.families import Family
from hf_prune.models.feasibility import check_cut, family_from, require_halves, require_one_kind, require_widths
from hf_prune.models.headers import BYTES, Weights, number, weigh
from hf_prune.recipe import DEFAULT_RATIO, TASK_OBJECTIVES, Recipe

if TYPE_CHECKING:
    from hf_prune.hub import Peek

SEARCH_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TOP_K = 512
FRONTIER_BYTES = EXAM_BYTES = 1 << 30
TILE_TOKENS = {"cpu": 2048, "gpu": 1 << 15}
"""These and `MERGED_LAYERS` are the evaluator's own numbers, repeated here because planning must not load torch."""
MERGED_LAYERS = 64
"""That the bank keeps."""
RANDOM_DRAWS = 5
"""Cuts the random baseline draws."""
TRIALS_PER_SWAP = 5
WIDTH_MOVES = 6
"""Moves counted for each half of a layer whose width is searched."""
SEARCHED = ("removal", "selection")
"""Baselines of stitch that are searches of their own."""
CUTS = ("random", "last", "shortgpt", "window", "greedy")
"""Baselines that delete whole layers."""
WIDTHS = ("uniform", "errors", "wanda", "magnitude")
"""Baselines of width, a model each."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whole layers to remove (0 = the search looks at every size; for width as many layers as that share is worth), the
    share of all parameters that is, and by how much that misses the share asked for (None when no share was asked)."""

    remove: int
    removed_ratio: float
    miss: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What `plan` found; all sizes in bytes, all token counts upper bounds.

    `forward_tokens` counts tokens through whole candidates, `layer_tokens` tokens through single layers without any
    sharing of prefixes; both for the dense model, the baselines and the search on the search windows. `repair_tokens`
    and `train_tokens` are what all repairs and all trainings read. `candidates` counts the models the search can choose
    among.
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
    """Work out what `compress(recipe)` would do to the model behind `peek` and its variants; reads and writes nothing.

    Raises:
        InvalidRecipe: the target leaves no layer, removes none, or names layers that do not exist.
        SourceError: the repo has no safetensors, so there are no headers to count from.
        UnsupportedArchitecture: no numbered layers among the tensor names, or none of a family that this method cuts.
    """
    weights = weigh(peek)
    depth = len(weights.layers)
    family = family_from(peek.config, recipe.trust_remote_code)
    if family:
        check_layers(recipe, family, weights.kinds)
    target = layers_to_remove(recipe, depth, weights.layers, weights.total)
    if family and recipe.drop:
        check_cut(peek.config, family, [i for i in range(depth) if i not in recipe.dropped()])
    kept = depth if recipe.method.startswith("width") else depth - target.remove
    result = round(weights.total * (1 - target.removed_ratio))
    # A removed half stays in the file as zeros (stock classes have no layer without it), so halves save no bytes.
    size = weights.bytes if recipe.method == "halves" else math.ceil(weights.bytes * result / weights.total)
    download = sum(_download(peek, p) for p in (peek, *variants))
    trials = evaluations(recipe, depth, target.remove)
    rivals = baseline_evaluations(recipe, depth, target.remove)
    tokens = recipe.sequences * recipe.length
    return Plan(
        base=str(peek.source),
        model_type=str(peek.config.get("model_type", "unknown")),
        method=recipe.method,
        search="none" if recipe.drop else recipe.search,
        asked=asked(recipe),
        depth=depth,
        parameters=weights.total,
        bytes=weights.bytes,
        layer_parameters=weights.layers,
        outside_parameters=weights.outside,
        target=target,
        result_layers=kept,
        result_parameters=result,
        result_bytes=size,
        download_bytes=download,
        disk_bytes=download + size,
        memory_bytes=peak_memory(recipe, peek, weights),
        evaluations=trials,
        baseline_evaluations=rivals,
        candidates=candidates(recipe, depth, target.remove),
        forward_tokens=(1 + trials + rivals) * tokens,
        layer_tokens=layer_passes(recipe, depth, target.remove) * tokens,
        repair_tokens=repairs(recipe) * recipe.repair_sequences * recipe.length,
        # Finalists that are trained: 8, then 4 and 2, each round for twice as long as all before it.
        train_tokens=recipe.heal + 16 * recipe.search_heal + tunings(recipe) * recipe.tune * tokens,
    )


def check_layers(recipe: Recipe, family: Family, kinds: Sequence[int]) -> None:
    """Refuse what cannot be done to the layers of a family.

    Args:
        recipe: what is asked for.
        family: of the base.
        kinds: number of each layer's kind; tensors of layers of one kind have the same names and shapes.

    Raises:
        UnsupportedArchitecture: says what cannot be done, and what can.
    """
    if recipe.method.startswith("width"):
        require_widths(family)
    halves = {"--method halves": recipe.method == "halves", "--mix-halves": recipe.mix_halves,
              "--repair": bool(recipe.repair)}  # fmt: skip
    require_halves(family, [flag for flag, asked in halves.items() if asked])
    if recipe.objective == "gelaco_v1":
        require_halves(family, [f"--objective {recipe.objective}"], modular=True)
    if recipe.method == "intervals" or recipe.method == "collapse" and not any("keep" in r for r in recipe.rules):
        require_one_kind(family, kinds)


def tunings(recipe: Recipe) -> int:
    """What gradient descent learns: the mixes and, where it learns from tasks, how far a repair goes."""
    return 1 + (recipe.repair and recipe.objective in TASK_OBJECTIVES)


def repairs(recipe: Recipe) -> int:
    """Candidates that are repaired; the winner is one of them."""
    if not recipe.repair:
        return 0
    if recipe.drop or recipe.search == "nsga2":
        return 1
    return 8 if recipe.search_heal else recipe.repair_finalists


def asked(recipe: Recipe) -> str:
    """The target in the user's words: "ratio 0.25", "keep 12", "drop 3,6,7" or "every size"."""
    if recipe.drop:
        return "drop " + ",".join(recipe.drop)
    if recipe.keep_layers is not None:
        return f"keep {recipe.keep_layers}"
    if recipe.drop_layers is not None:
        return f"drop {recipe.drop_layers} layers"
    if recipe.latency is not None:
        return f"latency {recipe.latency:g}"
    return "every size" if recipe.search == "nsga2" else f"ratio {recipe.ratio or DEFAULT_RATIO:g}"


def layers_to_remove(recipe: Recipe, depth: int, layer_parameters: Sequence[int], total_parameters: int) -> Target:
    """Turn the one dial into a number of layers.

    A ratio becomes the number of (mean) layers that comes nearest to it, the smaller one at a tie.

    Args:
        recipe: at most one of ratio, keep_layers and drop is set; none means ratio 0.25, nsga2 means every size.
        depth: layers of the source.
        layer_parameters: parameters of each layer, [depth].
        total_parameters: parameters of the whole model, tied ones counted once.

    Raises:
        InvalidRecipe: the target would remove no layer, or all of them, or one that does not exist.
    """
    if recipe.search == "nsga2":
        return Target(0, 0.0, None)
    if recipe.drop:
        return _by_hand(recipe.dropped(), depth, layer_parameters, total_parameters)
    share = sum(layer_parameters) / depth / total_parameters
    if recipe.method.startswith("width"):
        # How many parameters a share of the time is, only the search will tell.
        ratio = recipe.ratio or (1 - recipe.latency if recipe.latency else DEFAULT_RATIO)
        if recipe.latency is None and ratio >= depth * share:
            raise InvalidRecipe(f"ratio {ratio:g} is more than the layers hold; ask for less than {depth * share:.3f}.")
        return Target(max(1, round(ratio / share)), ratio, None)
    if recipe.keep_layers is not None:
        if not 1 <= recipe.keep_layers < depth:
            raise InvalidRecipe(
                f"keep_layers is {recipe.keep_layers}, but the model has {depth} layers; "
                f"keep between 1 and {depth - 1} of them."
            )
        return Target(depth - recipe.keep_layers, (depth - recipe.keep_layers) * share, None)
    if recipe.drop_layers is not None:
        if not 1 <= recipe.drop_layers < depth:
            raise InvalidRecipe(
                f"drop_layers is {recipe.drop_layers}, but the model has {depth} layers; "
                f"remove between 1 and {depth - 1} of them."
            )
        return Target(recipe.drop_layers, recipe.drop_layers * share, None)
    ratio = recipe.ratio or DEFAULT_RATIO
    remove = math.ceil(ratio / share - 0.5)
    if not 1 <= remove < depth:
        raise InvalidRecipe(
            f"ratio {ratio:g} means {ratio / share:.1f} of the {depth} layers, each {share:.1%} of all parameters; "
            f"ask for between {share:.3f} and {(depth - 1) * share:.3f}."
        )
    return Target(remove, remove * share, remove * share - ratio)


def _by_hand(dropped: Sequence[int], depth: int, layer_parameters: Sequence[int], total: int) -> Target:
    if beyond := [i for i in dropped if i >= depth]:
        raise InvalidRecipe(f"drop names layer {beyond[0]}, but the model's layers are 0 to {depth - 1}.")
    if len(dropped) >= depth:
        raise InvalidRecipe(f"drop names all {depth} layers; leave at least one.")
    if not dropped:
        raise InvalidRecipe("drop names no layer; write for example 21-28 or 3,6,7.")
    return Target(len(dropped), sum(layer_parameters[i] for i in dropped) / total, None)


def candidates(recipe: Recipe, depth: int, remove: int) -> int:
    """Models the search can choose among, at most (some merges are deletions in disguise); 1 with `drop`."""
    if recipe.drop:
        return 1
    if recipe.method.startswith("width"):
        return recipe.levels ** (2 * depth)
    space, budget = METHODS[recipe.method], remove or None
    if recipe.method == "stitch":
        return space(depth, budget, 1 + len(recipe.variants), recipe.merges, recipe.mix_halves).count()
    if recipe.method == "collapse":
        return space(depth, budget, recipe.rules, recipe.norms).count()
    return space(depth, 2 * remove if remove and recipe.method == "halves" else budget).count()


def evaluations(recipe: Recipe, depth: int, remove: int) -> int:
    """Most trials the search will ask for: 0 with `drop`, 1 for the one-shot scores.

    The default of the evolutionary and random searches is a population plus `TRIALS_PER_SWAP` for each of the
    remove x (depth - remove) single swaps a candidate has: the number of generations that EvoPress takes (arXiv
    2410.14649) grows the same way. examples/benchmarks/search_quality.py shows what it buys.
    """
    if recipe.drop:
        return 0
    middle = remove or depth // 2
    match recipe.search:
        case "shortgpt" | "window" | "last":
            needed = 1
        case "greedy":
            parts = 2 if recipe.method == "halves" else 1
            needed = sum(parts * depth - i for i in range(parts * remove))
        case "exhaustive":
            needed = candidates(recipe, depth, remove)
        case _:
            # A kept layer may take any of the variants, or more or less of it.
            moves = (middle + 4 * len(recipe.variants)) * (depth - middle)
            if recipe.method.startswith("width"):
                moves = WIDTH_MOVES * 2 * depth
            return recipe.evaluations or recipe.population + TRIALS_PER_SWAP * moves
    return min(needed, recipe.evaluations or needed)


def baseline_evaluations(recipe: Recipe, depth: int, remove: int) -> int:
    """Trials of the baselines, which delete as many whole layers; none beside a front."""
    if not remove:
        return 0
    if recipe.method != "stitch":
        kinds = WIDTHS if recipe.method.startswith("width") else CUTS
        return sum(_rival_trials(name, depth, remove) for name in recipe.baselines if name in kinds)
    cuts = sum(_rival_trials(name, depth, remove) for name in ("shortgpt", "greedy") if name in recipe.baselines)
    searched = sum(name in recipe.baselines for name in SEARCHED)
    return (2 + len(recipe.variants)) * cuts + searched * evaluations(recipe, depth, remove)


def _rival_trials(name: str, depth: int, remove: int) -> int:
    return sum(depth - i for i in range(remove)) if name == "greedy" else RANDOM_DRAWS if name == "random" else 1


def layer_passes(recipe: Recipe, depth: int, remove: int) -> int:
    """Layers that full evidence passes through without any prefix shared: dense model, baselines and search at most."""
    greedy = sum((depth - i) * (depth - i - 1) for i in range(remove))
    baselines = sum(
        greedy if name == "greedy" else _rival_trials(name, depth, remove) * (depth - remove)
        for name in (recipe.baselines if remove else ())
        if name in CUTS and not recipe.method.startswith("width")
    )
    whole = recipe.method not in ("halves", "width", "width+depth")
    if recipe.search == "greedy" and whole and not recipe.drop:
        return depth + baselines + greedy
    deepest = depth - (remove or 1) if whole else depth
    return depth + baselines + evaluations(recipe, depth, remove) * deepest


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
    cpu = _on_cpu(recipe.device)
    width = SEARCH_BYTES.get(recipe.dtype) or (4 if cpu else 2)
    hidden, vocabulary = number(peek, "hidden_size", "n_embd", "d_model"), number(peek, "vocab_size")
    layers, tokens = len(weights.layers), (recipe.sequences + recipe.selection_sequences) * recipe.length
    larger = max(recipe.sequences, recipe.selection_sequences) * recipe.length
    state = tokens * hidden * width
    reference = (layers + 1) * state + tokens * min(TOP_K, vocabulary) * 12
    modules = 2 * layers * state if recipe.objective == "gelaco_v1" else 0
    frontier = min(2 * recipe.offspring * larger * hidden * width, FRONTIER_BYTES)
    tile = max(recipe.length, min(tokens, TILE_TOKENS["cpu"] * 2 // width if cpu else TILE_TOKENS["gpu"]))
    merged = 0
    if recipe.method == "stitch":
        room = recipe.memory * 2**30 - weights.total * width if recipe.memory else math.inf
        merged = max(0, min(MERGED_LAYERS * max(weights.layers) * width, room))
    asked = len(recipe.search_tasks) * (recipe.learned_items + recipe.selection_items) * recipe.length
    exam = min((layers + 1) * asked * hidden * width, EXAM_BYTES)
    passing = max(frontier, weights.total * 4 if recipe.tune else 0)
    return round(weights.total * width + merged) + reference + modules + exam + passing + 2 * tile * vocabulary * 4


def _on_cpu(device: str) -> bool:
    # Planning must not load torch to look for an accelerator; CPU is also the larger estimate.
    return device in ("auto", "cpu")


def _download(base: "Peek", peek: "Peek") -> int:
    """Bytes to fetch for one parent: of an adapter its tensors alone, since the base is there."""
    if peek.adapter and peek is not base:
        local = LOCAL in (peek.source.adapter or "")
        return 0 if local else sum(math.prod(t.shape) * BYTES.get(t.dtype, 1) for t in peek.adapter.values())
    return 0 if peek.source.is_local else _needed_files(peek)


def _needed_files(peek: "Peek") -> int:
    shards = {t.file for t in peek.tensors.values()}
    small = (".json", ".txt", ".model", ".jinja")
    return sum(size for name, size in peek.files.items() if name in shards or name.endswith(small))
