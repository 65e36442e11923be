import math

from hf_prune.app import charts, progress
from hf_prune.app.progress import Progress
from hf_prune.blueprint import Fidelity, Outcome, Trial
from hf_prune.events import Scored, Stage, Started
from hf_prune.methods import METHODS
from hf_prune.methods.method import Facts
from hf_prune.recipe import Recipe
from hf_prune.report.text import event_dict

RECIPE = Recipe.of(base="ns/model", drop_layers=2)
SPACE = METHODS["collapse"].space(RECIPE, Facts(6, 2))


def scored(genome: tuple[int, ...], value: float, windows: int, params: float = 600.0) -> dict:
    outcome = Outcome(Trial(genome, Fidelity(windows)), (value, params))
    return event_dict(Scored((outcome,), 1, 8, value))


def began() -> list[dict]:
    started = Started(RECIPE, "ns/model@abc", 6, "remove 2 of 6 layers", 8, ("kl", "params"), 1000)
    return [event_dict(started), event_dict(Stage("search", "staged on kl"))]


def test_the_best_candidate_is_that_on_the_most_evidence():
    few, most, worse = (SPACE.from_removed(cut) for cut in ([0, 1], [2, 3], [4, 5]))
    found = Progress.of([*began(), scored(few, 0.1, 4), scored(most, 0.5, 16), scored(worse, 0.6, 16)])
    assert found.genome == most and [p.removed for p in found.points] == [0.4] * 3
    html = progress.layers(found, RECIPE)
    assert [f"'removed' title='layer {i}" in html for i in range(6)] == [i in (2, 3) for i in range(6)]


def test_baselines_are_no_candidates_of_the_search():
    events = began()
    events[1] = event_dict(Stage("baselines"))
    found = Progress.of([*events, scored(SPACE.from_removed([0, 1]), 0.1, 16)])
    assert found.points and not found.genome and progress.layers(found, RECIPE) == ""


def test_broken_candidates_are_counted_and_never_best():
    found = Progress.of([*began(), scored(SPACE.from_removed([0, 1]), math.inf, 16)])
    assert len(found.points) == 1 and not found.genome
    assert "img" in charts.drawn(found, RECIPE)


def test_words_for_every_state():
    found = Progress.of([*began(), scored(SPACE.from_removed([0, 1]), 0.25, 16)])
    assert "search: staged on kl (1 of 8); best so far 0.25" in progress.html(found, "running", 0)
    assert "2 runs are before yours" in progress.html(found, "queued", 2)
    failed = Progress.of([*began(), {"event": "Failed", "message": "The base is gone."}])
    assert "The base is gone." in progress.html(failed, "failed", 0) and "alert" in progress.html(failed, "failed", 0)
    assert "No run yet" in progress.html(Progress(), None, 0)


def test_a_front_is_drawn_by_size():
    recipe = Recipe.of(base="ns/model", search="nsga2")
    points = [scored(SPACE.from_removed([0, 1]), v, 16, p) for v, p in ((0.1, 900), (0.2, 600), (0.5, 950))]
    assert "front.png" in charts.drawn(Progress.of([*began(), *points]), recipe)
    assert charts.drawn(Progress(), recipe) == ""
