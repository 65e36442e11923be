"""What the base says itself: the same after an interruption, in splits that share nothing, measured on only alone."""

import json

import pytest

from hf_prune.data import corpora as reading
from hf_prune.errors import DataOffline, InvalidData, StaleJournal
from hf_prune.events import Advanced, Stage, exhaust
from hf_prune.recipe import DEFAULT_DATA
from hf_prune.session import own_samples
from hf_prune.session.entries import entries_of
from hf_prune.session.own_samples import say_own
from hf_prune.session.session import open_session
from hf_prune.session.workdir import Workdir
from tests.runs import base, recipe, text

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[a] {% endif %}"
)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(own_samples, "ROWS", 6)


def spoken(asked):
    session = open_session(asked)
    exhaust(say_own(session))
    return session


def digests(session):
    training = session.evidence.training(6)
    return [*(w.digest for w in session.evidence.windows.values()), training.digest]


def lines(asked):
    (path,) = Workdir.beside(asked.output).folder.glob("samples-*.jsonl")
    return path, path.read_bytes().splitlines(keepends=True)


def test_alone_it_has_every_split_and_shares_none(tmp_path):
    session = spoken(recipe(tmp_path, data=("self",), keep_layers=4))
    windows = session.evidence.windows
    assert {c for w in windows.values() for c in w.corpora} == {"own_samples"}
    (corpus,) = session.evidence.own["self"]
    said = {split: {d.ids for d in documents} for split, documents in corpus.documents.items()}
    assert said["search"] == said["heal"] and not said["heal"] & said["selection"] and not said["heal"] & said["report"]
    assert "own samples of base" in windows["report"].origin["own_samples"]
    assert str(tmp_path) not in windows["report"].origin["own_samples"]


def test_beside_other_text_it_has_its_share_and_none_of_the_report(tmp_path):
    book = str(text(tmp_path / "book.txt"))
    session = spoken(recipe(tmp_path, data=("self", book), keep_layers=4))
    windows = session.evidence.windows
    assert windows["search"].corpora == ("own_samples", "book") * 2
    assert set(windows["report"].corpora) == {"book"}


@pytest.mark.parametrize("after", range(0, 40, 7))
def test_interrupted_anywhere_it_goes_on_and_says_the_same(tmp_path, monkeypatch, after):
    asked = recipe(tmp_path, data=("self",), keep_layers=4, heal=256)
    whole = digests(spoken(asked.replace(output=str(tmp_path / "whole"))))
    running = say_own(open_session(asked))
    for _ in range(after):
        next(running, None)
    running.close()
    kept = list(Workdir.beside(asked.output).folder.glob("samples-*.jsonl"))
    before = kept[0].read_bytes() if kept else b""
    session = spoken(asked)
    path, found = lines(asked)
    assert digests(session) == whole and path.read_bytes().startswith(before)
    monkeypatch.setattr(own_samples, "sample", None)
    assert digests(spoken(asked)) == whole
    path.write_bytes(b"".join(found)[:-9])
    monkeypatch.undo()
    monkeypatch.setattr(own_samples, "ROWS", 6)
    assert digests(spoken(asked)) == whole and lines(asked)[1] == found


def test_more_is_said_behind_what_was_said(tmp_path):
    asked = recipe(tmp_path, data=("self",), keep_layers=4)
    few = spoken(asked)
    more = spoken(asked.replace(heal=2000))
    assert [w.digest for w in few.evidence.windows.values()] == [w.digest for w in more.evidence.windows.values()]
    assert len(more.evidence.training(60).tokens) > len(few.evidence.training(60).tokens)


def test_a_cap_holds_for_what_is_trained_on(tmp_path):
    session = spoken(recipe(tmp_path, data=("self",), keep_layers=4, heal=5000, own_tokens=300))
    assert 300 <= session.evidence.training(1000).tokens.numel() < 1500


