"""Report -> README.md: the model card, from a template in model_cards/."""

import json
import math
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_prune.blueprint import LOCAL
from hf_prune.data.bundled import bundled_folder
from hf_prune.report import tables, verdicts
from hf_prune.report.licence import inherited_licence, listed
from hf_prune.report.redaction import public_command, public_recipe, public_source, without_paths, without_tokens

Report = Mapping[str, Any]
Parent = Mapping[str, Any]


def write_card(
    report: Report, folder: Path, figures: Mapping[str, str] | None = None, parents: Sequence[Parent] = ()
) -> Path:
    """Write `folder`/README.md from the template model_cards/default.md.

    Args:
        report: the content of report.json, version 1.
        folder: where the model lies; must exist.
        figures: name (layer_strip, search_history, comparison, pareto) -> file, relative to `folder`.
        parents: one mapping per source: repo, revision, adapter, license, language, pipeline_tag, is_local.

    Returns:
        The path of the card, complete or not there at all.

    Raises:
        HfPruneError: the template is not installed.
    """
    parents = parents or report["sources"]
    data = card_data(report, parents)
    context = _context(report, figures or {}, parents)
    card = ModelCard.from_template(data, template_str=_template(), **context)
    card.text = without_tokens(card.text)
    path = Path(folder) / "README.md"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(card.content.rstrip() + "\n", encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def card_data(report: Report, parents: Sequence[Parent]) -> ModelCardData:
    """The YAML header: lineage, inherited licence and languages, tags, and results as a model-index."""
    bases = hub_parents(parents)
    merged = len(bases) > 1 or len(parents) > 1
    languages = list(dict.fromkeys(x for p in parents for x in listed(p.get("language"))))
    results = list(_eval_results(report))
    licence, _ = inherited_licence(parents)
    extra = {k: p[k] for p in parents if licence == "other" for k in ("license_name", "license_link") if p.get(k)}
    return ModelCardData(
        base_model=(bases if len(bases) > 1 else bases[0]) if bases else None,
        base_model_relation=("merge" if merged else "finetune") if bases else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        license=licence,
        language=languages or None,
        tags=["hf-prune", "pruned", str(report["method"])],
        model_name=_one_line(_title(report)) if results else None,
        eval_results=results or None,
        **extra,
    )


def hub_parents(parents: Sequence[Parent]) -> list[str]:
    """Repos of the Hub the model comes from, bases and adapters, without local folders and without revisions."""
    repos = []
    for parent in parents:
        if not _is_local(parent):
            repos.append(str(parent["repo"]))
        adapter, _, revision = str(parent.get("adapter") or "").partition("@")
        if "/" in adapter and not revision.startswith(LOCAL):
            repos.append(adapter)
    # Old repos such as gpt2 have no namespace; anything else that is not spelled like a repo would break the header.
    repos = [r for r in repos if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", r)]
    return list(dict.fromkeys(repos))


def md(text: Any) -> str:
    """Text from outside as one line of markdown that means only itself, also inside a table or an HTML block."""
    return re.sub(r"([\\`*_\[\]<>|&$~#!])", r"\\\1", _one_line(text))


def code(text: Any) -> str:
    """Text from outside as a code span; characters that could end the span or a table cell are replaced."""
    line = _one_line(text)
    return f"`{line.replace('`', chr(39)).replace('|', '¦') or ' '}`"


def fence(text: Any, width: int = 0, language: str = "text") -> str:
    """Text from outside as a fenced block, its fence longer than any run of backticks in it; wrapped at `width`."""
    lines = re.sub(r"\r\n?|[\u2028\u2029\x0b\x0c\x85]", "\n", str(text)).split("\n")
    if width:
        lines = [w.rstrip() for line in lines for w in textwrap.wrap(line, width, drop_whitespace=False) or [""]]
    body = re.sub(r"[\x00-\x08\x0e-\x1f\x7f]", "�", "\n".join(lines))
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
    return f"{ticks}{language}\n{body.rstrip()}\n{ticks}"


def _one_line(text: Any) -> str:
    return re.sub(r"[\s\x00-\x1f\x7f\x85\u2028\u2029]+", " ", str(text)).strip()


def _template() -> str:
    return (bundled_folder("model_cards") / "default.md").read_text(encoding="utf-8")


def _context(report: Report, figures: Mapping[str, str], parents: Sequence[Parent]) -> dict[str, Any]:
    recipe = report.get("recipe") or {}
    local = {str(p["repo"]) for p in parents if _is_local(p)}
    generation, target = report.get("generation") or {}, recipe.get("push_to")
    stage_header, stage_rows = tables.stage_table(report)
    return {
        "md": md, "code": code, "fence": fence, "ranges": _ranges,
        "amount": verdicts.amount, "interval": verdicts.interval,
        "percent": verdicts.percent, "points": verdicts.points, "significant": verdicts.significant,
        "report": report, "title": _title(report), "lead": _lead(report, parents),
        "figures": {k: quote(_relative(v)) for k, v in figures.items()},
        "strip_alt": f"What became of each of the {report['size']['dense']['layers']} source layers",
        "warnings": verdicts.warnings(report), "table": tables.table(report), "speed": report.get("speed"),
        "size_miss": verdicts.size_miss(report), "zeroed": _zeroed(report),
        "stage_header": stage_header, "stage_rows": stage_rows,
        "recovery": verdicts.recovery_verdict(report), "trained": bool((report.get("healing") or {}).get("kept")),
        "adapter": _adapter(report), "samples": generation.get("samples") or [], "worst": generation.get("worst") or [],
        "baselines": _baselines(report), "baseline_verdict": verdicts.baseline_verdict(report),
        "search": _search(report), "merging_verdict": verdicts.merging_verdict(report),
        "tuning_verdict": verdicts.tuning_verdict(report),
        "correlations": _correlations(report), "front": report.get("front") or [],
        "load_from": json.dumps(str(target or "path/to/this/folder")),
        "remote_code": bool(recipe.get("trust_remote_code")) or bool(report.get("own_code")),
        "load_note": _load_note(report),
        "certificate": _certificate(report), "base_check": [md(x) for x in verdicts.base_verdict(report)],
        "command": _commands(report, local),
        "recipe": yaml.safe_dump(public_recipe(recipe, local), sort_keys=False, allow_unicode=True),
        "sources": "; ".join(_parent_link(p) for p in parents), "licence_note": inherited_licence(parents)[1],
        "retention": report.get("retention"), "retention_verdict": verdicts.retention_verdict(report),
        "origins": report.get("origins"), "teachers": report.get("teachers"),
        "hardware": _hardware(report), "times": _times(report), "versions": _versions(report),
        "splits": _splits(report),
    }  # fmt: skip


def _title(report: Report) -> str:
    size = report["size"]
    several = len(report["sources"]) > 1
    said = [str(several and s.get("adapter") or s["repo"]).partition("@")[0] for s in report["sources"]]
    names = " + ".join(name.rsplit("/", 1)[-1] for name in said)
    if size["pruned"]["layers"] == size["dense"]["layers"]:
        return f"{names}, pruned"
    return f"{names} with {size['pruned']['layers']} of {size['dense']['layers']} layers"


def _lead(report: Report, parents: Sequence[Parent]) -> str:
    size, text = report["size"], verdicts.total_text(report)
    dense, pruned = size["dense"], size["pruned"]
    used = pruned.get("active_parameters") or pruned["parameters"]
    gone = verdicts.percent(1 - used / dense["parameters"])
    first = (
        f"A smaller {' + '.join(map(_parent_link, parents))}. It keeps {pruned['layers']} of {dense['layers']} "
        f"layers and uses {verdicts.amount(used)} of {verdicts.amount(dense['parameters'])} parameters ({gone} fewer)."
    )
    if not text:
        return first
    before, after = (verdicts.significant(text[k]["perplexity"]) for k in ("dense", "pruned"))
    return f"{first}\nPerplexity on held-out text went from {before} to {after}. {_after(report)}"


def _after(report: Report) -> str:
    """What followed the cut."""
    repaired = (report.get("repair") or {}).get("kept")
    healing = report.get("healing") or {}
    trained = f"was trained on {verdicts.amount(healing['tokens'])} tokens" if healing.get("kept") else None
    if repaired and trained:
        return f"What stays was refitted in closed form, and {trained}."
    if trained:
        return f"What stays {trained}."
    return (
        "What stays was refitted in closed form; no training followed." if repaired else "No training followed the cut."
    )


def _commands(report: Report, local: set[str]) -> str:
    """One a line: a result may have been healed by a command of its own."""
    return "\n".join(public_command(line, local) for line in (report.get("command") or "").splitlines())


def _adapter(report: Report) -> str | None:
    """How to use training that was left out of the weights."""
    healing = report.get("healing") or {}
    if not healing.get("kept") or healing.get("merged"):
        return None
    return (
        "The training is not in the weights: it is a PEFT adapter in `adapter/`. The figures are those with it. "
        'Load it on top: `PeftModel.from_pretrained(model, ..., subfolder="adapter")`.'
    )


def _parent_link(parent: Parent) -> str:
    repo, revision = str(parent["repo"]), str(parent.get("revision") or "")
    if _is_local(parent):
        name = f"local model {code(public_source(repo, is_path=True))}"
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        name = f"[{md(repo)}](https://huggingface.co/{repo})"
    else:
        name = code(repo)
    commit = f" at {'fingerprint' if revision.startswith('sha256-') else 'commit'} {code(revision)}" if revision else ""
    adapter = (
        f" with the adapter {code(public_source(str(parent['adapter'])))} merged in" if parent.get("adapter") else ""
    )
    return name + commit + adapter


def _is_local(parent: Parent) -> bool:
    return bool(parent.get("is_local")) or str(parent.get("revision") or "").startswith(LOCAL)


def _relative(figure: str) -> str:
    return Path(figure).name if Path(figure).is_absolute() or ".." in Path(figure).parts else Path(figure).as_posix()


METRICS = {"": ("accuracy", "Accuracy"), "_norm": ("acc_norm", "Length-normalised accuracy")}


def _eval_results(report: Report) -> Iterator[EvalResult]:
    text = report.get("text") or {}
    for name in (n for n in verdicts.corpora(report) if n in text):
        tokens, where = text[name]["tokens"], "all text" if name == "all" else without_paths(name)
        label = f"{where}, report split of this run ({tokens:,} tokens)"
        yield from _result(name, label, "perplexity", "Perplexity", text[name]["pruned"]["perplexity"])
    for name, task in (report.get("tasks") or {}).items():
        kind = f"multiple choice, chance {verdicts.percent(task['chance'], 0)}"
        label = f"{name}, {task['items']} items of this run ({kind if task['chance'] else 'text to be generated'})"
        for suffix in tables.accuracies(task):
            yield from _result(name, label, *METRICS[suffix], task["pruned"][f"accuracy{suffix}"])
    stages = report.get("stages") or {}
    for name, by in (stages.get("harness") or {}).items():
        last = by[stages["names"][-1]]
        for metric, row in last["metrics"].items():
            items = f", {row['items']} items" if "items" in row else ""
            yield from _result(name, f"{name} ({last['version']}{items})", metric, metric, row["value"])


def _result(config: str, label: str, metric: str, metric_name: str, value: Any) -> Iterator[EvalResult]:
    if math.isfinite(verdicts.number(value)):
        yield EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            # Not a data set of the Hub, so no name that the Hub would link to one.
            dataset_type="custom",
            dataset_name=_one_line(label),
            dataset_config=_one_line(config),
            dataset_split="report",
            metric_type=metric,
            metric_name=metric_name,
            metric_value=float(f"{float(value):.4g}"),
        )


def _baselines(report: Report) -> list[dict[str, Any]]:
    """This model first, then the baselines by perplexity."""
    rows = [dict(b) for b in report.get("baselines") or () if b["name"] != "hf_prune"]
    text = verdicts.total_text(report)
    if not rows or text is None:
        return rows
    size = report["size"]["pruned"]
    label = "this model" if verdicts.is_bare(report) else "this model's cut, before repair and training"
    ours = {"label": label, "removed": verdicts.deleted(report), **verdicts.bare(report)}
    for row in rows:
        ci = row.get("log_ratio_ci_vs_ours")
        row["paired"] = f"{verdicts.decimals(ci[0], 3)} to {verdicts.decimals(ci[1], 3)}" if ci else verdicts.NONE
    rows.sort(key=lambda b: verdicts.number(b["perplexity"]))
    return [{**ours, "layers": size["layers"], "parameters": size["parameters"], "paired": ""}, *rows]


def _ranges(layers: Sequence[int] | None) -> str:
    """3, 7, 21-28; a dash when the cut is not a plain removal."""
    runs: list[list[int]] = []
    for layer in sorted(layers or ()):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in runs) or verdicts.NONE


