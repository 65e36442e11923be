"""Whole runs with repair and training: what is written is what was measured, and both are kept only if they help."""

import json
import shutil
from collections import Counter

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from hf_prune.blueprint import Blueprint
from hf_prune.data.bundled import demo_folder
from hf_prune.events import Advanced, Healed, Repaired, Stage
from hf_prune.models.noise import quiet
from hf_prune.pipeline import Result, compress, run
from hf_prune.recovery.short_training import BATCH, Candidate, TrainingAware
from hf_prune.results import assemble_blueprint
from hf_prune.session import restore
from tests.families import tiny
from tests.runs import base, leftovers, recipe, text

AFTER = {"repair": True, "repair_sequences": 24, "repair_finalists": 2, "heal": "3k", "heal_batch": 4, "heal_rank": 4,
         "keep_layers": 4, "baselines": ("last",)}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    base(folder / "base")
    text(folder / "text.txt")
    return folder


def made(home, name, **changes):
    given = {"base": str(home / "base"), "data": (str(home / "text.txt"),), "output": str(home / name)}
    return recipe(home, **{**given, **AFTER, **changes})


@pytest.fixture(scope="module")
def untrained(home):
    return run(made(home, "untrained", heal=0))


@pytest.fixture(scope="module")
def told(home):
    return list(compress(made(home, "trained")))


@pytest.fixture(scope="module")
def trained(home, told):
    return Result(home / "trained", told[-1].report)


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_the_repair_lies_beside_the_blueprint_which_rebuilds_the_weights(untrained, home, tmp_path):
    blueprint = Blueprint.from_json((untrained.folder / "blueprint.json").read_text())
    assert any(s.repair for s in blueprint.layers) and (untrained.folder / "repairs/patches.safetensors").is_file()
    again = assemble_blueprint(untrained.folder / "blueprint.json", tmp_path / "again", source=str(home / "base"))
    assert weights(again) == weights(untrained.folder) and leftovers(home) == []
    repair = untrained.report["repair"]
    assert repair["kept"] and repair["kl_after"] < repair["kl_before"] and repair["fits"]
    assert untrained.report["stages"]["names"] == ["dense", "cut", "repaired"]
    assert len(untrained.report["selection"]["finalists"]) == 2


@pytest.mark.slow
def test_training_changes_the_weights_and_is_certified_and_told(trained, untrained, home, tmp_path):
    report = trained.report
    assert report["stages"]["names"] == ["dense", "cut", "repaired", "healed"] and report["healing"]["kept"]
    assert weights(trained.folder) != weights(untrained.folder) and report["certificate"]["ok"]
    assert (trained.folder / "blueprint.json").read_bytes() == (untrained.folder / "blueprint.json").read_bytes()
    assert not (trained.folder / "adapter").exists() and not (trained.folder / "merged").exists()
    assert [n for n in leftovers(home) if n.startswith("trained")] == []
    # The blueprint is that of the cut and its repair, and rebuilds what the training began with.
    again = assemble_blueprint(trained.folder / "blueprint.json", tmp_path / "again", source=str(home / "base"))
    assert weights(again) == weights(untrained.folder)
    healed, repaired = (report["stages"]["text"]["all"][s] for s in ("healed", "repaired"))
    assert healed["perplexity"] < repaired["perplexity"]
    assert report["text"]["all"]["pruned"] == {
        k: healed[k] for k in ("perplexity", "ci", "bits_per_byte", "bits_per_byte_ci")
    }
    card = (trained.folder / "README.md").read_text()
    assert "What the cut cost and what came back" in card and "was trained on" in card


@pytest.mark.slow
def test_a_kept_adapter_leaves_the_weights_and_loads_on_top(trained, untrained, home):
    result = run(made(home, "adapter", keep_adapter=True))
    assert weights(result.folder) == weights(untrained.folder) and not result.report["healing"]["merged"]
    config = json.loads((result.folder / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == ".." and str(home) not in json.dumps(config)
    with quiet(), torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(result.folder)
        merged = AutoModelForCausalLM.from_pretrained(trained.folder)
        tokens = torch.arange(3, 35)[None]
        before = plain(tokens).logits
        adapted = PeftModel.from_pretrained(plain, result.folder / "adapter")
        said = adapted(tokens).logits
        torch.testing.assert_close(said, merged(tokens).logits, rtol=1e-3, atol=1e-3)
    assert float((said - before).abs().max()) > 1e-2
    assert "PeftModel" in (result.folder / "README.md").read_text()


@pytest.mark.slow
def test_another_way_to_train_ends_as_plain_weights(home):
    result = run(made(home, "dora", heal_method="dora", repair=False, drop=("2",), keep_layers=None))
    assert result.report["healing"]["kept"] and result.report["certificate"]["ok"]
    assert result.report["stages"]["names"] == ["dense", "cut", "healed"]
    assert {p.name for p in result.folder.glob("*.safetensors")} == {"model.safetensors"}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "rate"), [("lora", 50.0), ("full", 1e30)])
