"""How long the stages of a run take: what they compute, counted, times what the parts take, measured.

Every count below follows what the stage named beside it does; examples/benchmarks/forecast.py runs a few and prints
forecast beside actual.
"""

import math
from dataclasses import dataclass

from hf_prune.limits import FINAL_STAGES, GPU_CHUNK_TOKENS
from hf_prune.methods import METHODS
from hf_prune.methods.method import Facts
from hf_prune.planning.counts import comparison_rounds, evaluations, own_tokens, repairs, tunings
from hf_prune.planning.rates import Rates, Shape
from hf_prune.recipe import Recipe
from hf_prune.search import SEARCHERS

SHARED, SEARCHED, SWEPT = 0.6, 0.9, 0.8
"""Shares of layer passes that are left when prefixes are computed once: of cuts that grow layer by layer, of a search's
generations, of a report's models."""
BESIDE = 1.4
"""What a repair takes beside its passes and sums, as a factor of them."""
TOLD = 15.0
"""Seconds in which a report times two models, draws and writes."""
FINALISTS = 16
ANSWERS, ANSWER_TOKENS = 4, 48
"""Options of an item of a task and tokens of each, about: only a tokenizer would know."""
SAID = 64
"""Tokens that every model of a report says."""
STEPPED = 24
"""Texts side by side in a step that is timed, about as many as are said."""
RIDGES = 6
"""Strengths of the ridge that a repair tries for every map."""
STAGES = (
    "pull", "sample", "check", "calibrate", "library", "baselines", "search", "select", "tune", "repair", "assemble",
    "heal", "report",
)  # fmt: skip
"""In the order of a run; the names of its clock."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds by stage, in their order; a stage that a run does not have is not there."""

    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return sum(self.seconds.values())

    def after(self, stage: str) -> float:
        """Seconds of everything behind a stage."""
        first = STAGES.index(stage) + 1
        return sum(s for name, s in self.seconds.items() if name in STAGES[first:])


def forecast(recipe: Recipe, facts: Facts, shape: Shape, rates: Rates, tasks: int = 3) -> Forecast:
    """Count what a run computes.

    Args:
        recipe: what is asked for.
        facts: what a plan knows.
        shape: of the base.
        rates: of the machine.
        tasks: that the report asks, where the recipe leaves them open.
    """
    counted = _Costs(recipe, facts, shape, rates, len(recipe.tasks.names) or tasks)
    found = {name: getattr(counted, name)() for name in STAGES}
    return Forecast({name: seconds for name, seconds in found.items() if seconds})


