import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.data.bundled import demo_folder
from hf_prune.data.corpora import SHARES, SPLITS, check_disjoint, divide, load_corpora, text_key
from hf_prune.data.windows import windows
from hf_prune.errors import InvalidData
from tests.data.texts import folder, jsonl, lines, words

TEXT = str(demo_folder() / "text")


@pytest.mark.parametrize("pair", [("search", "selection"), ("search", "report"), ("selection", "report")])
def test_a_document_in_two_splits_is_refused_whatever_its_case_and_spaces(tmp_path, tokenizer, pair):
    path = folder(
        tmp_path, **{pair[0]: [words(901), "Both  Sides\nSay it"], pair[1]: ["both sides say it ", words(902)]}
    )
    with pytest.raises(InvalidData, match=f"in the {pair[1]} and in the {pair[0]} split"):
        windows([path], tokenizer, "search", 1, 8)


def test_overlap_is_found_across_corpora(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    one = folder(tmp_path / "a")
    jsonl(tmp_path / "b" / "other.search.jsonl", [words(200)])
    jsonl(tmp_path / "b" / "other.selection.jsonl", ["unique text"])
    jsonl(tmp_path / "b" / "other.report.jsonl", ["more unique text"])
    corpora = load_corpora([one, str(tmp_path / "b")])
    check_disjoint(corpora[:1])
    with pytest.raises(InvalidData, match="other.search.jsonl.*tale.report.jsonl"):
        check_disjoint(corpora)


def test_one_jsonl_file_is_cut_in_three_by_document(tmp_path):
    texts = [words(k) for k in range(50)] + [words(3), words(7).upper()]
    (corpus,) = load_corpora([str(jsonl(tmp_path / "mine.jsonl", texts))])
    check_disjoint([corpus])
    assert sorted(sum((corpus.documents[s] for s in SPLITS), ())) == sorted(texts)
    assert [len(set(map(str.lower, corpus.documents[s]))) for s in SPLITS] == [30, 10, 10]
    assert [t for t in texts if t in corpus.documents["search"]] == list(corpus.documents["search"])
    assert corpus.name == "mine" and corpus.origins["report"] == "mine.jsonl (20%)"


@pytest.mark.parametrize("gap", ["\n\n", "\n"])
def test_text_file_is_cut_at_paragraphs_or_lines(tmp_path, gap):
    paragraphs = [words(k, 120) for k in range(20)]
    (tmp_path / "book.txt").write_text(gap.join(paragraphs))
    (corpus,) = load_corpora([str(tmp_path / "book.txt")])
    pieces = [p for s in SPLITS for d in corpus.documents[s] for p in d.split(gap)]
    assert sorted(pieces) == sorted(paragraphs)
    assert all(corpus.documents[s] for s in SPLITS)


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=3, max_size=40))
def test_cutting_keeps_every_document_once_and_copies_together(texts):
    cut = divide(tuple(texts), SHARES)
    assert sorted(sum(cut, ())) == sorted(texts)
    keys = [set(map(text_key, side)) for side in cut]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    if len(set.union(*keys)) >= 3:
        assert all(cut)


@pytest.mark.parametrize("line", ['{"text": "a"', '{"body": "a"}', '{"text": 3}', "[1]"])
def test_malformed_line_is_named(tmp_path, line):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(InvalidData, match=r"Line 3 of .*bad\.jsonl is not"):
        load_corpora([str(tmp_path / "bad.jsonl")])


def test_missing_things_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.csv").write_text("a")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    whole = folder(tmp_path)
    (tmp_path / "tale.report.jsonl").unlink()
    for data, message in [
        ([str(tmp_path / "none.jsonl")], "no data file or folder .*none.jsonl"),
        (["./none"], "no data file or folder ./none"),
        ([str(tmp_path / "empty")], "has no text: expected files named NAME.search.jsonl"),
        ([str(tmp_path / "x.csv")], "neither .jsonl nor .txt"),
        ([str(tmp_path / "latin.txt")], "must be readable UTF-8"),
        ([whole], "lacks tale.report.jsonl"),
        ([TEXT, TEXT], "Two data entries are called 'math'"),
        ([], "No data is given"),
    ]:
        with pytest.raises(InvalidData, match=message):
            load_corpora(data)


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    jsonl(tmp_path / "set" / "train.jsonl", [words(k) for k in range(20)] + [words(500), " \n"])
    jsonl(tmp_path / "set" / "validation.jsonl", [words(500), words(501)])
    jsonl(tmp_path / "set" / "test.jsonl", [words(k) for k in range(600, 610)])
    return tmp_path / "set"


def test_dataset_gives_train_to_search_and_selection_and_validation_to_the_report(dataset):
    (corpus,) = load_corpora(["set:default:text"])
    assert [len(corpus.documents[s]) for s in SPLITS] == [15, 5, 2]
    assert words(500) in corpus.documents["report"]
    check_disjoint([corpus])
    assert corpus.name == "set" and corpus.origins["search"] == "set:default (train)"


def test_dataset_without_validation_is_cut_in_three(dataset):
    (dataset / "validation.jsonl").unlink()
    (corpus,) = load_corpora(["set:default"])
    assert [len(corpus.documents[s]) for s in SPLITS] == [13, 4, 4]


def test_public_test_split_needs_force_to_search_but_not_to_report(dataset, tokenizer):
    with pytest.raises(InvalidData, match="public test split.*--force-test-split"):
        windows(["set:default:text:test"], tokenizer, "search", 1, 8)
    with pytest.raises(InvalidData, match="public test split"):
        windows(["set:default:text:train+test"], tokenizer, "selection", 1, 8)
    assert len(windows(["set:default:text:test"], tokenizer, "search", 1, 8, force_test_split=True).tokens) == 1
    assert windows(["set:default:text:test"], tokenizer, "report", 1, 8).origin == {"set": "set:default (test)"}


