import pytest

from hf_prune.blueprint import Fidelity
from hf_prune.errors import InvalidRecipe
from hf_prune.search import Schedule


def test_full_evidence_is_the_last_stage():
    assert Schedule((Fidelity(2), Fidelity(8)), 10).full == Fidelity(8)


def test_a_schedule_is_a_value():
    assert len({Schedule((Fidelity(8),), 10), Schedule((Fidelity(8),), 10)}) == 1


@pytest.mark.parametrize(("evaluations", "starts"), [(1, 1), (7, 3), (100, 5)])
def test_seeds_are_asked_once_each_and_leave_half_of_the_evaluations_to_the_search(evaluations, starts):
    seeds = tuple((n,) for n in (0, 1, 1, 2, 3, 4))
    assert Schedule((Fidelity(8),), evaluations, seeds=seeds).starts == tuple((n,) for n in range(starts))


@pytest.mark.parametrize("stages", [(), (Fidelity(8), Fidelity(2)), (Fidelity(2), Fidelity(2))])
def test_stages_must_grow(stages):
    with pytest.raises(InvalidRecipe, match="stage"):
        Schedule(stages, 10)


@pytest.mark.parametrize("field", ["evaluations", "population", "offspring", "finalists"])
def test_numbers_start_at_one(field):
    with pytest.raises(InvalidRecipe, match=f"{field} must be at least 1, not 0"):
        Schedule((Fidelity(8),), **{"evaluations": 10, field: 0})
