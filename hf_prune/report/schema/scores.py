"""Sections of a report about what was measured; all of it on the report split, which no search has seen.

Perplexities are per token, bits are per byte of UTF-8, which alone compares models of different tokenizers; KL and
log-ratios are in nats per token; accuracies are shares of items. Intervals are 95 % ones, those of differences paired
over the same windows and items.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, Self, TypeVar

from pydantic import model_validator

from hf_prune.report.schema.section import ByStage, Count, Interval, Number, Section, StageName

T = TypeVar("T")
AccuracyName = Literal["accuracy", "acc_norm"]
SUFFIX: Mapping[AccuracyName, str] = {"accuracy": "", "acc_norm": "_norm"}
"""Names of accuracies, and how those of their figures end: acc_norm is by likelihood per character."""


class Estimate(NamedTuple):
    """A value, and its interval where there is one."""

    value: float
    ci: Interval | None


def total(rows: Mapping[str, T]) -> T | None:
    """Of measurements by corpus the one over all text, or None; a single corpus is all text."""
    return rows.get("all") or (next(iter(rows.values())) if len(rows) == 1 else None)


class Perplexity(Section):
    """exp of the mean over windows of their mean negative log-likelihood, and that of all windows in bits per byte of
    the text they say, which reports from before it was counted lack."""

    perplexity: Number = math.nan
    ci: Interval | None = None
    bits_per_byte: Number = math.nan
    bits_per_byte_ci: Interval | None = None


class Text(Section):
    """Perplexity of both models, KL to the dense one, and log(pruned / dense perplexity)."""

    tokens: Count = 0
    bytes: Count = 0
    dense: Perplexity
    pruned: Perplexity
    kl: Number = math.nan
    kl_ci: Interval | None = None
    log_ratio: Number = math.nan
    log_ratio_ci: Interval | None = None


class TokenCost(Section):
    """What fewer tokens alone cost: bits per byte by corpus of the base with all of them and with those it has kept."""

    all_tokens: dict[str, Number]
    kept_tokens: dict[str, Number]


class BesideParents(Section):
    """Perplexity on a corpus of the model, of the parent `best` that knew its search text best, and of the base; and
    the logarithms of the model's by theirs. Over all text, `best` stands for the best parent of every corpus."""

    best: str
    pruned: Perplexity
    best_parent: Perplexity
    base: Perplexity
    log_ratio: Number
    log_ratio_ci: Interval
    log_ratio_to_base: Number
    log_ratio_to_base_ci: Interval


class StageText(Perplexity):
    """The same of one stage; `closed` is the share of the gap between dense and cut in log-perplexity that it closes,
    NaN where the cut opened none."""

    kl: Number = math.nan
    kl_ci: Interval | None = None
    log_ratio: Number = math.nan
    log_ratio_ci: Interval | None = None
    closed: Number = math.nan


class Baseline(Section):
    """A bare cut to the same size, made otherwise, or (first, `hf_prune`) the search's own.

    `blueprint` is JSON, there where more than the removal of `removed` (source layers) made it.
    `log_ratio_ci_vs_ours` is the interval of log(its perplexity / ours).
    """

    name: str
    label: str
    blueprint: str | None = None
    removed: tuple[Count, ...] | None = None
    layers: Count | None = None
    parameters: Count | None = None
    perplexity: Number = math.nan
    ci: Interval | None = None
    bits_per_byte: Number = math.nan
    bits_per_byte_ci: Interval | None = None
    kl: Number = math.nan
    log_ratio_ci_vs_ours: Interval | None = None


class Answers(Section):
    """How often one model answers right."""

    accuracy: Number
    ci: Interval | None = None
    accuracy_norm: Number = math.nan
    ci_norm: Interval | None = None


class Accuracy(NamedTuple):
    """One accuracy of both models on the same items; `change` is pruned minus dense."""

    name: AccuracyName
    dense: Estimate
    pruned: Estimate
    change: Estimate


class Task(Section):
    """Answers to so many items; `chance` is the accuracy of guessing, 0 where text is to be generated."""

    items: Count
    chance: Number
    dense: Answers
    pruned: Answers
    difference: Number = math.nan
    difference_ci: Interval | None = None
    difference_norm: Number = math.nan
    difference_ci_norm: Interval | None = None

    @property
    def accuracies(self) -> tuple[Accuracy, ...]:
        """Both are one where text is to be generated."""
        plain = Accuracy(
            "accuracy",
            Estimate(self.dense.accuracy, self.dense.ci),
            Estimate(self.pruned.accuracy, self.pruned.ci),
            Estimate(self.difference, self.difference_ci),
        )
        if not self.chance or math.isnan(self.difference_norm):
            return (plain,)
        norm = Accuracy(
            "acc_norm",
            Estimate(self.dense.accuracy_norm, self.dense.ci_norm),
            Estimate(self.pruned.accuracy_norm, self.pruned.ci_norm),
            Estimate(self.difference_norm, self.difference_ci_norm),
        )
        return plain, norm


class Score(Section):
    """A metric of generated text, 0 to 1, and its difference from dense."""

    value: Number
    difference: Number = math.nan
    difference_ci: Interval | None = None


class Fluency(Section):
    """Of greedy samples: `repetition` is the share of 4-grams that repeat an earlier one of their sample (mean over
    samples), `distinct_2` that of distinct ones among all bigrams (Li et al. 2016, arXiv:1510.03055), `mean_length`
    counts tokens until the end of the text, or all that were asked for."""

    repetition: Number
    distinct_2: Number
    mean_length: Number


class StageGeneration(Fluency):
    """Greedy samples of one stage beside the text that goes on there."""

    exact_match: Score | None = None
    rouge1: Score | None = None
    rouge2: Score | None = None
    rougeL: Score | None = None


