"""Tokens are read from a tokenizer's files, and rows are matched by token."""

import json

from hypothesis import given
from hypothesis import strategies as st

from hf_prune.models.vocabulary import matched, vocabulary


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
