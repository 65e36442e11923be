"""What a model can still do, dense, cut, repaired and healed; each difference is paired with the dense parent."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from hf_prune.data.task_scores import TaskScores, longest
from hf_prune.data.windows import Windows
from hf_prune.metrics import text_scores
from hf_prune.report import samples, statistics
from hf_prune.report.lm_eval import HarnessScores
from hf_prune.report.schema.scores import (
    Generation,
    HarnessMetric,
    HarnessTask,
    Sample,
    Score,
    StageGeneration,
    Stages,
    StageText,
    Task,
    Text,
)
from hf_prune.report.schema.section import ByStage, StageName

PROMPT_TOKENS, NEW_TOKENS = 24, 64
PROMPTS, SHOWN, WORST = 16, 6, 3
"""Report windows whose beginnings are continued; samples shown in order, and those that lost most."""


@dataclass(frozen=True, eq=False)
class Observed:
    """One model, as it was seen.

    text: per-token (KL, NLL), each [windows, T-1], nats. tasks: by name. said: token ids of the greedy continuations.
    closeness: float64 [prompts] per metric, of the continuations to the text's own. harness: by lm_eval's task name.
    """

    text: statistics.TokenScores
    tasks: Mapping[str, TaskScores]
    said: tuple[tuple[int, ...], ...] = ()
    closeness: Mapping[str, np.ndarray] = field(default_factory=dict)
    harness: Mapping[str, HarnessScores] = field(default_factory=dict)


def observe(
    model: PreTrainedModel,
    text: statistics.TokenScores,
    tokenizer: Any,
    windows: Windows,
    answers: Mapping[str, TaskScores],
    harness: Mapping[str, HarnessScores],
) -> Observed:
    """Let a live model go on with beginnings of sentences in report windows; the rest is known of it."""
    asked = prompts(tokenizer, windows)
    room = max(1, min(NEW_TOKENS, longest(model.config) - PROMPT_TOKENS))
    said = samples.greedy(model, [row[:PROMPT_TOKENS] for row in asked], room)
    wanted = [row[PROMPT_TOKENS : PROMPT_TOKENS + NEW_TOKENS].tolist() for row in asked]
    close = text_scores([_speech(tokenizer, ids) for ids in said], [_speech(tokenizer, ids) for ids in wanted])
    return Observed(text, answers, said, close, harness)


def prompts(tokenizer: Any, windows: Windows) -> list[Tensor]:
    """The first report windows from the beginning of a sentence on, where one leaves room for a continuation.

    Returns:
        int64 [tokens] each.
    """
    return [row[_sentence(tokenizer, row.tolist()) :] for row in windows.tokens[:PROMPTS]]


def _sentence(tokenizer: Any, row: Sequence[int]) -> int:
    """Where the first sentence that begins in a window begins; 0 without one, or where the window is short."""
    for start in range(1, len(row) - PROMPT_TOKENS - NEW_TOKENS):
        before, now = tokenizer.decode(row[max(0, start - 4) : start]), tokenizer.decode(row[start : start + 2])
        if re.search(r"([.!?][\"'”’)]*\s*|\n\s*)$", before) and re.match(r"\s*[^\W\d_]", now):
            return start
    return 0


def stages(seen: Mapping[StageName, Observed], windows: Windows, said: np.ndarray, rng: np.random.Generator) -> Stages:
    """The capability table: per corpus, task, metric of generated text and lm_eval metric, every stage beside dense.

    Args:
        seen: by name of the stage, in the order of `STAGES`; `dense` among them.
        windows: the report split.
        said: int64 [windows], bytes of text that the predicted tokens say.
        rng: decides the resamples of paired intervals.
    """
    dense = seen["dense"]
    return Stages(
        names=tuple(seen),
        text=_by_corpus(seen, windows, said),
        tasks={name: _by_task(seen, name, rng) for name in dense.tasks},
        generation=ByStage[StageGeneration](**{stage: _generated(o, dense) for stage, o in seen.items()})
        if dense.said
        else None,
        harness={name: _by_harness_task(seen, name) for name in dense.harness},
    )


def spoken(seen: Mapping[StageName, Observed], tokenizer: Any, windows: Windows) -> Generation:
    """Greedy continuations side by side, `pruned` being the last stage, and how much they repeat themselves.

    `samples` are the first prompts, `worst` those on whose windows the last stage lost most against dense.
    """
    final = list(seen)[-1]
    loss = (seen[final].text[1] - seen["dense"].text[1]).double().mean(1)[: len(windows.tokens[:PROMPTS])]
    worst = loss.argsort(descending=True)[:WORST].tolist()

    asked = prompts(tokenizer, windows)

    def shown(row: int) -> Sample:
        prompt = _speech(tokenizer, asked[row][:PROMPT_TOKENS].tolist())
        texts = {stage: _speech(tokenizer, o.said[row]) for stage, o in seen.items()}
        return Sample(prompt=prompt, **texts, pruned=texts[final])

    fluencies = {stage: samples.fluency(o.said) for stage, o in seen.items()}
    return Generation(
        samples=tuple(shown(row) for row in range(min(SHOWN, len(loss)))),
        worst=tuple(shown(row) for row in worst),
        new_tokens=NEW_TOKENS,
        **fluencies,
        pruned=fluencies[final],
    )


def closed(dense: float, cut: float, now: float) -> float:
    """Share of the gap between dense and cut that is closed; NaN where the cut cost nothing."""
    return (cut - now) / (cut - dense) if cut > dense else math.nan


def _by_corpus(seen: Mapping[StageName, Observed], windows: Windows, said: np.ndarray) -> dict[str, ByStage[StageText]]:
    texts = {stage: statistics.text(seen["dense"].text, o.text, windows, said) for stage, o in seen.items()}
    found = {}
    for corpus in texts["dense"]:
        gap = texts["cut"][corpus].log_ratio if "cut" in texts else math.nan
        rows = {stage: _stage_text(text[corpus], gap) for stage, text in texts.items()}
        found[corpus] = ByStage[StageText](**rows)
    return found


def _stage_text(row: Text, gap: float) -> StageText:
    """A stage beside the gap in log-perplexity that the cut opened."""
    return StageText(
        **row.pruned.given(),
        kl=row.kl,
        kl_ci=row.kl_ci,
        log_ratio=row.log_ratio,
        log_ratio_ci=row.log_ratio_ci,
        closed=closed(0.0, gap, row.log_ratio),
    )


def _by_task(seen: Mapping[StageName, Observed], name: str, rng: np.random.Generator) -> ByStage[Task]:
    dense = seen["dense"].tasks[name]
    rows = {stage: statistics.task_scores({name: dense}, {name: o.tasks[name]}, rng)[name] for stage, o in seen.items()}
    return ByStage[Task](**rows)


def _generated(ours: Observed, dense: Observed) -> StageGeneration:
    scores = {}
    for name, values in ours.closeness.items():
        difference, ci = statistics.interval(values - dense.closeness[name])
        scores[name] = Score(value=float(values.mean()), difference=difference, difference_ci=ci)
    return StageGeneration(**samples.fluency(ours.said).given(), **scores)


def _by_harness_task(seen: Mapping[StageName, Observed], name: str) -> ByStage[HarnessTask]:
    dense = seen["dense"].harness[name]
    return ByStage[HarnessTask](**{stage: _harness(o.harness[name], dense) for stage, o in seen.items()})


def _harness(ours: HarnessScores, dense: HarnessScores) -> HarnessTask:
    rows = {}
    for name, value in ours.metrics.items():
        row = HarnessMetric(value=value, higher_is_better=ours.higher_is_better.get(name))
        if name in ours.items:
            difference, ci = statistics.interval(ours.items[name] - dense.items[name])
            row = row.replace(difference=difference, difference_ci=ci, items=len(ours.items[name]))
        rows[name] = row
    return HarnessTask(version=ours.version, metrics=rows)


def _speech(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True)
