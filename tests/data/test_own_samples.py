"""`self` as data: prompts are read or refused by line, and what was said keeps its own tokens in its windows."""

import json

import pytest
from hypothesis import given

from hf_prune.data.corpora import check_entries, load_corpora, own_corpus
from hf_prune.data.documents import Chat, question
from hf_prune.data.own_samples import Sample, corpus_name, is_own, prompts_of
from hf_prune.data.windows import cut
from hf_prune.errors import InvalidData
from tests.data.strangers import CHATS, RECORDS


@given(RECORDS | CHATS)
def test_any_record_is_a_question_that_ends_with_its_user_or_refused_with_its_place(record):
    try:
        found = question(record, "Line 7 of a.jsonl")
    except InvalidData as e:
        assert str(e).startswith("Line 7 of a.jsonl is not ") and "\n" not in str(e)
        return
    messages, _ = found.parts
    assert isinstance(found, Chat) and found.where == "Line 7 of a.jsonl" and messages[-1]["role"] == "user"


@pytest.mark.parametrize(
    "record",
    [
        "Why?",
        {"prompt": "Why?"},
        {"prompt": "Why?", "completion": "Because."},
        {"prompt": [{"role": "user", "content": "Why?"}]},
        {"instruction": "Why?", "output": "Because."},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
    ],
)
def test_what_was_answered_is_left_out(record):
    assert question(record, "").parts == ([{"role": "user", "content": "Why?"}], None)


def test_entries_are_told_apart_and_prompts_counted_once(tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": p}) for p in ("a", "b", "a")))
    assert [is_own(e) for e in ("self", f"self:{path}", "selfish", "ns/self")] == [True, True, False, False]
    assert len(prompts_of(f"self:{path}")) == 2 and prompts_of("self") == ()
    assert corpus_name(f"self:{path}") == "own_samples_asked" and corpus_name("self") == "own_samples"
    check_entries(["self", f"self:{path}"])
    for entry, content in (("none.jsonl", None), ("empty.jsonl", ""), ("text.jsonl", '{"text": "a"}')):
        if content is not None:
            (tmp_path / entry).write_text(content)
        with pytest.raises(InvalidData, match=entry):
            check_entries([f"self:{tmp_path / entry}"])
    with pytest.raises(InvalidData, match="nobody has asked it"):
        load_corpora(["self"])


def said(tokenizer, ids, ended):
    return Sample(tokenizer.decode(ids), ids, ended)


def test_windows_hold_the_tokens_that_were_said(tokenizer):
    end = tokenizer.eos_token_id
    letters = [tokenizer(c, add_special_tokens=False)["input_ids"][-1] for c in "the"]
    assert tokenizer(tokenizer.decode(letters), add_special_tokens=False)["input_ids"] != letters
    whole, torn = [*letters, end], letters + letters[:2]
    documents = {"heal": (said(tokenizer, whole, True), said(tokenizer, torn, False), said(tokenizer, torn, True)),
                 "selection": (said(tokenizer, letters * 3, True),)}  # fmt: skip
    corpus = own_corpus("self", documents, "here")
    got = cut([corpus], tokenizer, "search", 1, 15)
    assert got.tokens[0].tolist() == [*whole, *torn, *torn, end] and got.corpora == ("own_samples",)
    assert got.origin == {"own_samples": "here"}


def test_a_corpus_without_a_report_has_no_share_of_it(tokenizer, tmp_path):
    (tmp_path / "book.txt").write_text("\n\n".join(f"{i} " + "the cat sat on the mat. " * 60 for i in range(12)))
    own = own_corpus("self", dict.fromkeys(("heal", "selection"), (said(tokenizer, [5] * 99, False),)), "")
    corpora = load_corpora([str(tmp_path / "book.txt"), "self"], read={"self": (own,)})
    assert cut(corpora, tokenizer, "report", 4, 16).corpora == ("book",) * 4
    assert cut(corpora, tokenizer, "search", 4, 16).corpora == ("book", "own_samples") * 2