def _load_note(report: Report) -> str:
    """What loading takes besides transformers."""
    if report.get("own_code"):
        return (
            "The layers differ in width, which the classes of transformers cannot say; `modeling_pruned.py` beside the "
            "weights builds them. After `import hf_prune` the model loads without `trust_remote_code` too."
        )
    if (report.get("recipe") or {}).get("trust_remote_code"):
        return "The base model brings its own code, which this runs."
    return "No package besides transformers is needed."


def _zeroed(report: Report) -> str | None:
    """Which halves are switched off while their weights stay in the file."""
    pruned = report["size"]["pruned"]
    active = pruned.get("active_parameters")
    fates = {"attn_removed": "attention", "mlp_removed": "MLP"}
    halves = {f: [x["source"] for x in report["layers"] if x["fate"] == f] for f in fates}
    if active is None or active >= pruned["parameters"]:
        return None
    which = " and ".join(f"the {fates[f]} of source layers {_ranges(x)}" for f, x in halves.items() if x)
    return (
        f"Zeroed rather than removed, so that stock transformers loads the model: {which or 'some halves of layers'}. "
        f"The file still holds all {verdicts.amount(pruned['parameters'])} parameters; {verdicts.amount(active)} are "
        "in use. Size on disk, KV cache and speed are those of the whole file."
    )


