"""Fine-tuned variants of a base: found to fit by headers and small files, pulled, and brought into its shape."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hf_prune import hub
from hf_prune.blueprint import LOCAL, Source
from hf_prune.errors import AdapterAlone, IncompatibleSources
from hf_prune.hub import Peek, TensorInfo
from hf_prune.hub.adapters import PAIR, has_rows
from hf_prune.models.headers import layer_prefix, setting
from hf_prune.models.vocabulary.matching import matched, vocabulary

if TYPE_CHECKING:
    # A plan looks at variants too, and must not load torch.
    from hf_prune.models.parent import Parent


Severity = Literal["same", "harmless", "fatal"]
FATAL = ("model_type", "hidden_size", "n_embd", "intermediate_size", "n_inner", "num_hidden_layers", "n_layer",
         "num_attention_heads", "n_head", "num_key_value_heads", "head_dim", "hidden_act", "activation_function",
         "rope_theta", "rope_scaling", "rope_parameters", "sliding_window", "layer_types", "attention_bias", "mlp_bias",
         "num_experts", "final_logit_softcapping", "attn_logit_softcapping")  # fmt: skip
"""Settings by which a layer computes something else, so that it cannot stand in another model."""
HARMLESS = {
    "rms_norm_eps": "the base's is kept",
    "layer_norm_epsilon": "the base's is kept",
    "max_position_embeddings": "the base's is kept",
    "vocab_size": "rows are matched by token",
    "tie_word_embeddings": "the result is tied or not like the base",
    "bos_token_id": "the base's is kept",
    "eos_token_id": "the base's is kept",
    "pad_token_id": "the base's is kept",
}
LEAST_SHARED = 0.9
"""Share of the base's tokens that a variant must have."""


@dataclass(frozen=True, slots=True)
class Aspect:
    """One aspect of base and variant, and what a difference means."""

    aspect: str
    base: str
    variant: str
    severity: Severity
    note: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """All aspects of one variant."""

    name: str
    rows: tuple[Aspect, ...]

    @property
    def fatal(self) -> tuple[Aspect, ...]:
        """What makes it unfit."""
        return tuple(r for r in self.rows if r.severity == "fatal")

    @property
    def fits(self) -> bool:
        """Whether its layers can stand beside the base's."""
        return not self.fatal

    @property
    def sentence(self) -> str:
        """The first thing that makes it unfit."""
        row = self.fatal[0]
        return f"{row.aspect} is {row.variant}, the base's {row.base}{f' ({row.note})' if row.note else ''}"


def verdict(base: Peek, variant: Peek) -> Verdict:
    """Compare a variant with its base; of a model with an adapter the model, and the adapter with that."""
    rows = [
        *_settings(base.config, variant.config),
        *_tensors(base, variant),
        *_adapter(variant),
        *_tokens(base, variant),
    ]
    rows.append(_plain("licence", base.card.get("license"), variant.card.get("license"), "both sets of terms apply"))
    return Verdict(_named(variant.source), tuple(rows))


