"""What was measured, pruned beside dense: plain numbers in, one JSON-ready dict out.

Every figure is taken on the report split, which neither the search nor the choice among finalists has seen.
"""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from hf_prune.assembly.assemble import Parent
from hf_prune.blueprint import GONE, Blueprint, Fidelity, LayerSpec, Part
from hf_prune.data import tasks
from hf_prune.data.windows import Windows
from hf_prune.evaluation import speed
from hf_prune.evaluation.evaluator import Evaluator

Z95 = 1.959963984540054
TokenScores = tuple[torch.Tensor, torch.Tensor]


def interval(values: np.ndarray) -> tuple[float, list[float]]:
    """Mean over windows and its 95 % normal interval; windows are the independent units, tokens inside one are not."""
    mean = float(values.mean())
    if len(values) < 2 or not np.isfinite(values).all():
        return mean, [mean, mean]
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, [mean - half, mean + half]


def text(dense: TokenScores, pruned: TokenScores, windows: Windows) -> dict[str, Any]:
    """Perplexity of both, KL and their paired log-ratio, per corpus and over all windows.

    Args:
        dense: per-token (KL, NLL), each [windows, T-1], nats.
        pruned: the same for the pruned model.
        windows: names the corpus of each window.
    """
    names = sorted(set(windows.corpora))
    rows = {n: np.array([c == n for c in windows.corpora]) for n in names}
    rows["all"] = np.ones(len(windows.corpora), bool)
    return {name: _text_row(dense, pruned, mask) for name, mask in rows.items()}


def _text_row(dense: TokenScores, pruned: TokenScores, mask: np.ndarray) -> dict[str, Any]:
    nll_dense, nll = (s[1].double().mean(1).numpy()[mask] for s in (dense, pruned))
    kl, kl_ci = interval(pruned[0].double().mean(1).numpy()[mask])
    ratio, ratio_ci = interval(nll - nll_dense)
    return {
        "tokens": int(mask.sum()) * pruned[1].shape[1],
        "dense": perplexity(nll_dense),
        "pruned": perplexity(nll),
        "kl": kl,
        "kl_ci": kl_ci,
        "log_ratio": ratio,
        "log_ratio_ci": ratio_ci,
    }


def perplexity(nll: np.ndarray) -> dict[str, Any]:
    """exp of the mean of per-window NLLs [windows], with the exponentiated interval."""
    mean, ends = interval(nll)
    return {"perplexity": _exp(mean), "ci": [_exp(e) for e in ends]}


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def task_scores(
    dense: Mapping[str, tasks.TaskScores], pruned: Mapping[str, tasks.TaskScores], rng: np.random.Generator
) -> dict[str, Any]:
    """Accuracy of both on the same items, with the paired difference; what ends in `_norm` is of acc_norm."""
    section = {}
    for name, theirs in dense.items():
        ours = pruned[name]
        row: dict[str, Any] = {"items": len(theirs.correct), "chance": theirs.chance, "dense": {}, "pruned": {}}
        for how, suffix in tasks.ACCURACIES.items():
            for who, scores in (("dense", theirs), ("pruned", ours)):
                right = getattr(scores, how)
                row[who][f"accuracy{suffix}"] = float(right.mean())
                row[who][f"ci{suffix}"] = list(tasks.wilson(int(right.sum()), len(right)))
            difference, ci = tasks.difference(getattr(ours, how), getattr(theirs, how), rng)
            row |= {f"difference{suffix}": difference, f"difference_ci{suffix}": list(ci)}
        section[name] = row
    return section


def sizes(parent: Parent, blueprint: Blueprint, live: int, stored: tuple[int, int], itemsize: int) -> dict[str, Any]:
    """Parameters, bytes, layers and KV cache of dense and pruned.

    Args:
        parent: the dense source.
        blueprint: of the pruned model.
        live: parameters that do something (removed halves not counted).
        stored: parameters and bytes in the written files.
        itemsize: bytes of one cache element.
    """
    layers = blueprint.canonical().layers
    caching = sum(s.attn_level != GONE for s in layers)
    dense_bytes = sum(s.numel() * parent.checkpoint.itemsize(n) for n, s in parent.shapes.items())
    return {
        "dense": {
            "parameters": parent.parameters,
            "bytes": dense_bytes,
            "layers": parent.depth,
            "kv_bytes_per_token": speed.kv_bytes_per_token(parent.config, itemsize),
        },
        "pruned": {
            "parameters": stored[0],
            "active_parameters": live,
            "bytes": stored[1],
            "layers": len(layers),
            # Stock classes cache keys and values of a silenced attention too.
            "kv_bytes_per_token": _cached(parent, layers, itemsize),
            "layers_with_attention": caching,
        },
        "removed_ratio": 1 - live / parent.parameters,
    }


def _cached(parent: Parent, layers: Sequence[LayerSpec], itemsize: int) -> int:
    """Bytes that the cache holds per token."""
    held = 0.0
    for spec in layers:
        levels = parent.levels[spec.library] if spec.library else None
        share = levels.left("attention", spec.attn_level) / levels.widths.groups if levels else 1.0
        held += share * speed.kv_bytes_per_token(parent.config, itemsize, [spec.anchor.layer])
    return round(held)


