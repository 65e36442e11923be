import json

import pytest
import torch
from tokenizers import processors
from transformers import AutoTokenizer

from hf_prune.data.bundled import demo_folder
from hf_prune.data.corpora import load_corpora
from hf_prune.data.windows import check_vocabulary, windows
from hf_prune.errors import InvalidData
from tests.data.texts import CASES, TEMPLATE, folder, jsonl, words

TEXT = str(demo_folder() / "text")
DIGESTS = {
    "texts": ("277556f2b188f194", "55cdf7c36e5cfd63", "7d6b75631ac1d0f7", "9ce75d803bc27173"),
    "windows line ends": ("277556f2b188f194", "55cdf7c36e5cfd63", "7d6b75631ac1d0f7", "9ce75d803bc27173"),
    "blank lines": ("277556f2b188f194", "55cdf7c36e5cfd63", "7d6b75631ac1d0f7", "9ce75d803bc27173"),
    "empty texts": ("af12c9dba8805d0f", "9d3a46ed9c9d1e37", "6e699acd0bd17642", "bdccb89447580416"),
    "other keys": ("277556f2b188f194", "55cdf7c36e5cfd63", "7d6b75631ac1d0f7", "9ce75d803bc27173"),
    "not a number": ("277556f2b188f194", "55cdf7c36e5cfd63", "7d6b75631ac1d0f7", "9ce75d803bc27173"),
    "text beside chats": ("277556f2b188f194", "55cdf7c36e5cfd63", "7d6b75631ac1d0f7", "9ce75d803bc27173"),
    "chats": ("3ac847c57d9b53ab", "93a15e79592751a2", "004187af0f5ea26f", "8a8052121e30c017"),
    "chats with keys": ("3ac847c57d9b53ab", "93a15e79592751a2", "004187af0f5ea26f", "8a8052121e30c017"),
    "chats with keys in turns": ("3ac847c57d9b53ab", "93a15e79592751a2", "004187af0f5ea26f", "8a8052121e30c017"),
    "separators": ("c8cb3c8e9428fa41", "d5c6a3069296d6b0", "284f8ee2cdcc8f81", "346b4de32168bbe5"),
    "paragraphs": ("b7a63a3c8e0b1263", "f4ef83549e4ce1d8", "55b1186948680b08", "565c9669b08f5a04"),
    "paragraphs of windows": ("b7a63a3c8e0b1263", "f4ef83549e4ce1d8", "55b1186948680b08", "565c9669b08f5a04"),
    "lines of a mac": ("b7a63a3c8e0b1263", "f4ef83549e4ce1d8", "55b1186948680b08", "565c9669b08f5a04"),
    "a folder": ("8dd38180a447f01c", "e6b0d07621da832d", "d3ec13cf1de6083e", "e09a0353753e7086"),
}
"""Of windows of search and report, without and with a start token, as they always were."""


@pytest.fixture
def bos_tokenizer():
    made = AutoTokenizer.from_pretrained(demo_folder() / "storymath-16l")
    made.add_special_tokens({"bos_token": "<s>"})
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
    )
    return made


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


def test_tokens_beyond_the_vocabulary_are_refused(tokenizer):
    got = windows([TEXT], tokenizer, "search", 3, 32)
    check_vocabulary(got, 2048)
    with pytest.raises(InvalidData, match="knows only 100 tokens"):
        windows([TEXT], tokenizer, "search", 3, 32, vocabulary=100)


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


@pytest.mark.parametrize("case", CASES)
def test_windows_of_what_was_always_read_stay_as_they_are(tmp_path, bos_tokenizer, case):
    data = [str(CASES[case](tmp_path))]
    plain = AutoTokenizer.from_pretrained(demo_folder() / "storymath-16l")
    found = []
    for made in (plain, bos_tokenizer):
        made.chat_template = TEMPLATE
        found += [windows(data, made, split, 3, 32).digest for split in ("search", "report")]
    assert tuple(found) == DIGESTS[case]
