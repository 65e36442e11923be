"""What was measured, pruned beside dense: plain numbers in, sections of a report out.

Every figure is taken on the report split, which neither the search nor the choice among finalists has seen.
"""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hf_prune.assembly.assemble import Parent
from hf_prune.blueprint import GONE, Blueprint, LayerSpec, Part, Source
from hf_prune.data.task_scores import TaskScores
from hf_prune.data.windows import Windows
from hf_prune.evaluation import speed
from hf_prune.evaluation.evaluator import Evaluator, TokenScores
from hf_prune.report.schema.course import Corpus, Hardware, Split
from hf_prune.report.schema.model import LayerOrigin, LayerWidth, ModelSize, Size, SourceCard
from hf_prune.report.schema.scores import Answers, Baseline, BesideParents, Perplexity, Task, Text
from hf_prune.report.schema.section import Interval

Z95 = 1.959963984540054


def interval(values: np.ndarray) -> tuple[float, Interval]:
    """Mean over windows and its 95 % normal interval; windows are the independent units, tokens inside one are not."""
    mean = float(values.mean())
    if len(values) < 2 or not np.isfinite(values).all():
        return mean, (mean, mean)
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (JASA 22, 1927); 95 % by default."""
    share = successes / trials
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, rng: np.random.Generator, draws: int = 10_000
) -> tuple[float, tuple[float, float]]:
    """Difference in accuracy (ours - theirs) on the same items, with a 95 % interval by paired bootstrap.

    Only the items on which the two disagree matter, so a resample of the items is one multinomial draw of three counts.

    Args:
        ours: bool [items].
        theirs: bool [items], the same items in the same order.
        rng: decides the resamples.
        draws: number of resamples.
    """
    n = len(ours)
    won, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    counts = rng.multinomial(n, [won / n, lost / n, (n - won - lost) / n], size=draws)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / n, [0.025, 0.975])
    return (won - lost) / n, (float(low), float(high))


def text(dense: TokenScores, pruned: TokenScores, windows: Windows, said: np.ndarray) -> dict[str, Text]:
    """Perplexity of both, KL and their paired log-ratio, per corpus and over all windows.

    Args:
        dense: per-token (KL, NLL), each [windows, T-1], nats.
        pruned: the same for the pruned model.
        windows: names the corpus of each window.
        said: int64 [windows], bytes of text that the predicted tokens say.
    """
    names = sorted(set(windows.corpora))
    rows = {n: np.array([c == n for c in windows.corpora]) for n in names}
    rows["all"] = np.ones(len(windows.corpora), bool)
    return {name: _text_row(dense, pruned, mask, said[mask]) for name, mask in rows.items()}


def _text_row(dense: TokenScores, pruned: TokenScores, mask: np.ndarray, said: np.ndarray) -> Text:
    nll_dense, nll = (s[1].double().mean(1).numpy()[mask] for s in (dense, pruned))
    kl, kl_ci = interval(pruned[0].double().mean(1).numpy()[mask])
    ratio, ratio_ci = interval(nll - nll_dense)
    return Text(
        tokens=int(mask.sum()) * pruned[1].shape[1],
        bytes=int(said.sum()),
        dense=perplexity(nll_dense, said / pruned[1].shape[1]),
        pruned=perplexity(nll, said / pruned[1].shape[1]),
        kl=kl,
        kl_ci=kl_ci,
        log_ratio=ratio,
        log_ratio_ci=ratio_ci,
    )


EACH = "the best of each corpus"


def beside_parents(
    ours: TokenScores,
    parents: Mapping[str, TokenScores],
    best: Mapping[str, str],
    windows: Windows,
    said: np.ndarray,
) -> dict[str, BesideParents]:
    """A model of several parents beside the base, and beside the best parent of every corpus.

    Args:
        ours: its scores on the report split.
        parents: of each parent by name, the base first.
        best: name of the parent that knows each corpus best, by other text than this.
        windows: names the corpus of each window.
        said: as in `text`.
    """
    nll, base, *_ = (s[1].double().mean(1).numpy() for s in (ours, *parents.values()))
    rows = {name: scores[1].double().mean(1).numpy() for name, scores in parents.items()}
    each = said / ours[1].shape[1]
    chosen = np.array([rows[best[c]][i] for i, c in enumerate(windows.corpora)])
    names = sorted(set(windows.corpora))
    masks = {n: np.array([c == n for c in windows.corpora]) for n in names} | {"all": np.ones(len(nll), bool)}
    found = {}
    for corpus, mask in masks.items():
        ratio, ci = interval((nll - chosen)[mask])
        to_base, base_ci = interval((nll - base)[mask])
        found[corpus] = BesideParents(
            best=best.get(corpus, EACH),
            pruned=perplexity(nll[mask], each[mask]),
            best_parent=perplexity(chosen[mask], each[mask]),
            base=perplexity(base[mask], each[mask]),
            log_ratio=ratio,
            log_ratio_ci=ci,
            log_ratio_to_base=to_base,
            log_ratio_to_base_ci=base_ci,
        )
    return found


def perplexity(nll: np.ndarray, said: np.ndarray | None = None) -> Perplexity:
    """exp of the mean of per-window NLLs, with the exponentiated interval, and the same in bits per byte.

    Args:
        nll: [windows], nats per token.
        said: [windows], bytes per token; without it, or where none is said, nothing is told of bytes.
    """
    mean, (low, high) = interval(nll)
    found = Perplexity(perplexity=_exp(mean), ci=(_exp(low), _exp(high)))
    if said is None or not said.any():
        return found
    bits, ci = per_byte(nll, said)
    return found.replace(bits_per_byte=bits, bits_per_byte_ci=ci)


def per_byte(nll: np.ndarray, said: np.ndarray) -> tuple[float, Interval]:
    """Bits per byte over all windows, with the interval of a ratio (Cochran, Sampling Techniques, 1977, 6.4).

    Args:
        nll: [windows], nats of each.
        said: [windows], bytes of each, not all 0; or both divided by the same number.
    """
    value = float(nll.sum() / said.sum()) / math.log(2)
    if not math.isfinite(value):
        return value, (value, value)
    _, (low, high) = interval((nll / math.log(2) - value * said) / said.mean())
    return value, (value + low, value + high)


def by_corpus(nll: np.ndarray, said: np.ndarray, windows: Windows) -> dict[str, float]:
    """Bits per byte of every corpus that says any, and of all text.

    Args:
        nll: [windows], nats of each.
        said: [windows], bytes of each.
        windows: names the corpus of each.
    """
    rows = {c: np.array([one == c for one in windows.corpora]) for c in sorted({*windows.corpora})}
    rows["all"] = np.ones(len(nll), bool)
    return {name: per_byte(nll[mask], said[mask])[0] for name, mask in rows.items() if said[mask].any()}


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def task_scores(
    dense: Mapping[str, TaskScores], pruned: Mapping[str, TaskScores], rng: np.random.Generator
) -> dict[str, Task]:
    """Accuracy of both on the same items, with the paired difference; what ends in `_norm` is of acc_norm."""
    section = {}
    for name, theirs in dense.items():
        ours = pruned[name]
        difference, ci = paired_difference(ours.correct, theirs.correct, rng)
        difference_norm, ci_norm = paired_difference(ours.correct_norm, theirs.correct_norm, rng)
        section[name] = Task(
            items=len(theirs.correct),
            chance=theirs.chance,
            dense=_answers(theirs),
            pruned=_answers(ours),
            difference=difference,
            difference_ci=ci,
            difference_norm=difference_norm,
            difference_ci_norm=ci_norm,
        )
    return section


def _answers(scores: TaskScores) -> Answers:
    right, right_norm = scores.correct, scores.correct_norm
    return Answers(
        accuracy=float(right.mean()),
        ci=wilson(int(right.sum()), len(right)),
        accuracy_norm=float(right_norm.mean()),
        ci_norm=wilson(int(right_norm.sum()), len(right_norm)),
    )


def sizes(parent: Parent, blueprint: Blueprint, live: int, stored: tuple[int, int], itemsize: int) -> Size:
    """Parameters, bytes, layers and KV cache of dense and pruned.

    Args:
        parent: the dense source.
        blueprint: of the pruned model.
        live: parameters that do something (removed halves not counted).
        stored: parameters and bytes in the written files.
        itemsize: bytes of one cache element.
    """
    layers = blueprint.canonical().layers
    dense = ModelSize(
        parameters=parent.original.parameters,
        bytes=parent.original.bytes,
        layers=parent.depth,
        kv_bytes_per_token=speed.kv_bytes_per_token(parent.config, itemsize),
    )
    pruned = ModelSize(
        parameters=stored[0],
        active_parameters=live,
        bytes=stored[1],
        layers=len(layers),
        # Stock classes cache keys and values of a silenced attention too.
        kv_bytes_per_token=_cached(parent, layers, itemsize),
        layers_with_attention=sum(s.attn_level != GONE for s in layers),
    )
    return Size(dense=dense, pruned=pruned, removed_ratio=1 - live / parent.original.parameters)


def _cached(parent: Parent, layers: Sequence[LayerSpec], itemsize: int) -> int:
    """Bytes that the cache holds per token."""
    kept = [(spec, speed.kv_bytes_per_token(parent.config, itemsize, [spec.anchor.layer])) for spec in layers]
    return round(sum(_share_of_groups(parent, spec) * each for spec, each in kept))


def _share_of_groups(parent: Parent, spec: LayerSpec) -> float:
    """How many of a layer's key-value heads are left."""
    if not spec.library:
        return 1.0
    levels = parent.levels[spec.library]
    return levels.left("attention", spec.attn_level) / levels.widths.groups


