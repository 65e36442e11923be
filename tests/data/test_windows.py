import json
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer

from hf_prune.data.bundled import demo_folder
from hf_prune.data.windows import SHARES, SPLITS, _divide, _key, check_disjoint, check_vocabulary, load_corpora, windows
from hf_prune.errors import InvalidData

TEXT = str(demo_folder() / "text")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_folder() / "storymath-16l")


@pytest.fixture
def bos_tokenizer():
    made = AutoTokenizer.from_pretrained(demo_folder() / "storymath-16l")
    made.add_special_tokens({"bos_token": "<s>"})
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
    )
    return made


def words(seed: int, n: int = 40) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice("the a cat dog ran sat on under big red house tree".split()) for _ in range(n))


def jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


def folder(path, **changes):
    """A folder of one corpus; `changes` replaces the documents of a split."""
    for i, split in enumerate(SPLITS):
        jsonl(path / f"tale.{split}.jsonl", changes.get(split, [words(100 * i + k) for k in range(9)]))
    return str(path)


def test_demo_windows_are_balanced_in_every_prefix_and_named(tokenizer):
    got = windows([TEXT], tokenizer, "search", 8, 64)
    assert got.tokens.shape == (8, 64) and got.tokens.dtype == torch.int64
    assert got.corpora == ("math", "stories", "wiki") * 2 + ("math", "stories")
    assert got.origin == {c: f"{c}.search.jsonl" for c in ("math", "stories", "wiki")}
    assert not got.bos


def test_windows_follow_the_file_and_join_documents_with_the_end_token(tokenizer):
    got = windows([TEXT], tokenizer, "report", 30, 64)
    lines = (demo_folder() / "text" / "stories.report.jsonl").read_text().splitlines()[:20]
    stream = []
    for line in lines:
        stream += tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    mine = torch.cat([t for t, c in zip(got.tokens, got.corpora, strict=True) if c == "stories"])
    assert mine.tolist() == stream[: 10 * 64]
    assert tokenizer.eos_token_id in mine.tolist()


def test_fewer_windows_are_a_prefix_of_more_per_corpus(tokenizer):
    few, many = (windows([TEXT], tokenizer, "search", n, 32) for n in (6, 12))
    assert torch.equal(few.tokens, many.tokens[:6])
    assert few.digest != many.digest
    assert few.digest == windows([TEXT], tokenizer, "search", 6, 32).digest
    assert few.digest != windows([TEXT], tokenizer, "selection", 6, 32).digest


def test_bos_starts_every_window_where_the_tokenizer_adds_one(tokenizer, bos_tokenizer):
    plain, started = (windows([TEXT], t, "search", 6, n) for t, n in ((tokenizer, 32), (bos_tokenizer, 33)))
    assert started.bos and (started.tokens[:, 0] == bos_tokenizer.bos_token_id).all()
    assert torch.equal(started.tokens[:, 1:], plain.tokens)


def test_too_little_text_says_how_many_windows_there_are(tmp_path, tokenizer):
    there = sum(len(tokenizer(words(k))["input_ids"]) + 1 for k in range(9)) // 32
    with pytest.raises(InvalidData, match=rf"split of 'tale' .* {there} windows.*99 are.*lower sequences"):
        windows([folder(tmp_path)], tokenizer, "search", 99, 32)


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
    cut = _divide(tuple(texts), SHARES)
    assert sorted(sum(cut, ())) == sorted(texts)
    keys = [set(map(_key, side)) for side in cut]
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


def test_tokens_beyond_the_vocabulary_are_refused(tokenizer):
    got = windows([TEXT], tokenizer, "search", 3, 32)
    check_vocabulary(got, 2048)
    with pytest.raises(InvalidData, match="knows only 100 tokens"):
        windows([TEXT], tokenizer, "search", 3, 32, vocabulary=100)


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


def test_healing_reads_the_search_split_and_what_lies_behind_it(tmp_path, tokenizer):
    data = folder(tmp_path)
    bare = windows([data], tokenizer, "heal", 4, 32)
    assert torch.equal(bare.tokens, windows([data], tokenizer, "search", 4, 32).tokens)
    jsonl(tmp_path / "tale.heal.jsonl", [words(900 + k) for k in range(9)])
    (corpus,) = load_corpora([data])
    assert len(corpus.documents["heal"]) == 18 and corpus.documents["heal"][:9] == corpus.documents["search"]
    more = windows([data], tokenizer, "heal", 12, 32)
    assert torch.equal(more.tokens[:4], bare.tokens) and "tale.heal.jsonl" in more.origin["tale"]
    assert torch.equal(windows([data], tokenizer, "report", 4, 32).tokens[0], more.tokens[0]) is False


@pytest.mark.parametrize("split", ["selection", "report"])
def test_healing_text_may_not_be_what_choices_or_figures_rest_on(tmp_path, split):
    data = folder(tmp_path)
    document = json.loads((tmp_path / f"tale.{split}.jsonl").read_text().splitlines()[0])["text"]
    jsonl(tmp_path / "tale.heal.jsonl", [document.upper()])
    with pytest.raises(InvalidData, match="figures would be spoiled"):
        check_disjoint(load_corpora([data]))
    jsonl(tmp_path / "tale.heal.jsonl", [words(0)])
    check_disjoint(load_corpora([data]))


def test_at_most_takes_what_is_there(tmp_path, tokenizer):
    data = folder(tmp_path)
    got = windows([data], tokenizer, "heal", 10_000, 32, at_most=True)
    assert 4 < len(got.tokens) < 10_000 and len(got.corpora) == len(got.tokens)
    with pytest.raises(InvalidData, match="10000 are asked"):
        windows([data], tokenizer, "heal", 10_000, 32)
    with pytest.raises(InvalidData, match="text for 0 windows"):
        windows([data], tokenizer, "heal", 3, 100_000, at_most=True)


CHAT = [{"role": "user", "content": "where is the cat"}, {"role": "assistant", "content": "on the mat"}]


def chats(path, count=40):
    rows = [[{**CHAT[0], "content": f"{words(k)} where"}, CHAT[1]] for k in range(count)]
    path.write_text("".join(json.dumps({"messages": r}) + "\n" for r in rows))
    return path


def test_chats_are_read_as_the_model_was_taught_to(tmp_path, tokenizer):
    data = str(chats(tmp_path / "talk.jsonl"))
    with pytest.raises(InvalidData, match="no chat template"):
        windows([data], tokenizer, "search", 1, 32)
    taught = AutoTokenizer.from_pretrained(demo_folder() / "storymath-16l")
    taught.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    text = taught.decode(windows([data], taught, "search", 4, 64).tokens.flatten())
    assert "[user]" in text and "[assistant] on the mat" in text and "messages" not in text


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"role": "user", "content": 3}], "hello", [3]])
def test_what_is_no_chat_is_refused_by_its_line(tmp_path, tokenizer, messages):
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(InvalidData, match="Line 1 of .* with role and content"):
        windows([str(path)], tokenizer, "search", 1, 32)
