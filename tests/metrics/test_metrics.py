import math
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune import metrics
from hf_prune.errors import InvalidData
from hf_prune.metrics import NAMES, text_scores
from hf_prune.metrics.rouge import KINDS, Words

FOLDER = Path(metrics.__file__).parent
WORDS = st.lists(st.sampled_from("a cat dog sat on ein Haus ψυχή 7".split()), max_size=8)
TEXTS = st.one_of(st.text(max_size=30), WORDS.map(" ".join))
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5)
TINY = st.lists(st.text("abc ", max_size=12), min_size=1, max_size=3)


def one(prediction: str, reference: str) -> dict[str, float]:
    return {name: float(values[0]) for name, values in text_scores([prediction], [reference]).items()}


@pytest.mark.parametrize(
    ("prediction", "reference", "exact", "rouge1", "rouge2", "longest"),
    [
        # 5 of 6 words, 3 of 5 pairs, and the same five words in order.
        ("the cat sat on the mat", "the cat lay on the mat", 0, 5 / 6, 3 / 5, 5 / 6),
        # Precision 2/2, recall 2/4 -> F 2/3; no pair of (a b) among (a c), (c b), (b d).
        ("a b", "a c b d", 0, 2 / 3, 0, 2 / 3),
        # All words, in another order: two pairs (a b), (c d) of three, and a longest common subsequence of two.
        ("c d a b", "a b c d", 0, 1, 2 / 3, 1 / 2),
        # A word said three times counts as often as the other text has it: 1 of 3 and 1 of 1.
        ("no no no", "no", 0, 1 / 2, 0, 1 / 2),
        ("  The\tCAT ", "the cat", 1, 1, 1, 1),
        ("the cat!", "the cat", 0, 1, 1, 1),
        ("", "the cat", 0, 0, 0, 0),
        ("", " ", 1, 0, 0, 0),
    ],
)
def test_scores_counted_by_hand(prediction, reference, exact, rouge1, rouge2, longest):
    expected = dict(zip(NAMES, (exact, rouge1, rouge2, longest), strict=True))
    assert one(prediction, reference) == pytest.approx(expected)


def test_every_pair_has_its_own_value_in_order():
    scores = text_scores(("a b", "x", "c"), ("a b", "y", "C "))
    assert tuple(scores) == NAMES
    assert all(v.dtype == np.float64 and v.shape == (3,) for v in scores.values())
    assert scores["exact_match"].tolist() == scores["rouge1"].tolist() == [1, 0, 1]
    assert scores["rouge2"].tolist() == [1, 0, 0]
    assert all(v.shape == (0,) and v.dtype == np.float64 for v in text_scores([], []).values())


@given(PAIRS)
def test_scores_are_bounded_and_symmetric(pairs):
    left, right = zip(*pairs, strict=True)
    there, back = text_scores(left, right), text_scores(right, left)
    for name in NAMES:
        assert ((there[name] >= 0) & (there[name] <= 1)).all()
        np.testing.assert_allclose(there[name], back[name], rtol=1e-12)


@given(TEXTS)
def test_a_text_equals_itself(text):
    words = len(Words().tokenize(text))
    expected = {"exact_match": 1, "rouge1": words > 0, "rouge2": words > 1, "rougeL": words > 0}
    assert one(text, text) == expected
    assert one(f" {text}\n", text)["exact_match"] == 1


@given(WORDS, WORDS)
def test_texts_without_a_common_word_score_zero(left, right):
    ours, theirs = " ".join(left), " ".join(f"x{w}" for w in right)
    assert set(one(ours, theirs).values()) <= ({0.0} if left or right else {0.0, 1.0})


@given(WORDS, WORDS)
def test_a_longest_subsequence_never_has_more_words_than_the_texts_share(left, right):
    scores = one(" ".join(left), " ".join(right))
    assert scores["rougeL"] <= scores["rouge1"] + 1e-12


@given(st.lists(st.text("abcXYZ012 .,_-'\n", max_size=30), min_size=2, max_size=2))
def test_rouge_on_ascii_is_that_of_rouge_score(texts):
    from rouge_score.rouge_scorer import RougeScorer

    stock = RougeScorer(KINDS).score(texts[1], texts[0])
    ours = one(*texts)
    assert {k: ours[k] for k in KINDS} == pytest.approx({k: stock[k].fmeasure for k in KINDS})


@pytest.fixture(scope="module")
def loaded():
    return [evaluate.load(str(FOLDER / f"{name}.py")) for name in ("exact_match", "rouge")]


@given(TINY, st.randoms(use_true_random=False))
def test_means_equal_those_of_the_loaded_modules(loaded, texts, chance):
    others = chance.sample(texts, len(texts))
    ours = text_scores(texts, others)
    theirs = {}
    for module in loaded:
        theirs |= module.compute(predictions=texts, references=others)
    assert theirs == pytest.approx({name: float(values.mean()) for name, values in ours.items()})


def test_loaded_modules_describe_themselves_and_survive_nothing(loaded):
    assert [m.name for m in loaded] == ["exact_match", "rouge"]
    for module in loaded:
        assert module.description and set(module.features) == {"predictions", "references"}
        assert all(math.isnan(v) for v in module.compute(predictions=[], references=[]).values())
    with pytest.raises(ValueError, match="Mismatch"):
        loaded[0].compute(predictions=["a", "b"], references=["a"])


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a", "b"], ["a"], "There are 2 predictions for 1 references"),
        ([], ["a"], "There are 0 predictions"),
        (["a"], [None], "must be lists of texts"),
        ([3], ["3"], "must be lists of texts"),
        ("ab", ["a", "b"], "must be lists of texts"),
    ],
)
def test_what_cannot_be_paired_is_refused(predictions, references, message):
    with pytest.raises(InvalidData, match=message):
        text_scores(predictions, references)


def fresh(code: str, **how) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **how)
    return done.returncode, done.stdout, done.stderr


def test_importing_is_cheap():
    code = "import sys, hf_prune.metrics\nassert not {'evaluate', 'datasets', 'torch', 'nltk'} & set(sys.modules)"
    assert fresh(code, cwd=FOLDER.parents[1]) == (0, "", "")


@pytest.mark.slow
def test_scoring_is_silent_and_needs_no_network_and_leaves_nothing_behind(tmp_path):
    code = (
        "import socket\n"
        "def refuse(*_, **__): raise SystemExit('a connection')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from hf_prune.metrics import text_scores\n"
        "assert text_scores(['a b'], ['a b'])['rouge2'] == [1]\n"
    )
    home, here, scratch = tmp_path / "home", tmp_path / "here", tmp_path / "scratch"
    for folder in (home, here, scratch):
        folder.mkdir()
    env = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1]), "HOME": str(home), "HF_HOME": str(home / "hf")}
    env |= {"TMPDIR": str(scratch), "XDG_CACHE_HOME": str(home / "cache")}
    assert fresh(code, cwd=here, env=env) == (0, "", "")
    assert not [p for folder in (home, here, scratch) for p in folder.rglob("*")]
