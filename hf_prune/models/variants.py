"""Fine-tuned variants of a base: found to fit, pulled, and brought into its shape."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_prune import hub
from hf_prune.errors import AdapterAlone, IncompatibleSources
from hf_prune.models.compatibility import Verdict, verdict
from hf_prune.models.vocabulary import matched, vocabulary

if TYPE_CHECKING:
    # A plan looks at variants too, and must not load torch.
    from hf_prune.models.parent import Parent


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