def _search(report: Report) -> str | None:
    s = report.get("search_summary")
    if not s:
        return None
    text = f"The search ({code(report['search'])}) scored {s['evaluations']:,} candidates"
    if s.get("distinct") is not None:
        text += f", {s['distinct']:,} of them distinct,"
    if seconds := (report.get("seconds") or {}).get("search"):
        text += f" in {verdicts.duration(seconds)}"
    if s.get("layer_tokens"):
        text += f" ({verdicts.amount(s['layer_tokens'])} layer-token products)"
    finalists = s.get("finalists")
    choice = f" Of {finalists} finalists the best on the selection split is this model." if finalists else ""
    return f"{text}; its best {code(report['objective'])} was {verdicts.significant(s.get('best'))}.{choice}"


def _correlations(report: Report) -> list[dict[str, Any]]:
    found = (report.get("search_summary") or {}).get("rank_correlation") or {}
    return [{"name": k, "spearman": verdicts.decimals(v["spearman"]), "n": v["n"]} for k, v in found.items()]


def _certificate(report: Report) -> str | None:
    c = report.get("certificate")
    if not c:
        return None
    wrong = {k: c[k] for k in ("missing", "unexpected", "mismatched") if c.get(k)}
    tensors = (
        "; ".join(f"{k}: {', '.join(map(code, v))}" for k, v in wrong.items())
        or "nothing missing, unexpected or mismatched"
    )
    version, limit = md(c.get("transformers", "")), "Largest difference of a logit"
    return (
        f"{'Passed' if c['ok'] else '**Failed**'}. Loaded in a fresh process with transformers {version}: {tensors}. "
        f"{limit} to the measured model: {verdicts.significant(c.get('max_logit_difference'), 2)}; "
        f"of cached to uncached decoding: {verdicts.significant(c.get('cached_difference'), 2)} "
        f"(in {md(c['dtype'])}; allowed {verdicts.significant(c['tolerance'], 2)})."
    )


