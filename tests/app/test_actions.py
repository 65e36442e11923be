"""Answers of the app without a browser; tests/test_browser.py has the whole flow."""

import time

import gradio as gr
import pytest

from hf_prune.app import results, workers
from hf_prune.app.actions import Actions
from hf_prune.app.forms import DEMO, TINY, TITLES
from hf_prune.app.runs import LOCAL, Runs
from hf_prune.planning import Room
from tests import runs as small
from tests.hub import samples

METHOD = next(iter(TITLES))
FORM = ("", METHOD, 40, False, False, False, "0", 0, 0)
"""All fields but the base."""
LOGIN = gr.OAuthToken(token="hf_ns_secret", scope="openid", expires_at=2**31)


@pytest.fixture
def do(tmp_path, monkeypatch) -> Actions:
    """The app of a Space, of which nobody works on the runs."""
    monkeypatch.setattr(Runs, "_serve", lambda self: None)
    workers.warm()
    return Actions(Runs(tmp_path / "runs"), "ns/app")


def test_the_plan_of_a_repo_and_where_else_it_can_run(do, hub_server):
    hub_server.seed("ns/model", samples.model(num_hidden_layers=6))
    looked, planned, command, recipe, job, tabs = do.look(None, "ns/model", *FORM)
    assert looked == planned and "remove 3 layers" in planned and tabs.selected == "size"
    assert command == "hf-prune compress ns/model --ratio 0.4"
    assert recipe == "base: ns/model\nsize:\n  ratio: 0.4\n"
    assert job.startswith("hf jobs run --flavor cpu-upgrade") and "--push-to NAMESPACE/NAME" in job
    assert not hub_server.seen("/resolve/main/model.safetensors"), "no weights before a run"


def test_a_plan_that_cannot_be_made_is_a_sentence_and_the_page_stays(do, hub_server):
    looked, planned, *elsewhere, tabs = do.look(None, "ns/nothing", *FORM)
    assert looked == planned and "does not exist" in looked and "role='alert'" in looked
    assert elsewhere == ["", "", ""] and tabs == gr.skip()


def test_the_demo_goes_by_its_name_in_every_answer(do):
    looked, _, command, recipe, job, _ = do.look(None, DEMO, *FORM)
    for text in (looked, command, recipe, job):
        assert "/examples/" not in text and "/home" not in text and "/tmp" not in text
    assert job.startswith("# The demo runs here")


def test_a_machine_that_is_too_small_says_so_and_starts_nothing(do, hub_server, monkeypatch):
    hub_server.seed("ns/model", samples.model(num_hidden_layers=6))
    monkeypatch.setattr("hf_prune.app.plans.room", lambda: Room(1000, 1000))
    assert "too small" in do.replan(None, "ns/model", *FORM)[0]
    id, _, _, _, status, *_ = do.start(None, None, "visitor", "ns/model", *FORM)
    assert id == "" and "too small" in status and not list(do.runs.home.iterdir())


def test_a_gated_model_needs_the_login_of_the_visitor(do, hub_server, monkeypatch):
    hub_server.seed("ns/gated", samples.model(num_hidden_layers=6), gated=True)
    monkeypatch.delenv("HF_TOKEN")
    assert "is gated" in (said := do.replan(None, "ns/gated", *FORM)[0]) and "then sign in above" in said
    assert "remove 3 layers" in do.replan(LOGIN, "ns/gated", *FORM)[0]


def test_a_job_is_started_on_the_account_of_the_visitor(do, hub_server):
    hub_server.seed("ns/model", samples.model(num_hidden_layers=6))
    assert "Sign in above first" in do.job(None, "ns/small", "ns/model", *FORM) and not hub_server.jobs
    assert f"{hub_server.endpoint}/jobs/ns/" in do.job(LOGIN, "ns/small", "ns/model", *FORM)
    asked = hub_server.jobs[0]
    assert asked["flavor"] == "cpu-upgrade" and "--push-to ns/small" in asked["command"][-1]


