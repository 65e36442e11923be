"""Sections of a report about the model: where it comes from, how large it is, what became of every layer."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, SerializerFunctionWrapHandler, model_serializer, model_validator

from hf_prune.blueprint import LOCAL
from hf_prune.report.schema.document import Document
from hf_prune.report.schema.section import Count, Number, Section, Total

Fate = Literal["kept", "merged", "narrowed", "norms_only", "attn_removed", "mlp_removed", "removed"]


def _stated(value: Any) -> Any:
    """Metadata of a card as text: YAML reads the language `no` as a boolean."""
    if isinstance(value, list | tuple):
        return tuple(map(str, value))
    return str(value) if value or isinstance(value, str) else None


Stated = Annotated[str | tuple[str, ...] | None, BeforeValidator(_stated)]
"""What a card says: one text, several, or nothing."""


class SourceCard(Section):
    """A pinned source, and what its own card says of it; `adapter` is a LoRA (`repo@revision`) merged into it."""

    repo: str
    revision: str | None = None
    adapter: str | None = None
    license: Stated = None
    language: Stated = None
    license_name: str | None = None
    license_link: str | None = None
    how: tuple[str, ...] = ()
    """What was done to it before it was read, such as a dequantisation."""

    @property
    def is_local(self) -> bool:
        """Whether `repo` was a folder, pinned by a digest of its files."""
        return (self.revision or "").startswith(LOCAL)


class ModelSize(Section):
    """Of the dense or of the smaller model.

    `parameters` and `bytes` are those in the files, `active_parameters` those that are not zeroed, and
    `layers_with_attention` the layers whose attention is left. `kv_bytes_per_token`: what one more token takes of the
    cache.
    """

    parameters: Total
    active_parameters: Count | None = None
    bytes: Count
    layers: Count
    kv_bytes_per_token: Count
    layers_with_attention: Count | None = None


class Size(Section):
    """Both sizes; `removed_ratio`, `asked_ratio` and their difference `miss` are shares of the dense parameters.

    `asked` is the target as the recipe spells it; NaN where it is none of the share of parameters.
    """

    dense: ModelSize
    pruned: ModelSize
    removed_ratio: Number = float("nan")
    asked: str | None = None
    asked_ratio: Number = float("nan")
    miss: Number = float("nan")


class VocabularyCut(Section):
    """What became of the tokens: how many of the `dense` ones are `kept`, by the digest of their ids, and the
    `parameters` that went with the others.

    `hard_texts` were said as before, `same_pieces` of them are written in kept tokens and so as before. Logits of
    kept tokens differ from the dense model's by `max_logit_difference`. Bytes per token: of the selection text.
    """

    dense: Total
    kept: Count
    digest: str
    parameters: Count
    hard_texts: Count
    same_pieces: Count
    max_logit_difference: Number
    bytes_per_token_dense: Number
    bytes_per_token: Number


class LayerFate(Section):
    """What became of a source layer: the output layer it went to, with which weight; None where it is gone."""

    source: Count
    fate: Fate
    output: Count | None = None
    weight: Number = float("nan")


class LayerWidth(Section):
    """Heads and neurons that a source layer has left, of those it had."""

    source: Count
    heads: Count
    neurons: Count
    of_heads: Total
    of_neurons: Total


class LayerOrigin(Section):
    """What an output layer is made of: the source layer, and the weight of every parent by name.

    `mlp` and `mlp_merge` are those of the MLP where it is made otherwise than the rest of the layer.
    """

    source: Count
    merge: str
    parents: dict[str, Number]
    mlp: dict[str, Number] | None = None
    mlp_merge: str | None = None


class Ends(Section):
    """Which parents the embedding and the head come from."""

    embedding: str
    head: str


class Member(Section):
    """A model of the Pareto front.

    `values` has what the search minimised and everything else it measured, by objective; in JSON they stand beside the
    other keys. `blueprint`, in front.json only, is what the model is built from.
    """

    removed_ratio: Number
    layers: Count
    parameters: Count
    values: dict[str, Number] = {}
    digest: str = ""
    blueprint: dict[str, Any] | None = None
    knee: bool = False

    def value(self, objective: str) -> float:
        """Of the objective, or KL where it was not measured; NaN without either."""
        return self.values.get(objective, self.values.get("kl", float("nan")))

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or "values" in raw:
            return raw
        measured = {k: v for k, v in raw.items() if k not in cls.model_fields and _is_number(v)}
        return {**{k: v for k, v in raw.items() if k not in measured}, "values": measured}

    @model_serializer(mode="wrap")
    def _spread(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in write(self).items():
            found |= value if key == "values" else {key: value}
        return found


class Front(Document):
    """What front.json holds: members from dense to small, with their blueprints."""

    front: tuple[Member, ...]


def _is_number(value: Any) -> bool:
    return value is None or value in ("inf", "-inf") or isinstance(value, int | float) and not isinstance(value, bool)


def removed_layers(layers: Sequence[LayerFate]) -> tuple[int, ...] | None:
    """The removed source layers, or None when more than the removal of whole layers made the model."""
    if any(layer.fate not in ("kept", "removed") for layer in layers):
        return None
    return tuple(layer.source for layer in layers if layer.fate == "removed")