def _hardware(report: Report) -> str:
    h = report.get("hardware") or {}
    cores = f"{h['cores']} cores" if h.get("cores") else None
    threads = f"{h['threads']} threads" if h.get("threads") else None
    memory = f"{verdicts.significant(h['memory_gib'])} GiB of memory" if h.get("memory_gib") else None
    return ", ".join(
        md(without_paths(x)) for x in (h.get("accelerator"), h.get("processor"), cores, threads, memory) if x
    )


def _times(report: Report) -> str:
    seconds = dict(report.get("seconds") or {})
    total = seconds.pop("total", None)
    steps = ", ".join(f"{md(k)} {verdicts.duration(v)}" for k, v in seconds.items())
    return f"{verdicts.duration(total)} in all ({steps})" if total is not None and steps else steps


def _versions(report: Report) -> str:
    found = {"hf_prune": report.get("hf_prune"), **(report.get("versions") or {})}
    return ", ".join(f"{md(k)} {md(v)}" for k, v in found.items() if v)


def _splits(report: Report) -> list[dict[str, Any]]:
    rows = []
    for name, split in (report.get("splits") or {}).items():
        texts = (
            f"{md(c)}: {md(without_paths(x.get('origin', '')))} ({x['windows']})" for c, x in split["corpora"].items()
        )
        rows.append({"name": name, "windows": split["windows"], "tokens": split["tokens"], "text": "; ".join(texts)})
    return rows