def test_what_was_kept_and_changed_is_refused(tmp_path):
    asked = recipe(tmp_path, data=("self",), keep_layers=4)
    spoken(asked)
    path, found = lines(asked)
    raw = json.loads(found[0])
    raw["said"][0][0][0] += 1
    path.write_bytes(json.dumps(raw).encode() + b"\n" + b"".join(found[1:]))
    with pytest.raises(StaleJournal, match="Line 1 of the own samples"):
        spoken(asked)


def test_progress_ends_at_its_total_and_never_passes_it(tmp_path):
    events = list(say_own(open_session(recipe(tmp_path, data=("self",), keep_layers=4))))
    assert isinstance(events[0], Stage) and events[0].name == "sample" and "measured on them" in events[0].detail
    steps = [e for e in events if isinstance(e, Advanced)]
    assert max(e.done for e in steps) == steps[-1].total == steps[-1].done


def with_template(folder):
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": TEMPLATE}))
    return str(folder)


def test_half_of_what_a_chat_model_says_are_chats_of_its_own(tmp_path):
    folder = with_template(base(tmp_path / "base"))
    session = spoken(recipe(tmp_path, base=folder, data=("self",), keep_layers=4))
    (corpus,) = session.evidence.own["self"]
    chats = [d for d in corpus.documents["heal"] if "[user]" in d]
    assert chats and len(chats) < len(corpus.documents["heal"]) and all("[a]" in d for d in chats)
    assert "chat template" in corpus.origins["heal"]


@pytest.mark.parametrize("taught", [False, True])
def test_prompts_are_answered_and_no_two_splits_share_one(tmp_path, taught):
    folder = base(tmp_path / "base")
    folder = with_template(folder) if taught else str(folder)
    asked = [f"what is {word} ?" for word in "the cat sat on a mat and saw that no dog".split()]
    path = tmp_path / "asked.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": p}) for p in asked))
    session = spoken(recipe(tmp_path, base=folder, data=(f"self:{path}",), keep_layers=4))
    (corpus,) = session.evidence.own[f"self:{path}"]
    found = {split: {p for p in asked for d in documents if p in d} for split, documents in corpus.documents.items()}
    assert found["heal"] and not found["heal"] & found["selection"] and not found["heal"] & found["report"]
    assert len(found["heal"]) > 1 and found["selection"] and found["report"] and corpus.name == "own_samples_asked"
    assert all(("[a]" in d) == taught for d in corpus.documents["heal"]) and "answers to 11" in corpus.origins["heal"]


def test_too_few_prompts_are_told(tmp_path):
    (tmp_path / "asked.jsonl").write_text('{"prompt": "the cat"}')
    with pytest.raises(InvalidData, match="too few for 3 splits"):
        spoken(recipe(tmp_path, data=(f"self:{tmp_path / 'asked.jsonl'}",), keep_layers=4))


def test_a_base_that_repeats_itself_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        own_samples, "sample", lambda model, prompts, *_: [own_samples.Said((5, 6), False)] * len(prompts)
    )
    with pytest.raises(InvalidData, match="nothing new"):
        spoken(recipe(tmp_path, data=("self",), keep_layers=4))


def test_without_data_it_is_a_mix_and_without_the_hub_the_base_alone(tmp_path, monkeypatch):
    asked = recipe(tmp_path, keep_layers=4).replace(data=())
    workdir = Workdir.beside(asked.output)
    monkeypatch.setattr(reading, "split_names", lambda *_: ["train"])
    assert entries_of(asked, workdir) == DEFAULT_DATA and DEFAULT_DATA[0] == "self"

    def offline(repo, config, entry):
        raise DataOffline(entry)

    monkeypatch.setattr(reading, "split_names", offline)
    assert entries_of(asked, workdir) == ("self",)
    spoken(asked)
    monkeypatch.setattr(reading, "split_names", lambda *_: ["train"])
    assert entries_of(asked, workdir) == ("self",), "a resumed run reads the text of before"
