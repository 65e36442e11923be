"""What a search over widths may spend adds up to what its models are."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from hf_prune.blueprint import GONE, Blueprint, LayerSpec, Part, Source
from hf_prune.errors import InvalidRecipe
from hf_prune.recovery.latency import Latencies, Phase, request_seconds, retimed
from hf_prune.session.session import open_session
from tests.runs import base, recipe, text


def test_costs_are_the_parameters_of_the_layers(tmp_path):
    library = {"library_sequences": 4, "library": str(tmp_path / "levels")}
    session = open_session(recipe(tmp_path, method="width", ratio=0.3, **library))
    costs, limit = session.budget
    dense = sum(c[0] for c in costs)
    assert limit == pytest.approx(dense - 0.3 * session.inputs.base.parameters)
    genome = session.scorer.space.uniform()
    gone = session.inputs.base.parameters - session.evaluator.parameters(session.scorer.blueprint(genome))
    assert dense - session.scorer.space.cost(genome) == gone


def test_a_free_size_has_no_limit(tmp_path):
    asked = {"method": "width", "search": "nsga2", "library_sequences": 4, "library": str(tmp_path / "levels")}
    assert open_session(recipe(tmp_path, **asked)).budget[1] is None


def test_predictions_take_off_what_levels_save():
    table = Latencies(Phase(6.0, (0.75, 0.5, 0.0), (2.0, 1.5, 0.0)), Phase(4.0, (0.25, 0.0, 0.0), (0.0, 0.0, 0.0)))
    layers = (LayerSpec((Part(0, 0),)), LayerSpec((Part(0, 1),), attn_level=1, mlp_level=GONE))
    blueprint = Blueprint((Source("m", "0"),), layers)
    assert table.prefill.predicted(blueprint, 2) == pytest.approx((6.0 - 0.25 - 2.0) / 6)
    assert table.decode.predicted(blueprint, 2) == pytest.approx((4.0 - 0.25) / 4)
    assert table.request.predicted(blueprint, 2) == pytest.approx((10.0 - 0.5 - 2.0) / 10)
    assert table.request.predicted(Blueprint((Source("m", "0"),), layers[:1]), 2) == pytest.approx(0.7)
    assert Latencies.from_dict(json.loads(json.dumps(asdict(table)))) == table


def test_a_request_is_its_prompt_and_its_answer():
    found = {"prefill_tokens": 100, "decode_tokens": 10,
             "m": {"prefill_tokens_per_s": 50.0, "decode_tokens_per_s": 5.0}}  # fmt: skip
    assert request_seconds(found, "m") == {"request": 4.0, "prefill": 2.0, "decode": 2.0}


def test_a_model_measured_again_is_set_beside_the_same_prediction():
    now = {"prefill_tokens": 100, "decode_tokens": 10,
           "dense": {"prefill_tokens_per_s": 50.0, "decode_tokens_per_s": 5.0},
           "pruned": {"prefill_tokens_per_s": 100.0, "decode_tokens_per_s": 20.0}}  # fmt: skip
    before = {"asked": 0.6, "predicted": {"request": 0.59}, "measured": {}, "prompt_tokens": 1, "answer_tokens": 1}
    measured = {"request": 0.375, "prefill": 0.5, "decode": 0.25}
    said = {**before, "measured": measured, "prompt_tokens": 100, "answer_tokens": 10}
    assert retimed(before, now) == said and retimed(None, now) is None


def test_time_that_layers_do_not_take_is_refused(tmp_path):
    library = {"library_sequences": 4, "library": str(tmp_path / "levels")}
    session = open_session(recipe(tmp_path, method="width", latency=0.6, **library))
    spent = 0.5 / session.inputs.base.depth
    column = Phase(2.0, (spent, 0.0), (0.0, 0.0))
    session.workdir.folder.mkdir(parents=True)
    session.workdir.latencies.write_text(json.dumps(asdict(Latencies(column, column))))
    with pytest.raises(
        InvalidRecipe,
        match="still takes 75% of its time on this device; ask for more than that with --latency, not 0.6",
    ):
        session.budget  # noqa: B018


def test_the_table_is_measured_once_per_run(tmp_path, monkeypatch):
    base(tmp_path / "base")
    text(tmp_path / "text.txt")
    asked = recipe(tmp_path, base=str(tmp_path / "base"), method="width", latency=0.95, library_sequences=4,
                   library=str(tmp_path / "levels"))  # fmt: skip
    session = open_session(asked)
    session.workdir.folder.mkdir(parents=True)
    first = session.budget
    assert all(a >= b for costs in first[0] for a, b in zip(costs, costs[1:], strict=False)) and first[0][0][-1] == 0
    monkeypatch.setattr("hf_prune.evaluation.speed.measure", SimpleNamespace())
    assert open_session(asked).budget == first
