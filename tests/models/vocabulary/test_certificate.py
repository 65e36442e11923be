"""The token certificate passes what is cut by the rules, and sees what is not."""

import json

import pytest
from tokenizers import Tokenizer

from hf_prune.data.hard_texts import PARTS
from hf_prune.errors import ReloadMismatch
from hf_prune.models.vocabulary.certificate import LEAST, certify_tokens, texts_for
from hf_prune.models.vocabulary.trimming import Vocabulary
from tests.models.vocabulary.tokenizers_of import KINDS, byte_fallback, byte_level, unigram


def halved(kind):
    full = Vocabulary(kind())
    kept = full.kept((len(full.floor) + len(full.ids)) // 2, {})
    return full, kept, full.cut(kept), list(texts_for(full.tokenizer, kept, PARTS))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_thousand_hard_texts(kind):
    full, kept, small, texts = halved(kind)
    found = certify_tokens(full.tokenizer, small, kept, texts)
    assert found["hard_texts"] == len(texts) >= LEAST and found["same_pieces"] > 50


def test_a_vocabulary_cut_by_frequency_alone_fails():
    """As scripts do that drop bytes nobody used."""
    full, kept, _, texts = halved(byte_level)
    bare = [i for i in kept if len(full.tokens[i]) > 1 or full.tokens[i].isascii()]
    with pytest.raises(ReloadMismatch, match="not said as before"):
        certify_tokens(full.tokenizer, full.cut(bare), bare, texts)


@pytest.mark.parametrize(("kind", "spoil"), [(byte_fallback, "merges"), (unigram, "vocab")])
def test_a_kept_token_that_is_not_reached_any_more_is_seen(kind, spoil):
    full, kept, small, texts = halved(kind)
    raw = json.loads(small.to_str())
    if spoil == "merges":
        raw["model"]["merges"] = raw["model"]["merges"][::2]
    else:
        raw["model"]["vocab"] = [[t, -s if s else s] for t, s in raw["model"]["vocab"]]
    with pytest.raises(ReloadMismatch, match="other pieces"):
        certify_tokens(full.tokenizer, Tokenizer.from_str(json.dumps(raw)), kept, texts)
