"""Whatever names tokens by number follows when they are numbered anew."""

import pytest

from hf_prune.errors import UnsupportedArchitecture
from hf_prune.models.vocabulary.settings import named_ids, renumbered

RAW = {
    "vocab_size": 100,
    "hidden_size": 100,
    "bos_token_id": 1,
    "eos_token_id": [7, 9],
    "pad_token_id": None,
    "unused_token_id": -1,
    "text_config": {"vocab_size": 100, "image_token_id": 9},
    "bad_words_ids": [[7], [1, 9]],
    "added_tokens_decoder": {"9": {"content": "<end>"}},
    "layer_types": ["a", "b"],
}


def test_every_id_is_found_and_moved():
    assert sorted({*named_ids(RAW)}) == [1, 7, 9]
    assert renumbered(RAW, {1: 0, 7: 1, 9: 2}, 100) == {
        "vocab_size": 3,
        "hidden_size": 100,
        "bos_token_id": 0,
        "eos_token_id": [1, 2],
        "pad_token_id": None,
        "unused_token_id": -1,
        "text_config": {"vocab_size": 3, "image_token_id": 2},
        "bad_words_ids": [[1], [0, 2]],
        "added_tokens_decoder": {"2": {"content": "<end>"}},
        "layer_types": ["a", "b"],
    }


def test_a_token_that_the_tokenizer_does_not_know_is_told():
    with pytest.raises(UnsupportedArchitecture, match="token 9 as eos_token_id"):
        renumbered(RAW, {1: 0, 7: 1}, 100)
