"""What a run would do, from a config and safetensors headers alone: sizes, memory, disk, forward tokens."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hf_prune.blueprint import LOCAL
from hf_prune.hub.contents import candidates as weight_files
from hf_prune.methods import METHODS
from hf_prune.methods.method import Sizes, Target
from hf_prune.models.feasibility import check_cut
from hf_prune.models.headers import BYTES, weigh
from hf_prune.plan.checks import check_evidence, check_layers
from hf_prune.plan.counts import (
    baseline_evaluations,
    candidates,
    describe_target,
    evaluations,
    facts_of,
    layer_passes,
    own_tokens,
    repairs,
    target_of,
    trained_tokens,
)
from hf_prune.plan.memory import peak_memory
from hf_prune.recipe import DEFAULT_DATA, DEFAULT_TASKS, Recipe

if TYPE_CHECKING:
    from hf_prune.hub import Peek, TensorInfo


@dataclass(frozen=True, slots=True)
class Plan:
    """What `plan` found; all sizes in bytes, all token counts upper bounds.

    `forward_tokens` counts tokens through whole candidates, `layer_tokens` tokens through single layers without any
    sharing of prefixes; both for the dense model, the baselines and the search on the search windows. `repair_tokens`
    and `train_tokens` are what all repairs and all trainings read, `own_tokens` about what the base says itself. `text`
    is what of the entries of data was not named but is taken. `candidates` counts the models the search can choose
    among. `tasks` says what the report asks where none is named, `weight_files` which of the source's files are read,
    `notes` what else should be known of them and what is done to them before anything else.
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
        own_tokens=own_tokens(recipe),
        text=() if recipe.data.text else DEFAULT_DATA,
        tasks="" if recipe.tasks.names else f"{', '.join(DEFAULT_TASKS)}; left out where the Hub cannot be reached",
        weight_files=_weight_files(peek),
        notes=tuple(dict.fromkeys((*weights.notes, *(note for p in (peek, *variants) for note in p.notes)))),
    )


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
