import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.search.surrogate import fitted, standardised
from tests.search.toy import Landscape, Removals

SPACE = Removals(12, 4)


def table(seed):
    land = Landscape.draw(seed, depth=12, size=4, noise=0.02)
    genomes = list(SPACE.enumerate())
    return np.array(genomes, float), np.array([land.value(g) for g in genomes])


def spearman(a, b):
    return np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]


def test_it_ranks_models_it_has_not_seen():
    for seed in range(5):
        x, y = table(seed)
        chosen = np.random.default_rng(seed).permutation(len(y))
        mean, deviation = fitted(x[chosen[:100]], np.zeros(100), y[chosen[:100]])(
            x[chosen[100:]], np.zeros(len(y) - 100)
        )
        assert spearman(mean, y[chosen[100:]]) > 0.85
        assert (deviation > 0).all()


def test_pair_effects_are_learnt():
    x = np.array(list(SPACE.enumerate()), float)
    y = np.exp(2 * x[:, 3] * x[:, 4] - x[:, 5] * x[:, 6])
    chosen = np.random.default_rng(0).permutation(len(y))
    mean, _ = fitted(x[chosen[:200]], np.zeros(200), y[chosen[:200]])(x[chosen[200:]], np.zeros(len(y) - 200))
    assert np.corrcoef(mean, np.log(y[chosen[200:]]))[0, 1] > 0.95


def test_it_is_surer_of_what_it_knows():
    x, y = table(0)
    _, deviation = fitted(x[:60], np.zeros(60), y[:60])(np.concatenate([x[:60], x[-60:]]), np.zeros(120))
    assert deviation[:60].max() < deviation[60:].min()


@given(st.lists(st.one_of(st.floats(-5, 5), st.just(math.inf)), min_size=1, max_size=12))
def test_any_values_can_be_learnt_from(values):
    x = np.array(list(SPACE.enumerate())[: len(values)], float)
    y = standardised(values)
    assert np.isfinite(y).all() and y.max() <= 2.0
    order = np.argsort(values, kind="stable")
    assert (np.diff(y[order]) >= 0).all(), "order must survive"
    mean, deviation = fitted(x, np.zeros(len(x)), values)(x, np.zeros(len(x)))
    assert np.isfinite(mean).all() and np.isfinite(deviation).all()
