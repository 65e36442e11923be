"""A blueprint in the language of another tool: mergekit's YAML.

mergekit says what a whole file is merged by, and blends embeddings, final norm and head with the weights of the first
and the last slice. So only sums can be said, and conditions by tensor name give what is outside of the layers back to
the one parent that the blueprint names.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from hf_prune.blueprint import Blueprint, LayerSpec, Part, all_parts
from hf_prune.errors import InvalidBlueprint, SourceError
from hf_prune.models.checkpoint import Checkpoint
from hf_prune.models.configs import read_config
from hf_prune.models.dtypes import widest
from hf_prune.models.families import Family
from hf_prune.models.inference import family_of


def export_mergekit(folder: Path, names: Sequence[str] = ()) -> str:
    """YAML from which mergekit makes the weights of a finished folder.

    Args:
        folder: holds blueprint.json and config.json.
        names: how mergekit finds the parents, in the blueprint's order; default: as the blueprint names them.

    Raises:
        InvalidBlueprint: there is none, or mergekit has no words for it; the message says what.
    """
    try:
        blueprint = Blueprint.from_json((folder / "blueprint.json").read_text(encoding="utf-8"))
    except OSError as e:
        raise InvalidBlueprint(f"{folder} has no blueprint.json ({e.strerror}); name what compress wrote.") from None
    if any(source.vocabulary for source in blueprint.sources):
        raise InvalidBlueprint(f"{folder} has lost tokens, for which mergekit has no words; it merges whole models.")
    config, dtypes = read_config(folder), _dtypes(folder)
    # mergekit has one for all tensors: the widest, in which none loses anything.
    dtype = str(widest(dtypes) if dtypes else config.dtype or "float32").removeprefix("torch.")
    raw = mergekit_config(blueprint, family_of(config), names or [_spelled(s) for s in blueprint.sources], dtype)
    head = f"# Blueprint {blueprint.digest}. blueprint.json is the truth; this is its translation for mergekit.\n"
    return head + yaml.safe_dump(raw, sort_keys=False)


def _dtypes(folder: Path) -> set[torch.dtype]:
    """Of the result's own tensors; none where its weights are not there."""
    try:
        return {t.dtype for t in Checkpoint.open(folder).tensors.values()}
    except SourceError:
        return set()


def mergekit_config(blueprint: Blueprint, family: Family, names: Sequence[str], dtype: str) -> dict[str, Any]:
    """The configuration as a dict.

    Args:
        blueprint: sums of layers alone.
        family: where its MLP, final norm and head are.
        names: one per source.
        dtype: of the result, e.g. `bfloat16`.

    Raises:
        InvalidBlueprint: something else than sums.
    """
    if len(names) != len(blueprint.sources):
        raise InvalidBlueprint(f"The blueprint has {len(blueprint.sources)} sources, but {len(names)} names are given.")
    for number, spec in enumerate(blueprint.layers):
        _refuse(number, spec, family)
    last = len(blueprint.layers) - 1
    slices = []
    for number, spec in enumerate(blueprint.layers):
        ends = {"embed": blueprint.embed} if number == 0 else {}
        ends |= {"head": blueprint.head} if number == last else {}
        slices.append({"sources": _sources(spec, ends, family, names)})
    return {"merge_method": "linear", "parameters": {"normalize": False}, "dtype": dtype, "slices": slices}


def _refuse(number: int, spec: LayerSpec, family: Family) -> None:
    why = None
    if spec.repair:
        why = "was repaired, so its weights are no merge any more"
    elif spec.attn_level or spec.mlp_level or spec.blends:
        why = "lost a half or a part of it"
    elif spec.norms:
        why = "has its norms from one parent alone"
    elif other := next((m for m in (spec.merge, spec.mlp.merge if spec.mlp else "linear") if m != "linear"), None):
        why = f"is merged by {other}, and one file of mergekit knows one method"
    elif len({p.source for p in all_parts(spec)}) < len({(p.source, p.layer) for p in all_parts(spec)}):
        why = "blends two layers of one parent"
    elif spec.mlp and not isinstance(family.mlp, str):
        why = "mixes its halves apart, and its MLP has no one name of its own"
    if why:
        raise InvalidBlueprint(f"mergekit cannot say layer {number}: it {why}; publish blueprint.json instead.")


def _sources(spec: LayerSpec, ends: dict[str, int], family: Family, names: Sequence[str]) -> list[dict[str, Any]]:
    """The parts of one layer, and with weight 0 the parents that give only what is outside of the layers."""
    layer, mlp = _by_source(spec.parts), _by_source(spec.mlp.parts) if spec.mlp else {}
    found = []
    named = dict.fromkeys([*layer, *mlp])
    others = dict.fromkeys((s, spec.anchor.layer) for s in ends.values() if s not in {source for source, _ in named})
    for key in [*named, *others]:
        source, number = key
        conditions = [{"filter": name, "value": float(ends[end] == source)}
                      for end in ends for name in _outside(end, family)]  # fmt: skip
        if spec.mlp:
            conditions.append({"filter": f".{family.mlp}.", "value": mlp.get(key, 0.0)})
        weight = layer.get(key, 0.0)
        value = [*conditions, {"value": weight}] if conditions else weight
        found.append({"model": names[source], "layer_range": [number, number + 1], "parameters": {"weight": value}})
    return found


def _outside(end: str, family: Family) -> list[str]:
    return [family.norm + ".", "lm_head"] if end == "head" else ["embed", "wte", "wpe"]


def _by_source(parts: Sequence[Part]) -> dict[tuple[int, int], float]:
    return {(p.source, p.layer): p.weight for p in parts}


def _spelled(source: Any) -> str:
    """mergekit knows model@revision and model+lora, the lora without a revision of its own."""
    name = source.repo if source.is_local else f"{source.repo}@{source.revision}"
    return f"{name}+{source.adapter.partition('@')[0]}" if source.adapter else name