def comparison_table(verdicts: Sequence[Verdict]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of text: what differs; a variant that differs in nothing has one row that says so."""
    rows = []
    for found in verdicts:
        differing = [r for r in found.rows if r.severity != "same"]
        name = found.name
        for row in differing or [Aspect("everything compared", "", "", "same")]:
            rows.append((name, row.aspect, row.base, row.variant, row.severity, row.note))
            name = ""
    return ("variant", "aspect", "base", "its own", "verdict", "what happens"), rows


def _named(source: Source) -> str:
    """The variant's own repo and the beginning of its commit; of a folder its path."""
    repo, _, revision = (source.adapter or f"{source.repo}@{source.revision}").partition("@")
    return repo if LOCAL in revision else f"{repo}@{revision[:7]}"


def _plain(aspect: str, ours: Any, theirs: Any, note: str, worst: Severity = "harmless") -> Aspect:
    same = ours == theirs
    return Aspect(aspect, _text(ours), _text(theirs), "same" if same else worst, "" if same else note)


def _text(value: Any) -> str:
    return "–" if value is None else str(value)[:60]


def _settings(base: Mapping[str, Any], variant: Mapping[str, Any]) -> Iterator[Aspect]:
    ours, theirs = (_complete({**raw, **(raw.get("text_config") or {})}) for raw in (base, variant))
    for key in FATAL:
        if key in ours or key in theirs:
            yield _plain(key, ours.get(key), theirs.get(key), "its layers would compute something else", "fatal")
    for key, note in HARMLESS.items():
        if key in ours or key in theirs:
            yield _plain(key, ours.get(key), theirs.get(key), note)


def _complete(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the defaults that a config leaves out, spelled as transformers spells them today; as it is if unknown."""
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**raw).to_dict()
    # What transformers raises on a config it does not expect derives from Exception alone.
    except Exception:
        return raw


def _tensors(base: Peek, variant: Peek) -> Iterator[Aspect]:
    depth = setting(base.config, "num_hidden_layers", "n_layer")
    prefix, _ = layer_prefix(base.tensors)
    ours, theirs = (_inside(p.tensors, prefix, depth) for p in (base, variant))
    wrong = next((n for n in sorted({*ours, *theirs}) if _shape(ours.get(n)) != _shape(theirs.get(n))), None)
    if wrong:
        shapes = (_shape(ours.get(wrong)), _shape(theirs.get(wrong)))
        yield Aspect(
            f"tensor {prefix}{wrong}", _text(shapes[0]), _text(shapes[1]), "fatal", "shapes of layers must be equal"
        )
    else:
        count = f"{len(ours)} tensors"
        yield Aspect("tensors of the layers", count, count, "same")
    kinds = [", ".join(sorted({t.dtype for t in p.tensors.values()})) for p in (base, variant)]
    yield _plain("dtype", *kinds, "converted to the base's")


def _inside(tensors: Mapping[str, TensorInfo], prefix: str, depth: int | None) -> dict[str, TensorInfo]:
    """The layers' tensors, as far as a config of this depth has them loaded."""
    found = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    number = {n: n.partition(".")[0] for n in found}
    beyond = {n for n in found if depth and number[n].isdigit() and int(number[n]) >= depth}
    return {n: t for n, t in found.items() if n not in beyond and not n.endswith("rotary_emb.inv_freq")}


def _shape(tensor: TensorInfo | None) -> tuple[int, ...] | None:
    return tensor and tuple(tensor.shape)


def _adapter(variant: Peek) -> Iterator[Aspect]:
    """Every LoRA pair must fit a matrix of the model."""
    for name, info in variant.adapter.items():
        match = PAIR.fullmatch(name)
        if not match:
            continue
        module = match["module"]
        shape = _shape(variant.tensors.get(f"{module}.weight"))
        side = info.shape[1] if match["side"] == "A" else info.shape[0]
        # Stacked experts have tensors below the name, and a tied head has none: of those PEFT knows.
        elsewhere = has_rows(module) or any(n.startswith(f"{module}.") for n in variant.tensors)
        if (shape is None and not elsewhere) or (shape is not None and side not in shape):
            yield Aspect(
                f"adapter on {module}", _text(shape), _text(tuple(info.shape)), "fatal", "it fits no matrix there"
            )
            return
    if variant.adapter:
        yield Aspect("adapter", "", f"{len(variant.adapter)} tensors", "same")


def _tokens(base: Peek, variant: Peek) -> Iterator[Aspect]:
    ours, theirs = vocabulary(base.read), vocabulary(variant.read)
    if ours is None or theirs is None:
        yield Aspect(
            "tokenizer", _known(ours), _known(theirs), "harmless", "cannot be read without loading; rows stay in order"
        )
        return
    shared = sum(t in theirs for t in ours)
    moved = sum(theirs.get(t, i) != i for t, i in ours.items())
    added = len(theirs) - shared
    said = f"{len(theirs):,} tokens, {shared:,} shared, {moved:,} at other ids, {added:,} added"
    if shared < LEAST_SHARED * len(ours):
        yield Aspect("tokenizer", f"{len(ours):,} tokens", said, "fatal", "they read text in different tokens")
    elif shared < len(ours) or moved or added:
        yield Aspect("tokenizer", f"{len(ours):,} tokens", said, "harmless", "rows are matched by token")
    else:
        yield Aspect("tokenizer", f"{len(ours):,} tokens", said, "same")


def _known(tokens: Mapping[str, int] | None) -> str:
    return "–" if tokens is None else f"{len(tokens):,} tokens"


def check_variants(base: str, variants: Sequence[str], **trust: bool) -> None:
    """Refuse what does not fit before any weights are downloaded.

    Raises:
        IncompatibleSources: the first difference that matters.
    """
    for found in verdicts(*peeks(base, variants, **trust)) if variants else ():
        if not found.fits:
            raise IncompatibleSources(
                f"The variant {found.name} does not fit {base}: {found.sentence}; "
                "choose one that was fine-tuned from it."
            )


def peeks(base: str, variants: Sequence[str] = (), **trust: bool) -> tuple[hub.Peek, ...]:
    """A base and its variants, without their weights; `trust` as `hub.peek` takes it."""
    return (hub.peek(base, **trust), *(_alone(hub.peek, base, v, trust) for v in variants))


def verdicts(base: hub.Peek, *variants: hub.Peek) -> list[Verdict]:
    """How every variant compares with its base."""
    return [verdict(base, variant) for variant in variants]


def _alone(how: Callable[..., Any], base: str, variant: str, trust: Mapping[str, bool]) -> Any:
    """Peek at or pull a variant; an adapter named alone belongs to the base."""
    try:
        return how(variant, **trust)
    except AdapterAlone:
        return how(f"{base}+{variant}", **trust)


def beside(base: "Parent", variant: "Parent") -> "Parent":
    """A variant whose vocabulary rows stand as the base's do, by the tokens of both."""
    ours, theirs = (vocabulary(lambda name, p=p: (p.checkpoint.folder / name).read_bytes()) for p in (base, variant))
    rows, available = (p.skeleton.get_input_embeddings().weight.shape[0] for p in (base, variant))
    if ours is None or theirs is None:
        if rows != available:
            raise IncompatibleSources(
                f"{variant.source} has {available} vocabulary rows and {base.source} {rows}, and their tokenizer files "
                "do not say which belong together; save the variant with a fast tokenizer (tokenizer.json)."
            )
        return variant.beside(base)
    found = matched(ours, theirs, rows, available)
    return variant.beside(base, None if found == tuple(range(available)) else found)


def pull_variant(base: str, variant: str, **trust: bool) -> hub.Pulled:
    """Pin and pull a variant; an adapter named alone belongs to the base."""
    return _alone(hub.pull, base, variant, trust)