def widths(parent: Parent, blueprint: Blueprint) -> list[dict[str, int]] | None:
    """Heads and neurons of every output layer, and of the dense one; None where no layer is narrower."""
    found = []
    for spec in blueprint.canonical().layers:
        if spec.library:
            levels = parent.levels[spec.library]
            heads = levels.left("attention", spec.attn_level) * levels.widths.heads
            found.append({"source": spec.anchor.layer, "heads": heads, "neurons": levels.left("mlp", spec.mlp_level),
                          "of_heads": levels.widths.groups * levels.widths.heads,
                          "of_neurons": levels.widths.neurons})  # fmt: skip
    return found or None


def fates(blueprint: Blueprint, depth: int) -> list[dict[str, Any]]:
    """What became of every source layer, for the table and the layer strip.

    One of kept, narrowed, removed, merged, attn_removed, mlp_removed, or norms_only: its norms went to an output layer
    that has the rest of its weights from elsewhere.
    """
    homes: list[list[dict[str, Any]]] = [[] for _ in range(depth)]
    for output, spec in enumerate(blueprint.canonical().layers):
        for part in spec.parts:
            fate = "kept" if len(spec.parts) == 1 else "merged"
            if spec.attn_level > 0 or spec.mlp_level > 0:
                fate = "narrowed"
            if spec.attn_level == GONE or spec.mlp_level == GONE:
                fate = "attn_removed" if spec.attn_level == GONE else "mlp_removed"
            homes[part.layer].append({"fate": fate, "output": output, "weight": part.weight})
        if spec.norms and spec.norms.layer not in [p.layer for p in spec.parts]:
            homes[spec.norms.layer].append({"fate": "norms_only", "output": output, "weight": 0.0})
    gone = {"fate": "removed", "output": None, "weight": 0.0}
    return [
        {"source": i, **(max(found, key=lambda f: f["weight"]) if found else gone)} for i, found in enumerate(homes)
    ]


def origins(blueprint: Blueprint, names: Sequence[str]) -> list[dict[str, Any]]:
    """Per output layer the source layer and the weight of every parent, of the MLP apart where it has its own."""
    return [
        {
            "source": spec.anchor.layer,
            "merge": spec.merge,
            "parents": _weights(spec.parts, names),
            "mlp": _weights(spec.mlp.parts, names) if spec.mlp else None,
            "mlp_merge": spec.mlp.merge if spec.mlp else None,
        }
        for spec in blueprint.layers
    ]


def _weights(parts: Sequence[Part], names: Sequence[str]) -> Mapping[str, float]:
    return {names[p.source]: p.weight for p in parts}


def baselines(
    entries: Sequence[tuple[str, str, Blueprint]], evaluator: Evaluator, windows: Windows, ours: TokenScores
) -> list[dict[str, Any]]:
    """Rows of the comparison at equal size: (name, label, blueprint), bare cuts in one sweep over the report split."""
    scores = evaluator.token_scores([b for _, _, b in entries], Fidelity(len(windows.tokens)))
    our_nll = ours[1].double().mean(1).numpy()
    rows = []
    for (name, label, blueprint), (kl, nll) in zip(entries, scores, strict=True):
        per_window = nll.double().mean(1).numpy()
        ratio = interval(per_window - our_nll)[1]
        layers = blueprint.canonical().layers
        kept = {p.layer for s in layers for p in s.parts}
        rows.append(
            {
                "name": name,
                "label": label,
                **({"blueprint": blueprint.to_json()} if _beyond_deletion(blueprint, evaluator) else {}),
                "removed": [i for i in range(evaluator.bank.parents[0].depth) if i not in kept],
                "layers": len(layers),
                "parameters": evaluator.parameters(blueprint),
                **perplexity(per_window),
                "kl": float(kl.double().mean()),
                "log_ratio_ci_vs_ours": None if name == "hf_prune" else ratio,
            }
        )
    return rows


def _beyond_deletion(blueprint: Blueprint, evaluator: Evaluator) -> bool:
    """Whether more than the layers of the base that are gone makes this model."""
    alone = blueprint.sources == evaluator.bank.sources[:1]
    return not alone or any(s.library or len(s.parts) > 1 for s in blueprint.layers)


def splits(windows: Mapping[str, Windows]) -> dict[str, Any]:
    """Windows, tokens and origin of every split and corpus."""
    return {
        name: {
            "windows": len(w.tokens),
            "tokens": w.tokens.numel(),
            "length": w.tokens.shape[1],
            "corpora": {c: {"windows": w.corpora.count(c), "origin": w.origin[c]} for c in sorted(set(w.corpora))},
        }
        for name, w in windows.items()
    }


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation with average ranks for ties; NaN for fewer than three points or a constant side."""
    if len(a) < 3:
        return math.nan
    ranks = [_ranks(np.asarray(x, float)) for x in (a, b)]
    if any(r.std() == 0 for r in ranks):
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    order = np.sort(values)
    return (np.searchsorted(order, values, "left") + np.searchsorted(order, values, "right") - 1) / 2


def hardware(device: torch.device) -> dict[str, Any]:
    """What the measurements ran on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**30, 1),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def sources(blueprint: Blueprint, cards: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pinned parents with the licence and language their own cards state."""
    return [
        {**asdict(s), "license": c.get("license"), "language": c.get("language")}
        for s, c in zip(blueprint.sources, cards, strict=True)
    ]
