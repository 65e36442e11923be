"""What candidates share is one edge, and its dense beginning is known."""

from hypothesis import given
from hypothesis import strategies as st

from hf_prune.blueprint import LayerSpec, Part
from hf_prune.evaluation.prefix_trie import grown, most_alive

paths = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=5).map(lambda p: tuple(LayerSpec((Part(0, i),)) for i in p)),
    min_size=1, max_size=6,
)  # fmt: skip


def edges(node):
    return sum(1 + edges(child) for child in node.children.values())


def leaves(node, path=()):
    yield from ((number, path) for number in node.leaves)
    for spec, child in node.children.items():
        yield from leaves(child, (*path, spec))


@given(paths)
def test_every_candidate_is_a_leaf_and_every_prefix_one_edge(candidates):
    ((_, root),) = grown(candidates, [0] * len(candidates), [False] * len(candidates), True, True).items()
    assert sorted(leaves(root)) == sorted(enumerate(candidates))
    prefixes = {p[:n] for p in candidates for n in range(1, len(p) + 1)}
    assert edges(root) == len(prefixes)
    assert most_alive(candidates) <= len(prefixes) + 1
    alone = grown(candidates, [0] * len(candidates), [False] * len(candidates), False, True)[0]
    assert edges(alone) == sum(map(len, candidates))


@given(paths)
def test_the_dense_beginning_is_what_no_layer_was_left_out_of(candidates):
    root = grown(candidates, [0] * len(candidates), [False] * len(candidates), True, True)[0]

    def check(node):
        for child in node.children.values():
            own = node.dense and child.spec.parts[0].layer == child.depth - 1
            assert child.dense is own and child.begin == node.end
            check(child)

    check(root)
    unused = grown(candidates, [1] * len(candidates), [False] * len(candidates), True, True)[1]
    assert not unused.dense, "another embedding than the dense model's shares no state with it"


def test_candidates_that_broke_are_left_out():
    specs = [(LayerSpec((Part(0, 0),)),), (LayerSpec((Part(0, 1),)),)]
    assert edges(grown(specs, [0, 0], [True, False], True, True)[0]) == 1