@dataclass(frozen=True, slots=True)
class _Costs:
    """Seconds of each stage, by its name."""

    recipe: Recipe
    facts: Facts
    shape: Shape
    rates: Rates
    tasks: int

    # Parts ---------------------------------------------------------------------------------------------------------

    def _through(self, tokens: float, layers: float | None = None, shared: float = 1.0) -> float:
        """A model read: its layers, and its head."""
        layers = self.shape.depth if layers is None else layers
        head = self.rates.head * self.shape.rows
        return tokens * (shared * layers * self.shape.layer * self.rates.layer + head)

    def _read(self, computed: float, passes: float) -> float:
        """What is computed while layers are read so often, whichever takes longer."""
        return max(computed, passes * self.rates.passing)

    @property
    def _left(self) -> float:
        """Layers of the result, by their parameters."""
        return max(1.0, self.shape.depth - self.facts.remove)

    @property
    def _window(self) -> int:
        return self.recipe.data.length

    @property
    def _judged(self) -> float:
        """Tokens of full search evidence: text and items of tasks."""
        asked = len(self.recipe.tasks.search) * self.recipe.tasks.search_items
        return self.recipe.data.sequences * self._window + asked * ANSWERS * ANSWER_TOKENS

    @property
    def _chosen(self) -> float:
        """Tokens of the selection evidence."""
        asked = len(self.recipe.tasks.search) * self.recipe.tasks.selection_items
        return self.recipe.data.selection_sequences * self._window + asked * ANSWERS * ANSWER_TOKENS

    def _fitted(self, features: int, outputs: int, tokens: float) -> float:
        """Normal equations of one map, and its solutions."""
        sums = tokens * 2 * features * (features + outputs) * self.rates.product
        solved = RIDGES * (features**3 / 3 + 4 * features * features * outputs) * self.rates.factor
        return sums + solved

    def _repaired(self) -> float:
        """One candidate repaired: the dense path and two of the cut, and two maps of every layer."""
        shape, tokens = self.shape, (self.recipe.repair.sequences + self.recipe.data.selection_sequences) * self._window
        maps = self._fitted(shape.inner, shape.hidden, tokens) + self._fitted(shape.mixed, shape.hidden, tokens)
        walked = (shape.depth + 3 * self._left) * tokens * shape.layer * self.rates.layer
        layers = self._left if self.recipe.repair.reach == "all" else min(self._left, self.facts.remove)
        return self._read(BESIDE * (walked + layers * maps), 2)

    def _trained(self, tokens: float) -> float:
        """A student forwards and backwards, beside its teacher."""
        layers = self._left * self.shape.layer * self.rates.trained
        return tokens * layers + self._through(tokens) + 4 * tokens * self.rates.head * self.shape.rows

    # Stages --------------------------------------------------------------------------------------------------------

    def pull(self) -> float:
        parents = 1 + len(self.recipe.variants)
        return 2 + parents * 2 * self.shape.bytes * self.rates.disk

    def sample(self) -> float:
        """Text of the base's own: a step of a batch for every token of a row."""
        step = self.shape.depth * self.shape.layer * self.rates.step
        return own_tokens(self.recipe) * (step / STEPPED + self.rates.head * self.shape.rows)

    def check(self) -> float:
        """Every parent in a fresh process."""
        return (1 + len(self.recipe.variants)) * (self.rates.start + 2 * self.shape.bytes * self.rates.disk)

    def calibrate(self) -> float:
        return (1 + len(self.recipe.variants)) * self._read(self._through(self._judged + self._chosen), 2)

    def library(self) -> float:
        """Sums of every layer, then a level after the other by second order, neuron by neuron."""
        method, shape = METHODS[self.recipe.method], self.shape
        kinds, tokens = len(method.libraries(self.recipe)), self.recipe.width.sequences * self._window
        maps = self._fitted(shape.inner, shape.hidden, tokens) + self._fitted(shape.mixed, shape.hidden, tokens)
        removed = 4 * (shape.inner**3 + shape.mixed**3) * self.rates.factor
        return self._read(kinds * shape.depth * (maps + removed + tokens * shape.layer * self.rates.layer), kinds)

    def baselines(self) -> float:
        tokens = self.recipe.data.sequences * self._window
        asked = comparison_rounds(self.recipe, self.facts)
        return sum(
            self._read(self._divided(n * self._through(tokens, self.shape.depth - gone, SHARED), tokens), 1)
            for n, gone in asked
        )

    def search(self) -> float:
        trials = evaluations(self.recipe, self.facts)
        computed = trials * self._share() * self._through(self._judged, self._left, SEARCHED)
        return self._read(self._divided(computed, self._judged), trials / self.recipe.search.offspring)

    def _divided(self, seconds: float, tokens: float) -> float:
        """On as many devices as have workers, as far as there are chunks; on a processor they share its cores."""
        machine = self.recipe.machine
        if machine.kind in ("auto", "cpu") or machine.places == 1:
            return seconds
        chunks = math.ceil(tokens / max(GPU_CHUNK_TOKENS, self._window))
        return seconds * math.ceil(chunks / machine.places) / chunks

    def _share(self) -> float:
        """Of full evidence that a trial has on average: from stage to stage half of the candidates go on."""
        full = self.recipe.data.sequences
        stages = SEARCHERS[self.recipe.search.searcher].stages(full, self._window)
        weights = [0.5**i for i in range(len(stages))]
        return sum(w * s for w, s in zip(weights, stages, strict=True)) / (full * sum(weights))

    def select(self) -> float:
        if self.recipe.size.drop or self.recipe.every_size:
            return 0.0
        computed = FINALISTS * self._through(self._chosen, self._left, SHARED)
        read = self._read(self._divided(computed, self._chosen), 1)
        last = repairs(self.recipe) if self.recipe.repair.enabled else 0
        lessons = self.recipe.heal.finalist_tokens * 2**FINAL_STAGES * 2
        return read + (last * self._repaired() if last > 1 else 0.0) + self._trained(lessons)

    def tune(self) -> float:
        steps = self.recipe.tune.steps * (tunings(self.recipe) if self.recipe.tune.steps else 0)
        return steps * self._trained(self._judged)

    def repair(self) -> float:
        if not self.recipe.repair.enabled:
            return 0.0
        alone = self._repaired() if repairs(self.recipe) == 1 else 0.0
        return alone + 2 * self._through(self._chosen, self._left)

    def assemble(self) -> float:
        """Written, and loaded by a fresh process."""
        return self.rates.start + 4 * self.shape.bytes * self.rates.disk

    def heal(self) -> float:
        tokens = self.recipe.heal.tokens
        if not tokens:
            return 0.0
        looks = min(self.recipe.heal.checks, max(1, tokens // (self.recipe.heal.batch * self._window))) + 1
        looked = looks * 2 * self._through(self._chosen)
        return self._trained(tokens) + looked + self.rates.start + 6 * self.shape.bytes * self.rates.disk

    def report(self) -> float:
        """One sweep with text and tasks of every model; continuations; ranks of the search; speed."""
        tokens = self.recipe.report.sequences * self._window
        stages = 2 + self.recipe.repair.enabled
        models = stages + len(self._rivals)
        answers = self.tasks * self.recipe.tasks.items * ANSWERS * ANSWER_TOKENS
        layers = self.shape.depth * self.shape.layer
        swept = models * (self._through(tokens, shared=SWEPT) + SWEPT * answers * layers * self.rates.layer)
        healed = self._through(tokens + answers) if self.recipe.heal.tokens else 0.0
        # Of models that do not fit nothing is said.
        said = 0 if self.rates.passing else (stages + bool(self.recipe.heal.tokens)) * SAID * layers * self.rates.step
        ranked = max(8 * self._through(self._chosen, self._left), 0.05 * self.search())
        return self._read(swept, 3) + healed + said + (ranked if self.search() else 0.0) + TOLD

    @property
    def _rivals(self) -> tuple[str, ...]:
        """Baselines that the method has."""
        known = METHODS[self.recipe.method].baselines
        return tuple(name for name in self.recipe.search.baselines if name in known and self.facts.remove)