class HarnessMetric(Section):
    """A metric of lm_eval; the difference from dense is there for metrics that have a value per document."""

    value: Number
    higher_is_better: bool | None = None
    difference: Number = math.nan
    difference_ci: Interval | None = None
    items: Count | None = None


class HarnessTask(Section):
    """A task of lm_eval: version of both, and its metrics by name."""

    version: str
    metrics: dict[str, HarnessMetric]


class Stages(Section):
    """The capability table: what every stage can do, by corpus, task, metric of generated text and task of lm_eval."""

    names: tuple[StageName, ...] = ()
    text: dict[str, ByStage[StageText]] = {}
    tasks: dict[str, ByStage[Task]] = {}
    generation: ByStage[StageGeneration] | None = None
    harness: dict[str, ByStage[HarnessTask]] = {}

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """Every row has every stage, and every stage of a task of lm_eval the metrics of the dense one."""
        if self.names and self.names[:2] != ("dense", "cut"):
            raise ValueError("the names of the stages begin with dense and cut")
        rows = [*self.text.values(), *self.tasks.values(), *self.harness.values(), self.generation]
        for stage in self.names:
            if any(row is not None and row.of(stage) is None for row in rows):
                raise ValueError(f"the stage {stage} was not measured in every respect")
        for row in self.harness.values():
            if any(row.of(stage).metrics.keys() != row.of("dense").metrics.keys() for stage in self.names):
                raise ValueError("stages differ in the metrics of a task of lm_eval")
        return self


class Sample(Section):
    """A prompt and how every stage goes on with it; `pruned` is the last one."""

    prompt: str
    dense: str
    cut: str | None = None
    repaired: str | None = None
    healed: str | None = None
    pruned: str


class Generation(Section):
    """Greedy samples side by side: those of the first prompts, and of the windows that lost most."""

    samples: tuple[Sample, ...] = ()
    worst: tuple[Sample, ...] = ()
    new_tokens: Count = 0
    dense: Fluency | None = None
    cut: Fluency | None = None
    repaired: Fluency | None = None
    healed: Fluency | None = None
    pruned: Fluency | None = None


class Rates(Section):
    """Tokens per second at batch 1; NaN where too few rounds counted."""

    prefill_tokens_per_s: Number = math.nan
    decode_tokens_per_s: Number = math.nan


class Gain(Section):
    """How much faster the pruned model is: median of the rounds' ratios, and its interval."""

    value: Number
    ci: Interval

    @property
    def is_clear(self) -> bool:
        """Whether one of the two is faster beyond noise."""
        return not self.ci[0] <= 1 <= self.ci[1]


class Speed(Section):
    """Both models in turn on the same tokens: prefill of so many, then decoding of so many; medians over `repeats`
    rounds. Not counted are those `disturbed` by other work; with too few others there are no figures.

    `prefill` and `decode` are absent in reports from before rounds were compared one by one, too.
    """

    dense: Rates
    pruned: Rates
    prefill: Gain | None = None
    decode: Gain | None = None
    prefill_tokens: Count = 0
    decode_tokens: Count = 0
    repeats: Count = 0
    disturbed: Count = 0
    device: str = ""
    threads: Count | None = None
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """How much of the abilities a model has, by one accuracy: that of every task, and their mean.

    `retention`: as a share of the parent that is best on average; `best_retention`: of the one best at the task.
    `difference`: of the means, this model's minus that of the result before any training.
    """

    accuracy: Mapping[str, float]
    mean_accuracy: float
    retention: Mapping[str, float]
    mean_retention: float
    best_retention: Mapping[str, float]
    difference: float
    difference_ci: Interval | None


class RetentionRow(Section):
    """A parent, the result or a baseline; fields as in `Kept`, those that end in `_norm` by acc_norm.

    `log_perplexity` is the mean over `corpora`; `doubt` and what ends so is in nats per item, less is better.
    """

    name: str
    label: str
    digest: str = ""
    log_perplexity: Number = math.nan
    corpora: dict[str, Number] = {}
    accuracy: dict[str, Number] = {}
    mean_accuracy: Number = math.nan
    retention: dict[str, Number] = {}
    mean_retention: Number = math.nan
    best_retention: dict[str, Number] = {}
    difference: Number = math.nan
    difference_ci: Interval | None = None
    accuracy_norm: dict[str, Number] = {}
    mean_accuracy_norm: Number = math.nan
    retention_norm: dict[str, Number] = {}
    mean_retention_norm: Number = math.nan
    best_retention_norm: dict[str, Number] = {}
    difference_norm: Number = math.nan
    difference_ci_norm: Interval | None = None
    doubt: Number = math.nan
    difference_doubt: Number = math.nan
    difference_ci_doubt: Interval | None = None

    def kept(self, name: AccuracyName) -> Kept:
        """By one of the accuracies."""
        return Kept(*(getattr(self, f"{field.name}{SUFFIX[name]}") for field in fields(Kept)))


class Retention(Section):
    """Every parent, the result and its baselines on the same `items` of every task and windows of every corpus.

    `reference` is the parent that is best on average by accuracy, `reference_norm` by acc_norm.
    """

    reference: str
    reference_norm: str | None = None
    corpora: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    items: Count = 0
    rows: tuple[RetentionRow, ...] = ()

    def row(self, name: str) -> RetentionRow | None:
        """The row of that name, if there is one."""
        return next((row for row in self.rows if row.name == name), None)

    @property
    def references(self) -> dict[AccuracyName, str]:
        """The best parent by every accuracy that was taken."""
        found = {"accuracy": self.reference, "acc_norm": self.reference_norm}
        return {name: parent for name, parent in found.items() if parent is not None}
