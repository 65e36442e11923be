"""What a stitched model is compared with, at equal size and on the same evidence (GPTailor, arXiv 2506.20480, sec. 4).

Every parent cut by ShortGPT and by SLEB; the parents merged first and cut then; cut first and merged then; and two
searches of the method's own that lack a part of it, with as many trials: removal only, and selection without blending.
"""

from collections.abc import Sequence
from typing import Any

from hf_prune.blueprint import Genome, LayerSpec, Part
from hf_prune.methods.collapse import CollapseSpace
from hf_prune.methods.method import Comparison, Cuts, Facts

CUT_BY = {"shortgpt": "cut by ShortGPT", "greedy": "cut by SLEB"}
ABLATIONS = {"removal": "removal only", "selection": "selection without blending"}
MEAN = "the mean"


def cuts_of_parents(names: Sequence[str], facts: Facts) -> tuple[Comparison, ...]:
    """The named cuts of every parent and of their mean; where SLEB is among them, its cuts merged layer by layer."""
    kinds = [kind for kind in CUT_BY if kind in names]
    if not kinds:
        return ()
    told = f"{', '.join(kinds)} on {facts.parents} parents and their mean"
    mixes = {**dict(zip(facts.names, alone(facts.parents), strict=True)), MEAN: (1 / facts.parents,) * facts.parents}
    found = [
        Comparison(
            f"{kind}:{name}",
            f"merged first, {CUT_BY[kind]}" if name == MEAN else f"{name}, {CUT_BY[kind]}",
            told,
            mix=mix,
            searcher=kind,
            column="perplexity",
        )
        for name, mix in mixes.items()
        for kind in kinds
    ]
    if "greedy" in kinds:
        greedy = [f"greedy:{name}" for name in facts.names]
        found.append(
            Comparison(
                "cut-first",
                "cut by SLEB, merged then",
                told,
                layers=lambda cuts: _merged([cuts[name] for name in greedy], facts.depth),
                needs=tuple(greedy),
            )
        )
    return tuple(found)


def ablations(names: Sequence[str], facts: Facts, selection: Any) -> tuple[Comparison, ...]:
    """The named ones; `selection` is the method's own space without blends."""
    spaces = {"removal": CollapseSpace(facts.depth, facts.remove, ("keep",)), "selection": selection}
    parents = alone(facts.parents)

    def deleted(cuts: Cuts) -> tuple[Genome, ...]:
        return tuple(dict.fromkeys(spaces["removal"].from_removed(cut) for cut in cuts.values()))

    def selected(cuts: Cuts) -> tuple[Genome, ...]:
        return tuple(dict.fromkeys(selection.of(cut, mix) for cut in cuts.values() for mix in parents))

    return tuple(
        Comparison(
            kind,
            f"{ABLATIONS[kind]} ({facts.names[facts.best]})" if kind == "removal" else ABLATIONS[kind],
            f"{ABLATIONS[kind]}, searched as long as the result",
            f"baseline {kind}",
            spaces[kind],
            parents[facts.best] if kind == "removal" else (1.0,),
            "staged",
            as_result=True,
            starts=deleted if kind == "removal" else selected,
        )
        for kind in ABLATIONS
        if kind in names
    )


def alone(parents: int) -> list[tuple[float, ...]]:
    """Weights of every parent by itself."""
    return [tuple(float(k == j) for j in range(parents)) for k in range(parents)]


def _merged(cuts: Sequence[tuple[int, ...]], depth: int) -> tuple[LayerSpec, ...]:
    """Parents cut by themselves, the results merged layer by layer."""
    kept = [[i for i in range(depth) if i not in cut] for cut in cuts]
    share = 1 / len(kept)
    rows = zip(*kept, strict=True)
    return tuple(LayerSpec(tuple(Part(k, i, share) for k, i in enumerate(row))) for row in rows)
