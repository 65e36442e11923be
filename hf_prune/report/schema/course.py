"""Sections of a report about how the model was made: data, search, repair, training, certificate, machine."""

import math
from typing import Any, Literal

from hf_prune.report.schema.section import Count, Number, Section


class Corpus(Section):
    """Windows of a corpus in a split, and where its text is from."""

    windows: Count
    origin: str = ""


class Split(Section):
    """Windows of `length` tokens each; `tokens` in all; by corpus."""

    windows: Count
    tokens: Count
    length: Count = 0
    corpora: dict[str, Corpus] = {}


class Learning(Section):
    """Gradient descent on the weights of mixes, or on how far every half of a layer goes towards its repair.

    `before` and `after` are the objective on the selection split, `kept` whether it fell. `strength` is how far (0 to
    1) towards the learned weights the result goes; `shares` how far the attention and the MLP of every layer go, None
    for layers without a repair.
    """

    steps: Count
    windows: Count
    items: Count = 0
    objective: str
    before: Number
    after: Number
    kept: bool
    strength: Number = 1.0
    shares: tuple[tuple[Number, ...] | None, ...] = ()


class Fit(Section):
    """The repair of an output layer: ridges by refitted module, and the weighted squared distance to the dense states
    before and after, as a share of those states' own weighted square."""

    layer: Count
    ridges: dict[str, Number] = {}
    before: Number
    after: Number


class Repair(Section):
    """Least squares towards the dense model's states on so many windows.

    `kl_before` and `kl_after` are on the selection split, in nats per token; `strength` is as in `Learning`.
    """

    reach: str = "all"
    windows: Count
    strength: Number = 1.0
    learning: Learning | None = None
    kl_before: Number
    kl_after: Number
    kept: bool
    fits: tuple[Fit, ...] = ()


class HealObjective(Section):
    """Weights of the loss: of KL to the teacher over its `top_k` likeliest tokens, and of cross-entropy."""

    kl: Number
    ce: Number
    top_k: Count | None = None


class Healing(Section):
    """Training after the cut.

    `before` and `after` are losses on the selection split, `curve` their course as (tokens, loss); `kept` whether the
    training helped, `merged` whether it is in the weights rather than in an adapter beside them.
    """

    method: str
    objective: HealObjective | None = None
    before: Number
    after: Number
    kept: bool
    merged: bool = False
    tokens: Count
    distinct_tokens: Count | None = None
    tokens_per_s: Number = math.nan
    curve: tuple[tuple[Count, Number], ...] = ()


class Finalist(Section):
    """Its removed source layers, and its value on the selection split before and after repair or training; `foretold`
    with its gaps bridged, where a repair follows."""

    removed: tuple[Count, ...] = ()
    before: Number = math.nan
    foretold: Number = math.nan
    after: Number = math.nan


class Selection(Section):
    """Finalists repaired or trained before the choice; `changed` whether that chose another one.

    `by` is the value they were ranked by, `spearman` the rank correlation of before and after, `spearman_foretold` that
    of foretold and after.
    """

    means: tuple[str, ...]
    by: str = ""
    finalists: tuple[Finalist, ...]
    spearman: Number
    spearman_foretold: Number = math.nan
    changed: bool


class Merging(Section):
    """KL on the selection split of the best candidate that merges, and of its best deletion at the same partition.

    `helps` is whether the former is less, `won` whether that candidate is the result.
    """

    ours: Number
    deletion: Number
    helps: bool
    won: bool = False


class Correlation(Section):
    """Spearman's, of `n` candidates."""

    spearman: Number
    n: Count


class SearchSummary(Section):
    """Candidates scored, distinct ones among them, and products of layers and tokens that were computed for them.

    `history` is (candidates so far, best value so far); `rank_correlation` that of every fitness with KL on the
    selection split.
    """

    evaluations: Count
    distinct: Count | None = None
    layer_tokens: Count = 0
    best: Number = math.nan
    history: tuple[tuple[Count, Number], ...] = ()
    finalists: Count = 0
    rank_correlation: dict[str, Correlation] = {}


class TimeBudget(Section):
    """How the time of a run was planned and kept.

    asked: seconds; None where nobody asked. forecast: seconds by stage. lowered: budgets that were lowered to fit, by
    their names in a recipe. left_out: the same in words. ended: trials or steps after which a search or training was
    ended because time was up, by its name.
    """

    asked: Number | None = None
    forecast: dict[str, Number] = {}
    lowered: dict[str, Any] = {}
    left_out: tuple[str, ...] = ()
    ended: dict[str, Count] = {}


class Certificate(Section):
    """The written model, loaded in a fresh process: differences of logits from the searched one, and of cached from
    uncached decoding, beside what is allowed; tensors that did not fit."""

    ok: bool
    max_logit_difference: Number = math.nan
    cached_difference: Number = math.nan
    tolerance: Number = math.nan
    dtype: str = ""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    transformers: str = ""
    without_hf_prune: bool = False


class ParentCheck(Section):
    """A parent beside what stock transformers loads of it: how many tensors were compared, whether a fresh process ran
    it `whole`, `layer by layer`, or compared `tensors` alone, and how far its logits were from ours."""

    source: str
    tensors: Count = 0
    read: Literal["whole", "layer by layer", "tensors"] = "whole"
    ok: bool = True
    dtype: str = ""
    max_logit_difference: Number = math.nan
    tolerance: Number = math.nan
    finite: bool = True
    transformers: str = ""
    without_hf_prune: bool = False
    notes: tuple[str, ...] = ()


class Overflow(Section):
    """The precision that the base itself overflows in, and the one that was measured in instead."""

    left: str
    measured_in: str


class BaseCheck(Section):
    """What was found of the parents before the search."""

    parents: tuple[ParentCheck, ...] = ()
    overflow: Overflow | None = None


class Hardware(Section):
    """What the measurements ran on."""

    processor: str | None = None
    cores: Count | None = None
    threads: Count | None = None
    memory_gib: Number = math.nan
    accelerator: str | None = None


class Phases(Section):
    """Of a request and its two phases: shares of the dense model's time."""

    request: Number
    prefill: Number
    decode: Number


class Latency(Section):
    """Shares of the dense model's time: asked for, predicted from the `table` of levels, and measured in the end.

    A request is `prompt_tokens` in and `answer_tokens` out. `table` has seconds by phase: of the dense model, and of
    attention and MLP at every level.
    """

    asked: Number
    predicted: Phases
    table: dict[str, Any] = {}
    prompt_tokens: Count = 0
    answer_tokens: Count = 0
    measured: Phases
