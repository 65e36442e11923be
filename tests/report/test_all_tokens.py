"""The base with all its tokens on the text of windows that are written in the kept ones."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prune import hub
from hf_prune.data.byte_counts import bytes_said
from hf_prune.data.windows import Windows
from hf_prune.models.fewer_tokens import vocabulary_of, without_tokens
from hf_prune.models.parent import Parent
from hf_prune.report.all_tokens import bits_with_all_tokens, whole_tokens
from tests.models.vocabulary.prose import PROSE
from tests.session.test_vocabulary import with_tokenizer

TEXT = " ".join(PROSE) + " größe 🦙🦙 мир"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A base with half of its tokens."""
    folder = with_tokenizer(tmp_path_factory.mktemp("all_tokens") / "base")
    pulled = hub.pull(str(folder))
    base = Parent.open(pulled.source, pulled.folder)
    vocabulary = vocabulary_of(base)
    return without_tokens(base, vocabulary, vocabulary.kept(400, {}))


def tokens(small, text=TEXT):
    return small.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_text_of_a_window_is_read_as_the_whole_tokenizer_reads_it(small):
    ids, full = tokens(small), small.original.tokenizer
    found = whole_tokens(small, ids)
    first = full.decode([small.kept[ids[0]]])
    assert found[1:] == full(TEXT.removeprefix(first), add_special_tokens=False)["input_ids"] and len(found) < len(ids)
    assert full.decode(found) == TEXT


@pytest.mark.parametrize("first", range(1, 24))
def test_no_window_loses_a_byte_wherever_it_begins_and_ends(small, first):
    ids = tokens(small, "🦙é мир")
    full = small.original.tokenizer
    for last in range(first + 1, len(ids) + 1):
        window = ids[first - 1 : last]
        old = torch.tensor([whole_tokens(small, window)])
        assert bytes_said(old, full) == bytes_said(torch.tensor([window]), small.tokenizer)


def test_bits_are_those_of_the_stock_model(small):
    rows = torch.tensor([tokens(small)[i * 20 : i * 20 + 20] for i in range(3)])
    windows = Windows("report", rows, ("a", "b", "a"), {"a": "x", "b": "y"})
    said = bytes_said(rows, small.tokenizer)
    found = bits_with_all_tokens(small, windows, said, torch.float32, torch.device("cpu"))
    model = AutoModelForCausalLM.from_pretrained(small.original.checkpoint.folder)
    nats = []
    for row in rows:
        ids = torch.tensor([whole_tokens(small, row.tolist())])
        nats.append(model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1))
    assert found["all"] == pytest.approx(sum(nats) / np.sum(said) / math.log(2), rel=1e-5)
    assert found["b"] == pytest.approx(nats[1] / said[1] / math.log(2), rel=1e-5) and set(found) == {"a", "b", "all"}
