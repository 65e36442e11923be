"""The types everything speaks: a whole family of smaller models as one hashable value.

    layer = sum of weight x source layer, then each half cut to a width level

Standard library only. All types are frozen and hashable and go to JSON and back.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from hf_prune.errors import InvalidBlueprint

Genome = tuple[int, ...]

DENSE = 0
"""Level of a half-block left as it is."""
GONE = -1
"""Level of a removed half-block: the last level of any level library."""
WEIGHT_DIGITS = 12
MOST_LAYERS, MOST_PARTS, MOST_SOURCES = 4096, 256, 64
"""Of one blueprint; parts of one layer."""
MOST_EXPERTS = 4096
"""Of one layer."""
LARGEST_WEIGHT = 1e30
LONGEST_NAME = 1000
LOCAL = "sha256-"
"""What the revision of a local folder begins with."""


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """A model pinned to a commit; `adapter` is a PEFT LoRA (`repo@sha`) merged on load, `vocabulary` the digest of the
    token ids that were kept where not all were."""

    repo: str
    revision: str
    adapter: str | None = None
    vocabulary: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether `repo` is a folder of this machine, pinned by a digest of its files."""
        return self.revision.startswith(LOCAL)

    def __str__(self) -> str:
        name = f"{self.repo}@{self.revision}" if self.revision else self.repo
        return f"{name}+{self.adapter}" if self.adapter else name


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """`weight` x layer `layer` of `sources[source]`."""

    source: int
    layer: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Mix:
    """Parts and how they are merged, see merge.py."""

    parts: tuple[Part, ...]
    merge: str = "linear"


