"""Tokens are read from a tokenizer's files, and rows are matched by token."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.models.vocabulary.matching import matched, vocabulary
from tests.families import VOCABULARY, opened, save_tiny


def reader(**files):
    def read(name):
        return json.dumps(files[name.replace(".", "_")]).encode()

    return read


def test_every_form_of_file_gives_tokens_and_ids():
    added = [{"content": "<s>", "id": 2}]
    pairs = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, "added_tokens": added}
    unigram = {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": added}
    assert (
        vocabulary(reader(tokenizer_json=pairs))
        == vocabulary(reader(tokenizer_json=unigram))
        == {"a": 0, "b": 1, "<s>": 2}
    )
    assert vocabulary(reader(vocab_json={"x": 0})) == {"x": 0}
    assert vocabulary(reader()) is None and vocabulary(lambda name: b"{") is None


@given(st.permutations(list(range(8))), st.integers(0, 5), st.integers(0, 5))
def test_a_row_goes_with_its_token(order, pad, more):
    base = {f"t{i}": i for i in range(8)}
    variant = {f"t{i}": place for i, place in enumerate(order)} | {f"new{i}": 8 + i for i in range(more)}
    rows = matched(base, variant, 8 + pad, 8 + more)
    assert list(rows[:8]) == list(order)
    assert all(r == (8 + i if i < more else -1) for i, r in enumerate(rows[8:]))


def test_a_token_the_variant_lacks_has_no_row():
    assert matched({"a": 0, "b": 1}, {"b": 0}, 2, 1) == (-1, 0)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2", "falcon"])
def test_every_matrix_with_a_row_per_token_takes_the_rows_of_its_tokens(tmp_path, family):
    """Whatever it is called: embed_tokens, embed_in and embed_out, wte, word_embeddings."""
    for name, more in (("base", 0), ("variant", 3)):
        save_tiny(family, tmp_path / name, vocab_size=VOCABULARY + more)
    base, variant = opened(tmp_path / "base"), opened(tmp_path / "variant")
    rows = (*range(3, VOCABULARY + 2), -1)
    beside = variant.beside(base, rows)
    matrices = [n for n in base.shapes if base.shapes[n] == (VOCABULARY, base.config.hidden_size)]
    assert matrices
    for name in matrices:
        own, found = variant.outside_tensor(name), beside.outside_tensor(name)
        assert torch.equal(found[:-1], own[3 : VOCABULARY + 2])
        assert torch.equal(found[-1], base.outside_tensor(name)[-1])
