import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.report.licence import STRICTNESS, inherited_licence, listed
from hf_prune.report.schema.model import SourceCard


def parents(*licences):
    return [SourceCard(repo=f"ns/m{i}", license=x) for i, x in enumerate(licences)]


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["mit"], "mit"),
        (["mit", "apache-2.0"], "apache-2.0"),
        (["apache-2.0", "gpl-3.0", "mit"], "gpl-3.0"),
        (["llama3.1", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["cc-by-nc-4.0", "other"], "other"),
        (["MIT", "Apache-2.0"], "apache-2.0"),
        ([["mit", "gemma"]], "gemma"),
        (["mit", None], "unknown"),
        ([""], "unknown"),
        ([], "unknown"),
    ],
)
def test_the_strictest_parent_decides(licences, expected):
    assert inherited_licence(parents(*licences))[0] == expected


def test_a_name_nobody_ranked_is_stricter_than_all_ranked_but_is_not_unknown():
    assert inherited_licence(parents("cc-by-nc-nd-4.0", "house-licence"))[0] == "house-licence"
    assert inherited_licence(parents("house-licence", None))[0] == "unknown"


def test_the_sentence_names_who_is_silent_and_what_applies():
    assert "ns/m1 states none" in inherited_licence(parents("mit", None))[1]
    assert (
        "gpl-3.0, the most restrictive of the parents' (mit, gpl-3.0)"
        in inherited_licence(parents("mit", "gpl-3.0"))[1]
    )


@given(st.lists(st.sampled_from([x for group in STRICTNESS for x in group]), min_size=1, max_size=5), st.randoms())
def test_the_order_of_the_parents_does_not_matter(licences, random):
    shuffled = random.sample(licences, len(licences))
    assert inherited_licence(parents(*licences))[0] == inherited_licence(parents(*shuffled))[0]


def test_no_licence_is_ranked_twice():
    every = [x for group in STRICTNESS for x in group]
    assert len(every) == len(set(every))


def test_listed():
    assert (listed(None), listed("en"), listed(["en", "de"])) == ([], ["en"], ["en", "de"])
