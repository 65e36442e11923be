import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.blueprint import DENSE, GONE, Blueprint, LayerSpec, Part, Source
from hf_prune.errors import InvalidBlueprint

BASE, TUNED = Source("ns/base", "a" * 40), Source("ns/base", "a" * 40, "ns/lora@" + "b" * 40)
DEPTH = 3


def weights_of(source: Source) -> np.ndarray:
    """Stand-in model: [layer, attention / MLP / norm, 5] random float64."""
    return np.random.default_rng(1 if source.adapter else 0).normal(size=(DEPTH, 3, 5))


def effective(bp: Blueprint) -> list[np.ndarray]:
    """What the model computes with: embed, head and, per layer that is not empty, attention, MLP and norm weights."""
    models = [weights_of(s) for s in bp.sources]
    found = [models[bp.embed][0, 0], models[bp.head][0, 0]]
    for spec in bp.layers:
        attention, mlp, norm = sum(p.weight * models[p.source][p.layer] for p in spec.parts)
        if spec.norms:
            norm = models[spec.norms.source][spec.norms.layer, 2]
        if not (spec.attn_level == spec.mlp_level == GONE):
            found += [attention * (spec.attn_level != GONE), mlp * (spec.mlp_level != GONE), norm]
    return found


def same(a: Blueprint, b: Blueprint) -> bool:
    x, y = effective(a), effective(b)
    return len(x) == len(y) and np.allclose(x, y)


@st.composite
def specs(draw) -> LayerSpec:
    """A layer whose weights add up to 1, often spelled awkwardly: zero, repeated and unsorted parts."""
    part = st.builds(Part, st.integers(0, 1), st.integers(0, DEPTH - 1), st.sampled_from([0.0, 0.5, 1.0, -1.0, 0.1]))
    parts = draw(st.lists(part, max_size=3))
    rest = Part(draw(st.integers(0, 1)), draw(st.integers(0, DEPTH - 1)), 1.0 - sum(p.weight for p in parts))
    norms = draw(st.none() | st.builds(Part, st.integers(0, 1), st.integers(0, DEPTH - 1)))
    levels = draw(st.sampled_from([(DENSE, DENSE)] * 4 + [(GONE, DENSE), (DENSE, GONE), (GONE, GONE)]))
    return LayerSpec((*parts, rest), "linear", *levels, norms)


@st.composite
def blueprints(draw) -> Blueprint:
    sources = draw(st.sampled_from([(BASE, TUNED), (TUNED, BASE), (BASE, BASE), (TUNED, TUNED)]))
    layers = tuple(draw(st.lists(specs(), min_size=1, max_size=2)))
    return Blueprint(sources, layers, draw(st.integers(0, 1)), draw(st.integers(0, 1)))


@given(blueprints(), blueprints())
def test_digest_is_equal_exactly_when_the_weights_are(a, b):
    assert (a.digest == b.digest) == same(a, b)


@given(specs(), specs(), st.sampled_from([(BASE, TUNED), (TUNED, BASE)]))
def test_equal_digest_and_equal_weights_agree_on_single_layers(a, b, sources):
    x, y = (Blueprint(sources, (s,)) for s in (a, b))
    assert (x.digest == y.digest) == same(x, y)


@given(blueprints(), st.randoms(use_true_random=False))
def test_respelling_keeps_the_digest(bp, random):
    """Sources swapped, parts shuffled and halved, a zero part and an empty layer added."""
    swapped = Blueprint(bp.sources[::-1], (), 1 - bp.embed, 1 - bp.head)
    layers = [LayerSpec((Part(0, 0),), attn_level=GONE, mlp_level=GONE)]
    for spec in bp.layers:
        parts = [Part(1 - p.source, p.layer, p.weight / 2) for p in spec.parts] * 2 + [Part(0, 1, 0.0)]
        random.shuffle(parts)
        norms = spec.norms and replace(spec.norms, source=1 - spec.norms.source)
        layers.append(replace(spec, parts=tuple(parts), norms=norms))
    other = replace(swapped, layers=tuple(layers))
    assert other.digest == bp.digest
    assert same(other, bp)


@given(blueprints())
def test_canonical_keeps_the_weights_and_is_a_fixed_point(bp):
    once = bp.canonical()
    assert same(once, bp)
    assert once.canonical() == once


@given(blueprints())
def test_json_round_trip(bp):
    assert Blueprint.from_json(bp.to_json()) == bp
    assert Blueprint.from_json(bp.to_json(indent=2)).digest == bp.digest


def test_identity_digest_survives_aliases_and_unused_sources():
    identity = Blueprint.identity(BASE, 3)
    whole = [LayerSpec((Part(1, i, 1),), norms=Part(1, i)) for i in range(3)]
    alias = Blueprint((TUNED, BASE), tuple(whole), embed=1, head=1)
    assert alias.digest == identity.digest
    assert alias.canonical().sources == (BASE,)
    assert identity.digest != Blueprint.identity(TUNED, 3).digest


def test_one_third_three_times_is_one():
    spec = LayerSpec((Part(0, 1, 1 / 3),) * 3).canonical()
    assert spec.plain and spec.parts == (Part(0, 1),)


def test_a_layer_of_weight_zero_stays_zero():
    spec = LayerSpec((Part(0, 1), Part(0, 1, -1.0))).canonical()
    assert [p.weight for p in spec.parts] == [0.0]


def test_order_counts_for_merges_that_are_not_linear():
    spec = LayerSpec((Part(0, 2, 0.5), Part(0, 1, 0.5)), merge="slerp")
    assert spec.canonical() == spec


def test_anchor_is_the_heaviest_then_the_first():
    assert LayerSpec((Part(0, 4, 0.3), Part(0, 5, 0.7))).anchor.layer == 5
    assert LayerSpec((Part(0, 5, 0.5), Part(0, 4, 0.5))).anchor.layer == 4


def raw(**changes) -> str:
    return json.dumps({**json.loads(Blueprint.identity(BASE, 2).to_json()), **changes})


def layer(**changes) -> list:
    return [{"parts": [{"source": 0, "layer": 0, "weight": 1.0}], **changes}]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "3",
        "[]",
        "[" * 100_000,
        raw(version=2),
        raw(extra=1),
        raw(layers=[]),
        raw(layers=None),
        raw(layers=[{}]),
        raw(layers=layer(parts=[])),
        raw(layers=layer(merge=None)),
        raw(layers=layer(attn_level="gone")),
        raw(layers=layer(mlp_level=-2)),
        raw(layers=layer(norms={"source": 0, "layer": -1})),
        raw(layers=layer(norms={"source": 3, "layer": 0})),
        raw(layers=layer(parts=[{"source": 0, "layer": 0, "weight": "1"}])),
        raw(layers=layer(parts=[{"source": 0, "layer": 0, "weight": float("nan")}])),
        raw(layers=layer(parts=[{"source": 0, "layer": 0.5}])),
        raw(layers=layer(parts=[{"source": True, "layer": 0}])),
        raw(layers=layer(parts=[{"source": 1, "layer": 0}])),
        raw(embed=1),
        raw(head="0"),
        raw(sources=[]),
        raw(sources=[{"repo": 1, "revision": "x"}]),
    ],
)
def test_a_bad_file_is_refused(text):
    with pytest.raises(InvalidBlueprint):
        Blueprint.from_json(text)


def test_the_file_without_optional_keys_is_read():
    bp = Blueprint.from_json(json.dumps({"sources": [{"repo": "ns/base", "revision": "a" * 40}], "layers": layer()}))
    assert bp == Blueprint.identity(BASE, 1)
