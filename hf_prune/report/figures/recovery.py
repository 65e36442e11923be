"""Pictures of what a cut cost and what came back: capabilities by stage, the course of a training."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from hf_prune.report.figures.canvas import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    SKY,
    canvas,
    digits,
    finish,
    height,
    plain,
    save,
)
from hf_prune.report.schema.course import Healing
from hf_prune.report.schema.scores import Stages, StageText, Task
from hf_prune.report.schema.section import StageName

COLOURS = {"dense": GREY, "cut": PALE, "repaired": SKY, "healed": BLUE}


def capabilities(stages: Stages, path: str | Path) -> Path:
    """Bars by stage with 95 % intervals: perplexity per corpus, beside it accuracy per task."""
    names = stages.names
    texts = [c for c in stages.text if c != "all"]
    tasks = list(stages.tasks)
    drawing = canvas(3.8)
    sides = drawing.subplots(1, 2 if tasks else 1, width_ratios=[len(texts), len(tasks)] if tasks else None)
    left, right = sides if tasks else (sides, None)
    dense = {c: height(stages.text[c].dense.perplexity) for c in texts}
    bars = {n: [_relative(stages.text[c].of(n), dense[c]) for c in texts] for n in names if n != "dense"}
    _bars(left, texts, bars, 1.0)
    finish(left, "Perplexity, times the dense model", "", "")
    if right is not None:
        rows = {n: [_accuracy(stages.tasks[t].of(n), n) for t in tasks] for n in names}
        _bars(right, [t.removesuffix("_cloze") for t in tasks], rows, None)
        for i, task in enumerate(tasks):
            chance = 100 * stages.tasks[task].dense.chance
            right.plot([i - 0.45, i + 0.45], [chance, chance], color=INK, lw=1, ls=(0, (2, 2)))
        finish(right, "Accuracy, % (dotted: guessing)", "", "")
    handles = (right or left).get_legend_handles_labels()
    drawing.legend(*handles, loc="outside lower center", ncols=len(names), frameon=False)
    return save(drawing, path)


def healing(course: Healing, path: str | Path) -> Path:
    """Loss on the selection windows against tokens trained on, with the state that was kept.

    Raises:
        ValueError: the training's curve has no points.
    """
    if not course.curve:
        raise ValueError("The course of a training needs at least one point.")
    tokens, losses = zip(*[(t / 1e3, height(loss)) for t, loss in course.curve], strict=True)
    drawing = canvas(3.2)
    axes = drawing.subplots()
    axes.plot(tokens, losses, color=BLUE, lw=1.6, marker="o", ms=4)
    best = min(range(len(losses)), key=losses.__getitem__)
    axes.plot(tokens[best], losses[best], marker="o", ms=9, mfc="none", mec=ORANGE, mew=2, ls="")
    label = f"kept: {digits(losses[best])}" if best else "kept: the weights before training"
    axes.annotate(label, (tokens[best], losses[best]), xytext=(-6, 12), textcoords="offset points", ha="right")
    axes.margins(y=0.2)
    finish(axes, "Training after the cut", "thousand tokens", "loss on the selection split")
    return save(drawing, path)


Bar = tuple[float, float, float]
"""Value and the ends of its 95 % interval."""


def _relative(row: StageText, dense: float) -> Bar:
    """Perplexity over that of the dense model, with the paired interval."""
    low, high = (math.exp(min(height(x), 700.0)) for x in row.log_ratio_ci)
    return height(row.perplexity) / dense, low, high


def _accuracy(row: Task, stage: StageName) -> Bar:
    ours = row.dense if stage == "dense" else row.pruned
    low, high = ours.ci
    return 100 * ours.accuracy, 100 * low, 100 * high


def _bars(axes: Axes, groups: Sequence[str], rows: Mapping[str, Sequence[Bar]], line: float | None) -> None:
    width = 0.8 / len(rows)
    ceiling = max((x for bars in rows.values() for x in (b[2] for b in bars) if math.isfinite(x)), default=1.0)
    for k, (stage, bars) in enumerate(rows.items()):
        places = [i + (k - (len(rows) - 1) / 2) * width for i in range(len(groups))]
        heights = [min(b[0], ceiling) for b in bars]
        axes.bar(places, heights, width * 0.92, color=COLOURS[stage], label=stage)
        below = [max(h - b[1], 0) for h, b in zip(heights, bars, strict=True)]
        above = [max(min(b[2], ceiling) - h, 0) for h, b in zip(heights, bars, strict=True)]
        axes.errorbar(places, heights, yerr=[below, above], fmt="none", color=INK, lw=1, capsize=2)
    if line is not None:
        axes.axhline(line, color=GREY, lw=1, label="dense")
    axes.set_xticks(range(len(groups)), [plain(g) for g in groups])
