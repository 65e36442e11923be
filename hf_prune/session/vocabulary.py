"""Which tokens a run keeps, by its own text, and the certificate that nothing else has changed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from hf_prune.assembly.base_check import stock_model
from hf_prune.assembly.certificate import CERTIFIED, TOLERANCE
from hf_prune.data.chat_templates import rendered
from hf_prune.data.corpora import Split
from hf_prune.data.hard_texts import hard_texts
from hf_prune.errors import InvalidRecipe, ReloadMismatch
from hf_prune.models.fewer_tokens import row_parameters, rows_of, vocabulary_of, without_tokens
from hf_prune.models.noise import quiet
from hf_prune.models.parent import Parent
from hf_prune.models.vocabulary.certificate import certify_tokens, texts_for
from hf_prune.models.vocabulary.trimming import Vocabulary, encoded, length
from hf_prune.planning.tokens import DOCUMENTS, SPLITS, affordable, chosen, deciding
from hf_prune.recipe import Recipe


def fewer_tokens(
    recipe: Recipe, entries: Callable[[], Sequence[str]], base: Parent
) -> tuple[Parent, dict[str, Any] | None]:
    """The base with the tokens that the recipe asks for, and what its report says of that; as it is where all stay.

    Raises:
        InvalidRecipe: there are no more than that, or fewer than must stay; or the base is larger than the memory.
        InvalidData: there is no text to choose by.
        ReloadMismatch: the smaller vocabulary does not say what the whole one does.
        UnsupportedArchitecture: the tokenizer cannot lose tokens.
    """
    if recipe.vocabulary == "none":
        return base, None
    if (memory := recipe.machine.memory) is not None and base.bytes > memory * 2**30:
        raise InvalidRecipe(
            f"--vocabulary compares logits of the whole base, which has {base.bytes / 2**30:.2f} GiB, and --memory "
            f"gives {memory:g}; raise --memory, or leave --vocabulary out."
        )
    with quiet():
        vocabulary = vocabulary_of(base)
        found = entries()
        texts = {split: list(_texts(recipe, found, base.tokenizer, split)) for split in SPLITS}
        least = affordable(recipe, rows_of(base), base.parameters, row_parameters(base))
        kept = chosen(recipe, vocabulary, least, texts["search"], texts["selection"])
        if len(kept) == rows_of(base):
            return base, None
        small = without_tokens(base, vocabulary, kept)
        return small, _certified(base, small, vocabulary, texts["selection"] or list(hard_texts(base.tokenizer)))


def _texts(recipe: Recipe, entries: Sequence[str], tokenizer: Any, split: Split) -> Iterator[str]:
    """What decides, as the base reads it."""
    for corpus in deciding(recipe, entries):
        for document in corpus.documents.get(split, ())[:DOCUMENTS]:
            yield rendered(document, tokenizer)


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