def widths(parent: Parent, blueprint: Blueprint) -> list[LayerWidth] | None:
    """Heads and neurons of every output layer, and of the dense one; None where no layer is narrower."""
    found = []
    for spec in blueprint.canonical().layers:
        if spec.library:
            levels = parent.levels[spec.library]
            width = LayerWidth(
                source=spec.anchor.layer,
                heads=levels.left("attention", spec.attn_level) * levels.widths.heads,
                neurons=levels.left("mlp", spec.mlp_level),
                of_heads=levels.widths.groups * levels.widths.heads,
                of_neurons=levels.widths.neurons,
            )
            found.append(width)
    return found or None


def origins(blueprint: Blueprint, names: Sequence[str]) -> list[LayerOrigin]:
    """Per output layer the source layer and the weight of every parent, of the MLP apart where it has its own."""
    return [
        LayerOrigin(
            source=spec.anchor.layer,
            merge=spec.merge,
            parents=_weights(spec.parts, names),
            mlp=_weights(spec.mlp.parts, names) if spec.mlp else None,
            mlp_merge=spec.mlp.merge if spec.mlp else None,
        )
        for spec in blueprint.layers
    ]


def _weights(parts: Sequence[Part], names: Sequence[str]) -> dict[str, float]:
    return {names[p.source]: p.weight for p in parts}


