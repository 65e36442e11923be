"""Whole runs over several parents: what they are compared with, what is written, published, rebuilt and trained."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM

from hf_prune import compress, run
from hf_prune.blueprint import Blueprint
from hf_prune.data.task_scores import score
from hf_prune.errors import IncompatibleSources, SourceError
from hf_prune.evaluation.comparison import block_influence, influence
from hf_prune.evaluation.objectives import values
from hf_prune.events import Advanced, Finished, Scored, Tuned
from hf_prune.recovery.mixes import midway, tune, tune_repair
from hf_prune.recovery.repair import STRENGTHS, evenly, weaken
from hf_prune.report.retention import standings
from hf_prune.results import assemble_blueprint, heal_folder, report_folder
from hf_prune.session import restore
from hf_prune.session.selection import Winner
from hf_prune.session.session import open_session
from tests.runs import DEPTH, TASKS, finished, leftovers, recipe, relatives, searched, stitching


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return relatives(tmp_path_factory.mktemp("stitch"))


@pytest.fixture(scope="module")
def done(home):
    return run(stitching(home, repair=True, repair_sequences=24))


def test_a_plan_needs_no_variant_to_be_opened(home):
    session = open_session(stitching(home))
    assert session.inputs.target.remove == 2 and [*session.inputs.names] == ["base", "tuned", "lora"]
    assert session.inputs.sources[2].adapter.startswith("lora@") and session.inputs.base.depth == DEPTH


def test_every_corpus_has_the_teacher_that_knows_it_best(home):
    session = open_session(stitching(home))
    session.evaluator  # noqa: B018
    assert len(session.known) == 3
    for corpus in session.evidence.corpora:
        best = session.known[session.teacher(corpus)].texts[session.evidence.corpora.index(corpus)]
        assert best == min(m.texts[session.evidence.corpora.index(corpus)] for m in session.known)
    assert session.known[session.dense].text == min(m.text for m in session.known)


def test_block_influence_of_a_parent_is_that_of_its_own_run(home):
    session = open_session(stitching(home))
    alone = open_session(recipe(home, base=str(home / "tuned"), data=(str(home / "text.txt"),), output=str(home / "x")))
    ours = influence(session.evaluator.states(session.inputs.identity(1), session.recipe.data.sequences))
    theirs = block_influence(alone.evaluator.dense.run(alone.evidence.windows["search"].tokens))
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_warm_starts_are_cuts_of_every_parent_and_of_blends_that_lean_on_the_base(home):
    session = open_session(stitching(home))
    starts, space = (
        session.inputs.method.starts(session.scorer.space, session.facts(judged=True), ()),
        session.scorer.space,
    )
    assert len(starts) == len(set(starts)) == 2 * (1 + 4 + 3)
    assert all(space.removed(g) == 2 for g in starts)
    mixes = {gene.mixes[0][1:] for genome in starts for gene in space.genes(genome)}
    assert mixes == {(4, 4, 4), (9, 2, 1), (6, 3, 3), (3, 5, 4), (0, 6, 6), (12, 0, 0), (0, 12, 0), (0, 0, 12)}


def test_what_the_sweep_asked_is_paired_with_what_live_models_answer(home):
    session = open_session(stitching(home))
    told, variant = [], session.inputs.identity(1)
    known = standings(session, Winner(variant, variant), lambda *now: told.append(now))
    layers = [n for n, _ in told]
    assert layers == sorted(layers) and layers[-1] == told[0][1] and len(set(layers)) > DEPTH
    assert sorted(t.digest for t in known.tasks) != sorted(t.digest for t in session.evidence.reported), (
        "another order of items"
    )
    for task in known.tasks:
        live, ours = (
            score(session.bank.model, session.inputs.tokenizer, task),
            known.answers(session.inputs.identity(0))[task.name],
        )
        assert (live.correct == ours.correct).all() and not live.correct.all()
        assert live.log_likelihoods == pytest.approx(ours.log_likelihoods, rel=1e-3)


def test_the_report_compares_with_every_way_to_get_there(done):
    report = done.report
    names = [row["name"] for row in report["retention"]["rows"]]
    assert names[:5] == ["parent"] * 3 + ["hf_prune", "repaired"]
    models = ("base", "tuned", "lora", "the mean")
    cuts = {f"{kind}:{model}" for kind in ("shortgpt", "greedy") for model in models}
    assert set(names[5:]) == cuts | {"cut-first", "removal", "selection"}
    winner = report["retention"]["rows"][4]
    for row in report["retention"]["rows"]:
        for how in ("", "_norm"):
            shares = row[f"accuracy{how}"].values()
            assert row[f"mean_accuracy{how}"] == pytest.approx(sum(shares) / len(shares))
            ahead = row[f"mean_accuracy{how}"] - winner[f"mean_accuracy{how}"]
            assert row[f"difference{how}"] == pytest.approx(ahead)
    beside = report["beside_parents"]
    assert beside["all"]["pruned"] == report["text"]["all"]["pruned"] and report["teachers"].items() == {
        c: row["best"] for c, row in beside.items() if c != "all"}.items()  # fmt: skip
    assert beside["all"]["log_ratio"] == pytest.approx(
        np.log(beside["all"]["pruned"]["perplexity"] / beside["all"]["best_parent"]["perplexity"])
    )
    for task, row in report["tasks"].items():
        for how in ("accuracy", "accuracy_norm"):
            assert row["pruned"][how] == winner[how][task]
            assert row["dense"][how] in [r[how][task] for r in report["retention"]["rows"][:3]]
    best = max(report["retention"]["rows"][:3], key=lambda r: r["mean_accuracy"])
    assert best["mean_retention"] == 1 and report["retention"]["reference"] in ("base", "tuned", "lora")
    assert "--variant tuned --variant lora" in report["command"]
    assert len(report["origins"]) == DEPTH - 2 and (done.folder / "figures/parents.png").is_file()
    for layer in report["origins"]:
        assert sum(layer["parents"].values()) == pytest.approx(1)
    card = (done.folder / "README.md").read_text()
    assert "acc_norm of lm_eval" in card and card.count("| above this model |") == 2
    assert "base_model_relation: merge" not in card, "local parents are no repos of the Hub"
    assert all(f"figures/{p.name}" in card for p in (done.folder / "figures").iterdir()), "every figure is shown"
    assert str(done.folder.parent) not in card and report["certificate"]["ok"]
    assert "# base + tuned + lora with 4 of 6 layers" in card
    assert "What it keeps of every parent" in card and leftovers(done.folder.parent) == []


def test_the_result_is_the_blueprint_and_loads_without_us(done, home, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(done.folder)
    assert model.config.num_hidden_layers == DEPTH - 2
    sources = [str(home / n) for n in ("base", "tuned", "lora")]
    again = assemble_blueprint(done.folder / "blueprint.json", tmp_path / "again", source=sources)
    assert (again / "model.safetensors").read_bytes() == (done.folder / "model.safetensors").read_bytes()
    with pytest.raises(SourceError, match="say where it is"):
        assemble_blueprint(done.folder / "blueprint.json", tmp_path / "none")
    with pytest.raises(IncompatibleSources, match="weights would differ"):
        assemble_blueprint(done.folder / "blueprint.json", tmp_path / "few", source=sources[:1])


@pytest.mark.slow
def test_left_at_any_batch_it_goes_on_and_ends_the_same(done, home):
    wanted, seen = stitching(home, "left", repair=True, repair_sequences=24), 0
    for after in (1, 4, 9):
        for event in compress(wanted):
            seen += isinstance(event, Scored)
            if seen >= after:
                break
    assert not (home / "left").exists()
    again = run(wanted)
    for name in ("model.safetensors", "blueprint.json"):
        assert (again.folder / name).read_bytes() == (done.folder / name).read_bytes()


def asking(folder):
    """Changes of a recipe whose search asks a task."""
    # A word of one token is likelier by character than strings of several, whatever the weights; mostly it is right.
    choices = ["the", "zqx", "qjz"]
    lines = [{"context": "the cat sat on", "choices": choices, "answer": int(i % 4 == 3)} for i in range(24)]
    (folder / "cats.search.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = (str(folder / "cats.search.jsonl"),)
    return {"search_tasks": files, "search_items": 12, "selection_items": 8, "objective": "abilities"}


@pytest.mark.parametrize(
    ("objective", "more", "items"), [("kl", None, 0), ("abilities", None, 12), ("abilities", 16, 16)]
)
def test_mixes_are_taken_as_far_as_serves_the_objective(home, tmp_path, objective, more, items):
    changes = {**asking(tmp_path), "objective": objective, "tune_items": more}
    session = open_session(stitching(home, output=str(tmp_path / "out"), tune=4, **changes))
    first = session.evidence.selection.first_item
    assert session.evidence.full.items == 12 and first == max(12, items), "none is learned from and chosen by"
    cut = session.scorer.blueprint(session.scorer.space.random(np.random.default_rng(0)))
    found, summary = restore._tune(session, cut, lambda event: None)
    (kept,) = (tmp_path / "out.run/tuned").glob("*.json")
    learned = Blueprint.from_json(kept.read_text())
    ways = [cut, *(midway(cut, learned, strength) for strength in STRENGTHS)]
    worth = [values(m, session.columns)[0] for m in session.evaluator.evaluate(ways, session.evidence.selection)]
    best = min(range(1, len(ways)), key=lambda n: worth[n])
    assert found == ways[best] != cut and summary["strength"] == STRENGTHS[best - 1]
    assert (summary["before"], summary["after"]) == (worth[0], worth[best])
    assert summary["kept"] == (worth[best] < worth[0]) and summary["items"] == items
    assert learned == tune(session.evaluator, cut, replace(session.evidence.text, items=items), 4).blueprint
    assert (
        learned != tune(session.evaluator, cut, replace(session.evidence.text, items=0 if items else 12), 4).blueprint
    )


@pytest.mark.slow
def test_mixes_are_tuned_and_the_search_is_what_they_are_compared_with(home, tmp_path):
    wanted = stitching(home, output=str(tmp_path / "out"), baselines=("greedy",), tune=4, repair=True,
                       repair_sequences=16)  # fmt: skip
    told = []
    for event in compress(wanted):
        told.append(event)
        if isinstance(event, Tuned):
            break
    assert len([e for e in told if isinstance(e, Advanced) and e.stage == "tune"]) == 4
    (kept,) = (tmp_path / "out.run/tuned").glob("*.json")
    learned = Blueprint.from_json(kept.read_text()).digest
    result = run(wanted)
    report = result.report
    tuning = report["tuning"]
    assert tuning["kept"] and tuning["after"] < tuning["before"] and tuning["steps"] == 4 and told[-1].kept
    cut, searched = (next(r for r in report["retention"]["rows"] if r["name"] == n) for n in ("hf_prune", "searched"))
    assert cut["digest"] != searched["digest"]
    assert (cut["digest"] == learned) == (tuning["strength"] == 1) and tuning["strength"] in STRENGTHS
    shares = [layer["parents"] for layer in report["origins"]]
    assert all(sum(s.values()) == pytest.approx(1) for s in shares)
    assert "Weights of the mixes by gradient (4 steps on 4 search windows" in (result.folder / "README.md").read_text()
    assert report["certificate"]["ok"] and not (tmp_path / "out.run").exists()


@pytest.mark.slow
def test_it_is_measured_again_and_trained_later(done, home, tmp_path):
    where = {"base": str(home / "base"), "variants": (str(home / "tuned"), str(home / "lora")),
             "data": (str(home / "text.txt"),), "tasks": TASKS}  # fmt: skip
    copy = Path(shutil.copytree(done.folder, tmp_path / "copy"))
    told = list(report_folder(copy, **where, report_sequences=3))
    after = finished(told).report
    assert [r["digest"] for r in after["retention"]["rows"]] == [r["digest"] for r in done.report["retention"]["rows"]]
    steps = [e for e in told if isinstance(e, Advanced)]
    assert {e.stage for e in steps} == {"report"} and steps[-1].done == steps[-1].total > 1
    *_, last = heal_folder(copy, output=tmp_path / "healed", heal="2k", heal_batch=4, heal_rank=4, **where)
    assert isinstance(last, Finished) and last.report["healing"]["before"] > 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "healed").config.num_hidden_layers == DEPTH - 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"mix_halves": True},
        {"merges": ("linear", "slerp", "ties:0.5", "dare:0.5", "passthrough:0.9")},
        {"search": "smac", "evaluations": 24},
    ],
    ids=["halves", "merges", "smac"],
)
def test_other_ways_to_search_come_to_a_model(home, tmp_path, changes):
    wanted = stitching(home, **{"baselines": (), **changes, "output": str(tmp_path / "out")})
    assert searched(wanted) == f"{DEPTH - 2} layers"


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"search": "nsga2", "drop_layers": None, "repair": False}, {"heal": "2k", "heal_batch": 4, "mix_halves": True}],
    ids=["front", "healed"],
)
def test_other_ways_to_stitch_end_as_a_certified_model(home, tmp_path, changes):
    result = run(
        stitching(home, **{"repair": True, "repair_sequences": 16, **changes, "output": str(tmp_path / "out")})
    )
    assert result.report["certificate"]["ok"]
    assert AutoModelForCausalLM.from_pretrained(result.folder).config.num_hidden_layers < DEPTH


def test_where_tasks_are_asked_a_repair_goes_as_far_as_serves_the_objective(home, tmp_path):
    session = open_session(stitching(home, output=str(tmp_path / "out"), repair_sequences=16, **asking(tmp_path)))
    cut = session.scorer.blueprint(session.scorer.space.random(np.random.default_rng(0)))
    found, summary = restore._repair(session, cut, lambda event: None)
    assert set(session.bank.named(found)) == set(session.bank.patches), "the ways not taken are let go"
    whole = session.repaired(cut, 16).blueprint
    ways = [cut, *(weaken(session.bank, whole, evenly(whole, strength)) for strength in STRENGTHS)]
    worth = [values(m, session.columns)[0] for m in session.evaluator.evaluate(ways, session.evidence.selection)]
    best = min(range(1, len(ways)), key=lambda n: worth[n])
    assert found == ways[best] and summary["strength"] == STRENGTHS[best - 1] and summary["learning"] is None
    assert summary["kept"] == (worth[best] < worth[0])


@pytest.mark.parametrize("objective", ["abilities", "kl"])
def test_where_mixes_are_learned_from_tasks_so_is_how_far_each_half_of_a_repair_goes(home, tmp_path, objective):
    changes = {**asking(tmp_path), "objective": objective, "repair_sequences": 16}
    session = open_session(stitching(home, output=str(tmp_path / "out"), tune=4, **changes))
    cut = session.scorer.blueprint(session.scorer.space.random(np.random.default_rng(0)))
    told = []
    found, summary = restore._repair(session, cut, told.append)
    assert set(session.bank.named(found)) == set(session.bank.patches), "the ways not taken are let go"
    steps = [event for event in told if event.value is not None]
    if objective == "kl":
        assert summary["learning"] is None and not steps
        return
    whole, learning = session.repaired(cut, 16).blueprint, summary["learning"]
    shares = tune_repair(session.evaluator, whole, summary["strength"], session.evidence.learning, 4)
    assert replace(session.evidence, over=True).learning.items == 0, (
        "a finished result is trained without its search tasks"
    )
    assert len(steps) == 4 and learning["shares"] == [list(pair) for pair in shares]
    ways = [weaken(session.bank, whole, taken) for taken in (evenly(whole, summary["strength"]), shares)]
    worth = [values(m, session.columns)[0] for m in session.evaluator.evaluate(ways, session.evidence.selection)]
    assert worth == pytest.approx([learning["before"], learning["after"]]) and learning["items"] == 12
    assert found == ways[learning["kept"]] and learning["kept"] == (worth[1] < worth[0])


def rounded(value):
    """The same with every number to six digits."""
    return json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.6g}"))


@pytest.mark.slow
def test_tasks_may_be_what_is_searched_for(home, tmp_path):
    changes = {**asking(tmp_path), "output": str(tmp_path / "out"), "baselines": ("greedy",), "repair": True}
    told = list(compress(stitching(home, repair_sequences=16, **changes)))
    report, folder = told[-1].report, tmp_path / "out"
    assert any(isinstance(e, Advanced) and e.stage == "report" and e.done == e.total for e in told)
    assert report["objective"] == "abilities" and report["certificate"]["ok"]
    rows = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()[1:]]
    asked_for = {tuple(t["fidelity"]) for row in rows for t in row["trials"]}
    assert {f[4:] for f in asked_for} == {(), (12, 0), (8, 12), (6, 0, 1), (12, 0, 1), (8, 12, 1)}
    cuts = [t["digest"] for row in rows for t in row["trials"] if not t["fidelity"][4:]]
    assert len(cuts) == 4 * sum(range(DEPTH - 1, DEPTH + 1)), "SLEB looks at text alone"
    kept = [json.loads(line) for line in (folder / "items.jsonl").read_text().split("\n") if line]
    keys = {(row["digest"], *row["fidelity"]) for row in kept}
    asked = {(t["digest"], *t["fidelity"][4:6]) for row in rows for t in row["trials"] if t["fidelity"][4:]}
    assert asked <= keys and all(row["retention"] for row in report["retention"]["rows"])
    (tmp_path / "cats.search.jsonl").unlink()
    variants = (str(home / "tuned"), str(home / "lora"))
    given = {"base": str(home / "base"), "variants": variants, "data": (str(home / "text.txt"),), "tasks": TASKS}
    again = finished(report_folder(folder, **given)).report
    # The last bits depend on what shares the sweep.
    assert rounded(again["retention"]) == rounded(report["retention"]), "a search that is over needs no tasks"
    assert {len(row["right"]["cats"]) for row in kept if row["fidelity"] == [8, 12]} == {8}


@pytest.mark.slow
def test_from_the_hub_to_the_hub(home, hub_server, tmp_path):
    hub_server.seed("ns/base", home / "base")
    hub_server.seed("ns/tuned", home / "tuned")
    hub_server.seed("ns/lora", home / "lora")
    wanted = recipe(home, base="ns/base", variants=("ns/tuned", "ns/lora"), method="stitch", drop_layers=2,
                    evaluations=20, baselines=("greedy",), data=(str(home / "text.txt"),), output=str(tmp_path / "out"),
                    push_to="ns/stitched")  # fmt: skip
    result = run(wanted)
    info = HfApi().model_info("ns/stitched")
    card = info.card_data.to_dict()
    assert set(card["base_model"]) == {"ns/base", "ns/tuned", "ns/lora"} and card["base_model_relation"] == "merge"
    pinned = Blueprint.from_json((result.folder / "blueprint.json").read_text()).sources
    assert [s.repo for s in pinned] == ["ns/base", "ns/tuned", "ns/base"] and all(len(s.revision) == 40 for s in pinned)
    rebuilt = assemble_blueprint(result.folder / "blueprint.json", tmp_path / "again")
    assert (rebuilt / "model.safetensors").read_bytes() == (result.folder / "model.safetensors").read_bytes()
    assert AutoModelForCausalLM.from_pretrained("ns/stitched").config.num_hidden_layers == DEPTH - 2
