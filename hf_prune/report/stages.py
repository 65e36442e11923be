"""What a model can still do, dense, cut, repaired and healed; each difference is paired with the dense parent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from hf_prune.data.task_scores import TaskScores, longest
from hf_prune.data.windows import Windows
from hf_prune.metrics import text_scores
from hf_prune.report import samples, statistics
from hf_prune.report.lm_eval import HarnessScores

STAGES = ("dense", "cut", "repaired", "healed")
PROMPT_TOKENS, NEW_TOKENS = 24, 64
PROMPTS, SHOWN, WORST = 24, 6, 3
"""Report windows whose beginnings are continued; samples shown in order, and those that lost most."""


@dataclass(frozen=True, eq=False)
class Observed:
    """One model, as it was seen.

    text: per-token (KL, NLL), each [windows, T-1], nats. tasks: by name. said: token ids of the greedy continuations.
    closeness: float64 [prompts] per metric, of the continuations to the text's own. harness: by lm_eval's task name.
    """

    text: statistics.TokenScores
    tasks: Mapping[str, TaskScores]
    said: tuple[tuple[int, ...], ...]
    closeness: Mapping[str, np.ndarray]
    harness: Mapping[str, HarnessScores]


def observe(
    model: PreTrainedModel,
    text: statistics.TokenScores,
    tokenizer: Any,
    windows: Windows,
    answers: Mapping[str, TaskScores],
    harness: Mapping[str, HarnessScores],
) -> Observed:
    """Let a live model go on with the first tokens of report windows; the rest is known of it."""
    rows = windows.tokens[:PROMPTS]
    room = max(1, min(NEW_TOKENS, longest(model.config) - PROMPT_TOKENS))
    said = samples.greedy(model, list(rows[:, :PROMPT_TOKENS]), room)
    wanted = rows[:, PROMPT_TOKENS : PROMPT_TOKENS + NEW_TOKENS].tolist()
    close = text_scores([_speech(tokenizer, ids) for ids in said], [_speech(tokenizer, ids) for ids in wanted])
    return Observed(text, answers, said, close, harness)


def stages(seen: Mapping[str, Observed], windows: Windows, rng: np.random.Generator) -> dict[str, Any]:
    """The capability table: per corpus, task, metric of generated text and lm_eval metric, every stage beside dense.

    Args:
        seen: by name of the stage, in the order of `STAGES`; `dense` among them.
        windows: the report split.
        rng: decides the resamples of paired intervals.
    """
    dense = seen["dense"]
    return {
        "names": list(seen),
        "text": _by_corpus(seen, windows),
        "tasks": {
            name: {stage: statistics.task_scores({name: dense.tasks[name]}, {name: o.tasks[name]}, rng)[name]
                   for stage, o in seen.items()}
            for name in dense.tasks
        },
        "generation": {stage: _generated(o, dense) for stage, o in seen.items()},
        "harness": {name: {stage: _harness(o.harness[name], dense.harness[name]) for stage, o in seen.items()}
                    for name in dense.harness},
    }  # fmt: skip


def spoken(seen: Mapping[str, Observed], tokenizer: Any, windows: Windows) -> dict[str, Any]:
    """Greedy continuations side by side, `pruned` being the last stage, and how much they repeat themselves.

    `samples` are the first prompts, `worst` those on whose windows the last stage lost most against dense.
    """
    final = list(seen)[-1]
    loss = (seen[final].text[1] - seen["dense"].text[1]).double().mean(1)[: len(windows.tokens[:PROMPTS])]
    worst = loss.argsort(descending=True)[:WORST].tolist()

    def shown(row: int) -> dict[str, str]:
        prompt = _speech(tokenizer, windows.tokens[row, :PROMPT_TOKENS].tolist())
        texts = {stage: _speech(tokenizer, o.said[row]) for stage, o in seen.items()}
        return {"prompt": prompt, **texts, "pruned": texts[final]}

    stats = {stage: samples.statistics(o.said).to_dict() for stage, o in seen.items()}
    return {
        "samples": [shown(row) for row in range(min(SHOWN, len(loss)))],
        "worst": [shown(row) for row in worst],
        "new_tokens": NEW_TOKENS,
        **stats,
        "pruned": stats[final],
    }


def closed(dense: float, cut: float, now: float) -> float | None:
    """Share of the gap between dense and cut that is closed; None where the cut cost nothing."""
    return (cut - now) / (cut - dense) if cut > dense else None


def _by_corpus(seen: Mapping[str, Observed], windows: Windows) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stage, o in seen.items():
        for corpus, row in statistics.text(seen["dense"].text, o.text, windows).items():
            kept = {k: row[k] for k in ("kl", "kl_ci", "log_ratio", "log_ratio_ci")}
            found.setdefault(corpus, {})[stage] = {**row["pruned"], **kept}
    for rows in found.values():
        for row in rows.values() if "cut" in rows else ():
            row["closed"] = closed(0.0, rows["cut"]["log_ratio"], row["log_ratio"])
    return found


def _generated(ours: Observed, dense: Observed) -> dict[str, Any]:
    row: dict[str, Any] = samples.statistics(ours.said).to_dict()
    for name, values in ours.closeness.items():
        difference, ci = statistics.interval(values - dense.closeness[name])
        row[name] = {"value": float(values.mean()), "difference": difference, "difference_ci": ci}
    return row


def _harness(ours: HarnessScores, dense: HarnessScores) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in ours.metrics.items():
        row[name] = {"value": value, "higher_is_better": ours.higher_is_better.get(name)}
        if name in ours.items:
            difference, ci = statistics.interval(ours.items[name] - dense.items[name])
            row[name] |= {"difference": difference, "difference_ci": ci, "items": len(ours.items[name])}
    return {"version": ours.version, "metrics": row}


def _speech(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True)
