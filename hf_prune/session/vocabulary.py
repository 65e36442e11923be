"""Which tokens a run keeps, by its own text, and the certificate that nothing else has changed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from hf_prune.assembly.base_check import stock_model
from hf_prune.assembly.certificate import CERTIFIED, TOLERANCE
from hf_prune.data.chat_templates import rendered
from hf_prune.data.corpora import Split, load_corpora
from hf_prune.data.hard_texts import hard_texts
from hf_prune.data.own_samples import is_own
from hf_prune.errors import InvalidData, InvalidRecipe, ReloadMismatch
from hf_prune.limits import DEFAULT_RATIO
from hf_prune.models.fewer_tokens import row_parameters, rows_of, vocabulary_of, without_tokens
from hf_prune.models.noise import quiet
from hf_prune.models.parent import Parent
from hf_prune.models.vocabulary.certificate import certify_tokens, texts_for
from hf_prune.models.vocabulary.trimming import Vocabulary, encoded, length
from hf_prune.recipe import Recipe

DOCUMENTS = 4000
"""Most documents of a corpus that tokens are counted in."""
MULTIPLE = 64
"""Of which the number of rows is one where it is chosen here, as processors like it."""


def fewer_tokens(
    recipe: Recipe, entries: Callable[[], Sequence[str]], base: Parent
) -> tuple[Parent, dict[str, Any] | None]:
    """The base with the tokens that the recipe asks for, and what its report says of that; as it is where all stay.

    Raises:
        InvalidRecipe: there are no more than that, or fewer than must stay.
        InvalidData: there is no text to choose by.
        ReloadMismatch: the smaller vocabulary does not say what the whole one does.
        UnsupportedArchitecture: the tokenizer cannot lose tokens.
    """
    if recipe.vocabulary == "none":
        return base, None
    with quiet():
        vocabulary = vocabulary_of(base)
        texts = {split: list(_texts(recipe, entries(), base.tokenizer, split)) for split in ("search", "selection")}
        kept = _chosen(recipe, base, vocabulary, texts["search"], texts["selection"])
        if len(kept) == rows_of(base):
            return base, None
        small = without_tokens(base, vocabulary, kept)
        return small, _certified(base, small, vocabulary, texts["selection"] or list(hard_texts(base.tokenizer)))


def _texts(recipe: Recipe, entries: Sequence[str], tokenizer: Any, split: Split) -> Iterator[str]:
    """Text that the base did not say itself."""
    for entry in entries:
        for corpus in () if is_own(entry) else load_corpora([entry], recipe.tasks.force_test_split):
            for document in corpus.documents.get(split, ())[:DOCUMENTS]:
                yield rendered(document, tokenizer)


def _chosen(
    recipe: Recipe, base: Parent, vocabulary: Vocabulary, search: Sequence[str], unseen: Sequence[str]
) -> tuple[int, ...]:
    counts = vocabulary.counts(search)
    if recipe.vocabulary != "auto":
        size = int(recipe.vocabulary)
        if size >= len(vocabulary.ids):
            raise InvalidRecipe(
                f"{base.source.repo} has {len(vocabulary.ids)} tokens, so --vocabulary {size} keeps all of them; "
                "ask for fewer, or leave it out."
            )
        return vocabulary.kept(size, counts)
    if not search or not unseen:
        raise InvalidData("--vocabulary auto chooses by text that the base did not say itself; name some with --data.")
    kept = vocabulary.smallest(counts, unseen)
    return vocabulary.kept(max(len(kept), _affordable(recipe, base)), counts)


def _affordable(recipe: Recipe, base: Parent) -> int:
    """Tokens that may stay where they alone are to make up for the ratio; 0 where no ratio is asked for."""
    if recipe.every_size or recipe.size.given not in ([], ["ratio"]):
        return 0
    gone = round((recipe.size.ratio or DEFAULT_RATIO) * base.parameters / row_parameters(base))
    return max(0, -(-(rows_of(base) - gone) // MULTIPLE)) * MULTIPLE


def _certified(whole: Parent, small: Parent, vocabulary: Vocabulary, texts: Sequence[str]) -> dict[str, Any]:
    """Hard texts are said as before, and the logits of kept tokens are those of the dense model."""
    made, kept = vocabulary_of(small).tokenizer, small.kept
    parts = hard_texts(whole.tokenizer)
    tokens = certify_tokens(vocabulary.tokenizer, made, kept, texts_for(vocabulary.tokenizer, kept, parts))
    rows, size = CERTIFIED
    ids = [i for one in encoded(made, texts[: rows * size]) for i in one][: rows * size]
    window = torch.tensor(ids)[: len(ids) // rows * rows].reshape(rows, -1)
    expected = _logits(whole, torch.tensor(kept)[window])[..., torch.tensor(kept)]
    found = _logits(small, window)
    difference, largest = float((found - expected).abs().max()), max(1.0, float(expected.abs().max()))
    if not difference <= TOLERANCE[str(whole.dtype).removeprefix("torch.")] * largest:
        raise ReloadMismatch(
            f"With fewer tokens {whole.source.repo} is another model: logits of kept tokens differ by "
            f"{difference:.3g}; leave out --vocabulary."
        )
    size = sum(len(t.encode()) for t in texts)
    return {
        "dense": len(vocabulary.ids),
        "kept": len(kept),
        "digest": small.source.vocabulary,
        "parameters": whole.parameters - small.parameters,
        **tokens,
        "max_logit_difference": difference,
        "bytes_per_token_dense": size / length(vocabulary.tokenizer, texts),
        "bytes_per_token": size / length(made, texts),
    }


@torch.inference_mode()
def _logits(parent: Parent, tokens: torch.Tensor) -> torch.Tensor:
    model = stock_model(parent, parent.dtype, torch.device("cpu"))
    return model(input_ids=tokens, use_cache=False).logits.float()