def test_a_training_that_hurts_leaves_the_weights(home, untrained, method, rate):
    result = run(made(home, f"hurt-{method}-{rate:g}", heal_lr=rate, heal_method=method))
    assert not result.report["healing"]["kept"] and weights(result.folder) == weights(untrained.folder)
    assert not result.report["healing"]["merged"] and not (result.folder / "adapter").exists()
    assert result.report["stages"]["names"] == ["dense", "cut", "repaired"]
    assert result.report["text"]["all"]["pruned"] == untrained.report["text"]["all"]["pruned"]
    assert "did not help" in (result.folder / "README.md").read_text()
    json.loads((result.folder / "report.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_weights_stored_shorter_than_they_are_trained_are_certified(home, tmp_path, method):
    with quiet():
        AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    for file in (home / "base").glob("token*"):
        shutil.copy(file, tmp_path / "base")
    changes = {"base": str(tmp_path / "base"), "output": str(tmp_path / "small"), "dtype": "float32", "drop": ("2",),
               "keep_layers": None, "repair": True, "heal_method": method}  # fmt: skip
    result = run(made(home, "unused", **changes))
    assert result.report["certificate"]["ok"] and result.report["healing"]["kept"]
    assert next(result.model.parameters()).dtype == torch.bfloat16


@pytest.mark.slow
def test_a_repair_that_hurts_is_not_taken(home, monkeypatch):
    measured = restore._repair

    def worse(job, cut, tell):
        blueprint, summary = measured(job, cut, tell)
        return blueprint, {**summary, "kl_after": summary["kl_before"] + 1, "kept": False}

    monkeypatch.setattr(restore, "_repair", worse)
    events = list(compress(made(home, "unrepaired", heal=0, repair_finalists=1)))
    assert [e.kept for e in events if isinstance(e, Repaired)] == [False]
    folder = home / "unrepaired"
    assert not (folder / "repairs").exists() and "did not help" in (folder / "README.md").read_text()
    assert not any(s.repair for s in Blueprint.from_json((folder / "blueprint.json").read_text()).layers)


AWARE = {"heal": 0, "repair": False, "search_heal": "1k", "evaluations": 12}


@pytest.fixture(scope="module")
def aware(home):
    return run(made(home, "aware", **AWARE))


def rounds(folder):
    """How many finalists were asked for with how many tokens, in the journal."""
    lines = (folder / "journal.jsonl").read_text().splitlines()[1:]
    trials = [trial for line in lines for trial in json.loads(line)["trials"] if trial["fidelity"][2]]
    keys = [(trial["digest"], *trial["fidelity"]) for trial in trials]
    assert len(set(keys)) == len(keys), "nothing is scored twice"
    return dict(Counter(trial["fidelity"][2] for trial in trials))


@pytest.mark.slow
def test_finalists_may_be_trained_before_the_choice(aware):
    chosen = aware.report["selection"]
    count = len(chosen["finalists"])
    assert chosen["means"] == ["trained"] and 2 <= count <= 8
    assert all(row["after"] < row["before"] for row in chosen["finalists"])
    asked = rounds(aware.folder)
    assert list(asked) == [1000, 2000, 4000] and 1 <= asked[4000] <= asked[2000] <= -(-count // 2)
    assert asked[1000] <= count and not leftovers(aware.folder.parent)


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 6])
def test_left_between_the_rounds_it_goes_on_and_trains_nobody_twice(aware, home, monkeypatch, after):
    recipe = made(home, f"left-{after}", **AWARE)
    learn, steps, alive = Candidate.learn, [], [after]

    def counted(self, lesson, step):
        steps.append(step)
        learn(self, lesson, step)

    def scores(self, *args):
        if not alive[0]:
            raise KeyboardInterrupt
        alive[0] -= 1
        return judged(self, *args)

    judged = TrainingAware.scores
    monkeypatch.setattr(Candidate, "learn", counted)
    monkeypatch.setattr(TrainingAware, "scores", scores)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    left = sorted(p.name for p in (home / f"left-{after}.run/trials").iterdir())
    assert left and not (home / f"left-{after}").exists()
    alive[0] = 100
    again = run(recipe)
    assert weights(again.folder) == weights(aware.folder) and rounds(again.folder) == rounds(aware.folder)
    assert again.report["selection"] == aware.report["selection"]
    asked = rounds(again.folder)
    # Each round goes on where the one before ended: a candidate's steps are taken once, in either run.
    tokens = BATCH * recipe.data.length
    per_round = [asked[t] * (t // tokens - (t // 2 // tokens if t > 1000 else 0)) for t in asked]
    assert len(steps) == sum(per_round)


@pytest.mark.slow
def test_events_tell_of_every_stage(told, trained):
    stages = [e.name for e in told if isinstance(e, Stage)]
    assert stages[-4:] == ["repair", "assemble", "heal", "report"] and stages.count("select") == 2
    (repaired,), (healed,) = ([e for e in told if isinstance(e, kind)] for kind in (Repaired, Healed))
    report = trained.report
    assert repaired == Repaired(report["repair"]["kl_before"], report["repair"]["kl_after"], True)
    assert healed == Healed(report["healing"]["before"], report["healing"]["after"], 23 * 4 * 32, True)
    assert healed.tokens <= 3000 and healed.after < healed.before
    advanced = [e for e in told if isinstance(e, Advanced) and e.stage == "heal"]
    assert advanced[-1].done == advanced[-1].total == 23
    looks = [[e.done * 4 * 32, e.value] for e in advanced if e.value is not None]
    assert looks == report["healing"]["curve"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_families_are_repaired_and_trained_to_plain_weights(home, tmp_path, family):
    tiny(family, vocab_size=512).save_pretrained(tmp_path / "m")
    for file in (demo_folder() / "stories260K").glob("*token*"):
        shutil.copy(file, tmp_path / "m")
    changes = {"base": str(tmp_path / "m"), "output": str(tmp_path / "out"), "drop": ("1", "3"), "keep_layers": None}
    report = run(made(home, "unused", **changes)).report
    assert report["certificate"]["ok"] and report["stages"]["names"][-1] == "healed"