Blend = tuple[tuple[int, float], ...]
"""What an expert is made of: numbers of source experts and their weights; the first gives its row of the router."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One output layer.

    `norms` names the single layer that gives the normalisation weights; None means they follow `parts`. `mlp` is what
    the MLP is made of where that differs from the rest of the layer.
    Levels index the level library of the digest `library`: `DENSE` keeps the half, `GONE` removes it. Without a library
    a removed half is silenced, and keeps its place. `repair` is the digest of tensors that replace some of the layer's
    own; they lie in a repair file. `blends` are the experts of a mixture, where not all are left as they are.
    """

    parts: tuple[Part, ...]
    merge: str = "linear"
    attn_level: int = DENSE
    mlp_level: int = DENSE
    norms: Part | None = None
    repair: str | None = None
    mlp: Mix | None = None
    library: str | None = None
    blends: tuple[Blend, ...] | None = None

    @property
    def anchor(self) -> Part:
        """The part whose per-layer config (attention type, rope) the layer inherits: the heaviest, then the first."""
        return max(self.parts, key=lambda p: (p.weight, -p.source, -p.layer))

    @property
    def plain(self) -> bool:
        """True when the layer is one source layer, untouched."""
        return (
            len(self.parts) == 1
            and self.parts[0].weight == 1.0
            and self.norms is None
            and self.repair is None
            and self.mlp is None
            and self.blends is None
            and self.attn_level == self.mlp_level == DENSE
        )

    def canonical(self) -> "LayerSpec":
        """Same weights, one spelling: duplicates added up, zero weights dropped, parts sorted, weights rounded."""
        norms = replace(self.norms, weight=_rounded(self.norms.weight)) if self.norms else None
        mix, mlp = _mixed(Mix(self.parts, self.merge)), _mixed(self.mlp) if self.mlp else None
        return replace(
            self,
            parts=mix.parts,
            merge=mix.merge,
            norms=None if mix.parts == (norms,) else norms,
            mlp=None if mlp == mix else mlp,
            library=None if self.attn_level == self.mlp_level == DENSE else self.library,
            blends=self.blends and tuple(map(_blended, self.blends)),
        )


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A model as a list of layer specs over pinned sources.

    `embed` and `head` index `sources`. `levels` is a key of early blueprints; layers name their libraries themselves.
    """

    sources: tuple[Source, ...]
    layers: tuple[LayerSpec, ...]
    embed: int = 0
    head: int = 0
    levels: str | None = None
    version: int = 1

    @classmethod
    def identity(cls, source: Source, depth: int) -> "Blueprint":
        """The dense model itself; must assemble to its source bit for bit."""
        return cls((source,), tuple(LayerSpec((Part(0, i),)) for i in range(depth)))

    def canonical(self) -> "Blueprint":
        """The one spelling of this model: canonical layers, no empty layers, no unused or repeated sources."""
        layers = self.canonical_layers()
        used = {self.embed, self.head} | {p.source for s in layers for p in all_parts(s)}
        # None and text do not compare, so a base beside the same base with an adapter needs the key.
        ordered = sorted({self.sources[i] for i in used}, key=_in_order)
        number = {i: ordered.index(self.sources[i]) for i in used}
        layers = tuple(_renumber(s, number).canonical() for s in layers)
        return replace(self, sources=tuple(ordered), layers=layers, embed=number[self.embed], head=number[self.head])

    @property
    def digest(self) -> str:
        """64 bits of SHA-256 over the canonical JSON: equal exactly when the weights are."""
        return hashlib.sha256(self.canonical().to_json().encode()).hexdigest()[:16]

    def over(self, sources: tuple[Source, ...]) -> "Blueprint":
        """The same model with its sources numbered as in `sources`, which has them all; layers are canonical."""
        number = {i: sources.index(s) for i, s in enumerate(self.sources) if s in sources}
        layers = tuple(_renumber(s, number).canonical() for s in self.canonical_layers())
        return replace(self, sources=sources, layers=layers, embed=number[self.embed], head=number[self.head])

    def canonical_layers(self) -> tuple[LayerSpec, ...]:
        """Canonical layers, those without any half left out, sources numbered as they are."""
        return tuple(s.canonical() for s in self.layers if not (s.attn_level == GONE and s.mlp_level == GONE))

    def to_json(self, indent: int | None = None) -> str:
        """JSON text; key order is fixed."""
        raw = asdict(self)
        for layer in raw["layers"]:
            # Digests of layers that are of one piece, of full width, and of all experts are older than these keys.
            for key in ("mlp", "library", "blends"):
                if layer[key] is None:
                    del layer[key]
        # And sources that have all their tokens.
        for source in raw["sources"]:
            if source["vocabulary"] is None:
                del source["vocabulary"]
        return json.dumps(raw, sort_keys=True, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> "Blueprint":
        """Read what `to_json` wrote.

        Raises:
            InvalidBlueprint: not JSON, unknown or missing keys, wrong version, or an index out of range.
        """
        try:
            raw = json.loads(text)
            # A key of early blueprints that was never used.
            if raw.get("repairs", "") is None:
                del raw["repairs"]
            bp = cls(
                **{
                    **raw,
                    "sources": tuple(Source(**s) for s in raw["sources"]),
                    "layers": tuple(_layer(s) for s in raw["layers"]),
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            raise InvalidBlueprint(
                f"This is not a blueprint hf_prune can read ({_short(e)}); write one with `hf-prune compress`."
            ) from None
        bp.check()
        return bp

    def check(self) -> None:
        """Raise InvalidBlueprint when a value has the wrong type, an index points nowhere, something is more than
        anybody needs or the version is unknown."""
        if type(self.version) is not int or self.version != 1:
            raise InvalidBlueprint(
                f"This hf_prune reads blueprints of version 1, not {_short(self.version)}; upgrade hf_prune."
            )
        if wrong := next(self._wrong(), None):
            raise InvalidBlueprint(f"The blueprint cannot be built: {wrong}; write one with `hf-prune compress`.")

    def _wrong(self) -> Iterator[str]:
        """Everything that is wrong, and where."""
        if not 0 < len(self.layers) <= MOST_LAYERS or len(self.sources) > MOST_SOURCES:
            yield (
                f"it has {len(self.layers) or 'no'} layers of {len(self.sources)} sources, and may have 1 to "
                f"{MOST_LAYERS} layers of {MOST_SOURCES}"
            )
        for number, source in enumerate(self.sources):
            optional = map(_said, (source.adapter, source.vocabulary))
            if not all(map(_is_name, (source.repo, source.revision, *optional))):
                yield f"sources.{number} must be given by text: repo, revision and perhaps adapter and vocabulary"
        for name in ("embed", "head"):
            if not _is_index(getattr(self, name), len(self.sources)):
                yield f"{name} names a source that is not listed"
        if not _is_name(_said(self.levels)):
            yield "levels is not a name"
        for number, spec in enumerate(self.layers):
            yield from _wrong_layer(f"layers.{number}", spec, len(self.sources))


def _wrong_layer(where: str, spec: LayerSpec, sources: int) -> Iterator[str]:
    for what, parts in (("parts", spec.parts), ("mlp.parts", spec.mlp.parts if spec.mlp else spec.parts)):
        if not 0 < len(parts) <= MOST_PARTS:
            yield f"{where}.{what} has {len(parts) or 'no'} parts, and may have 1 to {MOST_PARTS}"
    for part in all_parts(spec):
        if not _is_index(part.source, sources):
            yield f"{where} names a source that is not listed"
        if not _is_index(part.layer, 2**31):
            yield f"{where} names a layer number that is not 0, 1, 2 ..."
        if not _is_weight(part.weight):
            yield f"{where} has a weight that is not a finite number"
    for name in ("attn_level", "mlp_level"):
        if not _is_index(getattr(spec, name) + 1 if type(getattr(spec, name)) is int else None, 2**31):
            yield f"{where}.{name} is not -1 (gone), 0 (dense) or a level of a library"
    names = {"merge": spec.merge, "repair": _said(spec.repair), "library": _said(spec.library)}
    for name, value in (names | ({"mlp.merge": spec.mlp.merge} if spec.mlp else {})).items():
        if not _is_name(value):
            yield f"{where}.{name} is not a name"
    if spec.blends is not None:
        if not 0 < len(spec.blends) <= MOST_EXPERTS or not all(0 < len(b) <= MOST_EXPERTS for b in spec.blends):
            yield f"{where}.blends are of no expert, or of more than {MOST_EXPERTS}"
        if not all(_is_index(e, MOST_EXPERTS) and _is_weight(w) for blend in spec.blends for e, w in blend):
            yield f"{where}.blends are not numbers of experts with finite weights"


def _in_order(source: Source) -> tuple[str, ...]:
    return source.repo, source.revision, source.adapter or "", source.vocabulary or ""


def _is_index(value: Any, below: int) -> bool:
    return type(value) is int and 0 <= value < below


def _is_weight(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST_WEIGHT


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_NAME and value.isprintable()


def _said(value: Any) -> Any:
    """A name that may be missing."""
    return "" if value is None else value


def _short(value: object) -> str:
    """What a stranger wrote, for a sentence."""
    said = value if isinstance(value, Exception) else type(value).__name__ if isinstance(value, list | dict) else value
    try:
        text = " ".join(str(said).split())
    except ValueError:
        text = "a number without end"
    return "".join(c for c in text if c.isprintable())[:160]


@dataclass(frozen=True, slots=True, order=True)
class Fidelity:
    """How much evidence a trial gets: `sequences` windows from `start` on, `items` of every task from `first_item` on.

    `repair` > 0 refits it first on so many windows; `heal_tokens` > 0 trains it first. `bridged` takes the states over
    every gap by a linear map, which foretells a repair, see `evaluation.bridges`.
    """

    sequences: int
    start: int = 0
    heal_tokens: int = 0
    repair: int = 0
    items: int = 0
    first_item: int = 0
    bridged: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """What a searcher asks for."""

    genome: Genome
    fidelity: Fidelity


@dataclass(frozen=True, slots=True)
class Outcome:
    """What it is told: values are minimised; a broken candidate scores +inf everywhere a forward was needed."""

    trial: Trial
    values: tuple[float, ...]


def _rounded(weight: float) -> float:
    return float(f"{weight:.{WEIGHT_DIGITS}g}")


def _mixed(mix: Mix) -> Mix:
    """Merges other than linear may depend on the order of their parts, so only their weights are rounded."""
    if mix.merge == "linear" or len(mix.parts) == 1 and not mix.merge.startswith("passthrough"):
        parts = _added_up(mix.parts)
    else:
        parts = tuple(replace(p, weight=_rounded(p.weight)) for p in mix.parts)
    single = len(parts) == 1 and parts[0].weight == 1.0
    return Mix(parts, "linear" if single else mix.merge)


def _blended(blend: Blend) -> Blend:
    """One expert by itself has the weight 1."""
    if len(blend) == 1:
        return ((blend[0][0], 1.0),)
    first, *others = ((expert, _rounded(weight)) for expert, weight in blend)
    return (first, *sorted(others))


def _added_up(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    total: dict[tuple[int, int], float] = {}
    for p in parts:
        total[p.source, p.layer] = total.get((p.source, p.layer), 0.0) + p.weight
    noise = max(abs(v) for v in total.values()) * 10**-WEIGHT_DIGITS
    kept = tuple(Part(s, layer, _rounded(v)) for (s, layer), v in sorted(total.items()) if abs(v) > noise)
    return kept or (Part(*min(total), 0.0),)


def all_parts(spec: LayerSpec) -> tuple[Part, ...]:
    """Every part that a layer is made of."""
    return spec.parts + ((spec.norms,) if spec.norms else ()) + (spec.mlp.parts if spec.mlp else ())


def _renumber(spec: LayerSpec, number: dict[int, int]) -> LayerSpec:
    def move(p: Part) -> Part:
        return replace(p, source=number[p.source])

    return replace(
        spec,
        parts=tuple(map(move, spec.parts)),
        norms=move(spec.norms) if spec.norms else None,
        mlp=replace(spec.mlp, parts=tuple(map(move, spec.mlp.parts))) if spec.mlp else None,
    )


def _layer(raw: dict[str, Any]) -> LayerSpec:
    norms, mlp, blends = raw.get("norms"), raw.get("mlp"), raw.get("blends")
    return LayerSpec(
        **{
            **raw,
            "parts": tuple(Part(**p) for p in raw["parts"]),
            "norms": Part(**norms) if norms else None,
            "mlp": Mix(tuple(Part(**p) for p in mlp["parts"]), mlp["merge"]) if mlp else None,
            "blends": blends and tuple(tuple((expert, weight) for expert, weight in blend) for blend in blends),
        }
    )