def test_the_search_of_the_hub_fills_the_picker(do, hub_server):
    hub_server.seed("ns/small-model", samples.model())
    found = do.find("small")
    assert found["value"] == "ns/small-model" and found["choices"] == [DEMO, TINY, "ns/small-model"]
    with pytest.raises(gr.Error, match="No model for text has 'mamba' in its name"):
        do.find("mamba ")


def test_another_visitor_meets_nothing_of_a_run(do, hub_server):
    hub_server.seed("ns/model", samples.model(num_hidden_layers=6))
    id, *_ = do.start(None, None, "visitor", "ns/model", *FORM)
    assert do.runs.find(id, do._owner("visitor", None)).id == id
    timer = do.tick("other", id, "")[1]
    assert not timer.active and do.stop("other", id) == [gr.skip()] * 7
    assert "no finished run" in do.publish("other", id, "ns/x", True) and "no finished run" in do.ask("other", id, "hi")
    assert "in the queue" in do.tick("visitor", id, "")[2] or "Waiting" in do.tick("visitor", id, "")[2]


def test_tools_of_programs_plan_and_start_the_same_runs(do, hub_server):
    hub_server.seed("ns/model", samples.model(num_hidden_layers=6))
    plan = do.plan("ns/model", "collapse", 0.4)
    assert plan["target"] and "evaluations" in plan
    first, second = (do.compress("ns/model", "collapse", 0.4) for _ in range(2))
    assert first == second and first["state"] == "queued"
    with pytest.raises(gr.Error, match="no method 'magic'"):
        do.plan("ns/model", "magic")


def clicked(point: object) -> gr.SelectData:
    return gr.SelectData(None, {"index": point, "value": ""})


@pytest.mark.slow
def test_a_finished_front_is_compared_spoken_to_and_published(tmp_path, hub_server):
    do = Actions(Runs(tmp_path / "runs"))
    run = do.runs.begin(small.recipe(tmp_path, search="nsga2"), LOCAL)
    end = time.monotonic() + 300
    while do.runs.state(run) not in ("done", "failed"):
        assert time.monotonic() < end
        time.sleep(0.2)
    numbers, front, members, *_, kept, _, box, card = do.results("", run.id)
    assert f"{run.id}.zip?key=" in kept and str(run.result) in kept, "the person at this machine is told where it lies"
    assert str(run.result) not in results.files(run, "link", strangers=True)
    assert f"?run={run.id}" in do.mine("") and "perplexity" in do.mine("")
    assert "Write a name into the field Name of the repo first" in do.publish("", run.id, "  ", True)
    assert card["value"].count("](data:image/png;base64,") == 1 or "](figures/" not in card["value"]
    assert "Perplexity, text" in numbers and front["visible"] and box["visible"]
    assert card["visible"] and str(tmp_path) not in numbers + card["value"]
    assert members.count("<circle") == len(run.report().front) > 1 and members.count("class='knee'") == 1
    assert "Model #1" in do.member("", run.id, clicked(1))
    assert all("no such model" in do.member("", run.id, clicked(n)) for n in (-1, 99, "1", None))
    assert do.ask("", run.id, "the cat").count("the cat") == 2
    assert "1 to 400 characters" in do.ask("", run.id, " ")
    done = do.publish("", run.id, "ns/small", True)
    assert f"{hub_server.endpoint}/ns/small" in done and hub_server.repo("ns/small").private
    assert run.url == f"{hub_server.endpoint}/ns/small"
    # The same pages for somebody who has only its name.
    shown = do.earlier(None, "ns/small")
    assert "Perplexity, text" in shown and shown.count("<img") == len(list((run.result / "figures").iterdir()))
    assert "Name a repo" in do.earlier(None, "../x") and "role='alert'" in do.earlier(None, "ns/nothing")