def test_dataset_errors_are_one_sentence(dataset):
    for entry, message in [
        ("set:default:body", "has no column 'body'; name one of text"),
        ("set:nothing", "Cannot read the dataset set:nothing"),
        ("set:default:text:later", "Cannot read the dataset .*later"),
    ]:
        with pytest.raises(InvalidData, match=message) as caught:
            load_corpora([entry])
        assert "\n" not in str(caught.value)
    (dataset / "train.jsonl").unlink()
    (dataset / "validation.jsonl").unlink()
    with pytest.raises(InvalidData, match="has no train split"):
        load_corpora(["set:default"])


def test_line_separators_inside_a_text_do_not_end_the_line(tmp_path):
    texts = ["one\u2028still one", "two\x85still two", "three"]
    lines = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
    (tmp_path / "odd.jsonl").write_text("\r\n".join(lines), encoding="utf-8", newline="")
    (corpus,) = load_corpora([str(tmp_path / "odd.jsonl")])
    assert sorted(sum((corpus.documents[s] for s in SPLITS), ())) == sorted(texts)


@pytest.mark.parametrize("split", ["selection", "report"])
def test_healing_text_may_not_be_what_choices_or_figures_rest_on(tmp_path, split):
    data = folder(tmp_path)
    document = json.loads((tmp_path / f"tale.{split}.jsonl").read_text().splitlines()[0])["text"]
    jsonl(tmp_path / "tale.heal.jsonl", [document.upper()])
    with pytest.raises(InvalidData, match="figures would be spoiled"):
        check_disjoint(load_corpora([data]))
    jsonl(tmp_path / "tale.heal.jsonl", [words(0)])
    check_disjoint(load_corpora([data]))


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"role": "user", "content": 3}], "hello", [3]])
def test_what_is_no_chat_is_refused_by_its_line(tmp_path, tokenizer, messages):
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(InvalidData, match="Line 1 of .* with role and content"):
        windows([str(path)], tokenizer, "search", 1, 32)


def turns(number, **more):
    asked, said = words(number, 8), words(number + 500, 8)
    return [{"role": "user", "content": asked, **more}, {"role": "assistant", "content": said}]


ROWS = {
    "messages": ("messages", [{"messages": turns(k), "id": k} for k in range(40)]),
    "conversations": (
        "",
        [{"conversations": [{"from": "human", "value": a["content"]}, {"from": "gpt", "value": b["content"]}], "id": k}
         for k in range(40) for a, b in [turns(k)]],
    ),
    "an exchange": (
        "",
        [{"instruction": a["content"], "input": "", "output": b["content"], "id": k}
         for k in range(40) for a, b in [turns(k)]],
    ),
    "another name": ("talk", [{"talk": turns(k), "id": k} for k in range(40)]),
    "keys of other rows": ("", [{"messages": turns(k, name="kim" if k % 2 else None), "id": k} for k in range(40)]),
    "rows without": ("", [{"messages": turns(k) if k < 40 else None, "id": k} for k in range(50)]),
    "parts": (
        "",
        [{"messages": [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in turns(k)], "id": k}
         for k in range(40)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_chats_of_a_dataset_are_those_of_a_file(dataset, case):
    column, records = ROWS[case]
    (dataset / "validation.jsonl").unlink()
    (dataset / "test.jsonl").unlink()
    lines(dataset / "train.jsonl", records)
    (found,) = load_corpora([f"set:default:{column}"])
    (wanted,) = load_corpora([str(lines(dataset.parent / "a.jsonl", [{"messages": turns(k)} for k in range(40)]))])
    for split in SPLITS:
        assert sorted(found.documents[split]) == sorted(wanted.documents[split])


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([{"messages": turns(0)}, {"messages": [{"role": "user", "content": None}]}], "content of a message is null"),
        ([{"conversations": [{"from": "zoe", "value": "a"}]}] * 2, "a message is from 'zoe'"),
        ([{"text": 1}, {"text": 2}], r"\(it is a number\)"),
        ([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": None}], "its output is null"),
        ("no JSON at all", "Cannot read the dataset set:default .*JSON"),
        ([{"a": "x", "b": "y"}], "has several columns; name one of a, b: repo:config:column"),
    ],
)
def test_rows_that_say_nothing_are_named(dataset, records, says):
    for name in ("validation", "test"):
        (dataset / f"{name}.jsonl").unlink()
    if isinstance(records, str):
        (dataset / "train.jsonl").write_text(records)
    else:
        lines(dataset / "train.jsonl", records)
    with pytest.raises(InvalidData, match=says) as caught:
        load_corpora(["set:default"])
    assert "set:default" in str(caught.value) and "\n" not in str(caught.value)


def test_tools_that_a_dataset_offers_belong_to_its_chats(dataset):
    tools = [{"type": "function", "function": {"name": "hammer"}}]
    for name in ("validation", "test"):
        (dataset / f"{name}.jsonl").unlink()
    for offer in (tools, json.dumps(tools)):
        lines(dataset / "train.jsonl", [{"conversations": turns(k), "tools": offer, "system": "s"} for k in range(40)])
        (found,) = load_corpora(["set:default::train"])
        messages, offered = found.documents["search"][0].parts
        assert messages[0] == {"role": "system", "content": "s"} and offered[0]["function"]["name"] == "hammer"
