"""Bytes of windows are those of the text that their tokens came from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from hf_prune.data.byte_counts import bytes_said
from hf_prune.data.hard_texts import hard_texts
from tests.models.vocabulary.tokenizers_of import LOSSLESS, byte_fallback, byte_level

KIND = pytest.mark.parametrize("kind", LOSSLESS, ids=lambda kind: kind.__name__)
OPENED = {kind: PreTrainedTokenizerFast(tokenizer_object=kind(), eos_token="</s>") for kind in LOSSLESS}


@KIND
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_tokens_say_the_bytes_of_their_text(kind, text):
    ids = OPENED[kind](text.replace("▁", ""), add_special_tokens=False)["input_ids"]
    window = torch.tensor([[1, *ids], [1, *ids]])
    assert bytes_said(window, OPENED[kind]).tolist() == [len(text.replace("▁", "").encode())] * 2


def test_hard_texts_one_after_the_other_and_what_ends_them():
    tokenizer = OPENED[byte_level]
    texts = [t for t in hard_texts(tokenizer) if "</s>" not in t and "<s>" not in t]
    ids = [i for t in texts for i in [*tokenizer(t, add_special_tokens=False)["input_ids"], 1]]
    assert bytes_said(torch.tensor([[1, *ids]]), tokenizer) == [sum(len(t.encode()) for t in texts)]


def test_the_first_token_of_a_window_and_special_ones_count_nothing():
    tokenizer = OPENED[byte_fallback]
    ids = tokenizer("ab", add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    for window, said in (([end, end, end], 0), ([*ids, end], 2 - len(tokenizer.decode(ids[:1])))):
        assert bytes_said(torch.tensor([window]), tokenizer).tolist() == [said]


def test_part_of_a_character_is_its_bytes():
    tokenizer = OPENED[byte_fallback]
    first, *rest = tokenizer("🦙", add_special_tokens=False)["input_ids"]
    assert len(rest) == 3 and bytes_said(torch.tensor([[first, *rest[:2]]]), tokenizer) == [2]
