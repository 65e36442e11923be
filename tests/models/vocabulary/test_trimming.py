"""With fewer tokens every text is written as before, and text of kept tokens in the same pieces."""

import functools
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from hf_prune.errors import InvalidRecipe, UnsupportedArchitecture
from hf_prune.models.vocabulary.schemes import scheme_of
from hf_prune.models.vocabulary.trimming import Vocabulary, encoded, length
from tests.models.vocabulary.prose import PROSE
from tests.models.vocabulary.tokenizers_of import KINDS, LOSSLESS, byte_fallback, byte_level

WORDS = st.sampled_from([w for line in PROSE for w in line.split(" ")] + ["<s>", "</s>", "<tool>", "▁", "##s", "</w>"])
TEXTS = st.one_of(st.text(), st.lists(st.one_of(WORDS, st.text(max_size=3)), max_size=12).map(" ".join))


@functools.cache
def whole(kind):
    return Vocabulary(kind())


@functools.cache
def cut(kind, share, seed):
    """A tokenizer without some of its tokens, the kept ids among the old, and both ways between them."""
    full = whole(kind)
    size = len(full.floor) + round(share * (len(full.ids) - len(full.floor)))
    # Which tokens are common changes with the seed.
    kept = full.kept(size, {i: (i * 2654435761 + seed * 40503) % 9973 for i in full.tokens})
    return full.cut(kept), kept


KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
SHARES, SEEDS = st.sampled_from([0.0, 0.2, 0.5, 0.9]), st.integers(0, 3)


@KIND
@settings(max_examples=150, deadline=None)
@given(text=TEXTS, share=SHARES, seed=SEEDS)
def test_every_text_is_read_and_said_as_before(kind, text, share, seed):
    full, (small, _) = whole(kind).tokenizer, cut(kind, share, seed)
    before, after = full.encode(text), small.encode(text)
    for skip in (False, True):
        assert small.decode(after.ids, skip) == full.decode(before.ids, skip)
    if kind in LOSSLESS:
        # A sign that stands for spaces was never told from them.
        said = small.decode(small.encode(text, add_special_tokens=False).ids, False)
        assert said in (text, text.replace("▁", " "))


@KIND
@settings(max_examples=150, deadline=None)
@given(text=TEXTS, share=SHARES, seed=SEEDS)
def test_text_of_kept_tokens_has_the_same_pieces(kind, text, share, seed):
    full, (small, kept) = whole(kind).tokenizer, cut(kind, share, seed)
    # Most texts lose some piece; the part of a text that is written in kept ones does not.
    for part in (text, full.decode([i for i in full.encode(text).ids if i in {*kept}], False)):
        if {*full.encode(part).ids} <= {*kept}:
            assert [kept[i] for i in small.encode(part).ids] == full.encode(part).ids


@KIND
def test_all_tokens_kept_is_the_same_tokenizer(kind):
    full = whole(kind)
    everything = full.kept(len(full.ids), {})
    assert everything == tuple(sorted(full.tokens))
    # Reading a file rounds scores anew.
    again = Tokenizer.from_str(full.tokenizer.to_str())
    assert json.loads(full.cut(everything).to_str()) == json.loads(again.to_str())


@KIND
def test_a_size_is_met_and_what_must_stay_stays(kind):
    full = whole(kind)
    size = (len(full.floor) + len(full.ids)) // 2
    counts = full.counts(PROSE[:2])
    kept = full.kept(size, counts)
    assert size - 12 < len(kept) == len(full.cut(kept).get_vocab()) <= size
    assert {full.ids[t] for t in full.floor} <= {*kept}
    with pytest.raises(InvalidRecipe, match="too small"):
        full.kept(len(full.floor) - 1, counts)


@KIND
def test_what_a_small_vocabulary_keeps_a_larger_one_keeps(kind):
    full = whole(kind)
    counts = full.counts(PROSE[:2])
    kept = [{*full.kept(size, counts)} for size in range(len(full.floor), len(full.ids), 7)]
    assert all(small <= large for small, large in itertools.pairwise(kept))


def test_ids_that_settings_name_stay():
    full = whole(byte_level)
    rare = max(set(full.tokens) - {full.ids[t] for t in full.floor})
    named = Vocabulary(full.tokenizer, frozenset({rare}))
    assert rare in named.kept(len(named.floor), {}) and rare not in full.kept(len(full.floor), {})


@KIND
def test_common_tokens_stay_before_rare_ones(kind):
    full = whole(kind)
    counts = full.counts(PROSE[:1])
    made_by = {part for i in counts for part in full.scheme.needed(full.tokens[i])}
    kept = full.kept(len(full.floor | made_by), counts)
    assert {full.tokens[i] for i in kept} == full.floor | made_by
    assert [kept[i] for i in full.cut(kept).encode(PROSE[0]).ids] == full.tokenizer.encode(PROSE[0]).ids


def test_the_floor_is_plain_signs_numbers_and_bytes():
    full = whole(byte_fallback)
    assert {"<0x00>", "<0xFF>", "<s>", "</s>", "<unk>", "1", "2", ",", "▁"} <= full.floor
    assert "é" in full.ids and "é" not in full.floor


@pytest.mark.parametrize("growth", [0.0, 0.05, 0.5])
def test_the_smallest_that_takes_few_more_tokens(growth):
    full = whole(byte_level)
    counts, unseen = full.counts(PROSE[:3]), PROSE[3:8]
    kept = full.smallest(counts, unseen, growth, step=1)
    allowed = (1 + growth) * length(full.tokenizer, unseen)
    assert length(full.cut(kept), unseen) <= allowed
    assert len(kept) == len(full.floor) or length(full.cut(full.kept(len(kept) - 1, counts)), unseen) > allowed


def test_a_token_that_merges_do_not_reach_stays_alone():
    raw = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "ba": 3, "aba": 4}, "merges": [["a", "b"], ["b", "a"]]}
    assert scheme_of(raw).needed("aba") == {"aba"} and scheme_of(raw).needed("ab") == {"a", "b", "ab"}


def test_a_kind_without_known_rules_is_refused():
    with pytest.raises(UnsupportedArchitecture, match="WordLevel"):
        Vocabulary(Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))).kept(1, {})


def test_ids_of_special_tokens_follow_in_what_is_put_around_a_text():
    full = whole(byte_level)
    small, kept = cut(byte_level, 0.2, 1)
    assert [kept[i] for i in small.encode("").ids] == full.tokenizer.encode("").ids == [0, 1]
    assert list(encoded(small, [""])) == [[]]