def baselines(
    entries: Sequence[tuple[str, str, Blueprint]],
    scores: Sequence[TokenScores],
    evaluator: Evaluator,
    ours: TokenScores,
    said: np.ndarray,
) -> list[Baseline]:
    """Rows of the comparison at equal size: (name, label, blueprint) of bare cuts, and their scores on the report split
    beside those of ours."""
    our_nll = ours[1].double().mean(1).numpy()
    rows = []
    for (name, label, blueprint), (kl, nll) in zip(entries, scores, strict=True):
        per_window = nll.double().mean(1).numpy()
        layers = blueprint.canonical().layers
        kept = {p.layer for s in layers for p in s.parts}
        row = Baseline(
            name=name,
            label=label,
            **({"blueprint": blueprint.to_json()} if _beyond_deletion(blueprint, evaluator) else {}),
            removed=tuple(i for i in range(evaluator.bank.parents[0].depth) if i not in kept),
            layers=len(layers),
            parameters=evaluator.parameters(blueprint),
            **perplexity(per_window, said / nll.shape[1]).given(),
            kl=float(kl.double().mean()),
            log_ratio_ci_vs_ours=None if name == "hf_prune" else interval(per_window - our_nll)[1],
        )
        rows.append(row)
    return rows


def _beyond_deletion(blueprint: Blueprint, evaluator: Evaluator) -> bool:
    """Whether more than the layers of the base that are gone makes this model."""
    alone = blueprint.sources == evaluator.bank.sources[:1]
    return not alone or any(s.library or s.blends or len(s.parts) > 1 for s in blueprint.layers)


def splits(windows: Mapping[str, Windows]) -> dict[str, Split]:
    """Windows, tokens and origin of every split and corpus."""
    return {name: _split(w) for name, w in windows.items()}


def _split(w: Windows) -> Split:
    return Split(
        windows=len(w.tokens),
        tokens=w.tokens.numel(),
        length=w.tokens.shape[1],
        corpora={c: Corpus(windows=w.corpora.count(c), origin=w.origin[c]) for c in sorted(set(w.corpora))},
    )


def hardware(device: torch.device) -> dict[str, Any]:
    """What the measurements ran on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return Hardware(
        processor=_processor(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        memory_gib=round(memory / 2**30, 1),
        accelerator=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def sources(pinned: Sequence[Source], cards: Sequence[Mapping[str, Any]]) -> list[SourceCard]:
    """Pinned parents with the licence and language their own cards state."""
    return [
        SourceCard(
            repo=source.repo,
            revision=source.revision,
            adapter=source.adapter,
            license=card.get("license"),
            language=card.get("language"),
            **({"how": tuple(card["how"])} if card.get("how") else {}),
        )
        for source, card in zip(pinned, cards, strict=True)
    ]
