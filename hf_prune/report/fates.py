"""What became of every source layer: for the report, its figures, and the pages of a run under way."""

from collections.abc import Sequence

from hf_prune.blueprint import GONE, MOST_LAYERS, LayerSpec, Part, all_parts
from hf_prune.errors import InvalidBlueprint
from hf_prune.report.schema.model import Fate, LayerFate


def fates(specs: Sequence[LayerSpec], depth: int) -> list[LayerFate]:
    """One entry per source layer; of several output layers it went to, the one where it has the largest weight.

    One of kept, narrowed, removed, merged, attn_removed, mlp_removed, or norms_only: its norms went to an output layer
    that has the rest of its weights from elsewhere.

    Args:
        specs: the output layers.
        depth: of the source.

    Raises:
        InvalidBlueprint: a layer is beyond that depth, or nobody has so many.
    """
    if not max((p.layer for s in specs for p in all_parts(s)), default=0) < max(depth, 1) <= MOST_LAYERS:
        raise InvalidBlueprint(f"The blueprint is of a source with other layers than the {depth} of this report.")
    homes: list[list[LayerFate]] = [[] for _ in range(depth)]
    layers = [s.canonical() for s in specs if not (s.attn_level == GONE and s.mlp_level == GONE)]
    for output, spec in enumerate(layers):
        for part in spec.parts:
            homes[part.layer].append(_went(part, _fate(spec), output))
        if spec.norms and spec.norms.layer not in [p.layer for p in spec.parts]:
            homes[spec.norms.layer].append(_went(Part(0, spec.norms.layer, 0.0), "norms_only", output))
    return [
        max(found, key=lambda f: f.weight) if found else _went(Part(0, source, 0.0), "removed", None)
        for source, found in enumerate(homes)
    ]


def _went(part: Part, fate: Fate, output: int | None) -> LayerFate:
    return LayerFate(source=part.layer, fate=fate, output=output, weight=part.weight)


def _fate(spec: LayerSpec) -> Fate:
    if GONE in (spec.attn_level, spec.mlp_level):
        return "attn_removed" if spec.attn_level == GONE else "mlp_removed"
    if any(len(blend) > 1 for blend in spec.blends or ()):
        return "merged"
    if spec.attn_level or spec.mlp_level or spec.blends:
        return "narrowed"
    return "kept" if len(spec.parts) == 1 else "merged"
